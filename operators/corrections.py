"""Corrections: late events change the rows that are out, as if they had come in time.

All that count at one moment are applied together: the entities they belong to are computed anew from the last
state kept before each one's first late event, and of the rows that come out those are given that differ from what
is out: changed ones, new ones, and as retracted those that are no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.entities import gather_bytes
from operators.kernels import STATISTICS_COUNT
from operators.order import Pending, chosen, concatenate
from operators.records import Revisions, RowBlock
from operators.replay import Replay, numbered
from operators.retained import Emitted, Retained, chosen_rows, joined_rows
from operators.rows import content_hashes, take_rows
from operators.window_loops import NEVER, ROW_END, ROW_ENTITY, ROW_SPEC, ROW_START

if TYPE_CHECKING:
    from collections.abc import Sequence

    from operators.entities import Entities
    from operators.feature_sets import FeatureSets
    from operators.replay import Late
    from operators.retained import Lateness
    from operators.set_windows import SetWindows
    from operators.verdicts import Noted


class Partitions(NamedTuple):
    """Partitions by their index in a shard. rank: int64 (n,), place of each name in sorted order."""

    names: Sequence[str]
    rank: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a correction did: rows that differ from those that were out, and what it changed of the counts.

    upcoming: the end that closes next of the entities that were computed anew, or NEVER.
    """

    blocks: list[RowBlock]
    used: int
    duplicate: int
    conflict: int
    upcoming: int


