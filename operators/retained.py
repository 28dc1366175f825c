"""What a shard keeps so that a late event can still change what came of it: events, rows and states, by event time.

A list of segments of event time. Each has the state of every entity as of its start, the events applied since
then, and what is known of the rows that came since then; so to go back to a time costs no more than one segment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.compact import Compact, compacted, gathered, of_rows
from operators.order import Pending, chosen, concatenate
from operators.packing import narrowed, widened
from operators.records import NO_WATERMARK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from operators.set_windows import SetWindows
    from operators.window_loops import SetState

RETAINED_EVENTS_MAX = 1 << 20
"""Events that a shard keeps at most; past it the oldest half goes, whatever their time."""

_SMALL_EVENTS = 4096
_EVENT_BYTES = 64
_SEGMENTS = 8
"""Into about as many segments the time is cut that late events are allowed."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """What late events may still change, microseconds.

    allowed_us: how far behind the watermark. grain_us: corrections count at multiples of it. corrects: late events
    are corrections as they come; else only those that are released are. events_max: see RETAINED_EVENTS_MAX.
    """

    allowed_us: int
    grain_us: int
    corrects: bool
    events_max: int = RETAINED_EVENTS_MAX


class Emitted(NamedTuple):
    """Rows that are out, in the order in which they came out.

    entity: int32 (n,), index in the shard. spec: int32 (n,), number of the window spec, counted through all sets.
    start, end: int64 (n,), of the window. revision: int32 (n,); where the row is no more: -1 - revision.
    hashes: uint64 (n, 2), content hash.
    """

    entity: NDArray[np.int32]
    spec: NDArray[np.int32]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    revision: NDArray[np.int32]
    hashes: NDArray[np.uint64]


NOTHING = Emitted(
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty(0, np.int32),
    np.empty((0, 2), np.uint64),
)
"""No rows."""


def chosen_rows(r: Emitted, pick: NDArray[np.int64] | NDArray[np.bool_]) -> Emitted:
    """Return some of the rows, in columns of their own."""
    return Emitted(r.entity[pick], r.spec[pick], r.start[pick], r.end[pick], r.revision[pick], r.hashes[pick])


def joined_rows(parts: Sequence[Emitted]) -> Emitted:
    """Return the parts end to end."""
    return Emitted(*(np.concatenate(c) for c in zip(NOTHING, *parts, strict=True)))


@dataclass(slots=True)
class Segment:
    """Event time from `start` up to the next segment. states: of every set, as of `start`. recent: the last events."""

    start: int
    states: list[SetState]
    events: list[Compact] = field(default_factory=list)
    recent: Pending | None = None
    rows: list[Emitted] = field(default_factory=list)
    count: int = 0

    def keep(self, events: Pending) -> None:
        """Take events, at least one; small pieces are joined with the one before."""
        self.count += len(events.event_time)
        joined = events if self.recent is None else concatenate([self.recent, events])
        self.recent = joined
        if len(joined.event_time) >= _SMALL_EVENTS:
            self.events = self.pieces()
            self.recent = None

    def pieces(self) -> list[Compact]:
        """All of the events."""
        return self.events if self.recent is None else [*self.events, compacted(self.recent)]

    def emit(self, rows: Emitted) -> None:
        """Take note of rows that are out."""
        if self.rows and len(self.rows[-1].end) + len(rows.end) <= _SMALL_EVENTS:
            self.rows[-1] = joined_rows([self.rows[-1], rows])
        elif len(rows.end):
            self.rows.append(rows)


class Retained:
    """The segments, oldest first; there is always one."""

    def __init__(self, lateness: Lateness, windows: Sequence[SetWindows]) -> None:
        """windows: of the shard, one a set, whose states are copied."""
        self.lateness = lateness
        self._windows = windows
        self.segments = [Segment(NO_WATERMARK, [each.lines(0) for each in windows])]
        self.cut = 0
        self._spacing_us = max(lateness.allowed_us // _SEGMENTS, lateness.grain_us)

    @property
    def edge(self) -> int:
        """What is older than this cannot be corrected any more."""
        return self.segments[0].start

    @property
    def count(self) -> int:
        """Events held."""
        return sum(s.count for s in self.segments)

    def checkpoint(self, now: int, entities: int, needed: int) -> None:
        """Everything below `now` is applied and closed: begin a new segment if it is worth it, and let the oldest go.

        needed: time of the oldest correction that does not count yet; its segment stays, at most `grain_us` longer.
        A segment holds at least as many bytes of events as of states, so that states never are most of the memory.
        """
        last = self.segments[-1]
        state_bytes = sum(each.line_bytes for each in self._windows) * entities
        due = now - last.start >= self._spacing_us and last.count * _EVENT_BYTES >= state_bytes
        if now > last.start and (due or last.count > self.lateness.events_max // _SEGMENTS):
            self.segments.append(Segment(now, [each.lines(entities) for each in self._windows]))
        oldest = min(now - self.lateness.allowed_us - self.lateness.grain_us, needed)
        while len(self.segments) > 1 and self.segments[1].start <= oldest:
            del self.segments[0]
        held = self.count
        if held > self.lateness.events_max:
            while len(self.segments) > 1 and held > self.lateness.events_max // 2 and self.segments[1].start <= needed:
                held -= self.segments.pop(0).count
                self.cut += 1

    def pack(self) -> tuple[list[dict[str, object]], dict[str, NDArray[np.generic]]]:
        """The whole state, as meta (JSON-able) and arrays of as few bytes as they need."""
        metas: list[dict[str, object]] = []
        arrays: dict[str, NDArray[np.generic]] = {}
        for number, segment in enumerate(self.segments):
            prefix = f"retained.{number}."
            lows: dict[str, int] = {}
            layouts = []
            for piece, events in enumerate(segment.pieces()):
                name = f"events{piece}"
                arrays[f"{prefix}{name}.entity"], lows[f"{name}.entity"] = narrowed(events.entity)
                arrays[f"{prefix}{name}.cells"] = events.rows()
                layouts.append(events.layout.tolist())
            rows = segment.rows
            for name, columns in zip(NOTHING._fields if rows else (), zip(*rows, strict=True), strict=True):
                arrays[f"{prefix}rows.{name}"], lows[f"rows.{name}"] = narrowed(np.concatenate(columns))
            for index, (each, state) in enumerate(zip(self._windows, segment.states, strict=True)):
                arrays |= {f"{prefix}{index}.{name}": array for name, array in each.pack_lines(state).items()}
            metas.append({"start": segment.start, "lows": lows, "layouts": layouts})
        return metas, arrays

    def unpack(self, metas: list[dict[str, object]], arrays: dict[str, NDArray[np.generic]]) -> None:
        """Take the state that `pack` gave."""
        self.segments = []
        for number, meta in enumerate(metas):
            lows = cast("dict[str, int]", meta["lows"])
            states = []
            for index, each in enumerate(self._windows):
                prefix = f"retained.{number}.{index}."
                mine = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
                states.append(each.unpack_lines(mine))
            segment = Segment(cast("int", meta["start"]), states)
            for piece, layout in enumerate(cast("list[list[list[int]]]", meta["layouts"])):
                name = f"events{piece}"
                packed, rows = arrays[f"retained.{number}.{name}.entity"], arrays[f"retained.{number}.{name}.cells"]
                entity = widened(packed, lows[f"{name}.entity"], np.dtype(np.int32))
                segment.events.append(of_rows(entity, rows, np.array(layout)))  # type: ignore[arg-type]  # as packed
                segment.count += len(entity)
            if "rows.entity" in lows:
                segment.emit(Emitted(*_columns(f"retained.{number}.rows", NOTHING._asdict(), lows, arrays)))  # type: ignore[arg-type]  # as packed
            self.segments.append(segment)

    def gathered(self, segment: Segment, small: NDArray[np.int32], fields: int) -> Pending:
        """The segment's events of the entities that have a number in `small` (int32 (entities,), -1 for none).

        Their entity is that number.
        """
        found = gathered(segment.events, small, fields)
        if segment.recent is None:
            return found
        number = small[segment.recent.entity]
        pick = np.flatnonzero(number >= 0)
        return concatenate([found, chosen(segment.recent, pick)._replace(entity=number[pick])])

    def emitted(self, segment: Segment, small: NDArray[np.int32], after: NDArray[np.int64]) -> list[Emitted]:
        """The segment's rows of these entities whose end lies behind `after` (int64 (numbers,)), with their numbers."""
        found = []
        for rows in segment.rows:
            pick = _rows_of(rows.entity, rows.end, small, after)
            if len(pick):
                taken = chosen_rows(rows, pick)
                found.append(taken._replace(entity=small[taken.entity]))
        return found


def _columns(
    prefix: str,
    like: Mapping[str, NDArray[np.generic]],
    lows: Mapping[str, int],
    arrays: Mapping[str, NDArray[np.generic]],
) -> list[NDArray[np.generic]]:
    """Packed columns as they were; `like` has their types."""
    kind = prefix.rpartition(".")[2]
    return [widened(arrays[f"{prefix}.{c}"], lows[f"{kind}.{c}"], column.dtype) for c, column in like.items()]


@njit(cache=True, nogil=True)
def _rows_of(entity, end, small, after):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    pick = np.empty(entity.shape[0], np.int64)
    n = 0
    for i in range(entity.shape[0]):
        number = small[entity[i]]
        if number >= 0 and end[i] > after[number]:
            pick[n] = i
            n += 1
    return pick[:n].copy()
