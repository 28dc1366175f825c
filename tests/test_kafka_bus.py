"""What only Kafka can do to a reader: gaps, retention, topics made anew, brokers that die, messages of any size."""

from __future__ import annotations

import random
import threading
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dataflows.buses.kafka import KafkaBus, LaneName, OffsetReset
from dataflows.buses.port import PartitionReader
from dataflows.observability.events import BusAway, BusBack, Event, PartitionReset, watch
from operators.errors import ConfigError, ResumeError, UnavailableError
from tests.buses import QUICK, Found, drained, read_all
from tests.flows import free_ports, until
from tests.kafka_server import create_topic, delete_topic, own_broker, produce, produce_all

heard: list[Event] = []
"""What was told since the test began."""


def hear(event: Event) -> None:
    """A hook that stays for the whole run, as hooks do."""
    heard.append(event)


@pytest.fixture(params=["fast", "plain"])
def lane(request: pytest.FixtureRequest) -> LaneName:
    """Each lane."""
    watch(hear)
    heard.clear()
    return request.param  # type: ignore[no-any-return]  # one of the two above


def bus_at(address: str, lane: LaneName | None = None, offset_reset: OffsetReset = "error") -> KafkaBus:
    """A bus whose brokers answer quickly."""
    return KafkaBus(address, properties=QUICK, lane=lane, offset_reset=offset_reset, listing_s=0)


def new_topic(address: str, partitions: int = 1, **config: str) -> str:
    """A topic of the test's own; config: with `_` for `.`."""
    topic = f"bus-{uuid.uuid4().hex}"
    create_topic(address, topic, partitions, {name.replace("_", "."): value for name, value in config.items()})
    return topic


def test_aborted_transactions_leave_gaps_and_open_ones_end_the_log(kafka: str, lane: LaneName) -> None:
    """Only committed messages are read, offsets jump over the rest, and what is not decided yet is not read."""
    from confluent_kafka import Producer

    topic = new_topic(kafka)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(30)
    for word, commit in (("a", True), ("b", False), ("c", True), ("d", False)):
        producer.begin_transaction()
        for i in range(3):
            producer.produce(topic, f"{word}{i}".encode(), partition=0)
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
    committed = [(i, b"a%d" % i) for i in range(3)] + [(8 + i, b"c%d" % i) for i in range(3)]
    with closing(bus_at(kafka, lane)) as bus:
        with closing(bus.reader(topic, "0", None)) as reader:
            assert drained(reader, 2) == committed
            assert reader.position()["offset"] == bus.end(topic, "0") == 16
            producer.begin_transaction()
            producer.produce(topic, b"open", partition=0)
            producer.flush(30)
            produce(kafka, topic, 0, [b"behind it"])
            assert reader.poll(10) is None
            assert bus.end(topic, "0") == 16
            producer.commit_transaction(30)
            assert drained(reader, count=2) == [(16, b"open"), (17, b"behind it")]
        assert bus.fetch(topic, "0", 9) == b"c1"
        with pytest.raises(ResumeError, match="has no message at offset 5"):
            bus.fetch(topic, "0", 5)


def test_compaction_leaves_gaps_and_tombstones_are_empty(kafka: str, lane: LaneName) -> None:
    """Of a compacted topic comes what is left, with its offsets; a message without a value is an empty one."""
    from confluent_kafka import Producer

    topic = new_topic(
        kafka, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01", min_compaction_lag_ms="0"
    )
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0, "log_level": 0})
    for i in range(30):
        producer.produce(topic, b"%d" % i, key=b"k%d" % (i % 3), partition=0)
    producer.produce(topic, None, key=b"gone", partition=0)
    producer.flush(30)

    def roll() -> bool:
        """Segments are compacted once a message has come after their time."""
        threading.Event().wait(0.15)
        producer.produce(topic, b"later", key=b"later", partition=0)
        producer.flush(30)
        with closing(bus_at(kafka, lane)) as bus:
            found.clear()
            found.extend(read_all(bus, topic, "0"))
        return len(found) < 10 and [m for m in found if m[0] < 31] == left

    found: list[Found] = []
    left = [(27, b"27"), (28, b"28"), (29, b"29"), (30, b"")]
    until(roll, "the compaction", 60)
    with closing(bus_at(kafka, lane)) as bus:
        assert bus.fetch(topic, "0", 28) == b"28"
        with pytest.raises(ResumeError):
            bus.fetch(topic, "0", 5)


