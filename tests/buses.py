"""The buses that the contracts are tried on, each with a way to get messages into it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dataflows.buses import open_bus
from dataflows.buses.kafka import KafkaBus, LaneName
from dataflows.buses.port import BoundedBus, Bus, PartitionReader, Position
from operators.messages import Message
from tests.kafka_server import create_topic, produce

LIMIT_S = 30.0
EVENT_BYTES_MAX = 1 << 20

QUICK = {"fetch.wait.max.ms": "10"}
"""How long a broker waits for more before it says that there is none."""

Found = tuple[int, bytes]
"""(offset, bytes)"""


@dataclass(frozen=True)
class Subject:
    """A bus, two of its topics, the names of three partitions that they have or may have, and how to append to one."""

    bus: BoundedBus
    topics: tuple[str, str]
    partitions: tuple[str, str, str]
    put: Callable[[str, str, Sequence[bytes]], None]


def writable(url: str) -> Subject:
    """A bus that is written to by itself."""
    bus = open_bus(url, event_bytes_max=EVENT_BYTES_MAX)

    def put(topic: str, partition: str, messages: Sequence[bytes]) -> None:
        bus.append(topic, partition, [Message(m) for m in messages], at=bus.written(topic, partition))

    return Subject(bus, ("t", "u"), ("a", "b", "ключ 😀"), put)


def memory(_folder: Path, _kafka: Callable[[], str]) -> Subject:
    """The bus in a dict."""
    return writable("memory:")


def folder(folder: Path, _kafka: Callable[[], str]) -> Subject:
    """The bus in a folder."""
    return writable(f"folder:{folder / 'bus'}")


def kafka_lane(lane: LaneName) -> Callable[[Path, Callable[[], str]], Subject]:
    """The bus on Kafka, read by that lane."""

    def subject(_folder: Path, kafka: Callable[[], str]) -> Subject:
        address = kafka()
        topics = f"t-{uuid.uuid4().hex}", f"u-{uuid.uuid4().hex}"
        for topic in topics:
            create_topic(address, topic, 3)
        bus = KafkaBus(address, properties=QUICK, lane=lane, listing_s=0)
        return Subject(bus, topics, ("0", "1", "2"), lambda t, p, messages: produce(address, t, int(p), messages))

    return subject


BUSES: dict[str, Callable[[Path, Callable[[], str]], Subject]] = {
    "memory": memory,
    "folder": folder,
    "kafka fast": kafka_lane("fast"),
    "kafka plain": kafka_lane("plain"),
}
"""One line an adapter: (a folder, a call that gives the address of a broker) → the subject."""


def drained(reader: PartitionReader, events_max: int = 1000, *, count: int = 0) -> list[Found]:
    """Everything up to the end of the log, and on until there are `count`; what is on its way is waited for."""
    out: list[Found] = []
    deadline = time.monotonic() + LIMIT_S
    while (chunk := reader.poll(events_max)) is not None or len(out) < count:
        assert time.monotonic() < deadline, f"{len(out)} messages, and no end"
        if chunk is None or len(chunk.lengths) == 0:
            threading.Event().wait(0.002)
            continue
        assert len(chunk.lengths) <= events_max
        out += [(offset, chunk.message(i)) for i, offset in enumerate(chunk.offsets.tolist())]
    return out


def read_all(
    bus: Bus, topic: str, partition: str, position: Position | None = None, *, events_max: int = 1000
) -> list[Found]:
    """Everything in the partition from the position on."""
    with closing(bus.reader(topic, partition, position)) as reader:
        return drained(reader, events_max)
