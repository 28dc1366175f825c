"""What became of events, found out where they are applied: which were repeats, and what a correction changed."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from operators.order import Pending


class Fate(IntEnum):
    """What an event came to: it was used, or another one with its key was, which says the same or something else."""

    USED = 0
    DUPLICATE = 1
    CONFLICT = 2


class Fates(NamedTuple):
    """Events of one shard and what became of them, n in all, in any order; later ones replace earlier ones.

    partitions: names; partition: int32 (n,), into them. offset, event_time, known_at: int64 (n,); known_at is the event
    time from which on it is so. fate: uint8 (n,), of `Fate`.
    """

    partitions: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    event_time: NDArray[np.int64]
    fate: NDArray[np.uint8]
    known_at: NDArray[np.int64]


class Noted:
    """Collects what becomes of events until it is taken."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: list[tuple[NDArray[np.generic], ...]] = []

    def add(
        self, events: Pending, fate: NDArray[np.uint8], pick: NDArray[np.int64], known_at: int | None = None
    ) -> None:
        """Take note of the events `pick` (int64 (m,)). fate: of all, uint8 (n,). known_at: None: each at its time."""
        times = events.event_time[pick]
        known = times if known_at is None else np.full(len(pick), known_at)
        self._parts.append((events.partition[pick], events.offset[pick], times, fate[pick], known))

    def taken(self, partitions: Sequence[str]) -> Fates | None:
        """Return what was noted since the last call, if anything. partitions: names of the shard's partitions."""
        parts, self._parts = self._parts, []
        if not parts:
            return None
        return Fates(tuple(partitions), *(np.concatenate(c) for c in zip(*parts, strict=True)))
