"""Which slot of a source reads which partition, and how those of one process stay together in event time."""

from __future__ import annotations

import re
import zlib

from operators.records import NO_WATERMARK

SLOTS = 12
"""Fixed for a recovery folder; 12 so that 1, 2, 3, 4, 6 and 12 workers get the same share."""

_AHEAD_US_MIN = 60_000_000


class Alignment:
    """Keeps the partitions of one process together in event time, so that shards need not hold much back.

    Changes when something is read, never what comes out: watermarks are each partition's own.
    """

    def __init__(self, bound_us: int) -> None:
        """bound_us: WATERMARK_SECONDS; a partition may run ahead of the slowest by four times that.

        Further ahead it may read on until so many of its events wait; late ones do not wait, so a partition
        with one event from a far future, after which all others are late, is not held back by it.
        """
        self._ahead_us = max(_AHEAD_US_MIN, 4 * bound_us)
        self._newest: dict[str, int] = {}
        self._reading = set(range(SLOTS))

    def note(self, partition: str, newest: int) -> None:
        """Note how far a partition has come.

        One at the end of its log still holds the others until it is idle: no window can close beyond it,
        so what they read on would only wait in memory.
        """
        self._newest[partition] = newest

    def leave(self, partition: str) -> None:
        """A partition is idle or has ended: nobody waits for it."""
        self._newest.pop(partition, None)

    def reads(self, slot: int, *, more: bool) -> bool:
        """Note whether a slot has more to read now; return whether any slot has."""
        (self._reading.add if more else self._reading.discard)(slot)
        return bool(self._reading)

    def is_ahead(self, newest: int) -> bool:
        """Whether a partition at `newest` has left the slowest behind."""
        slowest = min(self._newest.copy().values(), default=newest)
        return newest != NO_WATERMARK and (slowest == NO_WATERMARK or newest > slowest + self._ahead_us)


def slot_of(partition: str) -> int:
    """The slot of a partition: by the number that its name ends with, so that numbered ones spread evenly."""
    number = re.search(r"([0-9]{1,9})$", partition)
    return (int(number[1]) if number else zlib.crc32(partition.encode())) % SLOTS