class Restating:
    """Late events on their way in, and what is retained for them, of one shard."""

    def __init__(
        self, lateness: Lateness, sets: FeatureSets, windows: Sequence[SetWindows], noted: Noted | None = None
    ) -> None:
        """windows: the live ones, which take over what comes out. noted: hears what becomes of late events."""
        self._noted = noted
        self.corrects = lateness.corrects
        self._grain_us = lateness.grain_us
        self._sets = sets.sets
        self._windows = windows
        self._retained = Retained(lateness, windows)
        self._fields = len(sets.fields)
        self._first_spec = np.cumsum([0, *(len(s.windows) for s in sets.sets)])
        self._waiting: list[tuple[Pending, NDArray[np.int64]]] = []

    @property
    def edge(self) -> int:
        """What is older than this cannot be corrected any more."""
        return self._retained.edge

    @property
    def pending(self) -> int:
        """Corrections that do not count yet."""
        return sum(len(due) for _, due in self._waiting)

    @property
    def next_due(self) -> int:
        """When the next of them counts, or NEVER."""
        return min((int(due.min()) for _, due in self._waiting), default=NEVER)

    def take(self, events: Pending, due: NDArray[np.int64] | None, now: int) -> int:
        """Let events wait, none older than the edge; return when the first counts. now: the shard's watermark."""
        after = np.maximum(events.event_time, now)
        soonest = (after // self._grain_us + 1) * self._grain_us
        due = soonest if due is None else np.where(due <= after, soonest, due)
        self._waiting.append((events, due))
        return int(due.min())

    def dues(self, now: int) -> list[int]:
        """The moments up to `now` at which corrections count, in their order."""
        found: set[int] = set()
        for _, due in self._waiting:
            found.update(np.unique(due[due <= now]).tolist())
        return sorted(found)

    def keep(self, events: Pending) -> None:
        """Retain events that are applied."""
        self._retained.segments[-1].keep(events)

    def checkpoint(self, now: int, entities: int) -> None:
        """Everything below `now` is applied and closed: let go of what is too old and not waited for."""
        needed = min((int(events.event_time.min()) for events, _ in self._waiting), default=NEVER)
        self._retained.checkpoint(now, entities, needed)

    def pack(self) -> tuple[list[dict[str, object]], dict[str, NDArray[np.generic]]]:
        """The whole state, as meta (JSON-able) and arrays."""
        metas, arrays = self._retained.pack()
        if self._waiting:
            events = concatenate([events for events, _ in self._waiting])
            arrays |= {f"late.{name}": column for name, column in events._asdict().items()}
            arrays["late.due"] = np.concatenate([due for _, due in self._waiting])
        return metas, arrays

    def unpack(self, metas: object, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Take the state that `pack` gave."""
        self._retained.unpack(cast("list[dict[str, object]]", metas), arrays)
        if "late.due" in arrays:
            events = Pending(*(arrays[f"late.{name}"] for name in Pending._fields))  # type: ignore[arg-type]  # as packed
            self._waiting = [(events, arrays["late.due"])]  # type: ignore[list-item]  # as packed

    def _due_at(self, due: int) -> Pending:
        """Take out the corrections, at least one, that count at this moment."""
        ready, waiting = [], []
        for events, dues in self._waiting:
            now = dues == due
            ready.append(chosen(events, now))
            if not now.all():
                waiting.append((chosen(events, ~now), dues[~now]))
        self._waiting = waiting
        return concatenate(ready)

    def note(self, blocks: Sequence[RowBlock]) -> list[RowBlock]:
        """Take note of rows of windows that closed when their time came; return them with their hashes."""
        out = []
        for block in blocks:
            hashed = replace(block, hashes=content_hashes(block, self._sets[block.set_index]))
            self._emit(hashed, int(self._first_spec[block.set_index]))
            out.append(hashed)
        return out

    def apply(self, due: int, names: Entities, partitions: Partitions) -> Corrected:
        """Apply the corrections, at least one, that count at `due`, up to which everything is applied and closed."""
        again = numbered(self._due_at(due), [s.start for s in self._retained.segments])
        replay = Replay(self._windows, self._retained, again, names.count, self._fields, self._noted)
        replay.run(due, partitions.rank)
        mine = np.arange(len(again.entity))
        pairs = zip(self._windows, replay.windows, strict=True)
        upcoming = min(live.put(again.entity, anew.state, mine) for live, anew in pairs)
        causes = _causes(again, partitions)
        before = joined_rows(replay.emitted)
        revised = []
        for index in range(len(self._sets)):
            after = [b for b in replay.blocks if b.set_index == index]
            block = self._revised(index, after, before, again, names, causes, due)
            if block is not None:
                revised.append(block)
        return Corrected(revised, replay.used, replay.duplicate, replay.conflict, upcoming)

    def _revised(
        self,
        index: int,
        after: list[RowBlock],
        before: Emitted,
        late: Late,
        names: Entities,
        causes: tuple[NDArray[np.uint8], NDArray[np.int64]],
        due: int,
    ) -> RowBlock | None:
        """Rows of one set that differ from those that were out; they are out from now on."""
        first, last = self._first_spec[index : index + 2]
        declared = self._sets[index]
        was = _sorted(chosen_rows(before, (before.spec >= first) & (before.spec < last)))
        rows = _sorted_block(index, after, late, names, len(declared.fields))
        hashes = content_hashes(rows, declared)
        number = np.searchsorted(late.entity, rows.place[:, ROW_ENTITY]).astype(np.int32)
        spec = (rows.place[:, ROW_SPEC] + first).astype(np.int32)
        then_out = (was.entity, was.spec, was.end, was.revision, was.hashes)
        now, then = _differing(number, spec, rows.place[:, ROW_END], hashes, *then_out)
        if len(now) == 0:
            return None
        gone, known = now < 0, then >= 0
        place, values = np.empty((len(now), 4), np.int64), np.full((len(now), rows.values.shape[1]), np.nan)
        place[~gone], values[~gone] = rows.place[now[~gone]], rows.values[now[~gone]]
        values[np.ix_(gone, np.arange(0, values.shape[1], STATISTICS_COUNT))] = 0.0
        lost = then[gone]
        lost_place = (late.entity[was.entity[lost]], was.spec[lost] - first, was.start[lost], was.end[lost])
        for c, one in zip((ROW_ENTITY, ROW_SPEC, ROW_START, ROW_END), lost_place, strict=True):
            place[gone, c] = one
        revision, supersedes = np.zeros(len(now), np.int32), np.zeros((len(now), 2), np.uint64)
        before_this = was.revision[then[known]]
        revision[known] = np.where(before_this < 0, -before_this, before_this + 1)
        supersedes[known] = was.hashes[then[known]]
        cause = gather_bytes(*causes, np.searchsorted(late.entity, place[:, ROW_ENTITY]))
        revisions = Revisions(revision, np.full(len(now), due), supersedes, known, gone, *cause)
        data, offsets = names.gather(place[:, ROW_ENTITY])
        block = RowBlock(index, data, offsets, place, values, revisions)
        out = np.empty((len(now), 2), np.uint64)
        out[~gone] = hashes[now[~gone]]
        out[gone] = content_hashes(take_rows(block, np.flatnonzero(gone)), declared)
        block = replace(block, hashes=out)
        self._emit(block, int(first))
        return block

    def _emit(self, block: RowBlock, first_spec: int) -> None:
        """Take note of rows that are out."""
        entity, spec = (block.place[:, c].astype(np.int32) for c in (ROW_ENTITY, ROW_SPEC))
        start, end = (block.place[:, c].copy() for c in (ROW_START, ROW_END))
        revised = block.revisions
        revision = np.zeros(len(block), np.int32)
        if revised is not None:
            revision = np.where(revised.retracted, -1 - revised.revision, revised.revision)
        assert block.hashes is not None
        rows = Emitted(entity, spec + np.int32(first_spec), start, end, revision, block.hashes)
        self._retained.segments[-1].emit(rows)


def _sorted(rows: Emitted) -> Emitted:
    """By entity, window spec and end; of equal ones the newest stands last."""
    order = np.lexsort((rows.end, rows.spec, rows.entity))
    return chosen_rows(rows, order)


def _sorted_block(index: int, blocks: list[RowBlock], late: Late, names: Entities, fields: int) -> RowBlock:
    """Rows of numbered entities with their true indices and names: those behind each one's first late event."""
    if not blocks:
        empty = np.empty((0, fields * STATISTICS_COUNT))
        return RowBlock(index, np.empty(0, np.uint8), np.zeros(1, np.int64), np.empty((0, 4), np.int64), empty)
    place, values = (np.concatenate(c) for c in zip(*((b.place, b.values) for b in blocks), strict=True))
    pick = np.flatnonzero(place[:, ROW_END] > late.first[place[:, ROW_ENTITY]])
    pick = pick[np.lexsort((place[pick, ROW_END], place[pick, ROW_SPEC], place[pick, ROW_ENTITY]))]
    place, values = place[pick], values[pick]
    place[:, ROW_ENTITY] = late.entity[place[:, ROW_ENTITY]]
    return RowBlock(index, *names.gather(place[:, ROW_ENTITY]), place, values)


def _causes(late: Late, partitions: Partitions) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """For each numbered entity: the first of its late events in the order of the log, and how many more there are."""
    events = late.events
    order = np.lexsort((events.offset, partitions.rank[events.partition], events.entity))[late.start[:-1]]
    names = [name.encode() for name in partitions.names]
    ends = np.cumsum([0, *map(len, names)])
    data = np.frombuffer(b"".join(names), np.uint8)
    more = np.diff(late.start) - 1
    text, offsets = _written(data, ends, events.partition[order], events.offset[order], more)
    return text, offsets


@njit
def _digits(number, out, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write a number, not negative, in decimal at `at`; return what follows."""
    end = at + 1
    rest = number // 10
    while rest > 0:
        end += 1
        rest //= 10
    for i in range(end - 1, at - 1, -1):
        out[i] = 48 + number % 10
        number //= 10
    return end


@njit(cache=True, nogil=True)
def _written(names, ends, partition, offset, more):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """`late <partition>@<offset>` and, where there are more, ` +<more>`."""
    longest = 0
    for p in range(ends.shape[0] - 1):
        longest = max(longest, ends[p + 1] - ends[p])
    out = np.empty(partition.shape[0] * (longest + 48), np.uint8)
    offsets = np.zeros(partition.shape[0] + 1, np.int64)
    at = 0
    for i in range(partition.shape[0]):
        for c in (108, 97, 116, 101, 32):
            out[at] = c
            at += 1
        for b in range(ends[partition[i]], ends[partition[i] + 1]):
            out[at] = names[b]
            at += 1
        out[at] = 64
        at = _digits(offset[i], out, at + 1)
        if more[i] > 0:
            out[at] = 32
            out[at + 1] = 43
            at = _digits(more[i], out, at + 2)
        offsets[i + 1] = at
    return out[:at].copy(), offsets


@njit(cache=True, nogil=True)
def _differing(entity, spec, end, hashes, was_entity, was_spec, was_end, was_revision, was_hashes):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Pairs (row now, row before) that differ, -1 for none; of equal keys the last row before is what is out."""
    now = np.empty(entity.shape[0] + was_entity.shape[0], np.int64)
    then = np.empty_like(now)
    n = 0
    i = 0
    j = 0
    while i < entity.shape[0] or j < was_entity.shape[0]:
        while j + 1 < was_entity.shape[0] and (
            was_entity[j] == was_entity[j + 1] and was_spec[j] == was_spec[j + 1] and was_end[j] == was_end[j + 1]
        ):
            j += 1
        order = 0
        if i == entity.shape[0]:
            order = 1
        elif j == was_entity.shape[0]:
            order = -1
        elif entity[i] != was_entity[j]:
            order = -1 if entity[i] < was_entity[j] else 1
        elif spec[i] != was_spec[j]:
            order = -1 if spec[i] < was_spec[j] else 1
        elif end[i] != was_end[j]:
            order = -1 if end[i] < was_end[j] else 1
        if order < 0:
            now[n], then[n] = i, -1
            n += 1
            i += 1
        elif order > 0:
            if was_revision[j] >= 0:
                now[n], then[n] = -1, j
                n += 1
            j += 1
        else:
            same = hashes[i, 0] == was_hashes[j, 0] and hashes[i, 1] == was_hashes[j, 1]
            if not same or was_revision[j] < 0:
                now[n], then[n] = i, j
                n += 1
            i += 1
            j += 1
    return now[:n].copy(), then[:n].copy()
