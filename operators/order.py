"""The order in which events are applied: entity, event_time, sequence, then position in the log.

Events of one key (entity, event_time, sequence) are one event: the last in the log is used; the others
count as duplicates if they say the same and as conflicts if not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.window_loops import NEVER, Ordered

_SHIFTS_PER_EVENT = 8
"""Insertion sort suits nearly sorted events; past this many shifts an event a full sort is cheaper."""

NOT_ASKED = np.empty(0, np.uint8)
"""Stands for the fates of events that nobody wants to know."""


class Pending(NamedTuple):
    """Events that wait for the watermark, or are ready to apply, in the order of arrival.

    entity: int32 (n,), index within the shard. event_time, sequence, offset: int64 (n,).
    partition: int32 (n,), index within the shard's list of partitions. sets: uint64 (n,).
    values: float64 (n, fields).
    """

    entity: NDArray[np.int32]
    event_time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    sets: NDArray[np.uint64]
    values: NDArray[np.float64]


@njit(inline="always")
def _before(e, rank, i, j):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whether event i of one entity is applied before event j."""
    if e.event_time[i] != e.event_time[j]:
        return e.event_time[i] < e.event_time[j]
    if e.sequence[i] != e.sequence[j]:
        return e.sequence[i] < e.sequence[j]
    if e.partition[i] != e.partition[j]:
        return rank[e.partition[i]] < rank[e.partition[j]]
    return e.offset[i] < e.offset[j]


@njit
def _full_sort(e, rank, order):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Stable sorts by the four keys, last key first."""
    by = order[np.argsort(e.offset[order], kind="mergesort")]
    by = by[np.argsort(rank[e.partition[by]], kind="mergesort")]
    by = by[np.argsort(e.sequence[by], kind="mergesort")]
    order[:] = by[np.argsort(e.event_time[by], kind="mergesort")]


@njit
def _sort_entity(e, rank, order):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Sort the events `order` of one entity in place."""
    budget = _SHIFTS_PER_EVENT * order.shape[0]
    for i in range(1, order.shape[0]):
        mine = order[i]
        j = i - 1
        while j >= 0 and _before(e, rank, mine, order[j]):
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = mine
        budget -= i - 1 - j
        if budget < 0:
            _full_sort(e, rank, order)
            return


@njit(inline="always")
def _same_content(e, i, j):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whether two events say the same: the same values, null where null, for the same feature sets."""
    if e.sets[i] != e.sets[j]:
        return False
    for f in range(e.values.shape[1]):
        x = e.values[i, f]
        y = e.values[j, f]
        if x != y and not (x != x and y != y):  # noqa: PLR0124  # NaN, the null of these columns
            return False
    return True


@njit
def _by_entity(entity, entities):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Stable counting sort: events in order of entity, and where each entity's events start."""
    start = np.zeros(entities + 1, np.int64)
    for i in range(entity.shape[0]):
        start[entity[i] + 1] += 1
    for s in range(entities):
        start[s + 1] += start[s]
    fill = start.copy()
    order = np.empty(entity.shape[0], np.int64)
    for i in range(entity.shape[0]):
        order[fill[entity[i]]] = i
        fill[entity[i]] += 1
    return order, start


