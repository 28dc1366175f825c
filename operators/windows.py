"""One shard of entities: events wait for the watermark, are applied in order, and close windows.

A pure state machine: pieces of partitions go in, closed rows come out. What comes out, taken
together, does not depend on how the log was cut into pieces or how partitions were interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from operators.corrections import Partitions, Restating
from operators.entities import Entities
from operators.feature_sets import FeatureSets
from operators.order import NOT_ASKED, Pending, Waiting, concatenate, cut_at, in_order, merge, room, take_ready
from operators.packing import pack, unpack, unpack_meta
from operators.records import END_OF_TIME, NO_WATERMARK, RowBlock, SignalBatch
from operators.set_windows import SetWindows
from operators.shard import take
from operators.verdicts import Fates, Noted
from operators.watermark import ShardWatermark, Status, Tick
from operators.window_loops import NEVER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from operators.retained import Lateness

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

    reason: `idle` (their partition had been left out of the minimum), `closed` (an earlier run ended
    there and closed its windows), `retention` (what they would change is not kept any more, since there was too much
    of it) or `too_old` (the same of those that were held and released). watermark: of the shard, microseconds.
    """

    events: SignalBatch
    reason: str
    watermark: int


class Shard:
    """All entities of one shard, for every feature set of the flow."""

    def __init__(
        self,
        sets: FeatureSets,
        snapshot: bytes | None = None,
        lateness: Lateness | None = None,
        *,
        notes_fates: bool = False,
    ) -> None:
        """Start empty, or from what `snapshot` returned under the same feature sets and lateness.

        lateness: what late events may still change; None: nothing, and nothing is kept for them. notes_fates: for
        `taken_fates`.
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
        self._noted = Noted() if notes_fates else None
        self._restating = None if lateness is None else Restating(lateness, sets, self._sets, self._noted)
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
                below, batch = self._refuse(batch)
                late = self._too_late(below)
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
        blocks: list[RowBlock] = []
        ready = self._ready(now)
        if self._restating is not None:
            for due in self._restating.dues(now):
                part, ready = cut_at(ready, due)
                blocks += self._advance_to(due, part)
                blocks += self._restate(self._restating, due)
        blocks += self._advance_to(now, ready)
        self.counts.rows += sum(len(b) for b in blocks)
        if now == END_OF_TIME:
            self._end()
        elif self._restating is not None:
            self._restating.checkpoint(now, self._entities.count)
        return blocks

    def correct(
        self, batch: SignalBatch, due: NDArray[np.int64] | None = None, *, released: bool = False
    ) -> LateAtShard | None:
        """Take events that change what is out; return those that are older than what is retained, or None.

        due: int64 (n,), from when on each counts; None: from the shard's watermark on. released: they were counted
        as late before. Only for a shard that has lateness.
        """
        restating = self._restating
        assert restating is not None
        now = self.watermark.value
        old = batch.event_time < restating.edge
        late = None
        if old.any():
            reason = "too_old" if released else "retention"
            late = LateAtShard(take(batch, np.flatnonzero(old)), reason, now)
            self.counts.late += 0 if released else len(late.events)
            due = None if due is None else due[~old]
            batch = take(batch, np.flatnonzero(~old))
        if len(batch):
            self.counts.late -= len(batch) if released else 0
            events = self._pending_of(batch)
            self._due = min(self._due, restating.take(events, due, now))
        return late

    def _advance_to(self, now: int, ready: Pending | None) -> list[RowBlock]:
        """Apply what is ready, all there is below `now`, and close what ends by then."""
        blocks: list[RowBlock] = []
        if ready is not None:
            fate = NOT_ASKED if self._noted is None else np.zeros(len(ready.entity), np.uint8)
            events, duplicates, conflicts = in_order(ready, self._rank(), self._entities.count, fate)
            if self._noted is not None and duplicates + conflicts:
                self._noted.add(ready, fate, np.flatnonzero(fate))
            self.counts.duplicate += duplicates
            self.counts.conflict += conflicts
            self.counts.used += len(events.event_time)
            if self._restating is not None:
                self._restating.keep(ready)
            for each in self._sets:
                blocks.extend(each.apply(events, self._entities))
        due = NEVER
        for each in self._sets:
            closed, upcoming = each.close(now, self._entities)
            blocks.extend(closed)
            due = min(due, upcoming)
        self._due = min(due, self._pending_due())
        if self._restating is not None:
            self._due = min(self._due, self._restating.next_due)
            return self._restating.note(blocks)
        return blocks

    def _restate(self, restating: Restating, due: int) -> list[RowBlock]:
        done = restating.apply(due, self._entities, Partitions(self._partitions, self._rank()))
        self.counts.used += done.used
        self.counts.duplicate += done.duplicate
        self.counts.conflict += done.conflict
        self._due = min(self._due, done.upcoming)
        return done.blocks

    def taken_fates(self) -> Fates | None:
        """What became of events since the last call: of those used when their time came nothing is said.

        Of an event that came late everything is said. Not part of the state: to be taken before a snapshot.
        """
        return None if self._noted is None else self._noted.taken(self._partitions)

    def outlook(self) -> tuple[int, int, int]:
        """Return (used, duplicate, conflict) that the pending events will count as, as known now.

        Not to be used any more afterwards, if corrections are pending.
        """
        if self._restating is not None and self._restating.pending:
            before = self.counts.used, self.counts.duplicate, self.counts.conflict
            self.watermark.value, self._due = END_OF_TIME, NO_WATERMARK
            self.advance()
            used, duplicate, conflict = self.counts.used, self.counts.duplicate, self.counts.conflict
            return used - before[0], duplicate - before[1], conflict - before[2]
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
        retained = None
        corrections = 0
        if self._restating is not None:
            retained, more = self._restating.pack()
            corrections = self._restating.pending
            arrays |= more
        meta = {
            "counts": [counts.used, counts.duplicate, counts.conflict, counts.late, counts.rows],
            "pending": len(pending.event_time) + corrections,
            "watermark": self.watermark.value,
            "floor": self._floor,
            "ticks": [(t.partition, t.watermark, t.newest, t.status) for t in self.watermark.partitions.values()],
            "partitions": self._partitions,
            "retained": retained,
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
        if self._restating is not None:
            self._restating.unpack(meta["retained"], arrays)
        self._due = NO_WATERMARK

    def _refuse(self, batch: SignalBatch) -> tuple[SignalBatch, SignalBatch]:
        """Cut the batch in two: events below the shard's watermark, of which there are some, and the others."""
        below = batch.event_time < self.watermark.value
        return take(batch, np.flatnonzero(below)), take(batch, np.flatnonzero(~below))

    def _too_late(self, below: SignalBatch) -> LateAtShard | None:
        """What becomes of events below the shard's watermark: corrections if they may, else they are late."""
        now = self.watermark.value
        reason = "closed" if now == self._floor else "idle"
        if self._restating is not None and self._restating.corrects:
            late = self.correct(below)
            return None if late is None else replace(late, reason=reason)
        self.counts.late += len(below)
        return LateAtShard(below, reason, now)

    def _wait(self, batch: SignalBatch, oldest: int) -> None:
        n = len(batch)
        if n == 0:
            return
        events = self._pending_of(batch)
        self._tail.append(Waiting(events, oldest, int(batch.event_time.max())))
        self._fresh += n
        if sum(len(w.events.event_time) for w in self._tail[-2:]) >= _CHUNK_EVENTS or len(self._tail) >= _CHUNK_EVENTS:
            self._seal()
        self._due = min(self._due, *(each.first_end(oldest) for each in self._sets))

    def _pending_of(self, batch: SignalBatch) -> Pending:
        """The events, at least one, with indices for their entities and their partition."""
        if batch.partition not in self._partitions:
            self._partitions.append(batch.partition)
        partition = np.full(len(batch), self._partitions.index(batch.partition), np.int32)
        entity = self._entities.index(batch.entity_hash, batch.entity_offsets, batch.entity_data)
        return Pending(entity, batch.event_time, batch.sequence, partition, batch.offset, batch.sets, batch.values)

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


def counts_in(sets: FeatureSets, snapshot: bytes, lateness: Lateness | None = None) -> Counts:
    """The counts of a snapshot; pending events count as they stand, what they will do can still change."""
    meta = unpack_meta(snapshot)
    counts = Counts(*cast("list[int]", meta["counts"]))
    if meta["pending"]:
        used, duplicate, conflict = Shard(sets, snapshot, lateness).outlook()
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
