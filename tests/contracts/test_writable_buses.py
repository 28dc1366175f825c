"""What every bus keeps to that is written to: appends that may be repeated."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataflows.buses import open_bus
from dataflows.buses.kafka import KafkaBus
from dataflows.buses.port import WritableBus
from operators.errors import ResumeError
from operators.messages import Message
from tests.buses import read_all
from tests.kafka_server import create_topic

Kafka = Callable[[], str]


def kafka_bus(address: str) -> WritableBus:
    """The bus on Kafka, without a topic's partitions being remembered."""
    return KafkaBus(address, properties={}, listing_s=0)


BUSES: dict[str, Callable[[Path, Kafka], WritableBus]] = {
    "memory": lambda _path, _kafka: open_bus("memory:", event_bytes_max=1 << 20),
    "folder": lambda path, _kafka: open_bus(f"folder:{path}", event_bytes_max=1 << 20),
    "kafka": lambda _path, kafka: kafka_bus(kafka()),
}
"""One line an adapter."""


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WritableBus]:
    """Each adapter, empty."""
    opened = BUSES[request.param](tmp_path / "bus", lambda: str(request.getfixturevalue("kafka")))
    yield opened
    opened.close()


@pytest.fixture
def topic(bus: WritableBus, request: pytest.FixtureRequest) -> str:
    """A topic that may be written to."""
    name = f"t-{uuid.uuid4().hex}"
    if isinstance(bus, KafkaBus):
        create_topic(str(request.getfixturevalue("kafka")), name, 3)
    return name


def held(bus: WritableBus, topic: str) -> list[bytes]:
    """All messages, by partition and offset."""
    return [message for name in bus.partitions(topic) for _, message in read_all(bus, topic, name)]


def keyed(*values: bytes) -> list[Message]:
    """Messages that stay in order among each other."""
    return [Message(value, b"k", (("a", "1"),)) for value in values]


def test_repeating_an_append_changes_nothing(bus: WritableBus, topic: str) -> None:
    """The same messages at the same place, again and again: the log holds them once."""
    at = bus.append(topic, "p", keyed(b"a", b"bb"), at=0)
    for _ in range(2):
        end = bus.append(topic, "p", keyed(b"c", b"dd"), at=at)
    assert bus.append(topic, "p", [], at=end) == end
    assert held(bus, topic) == [b"a", b"bb", b"c", b"dd"]


def test_an_append_beyond_the_end_is_refused(bus: WritableBus, topic: str) -> None:
    """A log that has lost its end is not continued with a hole in it."""
    at = bus.append(topic, "p", keyed(b"a", b"b"), at=0)
    with pytest.raises(ResumeError):
        bus.append(topic, "p", keyed(b"c"), at=at + 1)
    assert held(bus, topic) == [b"a", b"b"]


def test_a_writer_finds_its_place_again(bus: WritableBus, topic: str) -> None:
    """`written` of a new writer is 0, and then what its last append returned; other writers do not move it."""
    assert bus.written(topic, "p") == 0
    end = bus.append(topic, "p", keyed(b"a", b"bb"), at=0)
    bus.append(topic, "q", keyed(b"x"), at=0)
    assert bus.written(topic, "p") == end
    assert sorted(held(bus, topic)) == [b"a", b"bb", b"x"]
