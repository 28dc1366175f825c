"""Held events in memory: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from stores.holding.port import HeldEvent, log_place


class MemoryHolding:
    """A `Holding` that lives as long as the object; "durable" means no more than that."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._events: dict[str, HeldEvent] = {}
        self._held: dict[str, None] = {}
        self._released: list[str] = []
        self._lock = Lock()
        self._closed = False

    def put(self, events: Sequence[HeldEvent]) -> int:
        """Hold the events; see `Holding.put`."""
        with self._lock:
            self._check_open()
            new = {e.event_id: e for e in reversed(events) if e.event_id not in self._events}
            ordered = dict(reversed(new.items()))
            self._events |= ordered
            self._held |= dict.fromkeys(ordered)
            return len(new)

    def list(self, *, reason: str | None = None, limit: int = 100) -> Sequence[HeldEvent]:
        """Return events that are held; see `Holding.list`."""
        with self._lock:
            self._check_open()
            return [self._events[i] for i in self._held if reason in (None, self._events[i].reason)][:limit]

    def count(self, *, reason: str | None = None) -> int:
        """Return how many are held; see `Holding.count`."""
        with self._lock:
            self._check_open()
            return sum(reason in (None, self._events[i].reason) for i in self._held)

    def release(self, event_ids: Sequence[str] | None) -> int:
        """Release events; see `Holding.release`."""
        with self._lock:
            chosen = sorted(self._chosen(event_ids), key=lambda i: log_place(self._events[i]))
            self._released += chosen
            return len(chosen)

    def drop(self, event_ids: Sequence[str] | None) -> int:
        """Drop events; see `Holding.drop`."""
        with self._lock:
            chosen = self._chosen(event_ids)
            for name in chosen:
                self._events[name] = replace(self._events[name], original=b"")
            return len(chosen)

    def released(self, after: int, *, limit: int = 1000) -> Sequence[tuple[int, HeldEvent]]:
        """Return released events; see `Holding.released`."""
        with self._lock:
            self._check_open()
            numbered = enumerate(self._released[after:], after + 1)
            return [(number, self._events[name]) for number, name in numbered if name in self._events][:limit]

    def forget(self, entity_id: str) -> int:
        """Forget the entity's events; see `Holding.forget`."""
        with self._lock:
            self._check_open()
            gone = [name for name, event in self._events.items() if event.entity_id == entity_id]
            for name in gone:
                del self._events[name]
                self._held.pop(name, None)
            self._released = ["" if name in gone else name for name in self._released]
            return len(gone)

    def close(self) -> None:
        """Let go of all events."""
        self._closed = True

    def _chosen(self, event_ids: Sequence[str] | None) -> Sequence[str]:
        """Take out those that are held."""
        self._check_open()
        chosen = [i for i in (self._held if event_ids is None else dict.fromkeys(event_ids)) if i in self._held]
        for name in chosen:
            del self._held[name]
        return chosen

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the held events are closed")
