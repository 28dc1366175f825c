"""What every bus keeps to when it is read: order, offsets, resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflows.buses import open_bus
from operators.errors import ConfigError, ResumeError
from tests.buses import BUSES, Found, Subject, drained, read_all


@pytest.fixture
def kafka_address(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Start Kafka only for those that need it."""
    return lambda: str(request.getfixturevalue("kafka"))


@pytest.fixture(params=BUSES)
def subject(request: pytest.FixtureRequest, tmp_path: Path, kafka_address: Callable[[], str]) -> Iterator[Subject]:
    """Each adapter, without a message."""
    made = BUSES[request.param](tmp_path, kafka_address)
    yield made
    made.bus.close()


def test_a_topic_that_does_not_exist_yet_has_no_partitions(subject: Subject) -> None:
    """Nothing there is no error: a producer may come later."""
    assert subject.bus.partitions("nowhere") == ()
    assert subject.bus.end("nowhere", subject.partitions[0]) == 0


def test_partitions_are_sorted_and_of_their_topic(subject: Subject) -> None:
    """Names come sorted, whatever the order in which they were written to."""
    topic, other = subject.topics
    for partition in reversed(subject.partitions):
        subject.put(topic, partition, [b"x"])
    subject.put(other, subject.partitions[0], [b"x"])
    assert subject.bus.partitions(topic) == subject.partitions
    assert subject.partitions[0] in subject.bus.partitions(other)


def test_messages_come_in_order_with_rising_offsets(subject: Subject) -> None:
    """What was written comes back, once each, in order; offsets rise, and each fetches its message."""
    topic, partition = subject.topics[0], subject.partitions[1]
    messages = [b"one", b"", b"three " * 9, "ключ".encode(), b"\xff\x00"]
    subject.put(topic, partition, messages[:2])
    subject.put(topic, partition, messages[2:])
    found = read_all(subject.bus, topic, partition)
    assert [message for _, message in found] == messages
    offsets = [offset for offset, _ in found]
    assert offsets == sorted(set(offsets))
    assert subject.bus.end(topic, partition) > offsets[-1]
    assert [subject.bus.fetch(topic, partition, offset) for offset in offsets] == messages
    assert [subject.bus.fetch(topic, partition, offset) for offset in reversed(offsets)] == messages[::-1]


def test_reading_begins_at_any_message(subject: Subject) -> None:
    """Where each message begins, and where the log ends, a reader can be put; nowhere behind that."""
    topic, partition = subject.topics[0], subject.partitions[1]
    assert subject.bus.first(topic, partition) == 0
    subject.put(topic, partition, [b"one", b"", b"three", b"four" * 100])
    found = read_all(subject.bus, topic, partition)
    for place, (offset, _) in enumerate(found):
        position = subject.bus.position_at(topic, partition, offset)
        assert read_all(subject.bus, topic, partition, position) == found[place:]
    end = subject.bus.end(topic, partition)
    assert read_all(subject.bus, topic, partition, subject.bus.position_at(topic, partition, end)) == []
    assert subject.bus.first(topic, partition) == found[0][0]
    with pytest.raises(ResumeError):
        subject.bus.position_at(topic, partition, end + 1)


MESSAGES = st.lists(st.binary(max_size=30).map(lambda m: m.replace(b"\n", b"").replace(b"\r", b"")), max_size=12)
SIZES = st.lists(st.integers(1, 5), min_size=1)
REOPEN = st.lists(st.booleans(), min_size=1)


def read_in_pieces(subject: Subject, sizes: list[int], reopen: list[bool]) -> list[Found]:
    """Polls of those sizes, the reader now and then opened anew where it stands."""
    bus, topic, partition = subject.bus, subject.topics[0], subject.partitions[0]
    found: list[Found] = []
    reader = bus.reader(topic, partition, None)
    step = 0
    while (chunk := reader.poll(sizes[step % len(sizes)])) is not None:
        found += [(offset, chunk.message(i)) for i, offset in enumerate(chunk.offsets.tolist())]
        step += len(chunk.lengths) > 0
        if reopen[step % len(reopen)] and len(chunk.lengths) > 0:
            position = reader.position()
            reader.close()
            reader = bus.reader(topic, partition, position)
    reader.close()
    return found


