"""Real runs of the signal path over Kafka; see tests.flows, whose folders become topics."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from dataflows.buses.kafka import KafkaBus
from operators.hashes import digest
from tests.flows import LIMIT_S, Digests, Key, Log, Place
from tests.kafka_server import create_topic, produce_all

WRITTEN = ("late", "dlq", "results")
"""Topics beside that of the signals."""

Told = tuple[bytes | None, bytes, dict[str, str]]
"""(key, value, headers)"""


@dataclass(frozen=True)
class KafkaLog(Log):
    """A log whose partitions have numbers and whose offsets count messages, in a topic of its own."""

    topic: str = "signals"

    @cached_property
    def late(self) -> list[str]:
        """Ids of the late events, sorted."""
        return sorted(name.replace("signals", self.topic, 1) for name in super().late)

    @property
    def _placed(self) -> Iterator[tuple[str, int, bytes]]:
        ends: Counter[str] = Counter()
        for partition, line in self.lines:
            yield partition, ends[partition], line
            ends[partition] += 1


def on_kafka(log: Log, address: str, partitions: int) -> KafkaLog:
    """Make a new topic for the log; nothing is in it yet."""
    topic = f"signals-{uuid.uuid4().hex}"
    create_topic(address, topic, partitions, beside=[f"{topic}.{name}" for name in WRITTEN])
    return KafkaLog(tuple((partition.removeprefix("p-"), line) for partition, line in log.lines), topic)


@dataclass
class KafkaPlace(Place):
    """A lineage that reads from a topic and writes to three others."""

    address: str = ""
    topic_name: str = "signals"

    def environment(self, **settings: object) -> dict[str, str]:
        """See Place."""
        kafka = {"KAFKA_BROKERS": self.address, "TOPIC_SIGNALS": self.topic_name}
        kafka |= {f"TOPIC_{name.upper()}": f"{self.topic_name}.{name}" for name in WRITTEN}
        return super().environment(**{**kafka, "KAFKA_CONFIG": "fetch.wait.max.ms=20", **settings})

    def late_values(self) -> list[bytes]:
        """All messages of the late topic."""
        return [value for _, value, _ in self.told("late")]

    def told(self, name: str) -> list[Told]:
        """All committed messages of the topic `late`, `dlq` or `results` of this place."""
        return consume_all(self.address, f"{self.topic_name}.{name}")

    def consumed(self) -> list[Told]:
        """All messages of the topic of signals."""
        return consume_all(self.address, self.topic_name)

    def results(self, kind: str) -> list[dict[str, Any]]:
        """The events of a type among the results."""
        events = [orjson.loads(value) for _, value, _ in self.told("results")]
        return [event for event in events if event["type"] == f"headrace.{kind}"]

    def prove_told(self, log: Log, expected: Digests) -> None:
        """Assert that each dead letter and each row was told once, the rows to the bit."""
        letters = [dict(headers) for _, _, headers in self.told("dlq")]
        places = sorted((h["ce_partition"], int(h["ce_offset"])) for h in letters)
        assert places == log.broken
        failed = [event["data"] for event in self.results("signal_failed")]
        assert sorted((data["partition"], data["offset"]) for data in failed) == log.broken
        rows = self.results("features_emitted")
        assert len({row["id"] for row in rows}) == len(rows)
        hashes: dict[Key, list[bytes]] = {}
        for row in (event["data"] for event in rows):
            folder = row["window"].replace("/", "_")
            place = (row["feature_set"], row["version"], folder, row["event_time"][:10])
            hashes.setdefault(place, []).append(bytes.fromhex(row["content_hash"]))
        assert {key: (len(some), _digest(some)) for key, some in hashes.items()} == expected

    def write(self, log: Log) -> None:
        """Produce the lines in their order."""
        produce_all(self.address, self.topic_name, [(int(partition), line) for partition, line in log.lines])

    def whole_bytes(self) -> int:
        """How far all partitions together can be read: in messages, here."""
        with closing(KafkaBus(self.address, properties={})) as bus:
            names = bus.partitions(self.topic_name)
            return sum(bus.end(self.topic_name, name) for name in names)


def consume_all(address: str, topic: str) -> list[Told]:
    """All committed messages of a topic, by partition and offset, as any client sees them."""
    reading = {"isolation.level": "read_committed", "enable.partition.eof": True, "enable.auto.commit": False}
    named = {"bootstrap.servers": address, "group.id": uuid.uuid4().hex, "fetch.wait.max.ms": 10}
    consumer = Consumer({**named, **reading})
    numbers = consumer.list_topics(topic, 30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers])
    found: list[tuple[int, int, Told]] = []
    open_ = set(numbers)
    deadline = time.monotonic() + LIMIT_S
    while open_:
        assert time.monotonic() < deadline, f"topic {topic} has no end"
        for message in consumer.consume(1000, 0.1):
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                open_.discard(message.partition())
                continue
            headers = {name: value.decode() for name, value in message.headers() or []}
            told = (message.key(), message.value() or b"", headers)
            found.append((message.partition(), message.offset(), told))
    consumer.close()
    return [told for _, _, told in sorted(found, key=lambda f: f[:2])]


def _digest(hashes: list[bytes]) -> int:
    return digest(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16))


def slices(log: KafkaLog, count: int) -> list[KafkaLog]:
    """The log cut into consecutive parts."""
    return [replace(log, lines=part.lines) for part in log.slices(count)]
