"""Some entities of a shard computed anew, from what is retained and the late events that belong to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.order import Pending, chosen, concatenate, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from operators.records import RowBlock
    from operators.retained import Emitted, Retained, Segment
    from operators.set_windows import SetWindows
    from operators.verdicts import Noted


class Late(NamedTuple):
    """Late events by the entities they belong to, which are numbered.

    entity: int64 (m,), their indices in the shard, rising. events: whose entity is the number. first: int64 (m,),
    time of each one's first late event. segment: int64 (m,), the one in which that lies. start: int64 (m + 1,), and
    times: int64 (n,), times of each one's late events, rising.
    """

    entity: NDArray[np.int64]
    events: Pending
    first: NDArray[np.int64]
    segment: NDArray[np.int64]
    start: NDArray[np.int64]
    times: NDArray[np.int64]


class _Nameless:
    """Numbered entities whose names nobody asks for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return np.empty(0, np.uint8), np.zeros(len(index) + 1, np.int64)


class Replay:
    """Numbered entities computed anew, from the segment of each one's first late event on."""

    def __init__(
        self,
        windows: Sequence[SetWindows],
        retained: Retained,
        late: Late,
        entities: int,
        fields: int,
        noted: Noted | None = None,
    ) -> None:
        """windows: the live ones, left alone. entities: in the shard. fields: decoded. noted: see Restating."""
        self._noted = noted
        count = len(late.entity)
        self.windows = [each.fork(count) for each in windows]
        self.blocks: list[RowBlock] = []
        self.emitted: list[Emitted] = []
        self.used = self.duplicate = self.conflict = 0
        self._retained = retained
        self._late = late
        self._entities = entities
        self._fields = fields
        self._small = np.full(entities, -1, np.int32)
        self._nameless = _Nameless(count)

    def run(self, due: int, rank: NDArray[np.int64]) -> None:
        """Go through the segments; the last one ends at `due`."""
        segments = self._retained.segments
        for k in range(int(self._late.segment.min()), len(segments)):
            joining = np.flatnonzero(self._late.segment == k)
            self._join(segments[k], joining)
            until = segments[k + 1].start if k + 1 < len(segments) else due
            self._through(segments[k], until, rank, due)
            if k + 1 < len(segments):
                self._save(segments[k + 1], np.flatnonzero(self._late.segment <= k))

    def _join(self, segment: Segment, numbers: NDArray[np.int64]) -> None:
        """These entities begin here, as they were when the segment began."""
        index = self._late.entity[numbers]
        self._small[index] = numbers
        for i, each in enumerate(self.windows):
            segment.states[i] = each.grown(segment.states[i], self._entities)
            each.put(numbers, segment.states[i], index)

    def _save(self, segment: Segment, numbers: NDArray[np.int64]) -> None:
        """Keep how these entities are when the segment begins."""
        index = self._late.entity[numbers]
        for i, each in enumerate(self.windows):
            segment.states[i] = each.grown(segment.states[i], self._entities)
            segment.states[i].floats[index] = each.state.floats[numbers]
            segment.states[i].ints[index] = each.state.ints[numbers]

    def _through(self, segment: Segment, until: int, rank: NDArray[np.int64], due: int) -> None:
        events = self._retained.gathered(segment, self._small, self._fields)
        times = self._late.events.event_time
        pick = np.flatnonzero((times >= segment.start) & (times < until))
        if len(pick):
            late = chosen(self._late.events, pick)
            self._count(events, late, rank, due)
            events = concatenate([events, late])
            segment.keep(late._replace(entity=self._late.entity[late.entity].astype(np.int32)))
        ordered, _, _ = in_order(events, rank, self._nameless.count)
        for each in self.windows:
            self.blocks.extend(each.apply(ordered, self._nameless))
            self.blocks.extend(each.close(until, self._nameless)[0])
        self.emitted += self._retained.emitted(segment, self._small, self._late.first)

    def _count(self, events: Pending, late: Pending, rank: NDArray[np.int64], due: int) -> None:
        """What late events do to the counts: only events of the same entity and time can share their keys."""
        there = _at_times(events.entity, events.event_time, self._late.start, self._late.times)
        same = chosen(events, there)
        both = concatenate([same, late])
        was, fate = np.zeros(len(same.entity), np.uint8), np.zeros(len(both.entity), np.uint8)
        _, duplicates, conflicts = in_order(same, rank, self._nameless.count, was)
        _, duplicates_now, conflicts_now = in_order(both, rank, self._nameless.count, fate)
        if self._noted is not None:
            changed = np.append(fate[: len(was)] != was, np.ones(len(late.entity), np.bool_))
            self._noted.add(both, fate, np.flatnonzero(changed), due)
        self.duplicate += duplicates_now - duplicates
        self.conflict += conflicts_now - conflicts
        self.used += len(late.event_time) - (duplicates_now - duplicates) - (conflicts_now - conflicts)


def numbered(late: Pending, starts: Sequence[int]) -> Late:
    """Number the entities of late events, at least one. starts: of the segments, none of which begins after all."""
    entity, number = np.unique(late.entity, return_inverse=True)
    order = np.lexsort((late.event_time, number))
    start = np.searchsorted(number[order], np.arange(len(entity) + 1))
    times = late.event_time[order]
    first = times[start[:-1]]
    segment = np.searchsorted(np.array(starts), first, "right") - 1
    assert segment.min() >= 0, "what is older than what is retained is refused before"
    return Late(entity.astype(np.int64), late._replace(entity=number.astype(np.int32)), first, segment, start, times)


@njit(cache=True, nogil=True)
def _at_times(entity, time, start, times):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Which events have the time of one of their entity's `times`."""
    found = np.zeros(entity.shape[0], np.bool_)
    for i in range(entity.shape[0]):
        low = start[entity[i]]
        high = start[entity[i] + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if times[middle] < time[i]:
                low = middle + 1
            else:
                high = middle
        found[i] = low < end and times[low] == time[i]
    return found