@given(messages=MESSAGES, sizes=SIZES, reopen=REOPEN)
@pytest.mark.parametrize("adapter", ["memory", "folder"])
def test_resuming_at_any_point_misses_and_repeats_nothing(
    adapter: str,
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[bytes],
    sizes: list[int],
    reopen: list[bool],
) -> None:
    """Polls of any size, readers reopened at their positions at any time: the same messages and offsets."""
    subject = BUSES[adapter](tmp_path_factory.mktemp("bus"), lambda: "")
    subject.put(subject.topics[0], subject.partitions[0], [*messages, b"last"])
    expected = read_all(subject.bus, subject.topics[0], subject.partitions[0])
    assert [message for _, message in expected] == [*messages, b"last"]
    assert read_in_pieces(subject, sizes, reopen) == expected


@pytest.mark.parametrize("adapter", ["kafka fast", "kafka plain"])
def test_resuming_on_kafka(adapter: str, tmp_path: Path, kafka: str) -> None:
    """The same of Kafka, where a topic is too dear for each example: ever more messages in one topic."""
    subject = BUSES[adapter](tmp_path, lambda: kafka)

    @given(messages=MESSAGES, sizes=SIZES, reopen=REOPEN)
    @settings(max_examples=8)
    def resume(messages: list[bytes], sizes: list[int], reopen: list[bool]) -> None:
        subject.put(subject.topics[0], subject.partitions[0], [*messages, b"last"])
        expected = read_all(subject.bus, subject.topics[0], subject.partitions[0])
        assert [message for _, message in expected][-1 - len(messages) :] == [*messages, b"last"]
        assert read_in_pieces(subject, sizes, reopen) == expected

    with closing(subject.bus):
        resume()


def test_a_reader_at_the_end_sees_what_comes(subject: Subject) -> None:
    """The end is the end for now: None, then what was written since."""
    topic, partition = subject.topics[0], subject.partitions[0]
    subject.put(topic, partition, [b"a"])
    with closing(subject.bus.reader(topic, partition, None)) as reader:
        assert len(drained(reader)) == 1
        assert reader.poll(10) is None
        subject.put(topic, partition, [b"b"])
        assert [message for _, message in drained(reader, count=1)] == [b"b"]


def test_a_reader_that_has_read_nothing_has_a_position(subject: Subject) -> None:
    """Where nothing was read yet one goes on at the beginning, whatever has come since."""
    topic, partition = subject.topics[0], subject.partitions[0]
    subject.put(topic, partition, [b"a"])
    with closing(subject.bus.reader(topic, partition, None)) as reader:
        position = reader.position()
    subject.put(topic, partition, [b"b"])
    assert [message for _, message in read_all(subject.bus, topic, partition, position)] == [b"a", b"b"]


def test_a_position_beyond_the_end_is_refused(subject: Subject) -> None:
    """A log that is shorter than what was read is another log."""
    topic, (partition, other, _) = subject.topics[0], subject.partitions
    subject.put(topic, partition, [b"a", b"b"])
    with closing(subject.bus.reader(topic, partition, None)) as reader:
        drained(reader)
        position = reader.position()
    subject.put(topic, other, [b"a"])
    with pytest.raises(ResumeError):
        subject.bus.reader(topic, other, position)
    with pytest.raises(ResumeError):
        subject.bus.fetch(topic, partition, 1000)


def test_closing_twice_is_safe(subject: Subject) -> None:
    """`close` may be called again, of a reader and of the bus."""
    subject.put(subject.topics[0], subject.partitions[0], [b"a"])
    reader = subject.bus.reader(subject.topics[0], subject.partitions[0], None)
    for _ in range(2):
        reader.close()
    for _ in range(2):
        subject.bus.close()


def test_schemes() -> None:
    """A bus that does not exist is a wrong setting."""
    with pytest.raises(ConfigError, match="`carrier-pigeon` is not one of folder, kafka, memory"):
        open_bus("carrier-pigeon:x", event_bytes_max=1)
