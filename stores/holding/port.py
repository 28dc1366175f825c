"""What a store of held events promises: a late event waits, durable and once, until a person decides on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """A late event as it was set aside.

    watermark_us, event_time_us: microseconds; the watermark is that which it came after, as far as it had come.
    original: the bytes as they came, none once the event was dropped. row: its place in a message of many signals,
    of which the original is a message of its own; -1 for one that came so.
    """

    topic: str
    partition: str
    offset: int
    reason: str
    watermark_us: int
    entity_id: str
    event_time_us: int
    sequence: int
    original: bytes
    row: int = -1

    @property
    def event_id(self) -> str:
        """Its name: a function of topic, partition, offset and row alone, so a repeat is the same event."""
        name = f"{self.topic}/{self.partition}/{self.offset}"
        return name if self.row < 0 else f"{name}/{self.row}"


def log_place(event: HeldEvent) -> tuple[str, int, int]:
    """Where it stood in its topic."""
    return event.partition, event.offset, event.row


class Holding(Protocol):
    """Late events that are held, then released or dropped; they stay known, so that a replay brings none back.

    Methods raise ValueError once the store is closed, RetryableError when it is locked by others for too long,
    CorruptStoreError when it is damaged, FatalError when the disk is full or fails. Several threads and processes
    may use one store.
    """

    def put(self, events: Sequence[HeldEvent]) -> int:
        """Hold the events, all or none; durable when it returns. Return how many were new.

        One that is known already stays as it is, also if it was released or dropped, so the call may be repeated.
        """
        ...

    def list(self, *, reason: str | None = None, limit: int = 100) -> Sequence[HeldEvent]:
        """Return up to `limit` (at least 1) events that are held, in the order in which they came."""
        ...

    def count(self, *, reason: str | None = None) -> int:
        """Return how many events are held."""
        ...

    def release(self, event_ids: Sequence[str] | None) -> int:
        """Release those of the events (None: all) that are held, all or none; return how many.

        Each gets a number that is higher than that of any released before; of one call in the order of the log.
        Durable when it returns, and safe to repeat.
        """
        ...

    def drop(self, event_ids: Sequence[str] | None) -> int:
        """Drop those of the events (None: all) that are held, for good; return how many. Safe to repeat."""
        ...

    def released(self, after: int, *, limit: int = 1000) -> Sequence[tuple[int, HeldEvent]]:
        """Return up to `limit` released events with numbers above `after`, by their numbers, which start at 1."""
        ...

    def forget(self, entity_id: str) -> int:
        """Leave no byte of the entity's events, whatever became of them; return how many there were. Safe to repeat.

        They are not known any more. Numbers that were given stay given.
        """
        ...

    def close(self) -> None:
        """Let go of the store; events stay where they are durable. Safe to repeat."""
        ...