def trimmed(kafka: str, topic: str, before: int) -> None:
    """Delete the first messages of partition 0."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    place = TopicPartition(topic, 0, before)
    admin.delete_records([place])[place].result(30)


def test_messages_that_retention_has_taken(kafka: str, lane: LaneName) -> None:
    """A position whose messages are gone stops with what was wanted and what there is, or goes on as a setting says."""
    topic = new_topic(kafka)
    produce(kafka, topic, 0, [b"%d" % i for i in range(10)])
    with closing(bus_at(kafka, lane)) as bus:
        with closing(bus.reader(topic, "0", None)) as reader:
            for _ in range(500):
                chunk = reader.poll(2)
                if chunk is not None and len(chunk.lengths) > 0:
                    break
                threading.Event().wait(0.01)
            position = reader.position()
        assert position["offset"] == 2
        trimmed(kafka, topic, 7)
        assert [m for _, m in read_all(bus, topic, "0")] == [b"7", b"8", b"9"]
        with pytest.raises(
            ResumeError, match=f"`0` of topic `{topic}` was read up to offset 2, but holds 7 to 10 only"
        ):
            bus.reader(topic, "0", position)
    with closing(bus_at(kafka, lane, "earliest")) as bus:
        assert [m for _, m in read_all(bus, topic, "0", position)] == [b"7", b"8", b"9"]
    with closing(bus_at(kafka, lane, "latest")) as bus:
        assert read_all(bus, topic, "0", position) == []
    assert [e for e in heard if isinstance(e, PartitionReset)] == [
        PartitionReset("0", 2, 7),
        PartitionReset("0", 2, 10),
    ]


def test_a_topic_that_was_made_anew(kafka: str, lane: LaneName) -> None:
    """The same name and enough messages: another topic all the same, for an open reader as for one that comes back."""
    topic = new_topic(kafka)
    produce(kafka, topic, 0, [b"old"] * 5)
    with closing(bus_at(kafka, lane)) as bus:
        with closing(bus.reader(topic, "0", None)) as reader:
            assert len(drained(reader)) == 5
            position = reader.position()
            delete_topic(kafka, topic)
            create_topic(kafka, topic, 1)
            produce(kafka, topic, 0, [b"new"] * 9)
            with pytest.raises(ResumeError, match="was deleted and made anew"):
                polled(reader)
            assert reader.position() == position
        with pytest.raises(ResumeError, match="was deleted and made anew"):
            bus.reader(topic, "0", position)


def polled(reader: PartitionReader) -> None:
    """Poll until the reader has something, or raises; fail if it does neither."""
    for _ in range(2000):
        chunk = reader.poll(10)
        assert chunk is None or len(chunk.lengths) == 0, "messages of another topic"
        threading.Event().wait(0.01)


def test_messages_of_any_size(kafka: str, lane: LaneName) -> None:
    """A message of 4 MB stands among small and empty ones as it was sent."""
    topic = new_topic(kafka, max_message_bytes=str(8 << 20))
    chance = random.Random(1)
    sizes = [0, 1, 63, 64, 65, 4 << 20, 3, 1 << 20, 0, 100_000]
    messages = [chance.randbytes(size) for size in sizes]
    produce(kafka, topic, 0, messages)
    with closing(bus_at(kafka, lane)) as bus:
        assert [m for _, m in read_all(bus, topic, "0")] == messages
        assert bus.fetch(topic, "0", 5) == messages[5]


def test_both_lanes_read_the_same(kafka: str) -> None:
    """Messages, offsets and the broker's times are equal, whatever the lanes cut them into."""
    topic = new_topic(kafka, 3)
    chance = random.Random(2)
    produce_all(kafka, topic, [(chance.randrange(3), chance.randbytes(chance.randrange(300))) for _ in range(20_000)])
    columns = []
    for lane in ("fast", "plain"):
        with closing(bus_at(kafka, lane)) as bus:
            assert bus.partitions(topic) == ("0", "1", "2")
            readers = [bus.reader(topic, p, None) for p in bus.partitions(topic)]
            found: dict[str, list[tuple[int, bytes, int]]] = {}
            while len(found) < 3 or sum(map(len, found.values())) < 20_000:
                for reader in readers:
                    chunk = reader.poll(777)
                    if chunk is not None:
                        assert chunk.timestamps is not None
                        triples = zip(chunk.offsets.tolist(), chunk.timestamps.tolist(), strict=True)
                        rows = found.setdefault(chunk.partition, [])
                        rows += [(offset, chunk.message(i), at) for i, (offset, at) in enumerate(triples)]
            for reader in readers:
                reader.close()
            columns.append(found)
    assert columns[0] == columns[1]
    assert [offset for offset, _, _ in columns[0]["1"]] == list(range(len(columns[0]["1"])))
    assert min(at for _, _, at in columns[0]["2"]) > 1_600_000_000_000


