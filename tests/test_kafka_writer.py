"""What only Kafka can do to a writer: transactions cut short, rivals of its name, limits of topics, dead brokers."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from dataflows.buses import kafka_writer
from dataflows.buses.kafka import KafkaBus
from dataflows.observability.events import Event, PlaceForgotten, watch
from operators.errors import ConfigError, ResumeError, UnavailableError
from operators.messages import Message
from stores.log_writer import LogWriter
from tests.crash.kafka_append import WRITER, batch, place
from tests.flows import ROOT
from tests.kafka_flows import consume_all
from tests.kafka_server import create_topic, own_broker

WRITING = "dataflows.buses.kafka_writer:KafkaWriter"
POINTS = [
    f"{WRITING}._open:before:1",
    f"{WRITING}._begin:before:1",
    f"{WRITING}._begin:after:1",
    f"{WRITING}._send:after:1",
    f"{WRITING}._again:after:1",
    f"{WRITING}._again:after:2",
    f"{WRITING}.append:after:1",
]
"""`_again` sends the offset first, then commits."""


@pytest.fixture
def topic(kafka: str) -> str:
    """A topic of three partitions."""
    name = f"t-{uuid.uuid4().hex}"
    create_topic(kafka, name, 3)
    return name


@pytest.fixture
def bus(kafka: str) -> Iterator[KafkaBus]:
    """The bus of the shared broker."""
    with closing(KafkaBus(kafka, properties={})) as opened:
        yield opened


def values(address: str, topic: str) -> list[bytes]:
    """What a reader of committed messages finds, sorted."""
    return sorted(value for _, value, _ in consume_all(address, topic))


def batches(count: int) -> list[bytes]:
    """The messages of the first batches, sorted."""
    return sorted(message.value for number in range(count) for message in batch(number))


def keyed(*values: bytes) -> list[Message]:
    """Messages of one partition."""
    return [Message(value, b"k") for value in values]


def test_killed_between_any_two_steps(kafka: str, topic: str) -> None:
    """A writer that dies (-9) anywhere and repeats its last batch has written each message once."""
    for number, point in enumerate(POINTS):
        again = max(0, number - 1)
        command = [sys.executable, "-m", "tests.crash.kafka_append", kafka, topic, str(again), str(number), point]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
        assert done.returncode == -9, (point, done.stderr.decode())
    last = len(POINTS) - 1
    command = [sys.executable, "-m", "tests.crash.kafka_append", kafka, topic, str(last), str(last)]
    subprocess.run(command, cwd=ROOT, timeout=120, check=True)
    assert values(kafka, topic) == batches(len(POINTS))


def test_two_writers_of_one_name_write_everything_once(kafka: str, topic: str, bus: KafkaBus) -> None:
    """The one that was fenced finds out what the other has done, and does not do it again."""
    with closing(KafkaBus(kafka, properties={})) as other:
        bus.append(topic, WRITER, batch(0), at=0)
        for number in (1, 2):
            for each in (other, bus):
                each.append(topic, WRITER, batch(number), at=place(number))
    assert values(kafka, topic) == batches(3)
    with pytest.raises(ResumeError, match="another copy"):
        bus.append(topic, WRITER, keyed(b"x"), at=place(3) + 1)


def test_a_rival_that_writes_the_same_once_the_place_is_known_is_no_stranger(
    kafka: str, topic: str, bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that end together both append what is left: whoever comes second finds it done."""
    real = kafka_writer.KafkaWriter._open
    opened: list[kafka_writer.KafkaWriter] = []

    def open_then_rival(writer: kafka_writer.KafkaWriter) -> None:
        real(writer)
        if not opened:
            opened.append(writer)
            with closing(KafkaBus(kafka, properties={})) as rival:
                rival.append(topic, WRITER, batch(0), at=0)

    monkeypatch.setattr(kafka_writer.KafkaWriter, "_open", open_then_rival)
    assert bus.append(topic, WRITER, batch(0), at=0) == place(1)
    assert values(kafka, topic) == batches(1)


def test_a_snapshot_that_is_older_than_the_log_is_refused(kafka: str, topic: str, bus: KafkaBus) -> None:
    """A folder out of a backup: what follows would be taken for repeats. The last snapshot but one is right."""
    writer = logging_to(bus, topic)
    states = [empty := writer.snapshot()]
    for value in (b"a", b"b", b"c", b"d"):
        writer.write(keyed(value))
        states.append(writer.snapshot())
    for old in states[1:3]:
        with closing(KafkaBus(kafka, properties={})) as again, pytest.raises(ResumeError, match="another copy"):
            logging_to(again, topic, old)
    with closing(KafkaBus(kafka, properties={})) as again:
        logging_to(again, topic, states[3])
    with closing(KafkaBus(kafka, properties={})) as again:
        late = logging_to(again, topic, empty)
        late.write(keyed(b"e"))
        late.snapshot()
        with pytest.raises(ResumeError, match="another copy"):
            late.snapshot()
    assert values(kafka, topic) == [b"a", b"b", b"c"]


def logging_to(bus: KafkaBus, topic: str, resume: bytes | None = None) -> LogWriter:
    """A writer that owns the name `w` on the topic."""
    return LogWriter(lambda messages, at: bus.append(topic, "w", messages, at=at), resume, durable=True)


