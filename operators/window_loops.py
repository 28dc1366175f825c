"""The loops over entities and events: which windows an event opens, which a watermark closes.

Compiled by numba. An entity's state is one line of floats (EW states, then panes) and one of integers
(end that closes next, times of the EW states, then heads and event counts of the windows); `windows.py`
owns, grows and snapshots the two arrays. Arrays are handed on one by one: in a bundle each access would
count references.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.compiled import kernel, part, piece
from operators.kernels import (
    COUNT,
    EW,
    PANE,
    STATISTICS_COUNT,
    ew_statistics,
    ew_update,
    pane_join,
    pane_update,
    window_statistics,
)

# Columns of a spec: size and slide in microseconds, panes of a window, 1 for a session; and where in an
# entity's lines its head, its panes and their event counts begin.
SIZE, SLIDE, PANES, SESSION, HEAD_AT, PANES_AT, EVENTS_AT = range(7)
SPEC = 7
# Places in the head of a spec. Sliding: whether windows are open, the pane whose end closes next, the
# newest pane with events. Session: open, start, time of the last event.
OPEN, NEXT, NEWEST = range(3)
HEAD = 3
# Places in an entity's line of integers: the end that closes next, or NEVER; then a time a field.
NEXT_END, TIMES_AT = range(2)
# Columns of a row's place.
ROW_ENTITY, ROW_SPEC, ROW_START, ROW_END = range(4)

NEVER = np.iinfo(np.int64).max
_EW_STATISTICS = 7


class SetState(NamedTuple):
    """State of E entities. floats: float64 (E, plan.floats). ints: int64 (E, plan.ints)."""

    floats: NDArray[np.float64]
    ints: NDArray[np.int64]


class SetPlan(NamedTuple):
    """What does not change of a feature set.

    specs: int64 (S, 7). field: int64 (F,), column of the set's field among the decoded ones.
    bit: of the set in `sets`. halflife_us: microseconds. floats, ints: lengths of an entity's lines.
    """

    specs: NDArray[np.int64]
    field: NDArray[np.int64]
    bit: int
    halflife_us: float
    floats: int
    ints: int


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


class Scratch(NamedTuple):
    """Room to work in. window: float64 (1, F * 8). ew: float64 (F, 4). slots: int64 (S,)."""

    window: NDArray[np.float64]
    ew: NDArray[np.float64]
    slots: NDArray[np.int64]


class RowBuffer(NamedTuple):
    """Room for closed windows. place: int64 (cap, 4); values: float64 (cap, F * 11), NaN is null."""

    place: NDArray[np.int64]
    values: NDArray[np.float64]


@piece
def _emit(panes, p, at, fields, ew, values, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write the values of row `count` from the panes panes[p, at] and the entity's EW statistics."""
    for f in range(fields):
        column = f * STATISTICS_COUNT
        window_statistics(panes, p, at + f * PANE, values, count, column)
        if values[count, column] > 0.0:
            for i in range(4):
                values[count, column + _EW_STATISTICS + i] = ew[f, i]


