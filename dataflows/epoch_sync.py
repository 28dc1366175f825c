"""Keeps workers of unequal speed from starving: one source call an epoch stretched by the measured wait.

Bytewax 0.21.1 starts a partition's epoch when the partition advances, and counts the time that it then
waits for the other workers against it. A worker with shorter steps so loses a little of each epoch,
until it makes one call an epoch. The last call before the interval ends goes on fetching for the time
that the runtime held the partition back; that gives the time back.

A partition that was silent for long has nothing to fetch and loses the time nevertheless. When its epochs
are over before their first call, nothing short of a restart brings the workers together again: the one
call of each epoch then fetches for a good part of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


_LOST_EPOCHS = 3
_SHARE = 0.25


class EpochSync:
    """Measures one source partition's calls. interval_s: seconds between two snapshots."""

    def __init__(self, interval_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """now: a monotonic clock, seconds."""
        self._interval = interval_s
        self._now = now
        self._epoch_start = self._called = self._ended = now()
        self._step = 0.0
        self._wait = 0.0
        self._first = True
        self._lost = 0

    def call(self) -> float:
        """At the start of a call: return until when to go on fetching; 0.0 = fetch once."""
        now = self._now()
        elapsed = now - self._epoch_start
        if self._first:
            self._wait = now - self._ended
            self._first = False
            self._lost = self._lost + 1 if elapsed >= self._interval else 0
        else:
            self._step = now - self._called
        self._called = now
        if self._lost >= _LOST_EPOCHS:
            return now + self._interval * _SHARE
        if elapsed < self._interval <= elapsed + self._step * 1.2 and self._wait > 0:
            return self._epoch_start + self._interval + min(self._wait, self._interval)
        return 0.0

    def done(self) -> None:
        """At the end of a call."""
        self._ended = self._now()

    def snapped(self) -> None:
        """At a snapshot: the runtime's epoch began at the start of the step that led to it."""
        self._epoch_start = self._called
        self._first = True
