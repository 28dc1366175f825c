"""The bus in a dict: for tests and for trying things out; nothing outlives the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from operators.errors import ResumeError
from operators.records import RawChunk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dataflows.buses.port import PartitionReader, Position
    from operators.messages import Message


class MemoryBus:
    """A Bus whose offsets count messages."""

    counts_bytes = False

    def __init__(self) -> None:
        """Start with no topic."""
        self._logs: dict[tuple[str, str], list[bytes]] = {}

    def partitions(self, topic: str) -> tuple[str, ...]:
        """See Bus."""
        return tuple(sorted(p for t, p in self._logs if t == topic))

    def reader(self, topic: str, partition: str, position: Mapping[str, object] | None) -> PartitionReader:
        """See Bus."""
        offset = 0 if position is None else int(str(position["offset"]))
        log = self._logs.get((topic, partition), [])
        if offset > len(log):
            raise ResumeError(f"partition `{partition}` of topic `{topic}` ends at {len(log)}, before {offset}")
        return _MemoryReader(partition, log, offset)

    def fetch(self, topic: str, partition: str, offset: int) -> bytes:
        """See Bus."""
        log = self._logs.get((topic, partition), [])
        if not 0 <= offset < len(log):
            raise ResumeError(f"partition `{partition}` of topic `{topic}` has no message at {offset}")
        return log[offset]

    def end(self, topic: str, partition: str) -> int:
        """See Bus."""
        return len(self._logs.get((topic, partition), []))

    def first(self, topic: str, partition: str) -> int:
        """See BoundedBus. Nothing is ever forgotten."""
        del topic, partition
        return 0

    def position_at(self, topic: str, partition: str, offset: int) -> Position:
        """See BoundedBus."""
        if not 0 <= offset <= self.end(topic, partition):
            raise ResumeError(f"partition `{partition}` of topic `{topic}` ends before {offset}")
        return {"offset": offset}

    def append(self, topic: str, writer: str, messages: Sequence[Message], *, at: int) -> int:
        """See WritableBus."""
        if messages and at > self.end(topic, writer):
            raise ResumeError(f"partition `{writer}` of topic `{topic}` ends before {at}")
        if messages:
            self._logs.setdefault((topic, writer), [])[at : at + len(messages)] = [m.value for m in messages]
        return at + len(messages)

    def written(self, topic: str, writer: str) -> int:
        """See WritableBus."""
        return self.end(topic, writer)

    def close(self) -> None:
        """See Bus. Nothing to let go of."""


class _MemoryReader:
    def __init__(self, partition: str, log: list[bytes], offset: int) -> None:
        self._partition = partition
        self._log = log
        self._offset = offset

    def poll(self, events_max: int) -> RawChunk | None:
        messages = self._log[self._offset : self._offset + events_max]
        if not messages:
            return None
        lengths = np.array([len(m) for m in messages], np.int64)
        offsets = self._offset + np.arange(len(messages), dtype=np.int64)
        self._offset += len(messages)
        data = np.frombuffer(b"".join(messages), np.uint8)
        return RawChunk(self._partition, data, np.cumsum(lengths) - lengths, lengths, offsets)

    def position(self) -> Position:
        return {"offset": self._offset}

    def close(self) -> None:
        """Nothing to let go of."""
