"""Real runs of the signal path that read from Kafka; see tests.flows, whose folder of partitions becomes a topic."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

from dataflows.buses.kafka import KafkaBus
from tests.flows import Log, Place
from tests.kafka_server import create_topic, produce_all


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
    create_topic(address, topic, partitions)
    return KafkaLog(tuple((partition.removeprefix("p-"), line) for partition, line in log.lines), topic)


@dataclass
class KafkaPlace(Place):
    """A lineage that reads from a topic; late events and dead letters are in its folders."""

    address: str = ""
    topic_name: str = "signals"

    def environment(self, **settings: object) -> dict[str, str]:
        """See Place."""
        kafka = {"KAFKA_BROKERS": self.address, "TOPIC_SIGNALS": self.topic_name}
        return super().environment(**{**kafka, "KAFKA_CONFIG": "fetch.wait.max.ms=20", **settings})

    def write(self, log: Log) -> None:
        """Produce the lines in their order."""
        produce_all(self.address, self.topic_name, [(int(partition), line) for partition, line in log.lines])

    def whole_bytes(self) -> int:
        """How far all partitions together can be read: in messages, here."""
        with closing(KafkaBus(self.address, properties={})) as bus:
            names = bus.partitions(self.topic_name)
            return sum(bus.end(self.topic_name, name) for name in names)


def slices(log: KafkaLog, count: int) -> list[KafkaLog]:
    """The log cut into consecutive parts."""
    return [replace(log, lines=part.lines) for part in log.slices(count)]