@part
def _close_session(floats, ints, specs, spec, e, until, ew, place, values, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    head = specs[spec, HEAD_AT]
    end = ints[e, head + NEWEST] + specs[spec, SIZE]
    if end > until:
        return count
    fields = ew.shape[0]
    at = specs[spec, PANES_AT]
    place[count, ROW_ENTITY] = e
    place[count, ROW_SPEC] = spec
    place[count, ROW_START] = ints[e, head + NEXT]
    place[count, ROW_END] = end
    _emit(floats, e, at, fields, ew, values, count)
    for f in range(fields):
        floats[e, at + f * PANE + COUNT] = 0.0
    ints[e, head + OPEN] = 0
    return count + 1


@part
def _join_panes(floats, ints, specs, spec, e, last, window):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Join the panes of the window that ends with pane `last` into `window` (float64 (1, F * 8)); return its events."""
    panes = specs[spec, PANES]
    fields = window.shape[1] // PANE
    for f in range(fields):
        window[0, f * PANE + COUNT] = 0.0
    events = 0
    for pane in range(last - panes + 1, last + 1):
        slot = pane % panes
        events += ints[e, specs[spec, EVENTS_AT] + slot]
        at = specs[spec, PANES_AT] + slot * fields * PANE
        for f in range(fields):
            if floats[e, at + f * PANE + COUNT] > 0.0:
                pane_join(window, f * PANE, floats, e, at + f * PANE)
    return events


@part
def _close_sliding(floats, ints, specs, spec, e, until, ew, window, place, values, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    head = specs[spec, HEAD_AT]
    slide = specs[spec, SLIDE]
    panes = specs[spec, PANES]
    fields = ew.shape[0]
    last = ints[e, head + NEXT]
    newest = ints[e, head + NEWEST]
    while last <= newest + panes - 1 and (last + 1) * slide <= until:
        oldest = last - panes + 1
        slot = oldest % panes
        at = specs[spec, PANES_AT] + slot * fields * PANE
        events = 1
        if panes > 1:
            events = _join_panes(floats, ints, specs, spec, e, last, window)
        if events > 0:
            place[count, ROW_ENTITY] = e
            place[count, ROW_SPEC] = spec
            place[count, ROW_START] = oldest * slide
            place[count, ROW_END] = (last + 1) * slide
            if panes > 1:
                _emit(window, 0, 0, fields, ew, values, count)
            else:
                _emit(floats, e, at, fields, ew, values, count)
            count += 1
        for f in range(fields):
            floats[e, at + f * PANE + COUNT] = 0.0
        ints[e, specs[spec, EVENTS_AT] + slot] = 0
        last += 1
    ints[e, head + NEXT] = last
    if last > newest + panes - 1:
        ints[e, head + OPEN] = 0
    return count


@part
def _close(floats, ints, specs, e, until, ew, window, place, values, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Close the entity's windows with end <= until, spec by spec, and note what closes next."""
    for f in range(ew.shape[0]):
        ew_statistics(floats, e, f * EW, ew, f)
    upcoming = NEVER
    for spec in range(specs.shape[0]):
        head = specs[spec, HEAD_AT]
        if ints[e, head + OPEN] == 0:
            continue
        if specs[spec, SESSION] == 1:
            count = _close_session(floats, ints, specs, spec, e, until, ew, place, values, count)
            end = ints[e, head + NEWEST] + specs[spec, SIZE]
        else:
            count = _close_sliding(floats, ints, specs, spec, e, until, ew, window, place, values, count)
            end = (ints[e, head + NEXT] + 1) * specs[spec, SLIDE]
        if ints[e, head + OPEN] == 1:
            upcoming = min(upcoming, end)
    ints[e, NEXT_END] = upcoming
    return count


@piece
def _open(ints, specs, e, t, fields, slots):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Give an event at `t` its pane in every spec; windows that end by `t` are closed already."""
    upcoming = NEVER
    for spec in range(specs.shape[0]):
        head = specs[spec, HEAD_AT]
        closed = ints[e, head + OPEN] == 0
        slots[spec] = specs[spec, PANES_AT]
        if specs[spec, SESSION] == 1:
            if closed:
                ints[e, head + NEXT] = t
            ints[e, head + NEWEST] = t
            end = t + specs[spec, SIZE]
        else:
            slide = specs[spec, SLIDE]
            pane = ints[e, head + NEWEST]
            if closed or t - pane * slide >= slide:
                pane = t // slide
            if closed:
                ints[e, head + NEXT] = pane
            ints[e, head + NEWEST] = pane
            if specs[spec, PANES] > 1:
                slot = pane % specs[spec, PANES]
                ints[e, specs[spec, EVENTS_AT] + slot] += 1
                slots[spec] += slot * fields * PANE
            end = (ints[e, head + NEXT] + 1) * slide
        ints[e, head + OPEN] = 1
        upcoming = min(upcoming, end)
    ints[e, NEXT_END] = upcoming


@piece
def _take(floats, ints, field, halflife_us, e, t, values, i, slots):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take the values of event `i` into the panes and the EW states."""
    for f in range(field.shape[0]):
        x = values[i, field[f]]
        if x != x:  # noqa: PLR0124  # NaN, the null of these columns
            continue
        for spec in range(slots.shape[0]):
            pane_update(floats, e, slots[spec] + f * PANE, x)
        ew_update(floats, e, f * EW, x, t - ints[e, TIMES_AT + f], halflife_us)
        ints[e, TIMES_AT + f] = t


@piece
def _rows_max(specs, events, span_us):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Rows that `events` events of one entity within `span_us`, and the panes already open, can close at most."""
    total = 0
    for spec in range(specs.shape[0]):
        panes = specs[spec, PANES]
        total += min(panes * (events + panes), span_us // specs[spec, SLIDE] + 2 * panes + 1)
    return total


@kernel
def apply_events(state, plan, scratch, events, rows, group):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Apply groups of events from `group` on until all are done or the rows' room is short.

    Returns (next group, rows written, rows that the next group may need). Each event first closes the
    windows that end by its time, so that their EW statistics are those as of their last event.
    """
    floats, ints = state
    specs = plan.specs
    field = plan.field
    place, out = rows
    entity, starts, times, sets, values = events
    halflife_us = plan.halflife_us
    bit = np.uint64(plan.bit)
    fields = field.shape[0]
    window, ew, slots = scratch
    count = 0
    need = 0
    while group < entity.shape[0]:
        e = entity[group]
        first = starts[group]
        last = starts[group + 1] - 1
        need = _rows_max(specs, last + 1 - first, times[last] - times[first])
        if count + need > place.shape[0]:
            break
        for i in range(first, last + 1):
            if (sets[i] >> bit) & np.uint64(1) == np.uint64(0):
                continue
            t = times[i]
            if ints[e, NEXT_END] <= t:
                count = _close(floats, ints, specs, e, t, ew, window, place, out, count)
            _open(ints, specs, e, t, fields, slots)
            _take(floats, ints, field, halflife_us, e, t, values, i, slots)
        group += 1
    return group, count, need


@kernel
def close_windows(state, plan, scratch, watermark, rows, entity):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Close every window with end <= watermark, entity by entity from `entity` on.

    Returns (next entity, rows written, rows that the next entity may need, end that closes next).
    The last is right if the call began with the first entity and came to the last.
    """
    floats, ints = state
    specs = plan.specs
    place, out = rows
    window, ew, _ = scratch
    count = 0
    need = _rows_max(specs, 0, 0)
    upcoming = NEVER
    while entity < ints.shape[0]:
        end = ints[entity, NEXT_END]
        if end <= watermark and end != NEVER:
            if count + need > place.shape[0]:
                break
            count = _close(floats, ints, specs, entity, watermark, ew, window, place, out, count)
        upcoming = min(upcoming, ints[entity, NEXT_END])
        entity += 1
    return entity, count, need, upcoming
