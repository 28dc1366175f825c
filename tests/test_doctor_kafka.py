"""Topics made and listed, and the doctor beside a real Kafka: what it sees, and what if nobody is there."""

from __future__ import annotations

import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from dataflows import doctor_kafka
from tests.commands import Done, headrace
from tests.flows import Place, free_ports, until
from tests.kafka_server import create_topic
from tests.test_doctor import told, wrong

CHECKS = ["brokers", "topics", "rights", "group", "transactions", "sizes", "lag", "clock"]
HOUR_MS = 3_600_000


@dataclass
class Bench:
    """A place, a broker, and names of topics that are this test's own."""

    place: Place
    address: str
    name: str

    def headrace(self, *arguments: str, **settings: object) -> Done:
        """Run a command here."""
        mine = {
            f"TOPIC_{kind}": f"{self.name}.{kind.lower()}" for kind in ("SIGNALS", "DOCS", "LATE", "DLQ", "RESULTS")
        }
        named = {"KAFKA_BROKERS": self.address, "KAFKA_GROUP_ID": self.name, **mine, **settings}
        return headrace(self.place, *arguments, **named)

    @property
    def signals(self) -> str:
        """The topic of signals."""
        return f"{self.name}.signals"

    @cached_property
    def admin(self) -> AdminClient:
        """A client that may do everything."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def put(self, *stamps_ms: int) -> None:
        """A message for each stamp."""
        producer = Producer({"bootstrap.servers": self.address, "log_level": 0})
        for stamp in stamps_ms:
            producer.produce(self.signals, b"x", partition=0, timestamp=stamp)
        assert producer.flush(30) == 0

    def read_up_to(self, offset: int) -> None:
        """Let the group say so."""
        places = [TopicPartition(self.signals, 0, offset)]
        self.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(self.name, places)])[self.name].result(30)


@pytest.fixture
def bench(tmp_path: Path, kafka: str) -> Iterator[Bench]:
    """A bench without topics yet."""
    with Place(tmp_path / "place") as place:
        yield Bench(place, kafka, f"doctor-{uuid.uuid4().hex}")


def said(done: Done, check: str) -> list[tuple[str, str]]:
    """(state, words) of one check."""
    return [(record["state"], record["says"]) for record in told(done) if record["check"] == check]


def test_topics_are_made_once(bench: Bench) -> None:
    """What is missing is made, what is there stays as it is, and the list tells both; none before."""
    before = bench.headrace("topics", "list", "--json").records
    assert [record["partitions"] for record in before] == [0] * 5
    create_topic(bench.address, f"{bench.name}.late", 7)
    asked = ("topics", "create", "--partitions", "4", "--json")
    first = bench.headrace(*asked).records
    assert [record["setting"] for record in first] == [
        f"TOPIC_{n}" for n in ("SIGNALS", "DOCS", "LATE", "DLQ", "RESULTS")
    ]
    assert [record["done"] for record in first] == ["created", "created", "there", "created", "created"]
    assert [record["partitions"] for record in first] == [4, 4, 7, 4, 4]
    assert {record["done"] for record in bench.headrace(*asked).records} == {"there"}
    until(lambda: all(r["bytes_max"] for r in bench.headrace("topics", "list", "--json").records), "topics to be seen")
    after = {record["setting"]: record for record in bench.headrace("topics", "list", "--json").records}
    assert [record["partitions"] for record in after.values()] == [4, 4, 7, 4, 4]
    assert {record["replication"] for record in after.values()} == {1}
    assert after["TOPIC_DLQ"]["retention_seconds"] == 30 * 86_400
    assert after["TOPIC_SIGNALS"]["bytes_max"] == (1 << 20) + (1 << 16)
    assert after["TOPIC_RESULTS"]["messages"] == 0
    text = bench.headrace("topics", "list", COLUMNS=200).text
    assert re.search(rf"{bench.name}\.dlq +TOPIC_DLQ +4 +1 +0 +30 d +1,114,112", text)


@pytest.mark.parametrize(
    ("words", "settings", "code", "says"),
    [
        ("create --replication 3", {}, 2, "lower --replication"),
        ("create", {"KAFKA_BROKERS": ""}, 2, "KAFKA_BROKERS is not set"),
        ("list", {"KAFKA_BROKERS": ""}, 2, "KAFKA_BROKERS is not set"),
    ],
)
def test_topics_that_cannot_be_made(
    bench: Bench, words: str, settings: dict[str, object], code: int, says: str
) -> None:
    """One sentence says why, and nothing is printed."""
    done = bench.headrace("topics", *words.split(), **settings)
    assert (done.code, done.out, done.err.count("\n")) == (code, b"", 1)
    assert says in done.err


def test_all_is_well(bench: Bench) -> None:
    """Once the topics are there nothing is wrong, before the first signal and after."""
    bench.headrace("topics", "create")
    done = bench.headrace("doctor", "--json")
    assert done.code == 0
    checks = {record["check"]: record["state"] for record in told(done)}
    assert list(checks)[-len(CHECKS) :] == CHECKS
    assert {check for check, state in checks.items() if state != "ok"} == {"online", "lag", "clock"}
    bench.headrace("produce", "--rate", "1e6", "--events", "100")
    bench.read_up_to(0)
    done = bench.headrace("doctor", "--json")
    assert done.code == 0
    ((state, words),) = said(done, "lag")
    assert (state, words) == ("ok", "100 messages are to be read in 3 partitions")
    ((state, words),) = said(done, "clock")
    assert state == "ok"
    assert "the broker's" in words


def test_missing_topics(bench: Bench) -> None:
    """Each missing topic is named with the command that makes it; documents on Kafka are nobody's duty."""
    found = said(bench.headrace("doctor", "--json"), "topics")
    assert [state for state, _ in found] == ["wrong", "skipped", "wrong", "wrong", "wrong"]
    assert all("headrace topics create" in words for state, words in found if state == "wrong")
    assert len(said(bench.headrace("doctor", "--json", KAFKA_RESULTS=0), "topics")) == 4