def test_a_message_that_is_too_large_is_named_and_blocks_nobody(kafka: str, bus: KafkaBus) -> None:
    """The topic and the size are told; what was sent with it is not seen, and the next append works."""
    name = f"small-{uuid.uuid4().hex}"
    create_topic(kafka, name, 1, {"max.message.bytes": "2000"})
    large = random.Random(1).randbytes(8000)  # what does not become small when it is packed
    with pytest.raises(ConfigError, match=rf"`{name}`.*max\.message\.bytes") as caught:
        bus.append(name, "w", keyed(b"before", large), at=0)
    assert "8001 bytes" in str(caught.value)
    bus.append(name, "w", keyed(b"after"), at=0)
    assert values(kafka, name) == [b"after"]


def test_a_topic_that_does_not_exist_is_named(bus: KafkaBus) -> None:
    """After a short doubt, for a broker that has just started may not know it yet."""
    with pytest.raises(ConfigError, match=r"topic `nowhere` does not exist.*headrace topics create"):
        bus.append("nowhere", "w", keyed(b"x"), at=0)


def test_a_place_that_kafka_has_forgotten(kafka: str, topic: str, bus: KafkaBus) -> None:
    """Its group's offset is gone: the writer goes on where its snapshot says, and tells that."""
    heard: list[Event] = []
    watch(heard.append)
    bus.append(topic, "w", keyed(b"a", b"b"), at=0)
    bus.close()
    name = kafka_writer.NAME.format(writer="w", topic=topic)
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_consumer_groups([name])[name].result(30)
    with closing(KafkaBus(kafka, properties={})) as again:
        assert again.append(topic, "w", keyed(b"c"), at=2) == 3
        assert again.written(topic, "w") == 3
    assert heard[-1:] == [PlaceForgotten(topic, name, 2)]
    assert values(kafka, topic) == [b"a", b"b", b"c"]


def test_a_writer_that_has_nothing_to_write_keeps_its_place(
    kafka: str, topic: str, bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets that do not move are forgotten in time: they are written again, and nothing else is."""
    bus.append(topic, "w", keyed(b"a"), at=0)
    kept: list[int] = []
    monkeypatch.setattr(kafka_writer, "_KEEP_S", 0.0)
    real = kafka_writer.KafkaWriter._commit

    def commit(writer: kafka_writer.KafkaWriter, after: int) -> None:
        kept.append(after)
        real(writer, after)

    monkeypatch.setattr(kafka_writer.KafkaWriter, "_commit", commit)
    with closing(KafkaBus(kafka, properties={})) as again:
        assert [again.append(topic, "w", [], at=1) for _ in range(3)] == [1, 1, 1]
    assert kept == [1, 1, 1]
    assert values(kafka, topic) == [b"a"]


def test_partitions_are_those_of_java_clients(kafka: str, topic: str, bus: KafkaBus) -> None:
    """Keys go where murmur2 sends them, so that others' messages of an entity are beside ours."""
    bus.append(topic, "w", [Message(b"x", b"21")], at=0)  # murmur2 is -973932308
    with closing(KafkaBus(kafka, properties={})) as reader:
        ends = [reader.end(topic, str(partition)) for partition in range(3)]
    assert [end > 0 for end in ends] == [number == (-973932308 & 0x7FFFFFFF) % 3 for number in range(3)]


def test_at_least_once_asks_for_no_transaction(kafka: str, topic: str) -> None:
    """Everything is acknowledged when `append` returns; a repeat is written again."""
    with closing(KafkaBus(kafka, properties={}, at_least_once=True)) as bus:
        assert bus.append(topic, "w", keyed(b"a", b"b"), at=0) == 2
        assert bus.append(topic, "w", keyed(b"a", b"b"), at=0) == 2
        with closing(KafkaBus(kafka, properties={})) as reader:
            assert sum(reader.end(topic, str(partition)) for partition in range(3)) == 4
    assert values(kafka, topic) == [b"a", b"a", b"b", b"b"]


@pytest.mark.parametrize("at_least_once", [False, True])
def test_a_broker_that_dies_while_it_is_written_to(tmp_path: Path, *, at_least_once: bool) -> None:
    """Appends wait until it is there again and lose nothing; with transactions nothing is there twice."""
    with own_broker(tmp_path) as broker:
        create_topic(broker.address, "t", 3)
        stop, errors, done = threading.Event(), [], Counter[str]()

        def write() -> None:
            with closing(KafkaBus(broker.address, properties={}, at_least_once=at_least_once)) as bus:
                try:
                    while not stop.is_set():
                        number = done["batches"]
                        bus.append("t", WRITER, batch(number), at=place(number))
                        done["batches"] += 1
                except Exception as error:  # noqa: BLE001  # shown by the test
                    errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        for _ in range(2):
            before = done["batches"]
            _until(lambda: done["batches"] > before + 5 or errors)  # noqa: B023  # called at once
            broker.kill()
            broker.start()
        stop.set()
        thread.join(60)
        assert errors == []
        expected = batches(done["batches"])
        _until(lambda: set(values(broker.address, "t")) == set(expected))  # a commit is seen by readers a little later
        assert at_least_once or values(broker.address, "t") == expected


def test_a_run_that_is_to_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to stop while no broker answers, an append gives up after a while and says why."""
    monkeypatch.setattr(kafka_writer, "_LAST_S", 0.2)
    monkeypatch.setattr(kafka_writer, "_STEP_S", 0.2)
    stopped = threading.Event()
    stopped.set()
    with closing(KafkaBus("127.0.0.1:1", properties={}, stopped=stopped)) as bus, pytest.raises(UnavailableError):
        bus.append("t", "w", keyed(b"x"), at=0)


def _until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
