"""What a bus is: topics of partitions, each an append-only log of messages with rising offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from operators.messages import Message
    from operators.records import RawChunk

Position = dict[str, object]
"""Where a reader stands: JSON-able, made and understood by one adapter; holds `offset`."""


class PartitionReader(Protocol):
    """Reads one partition forwards. Not thread-safe."""

    def poll(self, events_max: int) -> RawChunk | None:
        """Return the next messages, `events_max` at most, or None at the end of the log for now.

        A chunk of no messages: some may be on their way, or it cannot be known now whether there are any. Does not
        block. The chunk's arrays are valid until the next poll. Raises ResumeError if the log has shrunk or was
        replaced.
        """
        ...

    def position(self) -> Position:
        """Return where to go on after what was polled so far; never a place that moves, as "the end" would."""
        ...

    def close(self) -> None:
        """Let go of files and connections; safe to call twice."""
        ...


class Bus(Protocol):
    """Topics and their partitions, to be read. Messages are bytes without line ends; one without a value is empty.

    Threads may share a bus. A partition has one reader at a time.
    """

    def partitions(self, topic: str) -> tuple[str, ...]:
        """Return the names of the topic's partitions, sorted; () for a topic that does not exist yet.

        May be a second old. A partition once named stays named. Raises UnavailableError if nobody answers.
        """
        ...

    def reader(self, topic: str, partition: str, position: Mapping[str, object] | None) -> PartitionReader:
        """Open a partition at `position`, or at its beginning: that of now, resolved.

        Raises ResumeError, with nothing changed, if the position does not belong to this log.
        """
        ...

    def fetch(self, topic: str, partition: str, offset: int) -> bytes:
        """Return the message at `offset`. Raises ResumeError if there is none."""
        ...

    def end(self, topic: str, partition: str) -> int:
        """Return the offset at which the next message will stand; 0 for a new partition."""
        ...

    def close(self) -> None:
        """Let go of connections, once all readers are closed; safe to call twice."""
        ...


class BoundedBus(Bus, Protocol):
    """A Bus that says what it holds, so that older history can be put before it."""

    counts_bytes: bool
    """Whether offsets count bytes, line ends included, or messages: where a message must follow another."""

    def first(self, topic: str, partition: str) -> int:
        """Return the offset from which on messages are held; 0 for a new partition.

        Raises UnavailableError if nobody answers.
        """
        ...

    def position_at(self, topic: str, partition: str, offset: int) -> Position:
        """Return where a reader stands that has read every message before `offset`.

        Where offsets count bytes, the rest of a line end may be passed over. Raises ResumeError if the log does not
        hold what follows (any more), or if no message begins there.
        """
        ...


class WritableBus(BoundedBus, Protocol):
    """A BoundedBus that writers append to, each under a name of its own and one at a time.

    What a writer has appended has places of its own, which rise from 0. In a folder and in memory a writer's name is
    that of its partition, and places are offsets; on Kafka places count the writer's messages, wherever their keys
    have sent them.
    """

    def append(self, topic: str, writer: str, messages: Sequence[Message], *, at: int) -> int:
        """Make `messages` follow the writer's place `at`, durably, and return the place after them.

        Repeating the call with the same `at` and messages changes nothing: that makes a writer that owns
        its name exactly-once. Empty input returns `at`. A crash midway is mended by the repeat. Raises
        ResumeError if the writer's messages end before `at`, ConfigError if the topic does not take them, FatalError
        if they cannot be written.
        """
        ...

    def written(self, topic: str, writer: str) -> int:
        """Return the place after the writer's last message; 0 if there is none."""
        ...
