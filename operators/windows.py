"""One shard of entities: events wait for the watermark, are applied in order, and close windows.

A pure state machine: pieces of partitions go in, closed rows come out. What comes out, taken
together, does not depend on how the log was cut into pieces or how partitions were interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from operators.entities import Entities
from operators.feature_sets import FeatureSets
from operators.order import Pending, Waiting, concatenate, in_order, merge, room, take_ready
from operators.packing import pack, unpack, unpack_meta
from operators.records import END_OF_TIME, NO_WATERMARK, RowBlock, SignalBatch
from operators.set_windows import SetWindows
from operators.shard import take
from operators.watermark import ShardWatermark, Status, Tick
from operators.window_loops import NEVER

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_EVENTS = 4096
"""Pending events are kept in pieces of about this many, and applied at least this often."""


@dataclass(slots=True)
class Counts:
    """What became of the events of one shard since the beginning, and the rows that it closed."""

    used: int = 0
    duplicate: int = 0
    conflict: int = 0
    late: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class LateAtShard:
    """Events that their partition accepted but that lie below the shard's watermark.

    reason: `idle` (their partition had been left out of the minimum) or `closed` (an earlier run ended
    there and closed its windows). watermark: of the shard, microseconds.
    """

    events: SignalBatch
    reason: str
    watermark: int


class Shard:
    """All entities of one shard, for every feature set of the flow."""

    def __init__(self, sets: FeatureSets, snapshot: bytes | None = None) -> None:
        """Start empty, or from what `snapshot` returned under the same feature sets.

        Raises ResumeError if the snapshot is of another version.
        """
        self.counts = Counts()
        self.watermark = ShardWatermark()
        self._floor = NO_WATERMARK
        self._fields = len(sets.fields)
        self._entities = Entities()
        self._partitions: list[str] = []
        self._pending: list[Waiting] = []
        self._tail: list[Waiting] = []
        self._fresh = 0
        self._due = NEVER
        self._sets = [SetWindows(s, i, sets.fields) for i, s in enumerate(sets.sets)]
        if snapshot is not None:
            self._restore(snapshot)

    def push(self, batch: SignalBatch | None, tick: Tick, known: tuple[str, ...]) -> LateAtShard | None:
        """Take a piece of one partition (None or empty: only time passes) and how far it has come.

        known: every partition of the topic that the source knows of. Returns events that came below
        the shard's watermark, or None.
        """
        self.watermark.announce(known)
        late = None
        if batch is not None and len(batch) > 0:
            oldest = int(batch.event_time.min())
            if oldest < self.watermark.value:
                late, batch = self._refuse(batch)
                oldest = int(batch.event_time.min(initial=NEVER))
            self._wait(batch, oldest)
        self.watermark.observe(tick)
        return late

    def advance(self) -> list[RowBlock]:
        """Apply what the watermark has passed and return the windows that it closed.

        May put the work off while nothing can close; what is returned in all stays the same.
        """
        now = self.watermark.value
        if now < self._due and self._fresh < _CHUNK_EVENTS:
            return []
        self._fresh = 0
        ready = self._ready(now)
        blocks: list[RowBlock] = []
        if ready is not None:
            events, duplicates, conflicts = in_order(ready, self._rank(), self._entities.count)
            self.counts.duplicate += duplicates
            self.counts.conflict += conflicts
            self.counts.used += len(events.event_time)
            for each in self._sets:
                blocks.extend(each.apply(events, self._entities))
        due = NEVER
        for each in self._sets:
            closed, upcoming = each.close(now, self._entities)
            blocks.extend(closed)
            due = min(due, upcoming)
        self._due = min(due, self._pending_due())
        self.counts.rows += sum(len(b) for b in blocks)
        if now == END_OF_TIME:
            self._end()
        return blocks

    def outlook(self) -> tuple[int, int, int]:
        """Return (used, duplicate, conflict) that the pending events will count as, as known now."""
        parts = [w.events for w in (*self._pending, *self._tail)]
        if not parts:
            return 0, 0, 0
        events, duplicates, conflicts = in_order(concatenate(parts), self._rank(), self._entities.count)
        return len(events.event_time), duplicates, conflicts

    def snapshot(self) -> bytes:
        """Return the whole state as versioned bytes, independent of what follows; see `counts_in`."""
        parts = [w.events for w in (*self._pending, *self._tail)]
        pending = concatenate(parts) if parts else room(0, self._fields)
        data, offsets, hashes = self._entities.columns()
        lengths = np.diff(offsets).astype(np.uint16)  # ENTITY_BYTES_MAX fits
        arrays: dict[str, NDArray[np.generic]] = {"data": data, "lengths": lengths, "hashes": hashes}
        arrays |= {f"pending.{name}": column for name, column in pending._asdict().items()}
        for index, each in enumerate(self._sets):
            arrays |= {f"{index}.{name}": array for name, array in each.pack(self._entities.count).items()}
        counts = self.counts
        meta = {
            "counts": [counts.used, counts.duplicate, counts.conflict, counts.late, counts.rows],
            "pending": len(pending.event_time),
            "watermark": self.watermark.value,
            "floor": self._floor,
            "ticks": [(t.partition, t.watermark, t.newest, t.status) for t in self.watermark.partitions.values()],
            "partitions": self._partitions,
            "retained": None,  # the place of events kept for corrections
        }
        return pack(meta, arrays)

    def _restore(self, snapshot: bytes) -> None:
        meta, arrays = unpack(snapshot)
        self.counts = Counts(*cast("list[int]", meta["counts"]))
        self.watermark.value = cast("int", meta["watermark"])
        self._floor = cast("int", meta["floor"])
        for partition, watermark, newest, status in cast("list[tuple[str, int, int, int]]", meta["ticks"]):
            self.watermark.partitions[partition] = Tick(partition, watermark, newest, Status(status))
        self._partitions = cast("list[str]", meta["partitions"])
        offsets = np.append(0, np.cumsum(arrays["lengths"], dtype=np.int64))
        self._entities = Entities(arrays["data"], offsets, arrays["hashes"])  # type: ignore[arg-type]  # as packed
        pending = Pending(*(arrays[f"pending.{name}"] for name in Pending._fields))  # type: ignore[arg-type]  # as packed
        times = pending.event_time
        self._pending = [Waiting(pending, int(times.min()), int(times.max()))] if len(times) else []
        for index, each in enumerate(self._sets):
            prefix = f"{index}."
            each.unpack({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
        self._due = NO_WATERMARK

    def _refuse(self, batch: SignalBatch) -> tuple[LateAtShard, SignalBatch]:
        """Cut off the events, of which there are some, below the shard's watermark."""
        now = self.watermark.value
        below = batch.event_time < now
        late = take(batch, np.flatnonzero(below))
        self.counts.late += len(late)
        reason = "closed" if now == self._floor else "idle"
        return LateAtShard(late, reason, now), take(batch, np.flatnonzero(~below))

    def _wait(self, batch: SignalBatch, oldest: int) -> None:
        n = len(batch)
        if n == 0:
            return
        if batch.partition not in self._partitions:
            self._partitions.append(batch.partition)
        partition = np.full(n, self._partitions.index(batch.partition), np.int32)
        entity = self._entities.index(batch.entity_hash, batch.entity_offsets, batch.entity_data)
        events = Pending(entity, batch.event_time, batch.sequence, partition, batch.offset, batch.sets, batch.values)
        self._tail.append(Waiting(events, oldest, int(batch.event_time.max())))
        self._fresh += n
        if sum(len(w.events.event_time) for w in self._tail[-2:]) >= _CHUNK_EVENTS or len(self._tail) >= _CHUNK_EVENTS:
            self._seal()
        self._due = min(self._due, *(each.first_end(oldest) for each in self._sets))

    def _seal(self) -> None:
        if self._tail:
            self._pending.append(merge(self._tail))
            self._tail = []

    def _ready(self, now: int) -> Pending | None:
        """Take the pending events below the watermark out; pieces that lie above it stay as they are."""
        self._seal()
        ready, waiting = take_ready(self._pending, now)
        self._pending = _merge_small(waiting)
        return ready

    def _rank(self) -> NDArray[np.int64]:
        rank = np.empty(len(self._partitions), np.int64)
        rank[np.argsort(np.array(self._partitions, dtype=object))] = np.arange(len(self._partitions))
        return rank

    def _pending_due(self) -> int:
        if not self._pending:
            return NEVER
        oldest = min(w.oldest for w in self._pending)
        return min(each.first_end(oldest) for each in self._sets)

    def _end(self) -> None:
        """All partitions have ended and all windows are closed: a later run goes on after the last."""
        newest = self.watermark.newest
        if newest != NO_WATERMARK:
            self._floor = max(self._floor, *(each.last_end(newest) for each in self._sets))
        self.watermark.reopen(self._floor)


def counts_in(sets: FeatureSets, snapshot: bytes) -> Counts:
    """The counts of a snapshot; pending events count as they stand, what they will do can still change."""
    meta = unpack_meta(snapshot)
    counts = Counts(*cast("list[int]", meta["counts"]))
    if meta["pending"]:
        used, duplicate, conflict = Shard(sets, snapshot).outlook()
        counts.used += used
        counts.duplicate += duplicate
        counts.conflict += conflict
    return counts


def _merge_small(parts: list[Waiting]) -> list[Waiting]:
    """Join neighbours that have shrunk, so that the number of pieces stays in proportion to the events."""
    merged: list[list[Waiting]] = []
    size = _CHUNK_EVENTS
    for part in parts:
        if size >= _CHUNK_EVENTS:
            merged.append([])
            size = 0
        merged[-1].append(part)
        size += len(part.events.event_time)
    return [merge(group) for group in merged]