@njit
def _dedupe(e, order, winner, fate):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Mark the last of each run of equal keys in winner; return (duplicates, conflicts). fate: of `Fate`, or empty."""
    duplicates = 0
    conflicts = 0
    last = order.shape[0] - 1
    for i in range(order.shape[0] - 1, -1, -1):
        mine = order[i]
        newest = order[last]
        repeats = i < last and e.event_time[mine] == e.event_time[newest] and e.sequence[mine] == e.sequence[newest]
        if not repeats:
            last = i
            winner[i] = True
        elif _same_content(e, mine, newest):
            duplicates += 1
            if fate.shape[0]:
                fate[mine] = 1
        else:
            conflicts += 1
            if fate.shape[0]:
                fate[mine] = 2
    return duplicates, conflicts


@njit(cache=True, nogil=True)
def _ordered(e, rank, entities, fate):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    order, start = _by_entity(e.entity, entities)
    winner = np.zeros(order.shape[0], np.bool_)
    duplicates = 0
    conflicts = 0
    groups = 0
    for s in range(entities):
        if start[s] == start[s + 1]:
            continue
        groups += 1
        mine = order[start[s] : start[s + 1]]
        _sort_entity(e, rank, mine)
        d, c = _dedupe(e, mine, winner[start[s] : start[s + 1]], fate)
        duplicates += d
        conflicts += c
    used = order.shape[0] - duplicates - conflicts
    fields = e.values.shape[1]
    group_entity = np.empty(groups, np.int64)
    group_start = np.empty(groups + 1, np.int64)
    times = np.empty(used, np.int64)
    sets = np.empty(used, np.uint64)
    values = np.empty((used, fields))
    at = 0
    g = 0
    for s in range(entities):
        if start[s] == start[s + 1]:
            continue
        group_entity[g] = s
        group_start[g] = at
        g += 1
        for i in range(start[s], start[s + 1]):
            if winner[i]:
                times[at] = e.event_time[order[i]]
                sets[at] = e.sets[order[i]]
                for f in range(fields):
                    values[at, f] = e.values[order[i], f]
                at += 1
    group_start[groups] = at
    return group_entity, group_start, times, sets, values, duplicates, conflicts


def in_order(
    events: Pending, rank: NDArray[np.int64], entities: int, fate: NDArray[np.uint8] = NOT_ASKED
) -> tuple[Ordered, int, int]:
    """Return the events in the order of application, and the numbers of duplicates and conflicts.

    rank: int64 (partitions,), place of each partition's name in sorted order: the position in the log
    of two partitions' events is (name, offset). entities: number of entities in the shard.
    fate: uint8 (n,) of zeros, in which duplicates and conflicts are marked as `operators.verdicts.Fate` says.
    """
    *columns, duplicates, conflicts = _ordered(events, rank, entities, fate)
    return Ordered(*columns), int(duplicates), int(conflicts)


class Waiting(NamedTuple):
    """Some pending events, at least one, and the times of the oldest and the newest of them."""

    events: Pending
    oldest: int
    newest: int


@njit(inline="always")
def copy_event(e, i, out, j):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Copy event i of Pending to place j of another."""
    out.entity[j] = e.entity[i]
    out.event_time[j] = e.event_time[i]
    out.sequence[j] = e.sequence[i]
    out.partition[j] = e.partition[i]
    out.offset[j] = e.offset[i]
    out.sets[j] = e.sets[i]
    for f in range(e.values.shape[1]):
        out.values[j, f] = e.values[i, f]


@njit(cache=True, nogil=True)
def _take(e, below, ready, at, rest):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Copy events below to ready[at:] and the others to rest; return (next at, oldest and newest of the rest)."""
    left = 0
    oldest = NEVER
    newest = -NEVER
    for i in range(e.event_time.shape[0]):
        t = e.event_time[i]
        if t < below:
            copy_event(e, i, ready, at)
            at += 1
        else:
            copy_event(e, i, rest, left)
            left += 1
            oldest = min(oldest, t)
            newest = max(newest, t)
    return at, oldest, newest


def take_ready(waiting: list[Waiting], below: int) -> tuple[Pending | None, list[Waiting]]:
    """Return the events with event_time < below, if any, in one piece, and those that go on waiting."""
    rest = [w for w in waiting if w.oldest >= below]
    touched = [w for w in waiting if w.oldest < below]
    if not touched:
        return None, rest
    sizes = [len(w.events.event_time) for w in touched]
    counts = [
        size if w.newest < below else int(np.count_nonzero(w.events.event_time < below))
        for w, size in zip(touched, sizes, strict=True)
    ]
    fields = touched[0].events.values.shape[1]
    ready = room(sum(counts), fields)
    at = 0
    for w, size, count in zip(touched, sizes, counts, strict=True):
        left = room(size - count, fields)
        at, oldest, newest = _take(w.events, below, ready, at, left)
        if count < size:
            rest.append(Waiting(left, oldest, newest))
    return ready, rest


def room(events: int, fields: int) -> Pending:
    """Return columns for that many events, without meaning yet."""
    empty = np.empty
    times, sequence, offset = (empty(events, np.int64) for _ in range(3))
    entity, partition = (empty(events, np.int32) for _ in range(2))
    return Pending(entity, times, sequence, partition, offset, empty(events, np.uint64), empty((events, fields)))


def concatenate(parts: list[Pending]) -> Pending:
    """Return the parts, at least one, joined end to end."""
    return parts[0] if len(parts) == 1 else Pending(*(np.concatenate(c) for c in zip(*parts, strict=True)))


def chosen(e: Pending, pick: NDArray[np.int64] | NDArray[np.bool_]) -> Pending:
    """Return some of the events, in columns of their own."""
    columns = (e.entity[pick], e.event_time[pick], e.sequence[pick], e.partition[pick], e.offset[pick])
    return Pending(*columns, e.sets[pick], e.values[pick])


def cut_at(events: Pending | None, time: int) -> tuple[Pending | None, Pending | None]:
    """Return the events before that time and the others; None for no events."""
    if events is None:
        return None, None
    before = events.event_time < time
    count = int(np.count_nonzero(before))
    if count in (0, len(before)):
        return (events, None) if count else (None, events)
    return chosen(events, before), chosen(events, ~before)


def merge(parts: list[Waiting]) -> Waiting:
    """Return the parts, at least one, as one."""
    events = concatenate([p.events for p in parts])
    return Waiting(events, min(p.oldest for p in parts), max(p.newest for p in parts))
