"""The loops over entities and events: which windows an event opens, which a watermark closes.

Compiled by numba; the state is a bundle of arrays that `windows.py` owns, grows and snapshots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.kernels import COUNT, PANE, STATISTICS_COUNT, ew_update, pane_join, pane_update, statistics

# Columns of the head of one entity and window spec. Sliding: whether windows are open, the pane
# whose end closes next, the newest pane with events. Session: open, start, time of the last event.
OPEN, NEXT, NEWEST = range(3)
HEAD = 3
# Columns of a row's place.
ROW_ENTITY, ROW_SPEC, ROW_START, ROW_END = range(4)

NEVER = np.iinfo(np.int64).max


class SetState(NamedTuple):
    """State of one feature set for E entities, S window specs, P panes in all and F fields.

    Flat, so that the loops make no views: ew float64 (E * F, 9); ew_time int64 (E * F,); panes float64
    (E * P * F, 8); pane_events int64 (E * P,), events in the pane whatever their fields; head int64
    (E * S, 3); next_end int64 (E,), end of the entity's window that closes next, or NEVER.
    """

    ew: NDArray[np.float64]
    ew_time: NDArray[np.int64]
    panes: NDArray[np.float64]
    pane_events: NDArray[np.int64]
    head: NDArray[np.int64]
    next_end: NDArray[np.int64]


class SetPlan(NamedTuple):
    """What does not change: the specs of a set, its fields and its halflife.

    size, slide, panes, base, session: int64 (S,); base is the spec's first pane, session is 0 or 1.
    field: int64 (F,), column of the set's field among the decoded ones. bit: of the set in `sets`.
    panes_all: P, the panes of all specs.
    """

    size: NDArray[np.int64]
    slide: NDArray[np.int64]
    panes: NDArray[np.int64]
    base: NDArray[np.int64]
    session: NDArray[np.int64]
    field: NDArray[np.int64]
    bit: int
    halflife_us: float
    panes_all: int


class Ordered(NamedTuple):
    """Events to apply, grouped by entity and in order within it, each key once.

    entity: int64 (groups,). start: int64 (groups + 1,), the group's events in the columns below.
    event_time: int64 (n,). sets: uint64 (n,). values: float64 (n, fields).
    """

    entity: NDArray[np.int64]
    start: NDArray[np.int64]
    event_time: NDArray[np.int64]
    sets: NDArray[np.uint64]
    values: NDArray[np.float64]


class RowBuffer(NamedTuple):
    """Room for closed windows. place: int64 (cap, 4); values: float64 (cap, F * 11), NaN is null."""

    place: NDArray[np.int64]
    values: NDArray[np.float64]


@njit(inline="always")
def _pane_row(plan, e, slot):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Row in `panes` of the first field of an entity's pane; the other fields follow."""
    return (e * plan.panes_all + slot) * plan.field.shape[0]