def test_sizes_that_do_not_agree(bench: Bench) -> None:
    """Topics that take more than the flow, or less than it writes, and signals that are compacted away."""
    create_topic(bench.address, bench.signals, 1, {"cleanup.policy": "compact", "max.message.bytes": "5000000"})
    create_topic(bench.address, f"{bench.name}.dlq", 1)
    found = [words for state, words in said(bench.headrace("doctor", "--json"), "sizes") if state == "wrong"]
    assert len(found) == 3
    assert "takes messages of 5,000,000 bytes, EVENT_BYTES_MAX refuses above 1,048,576" in found[0]
    assert "cleanup.policy to delete" in found[1]
    assert "raise max.message.bytes" in found[2]


def test_what_is_gone_and_what_soon_will_be(bench: Bench) -> None:
    """Offsets that Kafka has deleted, and a lag that retention is about to overtake, are wrong."""
    create_topic(bench.address, bench.signals, 1, {"retention.ms": str(24 * HOUR_MS)})
    now = int(time.time() * 1000)
    bench.put(now - 20 * HOUR_MS, now - 19 * HOUR_MS, now - HOUR_MS, now)
    bench.read_up_to(1)
    found = dict(said(bench.headrace("doctor", "--json"), "lag"))
    assert "deleted in less than half of its 24 h of retention" in found["wrong"]
    assert found["ok"] == "3 messages are to be read in 1 partitions"
    bench.read_up_to(2)
    assert [state for state, _ in said(bench.headrace("doctor", "--json"), "lag")] == ["ok"]
    bench.admin.delete_records([TopicPartition(bench.signals, 0, 3)])[TopicPartition(bench.signals, 0)].result(30)
    found = dict(said(bench.headrace("doctor", "--json"), "lag"))
    assert "was read up to offset 2, but begins at 3 now: KAFKA_OFFSET_RESET" in found["wrong"]
    assert found["ok"] == "1 messages are to be read in 1 partitions"


def test_a_clock_that_is_behind(bench: Bench) -> None:
    """A stamp from the future says that one of two clocks is wrong."""
    create_topic(bench.address, bench.signals, 1)
    bench.put(int(time.time() * 1000) + HOUR_MS // 2)
    ((state, words),) = said(bench.headrace("doctor", "--json"), "clock")
    assert state == "wrong"
    assert "this clock is 1," in words
    assert "behind a producer's" in words


def test_a_group_that_others_use(bench: Bench) -> None:
    """Members of the group are somebody else: they and a run would overwrite each other's offsets."""
    create_topic(bench.address, bench.signals, 1)
    consumer = Consumer({"bootstrap.servers": bench.address, "group.id": bench.name, "log_level": 0})
    try:
        consumer.subscribe([bench.signals])
        until(lambda: consumer.poll(0.1) is None and consumer.assignment(), "the group to be joined")
        ((state, words),) = said(bench.headrace("doctor", "--json"), "group")
    finally:
        consumer.close()
    assert (state, words) == (
        "wrong",
        f"others consume as the group `{bench.name}`: name another one in KAFKA_GROUP_ID",
    )
    assert said(bench.headrace("doctor", "--json", KAFKA_GROUP_ID=bench.name + "-x"), "group")[0][0] == "ok"


@pytest.mark.parametrize("who", ["nobody", "somebody silent"])
def test_bounded_when_nothing_answers(place: Place, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """One finding says so, all that needs the brokers is skipped, and it ends."""
    monkeypatch.setattr(doctor_kafka, "_REACH_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = free_ports(1)[0] if who == "nobody" else silent.getsockname()[1]
        started = time.monotonic()
        done = headrace(place, "doctor", "--json", KAFKA_BROKERS=f"127.0.0.1:{port}")
        assert time.monotonic() - started < 30
    found = wrong(done)
    assert list(found) == ["brokers"]
    assert ("nothing listens there" if who == "nobody" else "nothing comes back") in found["brokers"]
    states: dict[str, Any] = {record["check"]: record["state"] for record in told(done)}
    assert {states[check] for check in CHECKS[1:]} == {"skipped"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty place."""
    with Place(tmp_path / "place") as made:
        yield made
