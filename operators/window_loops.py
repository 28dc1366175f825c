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

    ew: float64 (E, F, 9). ew_time: int64 (E, F). panes: float64 (E, P, F, 8).
    pane_events: int64 (E, P), events in the pane whatever their fields. head: int64 (E, S, 3).
    next_end: int64 (E,), end of the entity's window that closes next, or NEVER.
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
    """

    size: NDArray[np.int64]
    slide: NDArray[np.int64]
    panes: NDArray[np.int64]
    base: NDArray[np.int64]
    session: NDArray[np.int64]
    field: NDArray[np.int64]
    bit: int
    halflife_us: float


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
def _emit(state, e, window, rows, count, spec, start, end):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write one row from the joined panes `window` (float64 (F, 8))."""
    place = rows.place[count]
    place[ROW_ENTITY] = e
    place[ROW_SPEC] = spec
    place[ROW_START] = start
    place[ROW_END] = end
    out = rows.values[count]
    for f in range(window.shape[0]):
        statistics(window[f], state.ew[e, f], out[f * STATISTICS_COUNT : (f + 1) * STATISTICS_COUNT])
    return count + 1


@njit
def _close_session(state, plan, e, spec, until, rows, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    head = state.head[e, spec]
    end = head[NEWEST] + plan.size[spec]
    if head[OPEN] == 0 or end > until:
        return count
    pane = plan.base[spec]
    count = _emit(state, e, state.panes[e, pane], rows, count, spec, head[NEXT], end)
    state.panes[e, pane, :, COUNT] = 0.0
    head[OPEN] = 0
    return count


@njit
def _close_sliding(state, plan, e, spec, until, rows, count, window):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    head = state.head[e, spec]
    slide = plan.slide[spec]
    panes = plan.panes[spec]
    base = plan.base[spec]
    while head[OPEN] == 1 and (head[NEXT] + 1) * slide <= until:
        last = head[NEXT]
        oldest = last - panes + 1
        if panes == 1:
            count = _emit(state, e, state.panes[e, base], rows, count, spec, last * slide, (last + 1) * slide)
        else:
            window[:, COUNT] = 0.0
            events = 0
            for pane in range(oldest, last + 1):
                slot = base + pane % panes
                events += state.pane_events[e, slot]
                for f in range(window.shape[0]):
                    if state.panes[e, slot, f, COUNT] > 0.0:
                        pane_join(window[f], state.panes[e, slot, f])
            if events > 0:
                count = _emit(state, e, window, rows, count, spec, oldest * slide, (last + 1) * slide)
        state.panes[e, base + oldest % panes, :, COUNT] = 0.0
        state.pane_events[e, base + oldest % panes] = 0
        head[NEXT] = last + 1
        if last + 1 > head[NEWEST] + panes - 1:
            head[OPEN] = 0
    return count


@njit
def _close(state, plan, e, until, rows, count, window):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Close the entity's windows with end <= until, spec by spec, and note what closes next."""
    upcoming = NEVER
    for spec in range(plan.size.shape[0]):
        if plan.session[spec] == 1:
            count = _close_session(state, plan, e, spec, until, rows, count)
            end = state.head[e, spec, NEWEST] + plan.size[spec]
        else:
            count = _close_sliding(state, plan, e, spec, until, rows, count, window)
            end = (state.head[e, spec, NEXT] + 1) * plan.slide[spec]
        if state.head[e, spec, OPEN] == 1:
            upcoming = min(upcoming, end)
    state.next_end[e] = upcoming
    return count


@njit(inline="always")
def _open(state, plan, e, t, slots):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Give an event at `t` its pane in every spec; windows that end by `t` are closed already."""
    upcoming = NEVER
    for spec in range(plan.size.shape[0]):
        head = state.head[e, spec]
        slots[spec] = plan.base[spec]
        if plan.session[spec] == 1:
            if head[OPEN] == 0:
                head[OPEN] = 1
                head[NEXT] = t
            head[NEWEST] = t
            end = t + plan.size[spec]
        else:
            slide = plan.slide[spec]
            pane = head[NEWEST]
            if head[OPEN] == 0 or t - pane * slide >= slide:
                pane = t // slide
            if head[OPEN] == 0:
                head[OPEN] = 1
                head[NEXT] = pane
            head[NEWEST] = pane
            if plan.panes[spec] > 1:
                slots[spec] += pane % plan.panes[spec]
                state.pane_events[e, slots[spec]] += 1
            end = (head[NEXT] + 1) * slide
        upcoming = min(upcoming, end)
    state.next_end[e] = upcoming


@njit(inline="always")
def _take(state, plan, e, t, values, slots):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one event's values into the panes and the EW state."""
    specs = plan.size.shape[0]
    for f in range(plan.field.shape[0]):
        x = values[plan.field[f]]
        if x != x:  # noqa: PLR0124  # NaN, the null of these columns
            continue
        for spec in range(specs):
            pane_update(state.panes[e, slots[spec], f], x)
        ew_update(state.ew[e, f], x, t - state.ew_time[e, f], plan.halflife_us)
        state.ew_time[e, f] = t


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
            _take(state, plan, e, t, events.values[i], slots)
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