@njit(inline="always")
def _emit(state, plan, e, panes, first, rows, count, spec, start, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write one row from the window whose fields stand in `panes` from row `first` on."""
    rows.place[count, ROW_ENTITY] = e
    rows.place[count, ROW_SPEC] = spec
    rows.place[count, ROW_START] = start
    rows.place[count, ROW_END] = end
    fields = plan.field.shape[0]
    for f in range(fields):
        statistics(panes, first + f, state.ew, e * fields + f, rows.values, count, f * STATISTICS_COUNT)
    return count + 1


@njit
def _close_session(state, plan, e, spec, until, rows, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    h = e * plan.size.shape[0] + spec
    end = state.head[h, NEWEST] + plan.size[spec]
    if state.head[h, OPEN] == 0 or end > until:
        return count
    pane = _pane_row(plan, e, plan.base[spec])
    count = _emit(state, plan, e, state.panes, pane, rows, count, spec, state.head[h, NEXT], end)
    for f in range(plan.field.shape[0]):
        state.panes[pane + f, COUNT] = 0.0
    state.head[h, OPEN] = 0
    return count


@njit
def _join_panes(state, plan, e, spec, oldest, last, window):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Join the panes of a sliding window into `window` (float64 (F, 8)); return its events."""
    panes = plan.panes[spec]
    fields = plan.field.shape[0]
    window[:, COUNT] = 0.0
    events = 0
    for pane in range(oldest, last + 1):
        slot = plan.base[spec] + pane % panes
        events += state.pane_events[e * plan.panes_all + slot]
        first = _pane_row(plan, e, slot)
        for f in range(fields):
            if state.panes[first + f, COUNT] > 0.0:
                pane_join(window, f, state.panes, first + f)
    return events


@njit
def _close_sliding(state, plan, e, spec, until, rows, count, window):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    h = e * plan.size.shape[0] + spec
    slide = plan.slide[spec]
    panes = plan.panes[spec]
    while state.head[h, OPEN] == 1 and (state.head[h, NEXT] + 1) * slide <= until:
        last = state.head[h, NEXT]
        oldest = last - panes + 1
        slot = plan.base[spec] + oldest % panes
        first = _pane_row(plan, e, slot)
        end = (last + 1) * slide
        if panes == 1:
            count = _emit(state, plan, e, state.panes, first, rows, count, spec, oldest * slide, end)
        elif _join_panes(state, plan, e, spec, oldest, last, window) > 0:
            count = _emit(state, plan, e, window, 0, rows, count, spec, oldest * slide, end)
        for f in range(plan.field.shape[0]):
            state.panes[first + f, COUNT] = 0.0
        state.pane_events[e * plan.panes_all + slot] = 0
        state.head[h, NEXT] = last + 1
        if last + 1 > state.head[h, NEWEST] + panes - 1:
            state.head[h, OPEN] = 0
    return count


@njit
def _close(state, plan, e, until, rows, count, window):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Close the entity's windows with end <= until, spec by spec, and note what closes next."""
    upcoming = NEVER
    specs = plan.size.shape[0]
    for spec in range(specs):
        h = e * specs + spec
        if plan.session[spec] == 1:
            count = _close_session(state, plan, e, spec, until, rows, count)
            end = state.head[h, NEWEST] + plan.size[spec]
        else:
            count = _close_sliding(state, plan, e, spec, until, rows, count, window)
            end = (state.head[h, NEXT] + 1) * plan.slide[spec]
        if state.head[h, OPEN] == 1:
            upcoming = min(upcoming, end)
    state.next_end[e] = upcoming
    return count


@njit(inline="always")
def _open(state, plan, e, t, slots):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Give an event at `t` its pane in every spec; windows that end by `t` are closed already."""
    upcoming = NEVER
    specs = plan.size.shape[0]
    for spec in range(specs):
        h = e * specs + spec
        closed = state.head[h, OPEN] == 0
        slot = plan.base[spec]
        if plan.session[spec] == 1:
            if closed:
                state.head[h, NEXT] = t
            state.head[h, NEWEST] = t
            end = t + plan.size[spec]
        else:
            slide = plan.slide[spec]
            pane = state.head[h, NEWEST]
            if closed or t - pane * slide >= slide:
                pane = t // slide
            if closed:
                state.head[h, NEXT] = pane
            state.head[h, NEWEST] = pane
            if plan.panes[spec] > 1:
                slot += pane % plan.panes[spec]
                state.pane_events[e * plan.panes_all + slot] += 1
            end = (state.head[h, NEXT] + 1) * slide
        state.head[h, OPEN] = 1
        slots[spec] = _pane_row(plan, e, slot)
        upcoming = min(upcoming, end)
    state.next_end[e] = upcoming


@njit(inline="always")
def _take(state, plan, e, t, values, i, slots):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take the values of event `i` into the panes and the EW state."""
    fields = plan.field.shape[0]
    for f in range(fields):
        x = values[i, plan.field[f]]
        if x != x:  # noqa: PLR0124  # NaN, the null of these columns
            continue
        for spec in range(slots.shape[0]):
            pane_update(state.panes, slots[spec] + f, x)
        r = e * fields + f
        ew_update(state.ew, r, x, t - state.ew_time[r], plan.halflife_us)
        state.ew_time[r] = t


@njit
def _rows_max(plan, events):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Rows that `events` events of one entity, and the panes already open, can close at most."""
    total = 0
    for spec in range(plan.panes.shape[0]):
        total += plan.panes[spec] * (events + plan.panes[spec])
    return total


@njit(cache=True, nogil=True)
def apply_events(state, plan, events, rows, group):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Apply groups of events from `group` on until all are done or the rows' room is short.

    Returns (next group, rows written, rows that the next group may need). Each event first closes the
    windows that end by its time, so that their EW statistics are those as of their last event.
    """
    count = 0
    window = np.zeros((plan.field.shape[0], PANE))
    slots = np.zeros(plan.size.shape[0], np.int64)
    need = 0
    bit = np.uint64(plan.bit)
    while group < events.entity.shape[0]:
        e = events.entity[group]
        start = events.start[group]
        stop = events.start[group + 1]
        need = _rows_max(plan, stop - start)
        if count + need > rows.place.shape[0]:
            break
        for i in range(start, stop):
            if (events.sets[i] >> bit) & np.uint64(1) == np.uint64(0):
                continue
            t = events.event_time[i]
            if state.next_end[e] <= t:
                count = _close(state, plan, e, t, rows, count, window)
            _open(state, plan, e, t, slots)
            _take(state, plan, e, t, events.values, i, slots)
        group += 1
    return group, count, need


@njit(cache=True, nogil=True)
def close_windows(state, plan, watermark, rows, entity):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Close every window with end <= watermark, entity by entity from `entity` on.

    Returns (next entity, rows written, rows that the next entity may need, end that closes next).
    The last is right once all entities are done.
    """
    count = 0
    window = np.zeros((plan.field.shape[0], PANE))
    need = _rows_max(plan, 0)
    while entity < state.next_end.shape[0]:
        if state.next_end[entity] <= watermark and state.next_end[entity] != NEVER:
            if count + need > rows.place.shape[0]:
                break
            count = _close(state, plan, entity, watermark, rows, count, window)
        entity += 1
    return entity, count, need, state.next_end.min() if state.next_end.shape[0] > 0 else NEVER
