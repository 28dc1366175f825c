"""One feature set within a shard: the state of its windows, grown, run, packed and unpacked."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Protocol

import numpy as np

from operators.kernels import EW, EW_LASTING, PANE, STATISTICS_COUNT
from operators.records import RowBlock
from operators.window_loops import (
    HEAD,
    NEVER,
    NEXT_END,
    ROW_ENTITY,
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
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from operators.feature_sets import FeatureSet

_ROOM = 1 << 13
_ENTITIES_MIN = 64
_PACKED = ("open", "floats", "ints", "open_floats", "open_ints")


class Names(Protocol):
    """Whose windows they are: an index → an entity_id, a column at a time."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the column (data, offsets) of the ids at `index`."""
        ...


class SetWindows:
    """The windows of one feature set for all entities of a shard; entities are those of `Entities`."""

    def __init__(self, declared: FeatureSet, index: int, fields: tuple[str, ...]) -> None:
        """index: of the set in the flow. fields: the decoded columns, which hold those of the set."""
        self._index = index
        self._windows = declared.windows
        self._plan = _plan(declared, index, fields)
        self._state = _empty_state(self._plan, 0)
        count = len(declared.fields)
        self._scratch = Scratch(
            np.zeros((1, count * PANE)), np.zeros((count, 4)), np.zeros(len(declared.windows), np.int64)
        )
        self._room = _room(self._plan, _ROOM)

    def apply(self, events: Ordered, entities: Names) -> Iterator[RowBlock]:
        """Take events in order; yield the windows that they close."""
        self._grow(entities.count)
        group = 0
        while group < len(events.entity):
            room = self._room
            group, count, need = apply_events(self._state, self._plan, self._scratch, events, room, group)
            yield from self._blocks(room, count, entities)
            if group < len(events.entity):
                self._make_room(need)

    def close(self, watermark: int, entities: Names) -> tuple[list[RowBlock], int]:
        """Close every window with end <= watermark; return them, and the end that closes next or NEVER."""
        blocks: list[RowBlock] = []
        entity, due = 0, NEVER
        while entity < len(self._state.ints):
            room = self._room
            entity, count, need, upcoming = close_windows(
                self._state, self._plan, self._scratch, watermark, room, entity
            )
            due = min(due, int(upcoming))
            blocks.extend(self._blocks(room, count, entities))
            if entity < len(self._state.ints):
                self._make_room(need)
        return blocks, due

    def first_end(self, t: int) -> int:
        """The earliest end of any window that an event at `t` can belong to."""
        return min(t + w.size_us if w.session else (t // w.slide_us + 1) * w.slide_us for w in self._windows)

    def last_end(self, t: int) -> int:
        """The latest end of any window that an event at `t` belongs to, if no event follows."""
        return max(t + w.size_us if w.session else (t // w.slide_us + w.panes) * w.slide_us for w in self._windows)

    def pack(self, entities: int) -> dict[str, NDArray[np.generic]]:
        """The state of the first `entities` as arrays; of one without open windows only what outlives them."""
        return self.pack_lines(SetState(self._state.floats[:entities], self._state.ints[:entities]))

    def pack_lines(self, state: SetState) -> dict[str, NDArray[np.generic]]:
        """The same of any state of this set."""
        floats, ints = state
        is_open = ints[:, NEXT_END] != NEVER
        (lasting, passing), (lasting_ints, passing_ints) = _lasting(self._plan)
        open_floats, open_ints = floats[is_open], ints[is_open]
        parts = (
            is_open,
            floats[:, lasting],
            ints[:, lasting_ints],
            open_floats[:, passing],
            open_ints[:, passing_ints],
        )
        return dict(zip(_PACKED, parts, strict=True))

    def unpack(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take the state that `pack` gave."""
        self._state = self.unpack_lines(arrays)

    def unpack_lines(self, arrays: Mapping[str, NDArray[np.generic]]) -> SetState:
        """The state that `pack_lines` was given."""
        is_open, floats, ints, open_floats, open_ints = (arrays[name] for name in _PACKED)
        (lasting, passing), (lasting_ints, passing_ints) = _lasting(self._plan)
        state = _empty_state(self._plan, len(is_open))
        state.floats[:, lasting] = floats
        state.ints[:, lasting_ints] = ints
        opened = np.flatnonzero(is_open)[:, None]
        state.floats[opened, passing] = open_floats
        state.ints[opened, passing_ints] = open_ints
        return state

    def fork(self, entities: int) -> SetWindows:
        """Windows of the same set for so many entities of which nothing is known; not to be used at the same time."""
        other = copy(self)
        other._state = _empty_state(self._plan, entities)  # noqa: SLF001  # one of its own kind
        return other

    def lines(self, entities: int) -> SetState:
        """A copy of the state of the first `entities`."""
        self._grow(entities)
        return SetState(self._state.floats[:entities].copy(), self._state.ints[:entities].copy())

    def put(self, index: NDArray[np.int64], source: SetState, where: NDArray[np.int64]) -> int:
        """Take the lines `where` of the source for the entities `index`; return the end that closes next, or NEVER."""
        self._grow(int(index.max(initial=-1)) + 1)
        ints = source.ints[where]
        self._state.floats[index] = source.floats[where]
        self._state.ints[index] = ints
        return int(ints[:, NEXT_END].min(initial=NEVER))

    @property
    def state(self) -> SetState:
        """The state as it is, not a copy."""
        return self._state

    @property
    def line_bytes(self) -> int:
        """Bytes of one entity's state."""
        return 8 * (self._plan.floats + self._plan.ints)

    def grown(self, state: SetState, entities: int) -> SetState:
        """The state with lines for so many entities at least."""
        have = len(state.ints)
        if have >= entities:
            return state
        grown = _empty_state(self._plan, entities)
        grown.floats[:have] = state.floats
        grown.ints[:have] = state.ints
        return grown

    def _grow(self, entities: int) -> None:
        have = len(self._state.ints)
        if have < entities:
            self._state = self.grown(self._state, max(_ENTITIES_MIN, 2 * have, entities))

    def _make_room(self, rows: int) -> None:
        if rows > len(self._room.place):
            self._room = _room(self._plan, rows)

    def _blocks(self, room: RowBuffer, count: int, entities: Names) -> Iterator[RowBlock]:
        """Take the rows out of the buffer, or the buffer itself where they fill most of it."""
        if count > 0:
            place, values = room.place[:count], room.values[:count]
            if 2 * count > len(room.place):
                self._room = _room(self._plan, len(room.place))
            else:
                place, values = place.copy(), values.copy()
            yield RowBlock(self._index, *entities.gather(place[:, ROW_ENTITY]), place, values)


def _plan(declared: FeatureSet, index: int, fields: tuple[str, ...]) -> SetPlan:
    """Lay out an entity's lines: EW states and times first, then each spec's head, panes and event counts."""
    count = len(declared.fields)
    specs = np.zeros((len(declared.windows), SPEC), np.int64)
    floats, ints = count * EW, TIMES_AT + count
    for line, w in zip(specs, declared.windows, strict=True):
        line[:] = w.size_us, w.slide_us, w.panes, w.session, ints, floats, ints + HEAD
        floats += w.panes * count * PANE
        ints += HEAD + w.panes
    field_column = np.array([fields.index(f) for f in declared.fields], np.int64)
    return SetPlan(specs, field_column, index, float(declared.halflife_us), floats, ints)


def _lasting(plan: SetPlan) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]:
    """Which places of an entity's floats and integers outlive its windows, and which do not."""
    fields = len(plan.field)
    floats, ints = np.zeros(plan.floats, np.bool_), np.zeros(plan.ints, np.bool_)
    floats[: fields * EW].reshape(fields, EW)[:, :EW_LASTING] = True
    ints[TIMES_AT : TIMES_AT + fields] = True
    return tuple((np.flatnonzero(each), np.flatnonzero(~each)) for each in (floats, ints))


def _empty_state(plan: SetPlan, entities: int) -> SetState:
    state = SetState(np.zeros((entities, plan.floats)), np.zeros((entities, plan.ints), np.int64))
    state.ints[:, NEXT_END] = NEVER
    return state


def _room(plan: SetPlan, rows: int) -> RowBuffer:
    return RowBuffer(np.empty((rows, 4), np.int64), np.empty((rows, len(plan.field) * STATISTICS_COUNT)))
