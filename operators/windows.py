"""One shard of entities: events wait for the watermark, are applied in order, and close windows.

A pure state machine: pieces of partitions go in, closed rows come out. What comes out, taken
together, does not depend on how the log was cut into pieces or how partitions were interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from operators.entities import Entities
from operators.feature_sets import STATISTICS, FeatureSet, FeatureSets
from operators.kernels import EW, PANE, STATISTICS_COUNT
from operators.order import Pending, concatenate, cut, in_order
from operators.packing import pack, unpack
from operators.records import END_OF_TIME, NO_WATERMARK, RowBlock, SignalBatch
from operators.rows import finish_rows, hash_header
from operators.shard import take
from operators.watermark import ShardWatermark, Status, Tick
from operators.window_loops import (
    HEAD,
    NEVER,
    NEXT_END,
    ROW_END,
    ROW_ENTITY,
    ROW_SPEC,
    ROW_START,
    SPEC,
    TIMES_AT,
    Ordered,
    RowBuffer,
    Scratch,
    SetPlan,
    SetState,
    apply_events,
    close_windows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CHUNK_EVENTS = 4096
"""Pending events are kept in pieces of about this many, and applied at least this often."""

_ROOM = 1 << 13


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


@dataclass(slots=True)
class _Set:
    """One feature set in a shard: its plan and its growing state."""

    declared: FeatureSet
    plan: SetPlan
    state: SetState
    scratch: Scratch
    columns: NDArray[np.int64]
    headers: list[bytes]


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
        self._pending: list[Pending] = []
        self._tail: list[Pending] = []
        self._fresh = 0
        self._due = NEVER
        self._sets = [_new_set(s, i, sets.fields) for i, s in enumerate(sets.sets)]
        self._rooms = [_room(s, _ROOM) for s in self._sets]
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
            late, batch = self._refuse(batch)
            self._wait(batch)
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
            self._grow()
            for index in range(len(self._sets)):
                blocks.extend(self._apply(index, events))
        due = NEVER
        for index in range(len(self._sets)):
            closed, upcoming = self._close(index, now)
            blocks.extend(closed)
            due = min(due, upcoming)
        self._due = min(due, self._pending_due())
        self.counts.rows += sum(len(b) for b in blocks)
        if now == END_OF_TIME:
            self._end()
        return blocks

    def outlook(self) -> tuple[int, int, int]:
        """Return (used, duplicate, conflict) that the pending events will count as, as known now."""
        parts = [*self._pending, *self._tail]
        if not parts:
            return 0, 0, 0
        events, duplicates, conflicts = in_order(concatenate(parts), self._rank(), self._entities.count)
        return len(events.event_time), duplicates, conflicts

    def snapshot(self) -> bytes:
        """Return the whole state as versioned bytes, independent of what follows."""
        parts = [*self._pending, *self._tail]
        pending = concatenate(parts) if parts else _no_events(self._fields)
        data, offsets, hashes = self._entities.columns()
        arrays: dict[str, NDArray[np.generic]] = {"data": data, "offsets": offsets, "hashes": hashes}
        arrays |= {f"pending.{name}": column for name, column in pending._asdict().items()}
        for index, each in enumerate(self._sets):
            arrays |= {f"{index}.{n}": c[: self._entities.count] for n, c in each.state._asdict().items()}
        counts = self.counts
        meta = {
            "counts": [counts.used, counts.duplicate, counts.conflict, counts.late, counts.rows],
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
        columns = cast("dict[str, NDArray[np.float64]]", arrays)
        self._entities = Entities(arrays["data"], arrays["offsets"], arrays["hashes"])  # type: ignore[arg-type]  # as packed
        pending = Pending(*(arrays[f"pending.{name}"] for name in Pending._fields))  # type: ignore[arg-type]  # as packed
        self._pending = [pending] if len(pending.event_time) else []
        for index, each in enumerate(self._sets):
            each.state = SetState(*(columns[f"{index}.{name}"] for name in SetState._fields))  # type: ignore[arg-type]  # as packed
        self._due = NO_WATERMARK

    def _refuse(self, batch: SignalBatch) -> tuple[LateAtShard | None, SignalBatch]:
        now = self.watermark.value
        below = batch.event_time < now
        if not below.any():
            return None, batch
        late = take(batch, np.flatnonzero(below))
        self.counts.late += len(late)
        reason = "closed" if now == self._floor else "idle"
        return LateAtShard(late, reason, now), take(batch, np.flatnonzero(~below))

    def _wait(self, batch: SignalBatch) -> None:
        n = len(batch)
        if n == 0:
            return
        if batch.partition not in self._partitions:
            self._partitions.append(batch.partition)
        partition = np.full(n, self._partitions.index(batch.partition), np.int64)
        entity = self._entities.index(batch.entity_hash, batch.entity_offsets, batch.entity_data)
        self._tail.append(
            Pending(entity, batch.event_time, batch.sequence, partition, batch.offset, batch.sets, batch.values)
        )
        self._fresh += n
        if sum(len(p.event_time) for p in self._tail[-2:]) >= _CHUNK_EVENTS or len(self._tail) >= _CHUNK_EVENTS:
            self._seal()
        self._due = min(self._due, self._first_end(int(batch.event_time.min())))

    def _seal(self) -> None:
        if self._tail:
            self._pending.append(concatenate(self._tail))
            self._tail = []

    def _ready(self, now: int) -> Pending | None:
        """Take the pending events below the watermark out; pieces that lie above it stay as they are."""
        self._seal()
        ready: list[Pending] = []
        waiting: list[Pending] = []
        for part in self._pending:
            if part.event_time.max() < now:
                ready.append(part)
            elif part.event_time.min() >= now:
                waiting.append(part)
            else:
                below, rest = cut(part, now)
                ready.append(below)
                waiting.append(rest)
        self._pending = _merge_small(waiting)
        return concatenate(ready) if ready else None

    def _rank(self) -> NDArray[np.int64]:
        rank = np.empty(len(self._partitions), np.int64)
        rank[np.argsort(np.array(self._partitions, dtype=object))] = np.arange(len(self._partitions))
        return rank

    def _grow(self) -> None:
        have = len(self._sets[0].state.ints)
        if have < self._entities.count:
            room = max(64, 2 * have, self._entities.count)
            for each in self._sets:
                each.state = _resize(each, room)

    def _apply(self, index: int, events: Ordered) -> Iterator[RowBlock]:
        each = self._sets[index]
        group = 0
        while group < len(events.entity):
            room = self._rooms[index]
            group, count, need = apply_events(each.state, each.plan, each.scratch, events, room, group)
            yield from self._blocks(index, room, count)
            if group < len(events.entity) and need > len(room.place):
                self._rooms[index] = _room(each, need)

    def _close(self, index: int, now: int) -> tuple[list[RowBlock], int]:
        each = self._sets[index]
        blocks: list[RowBlock] = []
        entity, due = 0, NEVER
        while entity < len(each.state.ints):
            room = self._rooms[index]
            entity, count, need, upcoming = close_windows(each.state, each.plan, each.scratch, now, room, entity)
            due = min(due, int(upcoming))
            blocks.extend(self._blocks(index, room, count))
            if entity < len(each.state.ints) and need > len(room.place):
                self._rooms[index] = _room(each, need)
        return blocks, due

    def _blocks(self, index: int, room: RowBuffer, count: int) -> Iterator[RowBlock]:
        """Cut the rows in the buffer by window spec."""
        each = self._sets[index]
        place = room.place[:count]
        for spec in range(len(each.headers)):
            at = np.flatnonzero(place[:, ROW_SPEC] == spec)
            if len(at) == 0:
                continue
            entity = self._entities.gather(place[at, ROW_ENTITY])
            start, end = place[at, ROW_START], place[at, ROW_END]
            hashes, values, valid = finish_rows(each.headers[spec], entity, start, end, room.values, at, each.columns)
            yield RowBlock(index, spec, *entity, start, end, values, valid, hashes)

    def _first_end(self, t: int) -> int:
        """The earliest end of any window that an event at `t` can belong to."""
        specs = [w for s in self._sets for w in s.declared.windows]
        return min(t + w.size_us if w.session else (t // w.slide_us + 1) * w.slide_us for w in specs)

    def _pending_due(self) -> int:
        return min((self._first_end(int(p.event_time.min())) for p in self._pending), default=NEVER)

    def _end(self) -> None:
        """All partitions have ended and all windows are closed: a later run goes on after the last."""
        newest = self.watermark.newest
        if newest != NO_WATERMARK:
            specs = [w for s in self._sets for w in s.declared.windows]
            ends = [newest + w.size_us if w.session else (newest // w.slide_us + w.panes) * w.slide_us for w in specs]
            self._floor = max(self._floor, *ends)
        self.watermark.reopen(self._floor)


def _merge_small(parts: list[Pending]) -> list[Pending]:
    """Join neighbours that have shrunk, so that the number of pieces stays in proportion to the events."""
    merged: list[list[Pending]] = []
    size = _CHUNK_EVENTS
    for part in parts:
        if size >= _CHUNK_EVENTS:
            merged.append([])
            size = 0
        merged[-1].append(part)
        size += len(part.event_time)
    return [concatenate(group) for group in merged]


def _no_events(fields: int) -> Pending:
    none = np.empty(0, np.int64)
    return Pending(none, none, none, none, none, np.empty(0, np.uint64), np.empty((0, fields)))


def _new_set(declared: FeatureSet, index: int, fields: tuple[str, ...]) -> _Set:
    count = len(declared.fields)
    specs = np.zeros((len(declared.windows), SPEC), np.int64)
    floats, ints = count * EW, TIMES_AT + count
    for line, w in zip(specs, declared.windows, strict=True):
        line[:] = w.size_us, w.slide_us, w.panes, w.session, ints, floats, ints + HEAD
        floats += w.panes * count * PANE
        ints += HEAD + w.panes
    field_column = np.array([fields.index(f) for f in declared.fields], np.int64)
    plan = SetPlan(specs, field_column, index, float(declared.halflife_us), floats, ints)
    chosen = [STATISTICS.index(s) for s in declared.statistics]
    columns = [f * STATISTICS_COUNT + s for f in range(count) for s in chosen]
    headers = [hash_header(declared, w) for w in declared.windows]
    scratch = Scratch(np.zeros((1, count * PANE)), np.zeros((count, 4)), np.zeros(len(specs), np.int64))
    return _Set(declared, plan, _empty_state(plan, 0), scratch, np.array(columns, np.int64), headers)


def _empty_state(plan: SetPlan, entities: int) -> SetState:
    state = SetState(np.zeros((entities, plan.floats)), np.zeros((entities, plan.ints), np.int64))
    state.ints[:, NEXT_END] = NEVER
    return state


def _resize(each: _Set, entities: int) -> SetState:
    """A state with room for `entities`, holding what the old one held."""
    grown = _empty_state(each.plan, entities)
    for old, new in zip(each.state, grown, strict=True):
        new[: len(old)] = old
    return grown


def _room(each: _Set, rows: int) -> RowBuffer:
    return RowBuffer(np.empty((rows, 4), np.int64), np.empty((rows, len(each.plan.field) * STATISTICS_COUNT)))