def test_chunks_can_be_read_beyond_their_end(kafka: str, lane: LaneName) -> None:
    """The decoder may look at a few bytes behind the last message: they are there."""
    topic = new_topic(kafka)
    produce(kafka, topic, 0, [b"abc"])
    with closing(bus_at(kafka, lane)) as bus, closing(bus.reader(topic, "0", None)) as reader:
        while (chunk := reader.poll(10)) is None or len(chunk.lengths) == 0:
            threading.Event().wait(0.01)
        end = int(chunk.starts[-1] + chunk.lengths[-1])
        assert len(chunk.data) >= end + 64
        assert chunk.data.dtype == np.uint8


def test_a_broker_killed_while_it_is_read(tmp_path: Path, lane: LaneName) -> None:
    """Killed (-9) and started again: the reader misses and repeats nothing, and the absence is told once."""
    with own_broker(tmp_path) as broker:
        topic = new_topic(broker.address)
        first = [b"%d" % i for i in range(5000)]
        produce(broker.address, topic, 0, first)
        with closing(bus_at(broker.address, lane)) as bus, closing(bus.reader(topic, "0", None)) as reader:
            found = drained(reader, 100, count=2500)
            assert reader.poll(10) is None
            broker.kill()
            until(lambda: reader.poll(10) is not None, "the absence to be noticed")
            for _ in range(100):
                chunk = reader.poll(10)
                assert chunk is not None
                assert len(chunk.lengths) == 0
                threading.Event().wait(0.01)
            assert bus.partitions(topic) == ("0",)
            broker.start()
            produce(broker.address, topic, 0, [b"after"])
            found += drained(reader, count=1)
            assert found == [*enumerate(first), (5000, b"after")]
            assert reader.poll(10) is None or drained(reader) == []
            position = reader.position()
        assert [type(e) for e in heard if isinstance(e, BusAway | BusBack)] == [BusAway, BusBack]
        broker.kill()
        with closing(bus_at(broker.address, lane)) as bus:
            reader = bus.reader(topic, "0", position)
            assert reader.position() == position
            broker.start()
            produce(broker.address, topic, 0, [b"last"])
            assert drained(reader, count=1) == [(5001, b"last")]
            reader.close()


def test_new_partitions_are_found(kafka: str, lane: LaneName) -> None:
    """A topic that grows is seen to grow, and its new partitions can be read."""
    from confluent_kafka.admin import AdminClient, NewPartitions

    topic = new_topic(kafka)
    with closing(bus_at(kafka, lane)) as bus:
        assert bus.partitions(topic) == ("0",)
        admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
        admin.create_partitions([NewPartitions(topic, 12)])[topic].result(30)
        until(lambda: len(bus.partitions(topic)) == 12, "the new partitions")
        assert bus.partitions(topic) == tuple(sorted(str(i) for i in range(12)))
        produce(kafka, topic, 11, [b"x"])
        assert read_all(bus, topic, "11") == [(0, b"x")]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that do not exist are named in one sentence, with what the connection said."""
    monkeypatch.setattr("dataflows.buses.kafka._START_WAIT_S", 1.0)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (
        closing(bus_at(address)) as bus,
        pytest.raises(UnavailableError, match=f"KAFKA_BROKERS `{address}` do not answer"),
    ):
        bus.partitions("t")


@pytest.mark.parametrize("name", ["enable.auto.commit", "group.id", "isolation.level", "auto.offset.reset"])
def test_properties_that_promises_rest_on(name: str) -> None:
    """What would break exactly-once cannot be set."""
    with pytest.raises(ConfigError, match=f"KAFKA_CONFIG may not set `{name}`"):
        KafkaBus("127.0.0.1:1", properties={name: "x"})


@pytest.mark.parametrize("properties", [{"no.such.thing": "s3cret"}, {"socket.timeout.ms": "s3cret"}])
def test_wrong_properties_do_not_show_their_values(properties: dict[str, str]) -> None:
    """A property that the library refuses is named; its value, which may be secret, is not."""
    with pytest.raises(ConfigError, match="refuses one of the properties") as caught:
        KafkaBus("127.0.0.1:1", properties=properties)
    assert "s3cret" not in str(caught.value)
    assert next(iter(properties)) in str(caught.value)


@pytest.mark.parametrize("partition", ["", "p-0", "-1", "1.5", "٣"])
def test_partitions_are_numbers(partition: str) -> None:
    """Another name is no partition of Kafka's."""
    with closing(bus_at("127.0.0.1:1")) as bus, pytest.raises(ConfigError, match="no partition of Kafka's"):
        bus.reader("t", partition, None)
