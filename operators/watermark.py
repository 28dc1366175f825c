"""Watermarks: which events are late is decided by one partition's own order, never by a clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.records import END_OF_TIME, NO_WATERMARK


class Status(IntEnum):
    """What a partition's watermark counts for: LIVE holds others back, IDLE and ENDED do not."""

    LIVE = 0
    IDLE = 1
    ENDED = 2


@dataclass(frozen=True, slots=True)
class Tick:
    """How far one partition has come: its watermark (int, microseconds), its newest event, its status."""

    partition: str
    watermark: int
    newest: int
    status: Status


@njit(cache=True, nogil=True)
def _late(event_time, newest, bound):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    late = np.zeros(event_time.shape[0], np.bool_)
    for i in range(event_time.shape[0]):
        t = event_time[i]
        if newest == NO_WATERMARK or t > newest:
            newest = t
        elif t < newest - bound:
            late[i] = True
    return late, newest


@njit(cache=True, nogil=True)
def _late_due(event_time, newest, bound, allowed, grain):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    late = np.zeros(event_time.shape[0], np.bool_)
    due = np.full(event_time.shape[0], NO_WATERMARK, np.int64)
    for i in range(event_time.shape[0]):
        t = event_time[i]
        if newest == NO_WATERMARK or t > newest:
            newest = t
        elif t < newest - bound:
            late[i] = True
            if t >= newest - bound - allowed:
                due[i] = ((newest - bound) // grain + 1) * grain
    return late, due, newest


class PartitionWatermark:
    """Mark late events of one partition: those below `newest event before it - bound`.

    A running maximum, event by event: the verdicts do not depend on how the log is cut into batches.
    newest: the whole state, int64 microseconds, NO_WATERMARK before the first event.
    """

    def __init__(self, bound_us: int, newest: int = NO_WATERMARK) -> None:
        """bound_us: WATERMARK_SECONDS in microseconds, not negative."""
        self.bound_us = bound_us
        self.newest = newest

    @property
    def value(self) -> int:
        """The watermark: no later on-time event of this partition lies below it."""
        return NO_WATERMARK if self.newest == NO_WATERMARK else self.newest - self.bound_us

    def mark(self, event_time: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which events (int64 (n,), log order) are late, and advance."""
        late: NDArray[np.bool_]
        late, newest = _late(event_time, self.newest, self.bound_us)
        self.newest = int(newest)
        return late

    def mark_due(
        self, event_time: NDArray[np.int64], allowed_us: int, grain_us: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return which events are late, as `mark` does, and when the late ones count, int64 (n,).

        A late event that is no more than allowed_us behind the watermark before it counts from the next multiple of
        grain_us above that watermark on; NO_WATERMARK stands for never.
        """
        late, due, newest = _late_due(event_time, self.newest, self.bound_us, allowed_us, grain_us)
        self.newest = int(newest)
        return late, due

    def tick(self, partition: str, status: Status) -> Tick:
        """The message that tells every shard how far this partition has come."""
        return Tick(partition, self.value, self.newest, status)


class ShardWatermark:
    """The minimum over the partitions of a topic: it never goes back.

    A partition that was announced and has no event yet holds it at NO_WATERMARK; idle and ended
    partitions are left out; END_OF_TIME once all have ended. All idle: it stays where it is.
    """

    def __init__(self) -> None:
        """Start before the first tick."""
        self.value = NO_WATERMARK
        self.partitions: dict[str, Tick] = {}
        self._announced: tuple[str, ...] = ()

    def announce(self, partitions: tuple[str, ...]) -> None:
        """Name partitions that exist; those not known yet hold the minimum from now on."""
        if partitions is self._announced:
            return
        self._announced = partitions
        for name in partitions:
            if name not in self.partitions:
                self.partitions[name] = Tick(name, NO_WATERMARK, NO_WATERMARK, Status.LIVE)

    def observe(self, tick: Tick) -> None:
        """Take one partition's progress."""
        self.partitions[tick.partition] = tick
        if all(t.status is Status.ENDED for t in self.partitions.values()):
            self.value = END_OF_TIME
            return
        live = [t.watermark for t in self.partitions.values() if t.status is Status.LIVE]
        if live:
            self.value = max(self.value, min(live))

    @property
    def newest(self) -> int:
        """The newest event time that any partition has shown."""
        return max((t.newest for t in self.partitions.values()), default=NO_WATERMARK)

    def reopen(self, floor: int) -> None:
        """After an end: go on from `floor`, the end of the last window that was closed."""
        self.value = floor
        for name, tick in self.partitions.items():
            self.partitions[name] = Tick(name, tick.watermark, tick.newest, Status.LIVE)
