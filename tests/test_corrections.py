"""Late events corrected: rows end as if everything had come in time, revision by revision, whatever the cuts."""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.feature_sets import FeatureSets
from operators.records import NO_WATERMARK, RowBlock, SignalBatch
from operators.retained import Lateness
from operators.rows import newest, take_rows, to_tables
from operators.shard import split, split_due, take
from operators.watermark import PartitionWatermark, Status
from operators.window_loops import ROW_END, ROW_SPEC
from operators.windows import LateAtShard, Shard
from tests import oracles
from tests.oracles import Event
from tests.strategies import SECOND, batch_of, logs, two_sets
from tests.test_windows import rows_of

BOUND = 2 * SECOND
GRAIN = 2 * SECOND
SETS = two_sets()
WIDE = 10_000 * SECOND
Place = tuple[int, int, str, int]


def lateness(allowed_s: float, *, corrects: bool = True, events_max: int = 1 << 20) -> Lateness:
    """What late events may change."""
    return Lateness(int(allowed_s * SECOND), GRAIN, corrects, events_max)


class Revision(NamedTuple):
    """One revision of a row, without its values. Times in microseconds."""

    revision: int
    known_at: int
    supersedes: bytes | None
    cause: str | None
    retracted: bool
    content: bytes
    start: int


@dataclass
class Run:
    """Drives partitions through watermarks and one shard that corrects, or holds, as source and flow would."""

    partitions: tuple[str, ...]
    late: Lateness | None
    bound: int = BOUND
    sets: FeatureSets = SETS
    blocks: list[RowBlock] = field(default_factory=list)
    too_late: int = 0
    seen: int = 0
    held: list[SignalBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start empty."""
        self.marks = {p: PartitionWatermark(self.bound) for p in self.partitions}
        self.shard = Shard(self.sets, None, self.late)

    def feed(self, events: list[Event]) -> None:
        """Events of one partition, in the order of its log."""
        batch = batch_of(events, self.sets)
        mark = self.marks[batch.partition]
        self.seen += len(batch)
        if self.late is not None and self.late.corrects:
            late, due = mark.mark_due(batch.event_time, self.late.allowed_us, self.late.grain_us)
            (corrections,) = split_due(batch, due, 1)
            if corrections is not None:
                self._aside(self.shard.correct(*corrections))
            aside = late & (due == NO_WATERMARK)
        else:
            late = aside = mark.mark(batch.event_time)
        self.too_late += int(aside.sum())
        if aside.any():
            self.held.append(take(batch, np.flatnonzero(aside)))
        self._aside(self.shard.push(split(batch, late, 1)[0], mark.tick(batch.partition, Status.LIVE), self.partitions))
        self.blocks += self.shard.advance()

    def _aside(self, late: LateAtShard | None) -> None:
        if late is not None:
            self.held.append(late.events)

    def release(self, batches: list[SignalBatch]) -> None:
        """Apply what was held."""
        for batch in batches:
            self._aside(self.shard.correct(batch, released=True))
        self.blocks += self.shard.advance()

    def end(self) -> None:
        """The logs end: all windows close."""
        for p in self.partitions:
            self.shard.push(None, self.marks[p].tick(p, Status.ENDED), self.partitions)
            self.blocks += self.shard.advance()

    def restart(self) -> None:
        """Go on from a pickled snapshot, as after a crash."""
        self.shard = Shard(self.sets, pickle.loads(pickle.dumps(self.shard.snapshot())), self.late)  # noqa: S301  # our own bytes

    def check_conservation(self) -> None:
        """Every event is counted once, those that wait as they stand."""
        waiting = Shard(self.sets, self.shard.snapshot(), self.late).outlook()
        counts = self.shard.counts
        done = counts.used + counts.duplicate + counts.conflict + counts.late
        assert self.seen == done + sum(waiting) + self.too_late


def run(
    log: list[Event],
    late: Lateness | None,
    *,
    bound: int = BOUND,
    cuts: list[int] | None = None,
    restart_at: int = -1,
    check_at: int = -1,
) -> Run:
    """Run a log in pieces: cut where the partition changes, and at `cuts`."""
    out = Run(tuple(sorted({e.partition for e in log})), late, bound)
    marks = set(cuts or [])
    groups = groupby(enumerate(log), key=lambda pair: (pair[1].partition, sum(m <= pair[0] for m in marks)))
    for number, (_, group) in enumerate(groups):
        if number == restart_at:
            out.restart()
        out.feed([event for _, event in group])
        if number == check_at:
            out.check_conservation()
    out.end()
    return out


def history(done: Run) -> dict[Place, list[Revision]]:
    """Of each row its revisions, in rising order."""
    out: dict[Place, list[Revision]] = defaultdict(list)
    for index, declared in enumerate(done.sets.sets):
        for spec, _, table in to_tables([b for b in done.blocks if b.set_index == index], declared):
            times = (table[c].cast(pa.int64()).to_pylist() for c in ("window_start", "event_time", "known_at"))
            created = table["created_at"].cast(pa.int64()).to_pylist()
            for record, start, end, known, made in zip(table.to_pylist(), *times, created, strict=True):
                assert made == end + record["revision"]
                cause, retracted, content = (record[c] for c in ("cause", "retracted", "content_hash"))
                row = Revision(record["revision"], known, record["supersedes"], cause, retracted, content, start)
                out[index, spec, record["entity_id"], end].append(row)
    return {place: sorted(revisions) for place, revisions in out.items()}


def final(rows: dict[Place, list[Revision]]) -> dict[Place, tuple[bytes, int]]:
    """What readers see: hash and start of the newest revision, unless it is retracted."""
    newest = {place: revisions[-1] for place, revisions in rows.items()}
    return {place: (row.content, row.start) for place, row in newest.items() if not row.retracted}


def check_chains(rows: dict[Place, list[Revision]]) -> None:
    """Each revision replaces the one before, differs from it, and is known later; the first replaces nothing."""
    for (*_, end), revisions in rows.items():
        assert [r.revision for r in revisions] == list(range(len(revisions)))
        assert revisions[0].supersedes is None
        assert not revisions[0].retracted
        assert revisions[0].cause is not None or revisions[0].known_at == end
        for before, after in pairwise(revisions):
            assert after.supersedes == before.content
            assert (after.content, after.retracted) != (before.content, before.retracted)
            assert after.known_at > before.known_at or before.known_at == end == after.known_at
            assert after.known_at % GRAIN == 0
            assert str(after.cause).startswith("late p-")


@given(
    logs(events_max=80, span=40), st.sampled_from([0.0, 3.0, 20.0]), st.sampled_from([64, 1 << 20]), st.integers(0, 60)
)
def test_final_rows_are_those_of_a_run_in_which_nothing_is_late(
    log: list[Event], allowed_s: float, event_bytes: int, check_at: int
) -> None:
    """Whatever comes late within the limit, the newest revisions are the rows of a batch that waits for everything."""
    late = lateness(allowed_s, events_max=1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("operators.retained._EVENT_BYTES", event_bytes)  # whatever the segments
        done = run(log, late, check_at=check_at)
    judged = [e for e in log if not is_too_old(log, e, late.allowed_us)]
    whole = run(judged, None, bound=WIDE)
    rows = history(done)
    check_chains(rows)
    assert final(rows) == final(history(whole))
    assert done.too_late == len(log) - len(judged)
    mine, theirs = done.shard.counts, whole.shard.counts
    assert (mine.used, mine.duplicate, mine.conflict, mine.late) == (theirs.used, theirs.duplicate, theirs.conflict, 0)
    assert mine.rows == sum(map(len, rows.values()))


def is_too_old(log: list[Event], event: Event, allowed: int) -> bool:
    """Whether an event is further behind its partition's watermark than may be corrected."""
    before = [e.time for e in log[: log.index(event)] if e.partition == event.partition]
    return bool(before) and event.time < max(before) - BOUND - allowed


@given(logs(events_max=80), st.lists(st.integers(0, 80)), st.integers(0, 40), st.randoms(use_true_random=False))
def test_revisions_are_a_function_of_the_log_alone(
    log: list[Event], cuts: list[int], restart_at: int, random: object
) -> None:
    """Every cut, interleaving and restart gives the same revisions: number, time, cause and hash of each."""
    late = lateness(20)
    whole = run(log, late)
    queues = {p: [e for e in log if e.partition == p] for p in sorted({e.partition for e in log})}
    order = [e.partition for e in log]
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis' Random
    mixed = run([queues[p].pop(0) for p in order], late, cuts=cuts, restart_at=restart_at)
    assert history(mixed) == history(whole)
    assert mixed.shard.counts == whole.shard.counts


@given(logs(events_max=60), st.lists(st.integers(0, 60), max_size=3))
def test_held_events_that_are_released_end_in_the_same_rows(log: list[Event], releases: list[int]) -> None:
    """Hold, then release all, now and then or at the end: the rows of a run in which nothing was late."""
    done = Run(tuple(sorted({e.partition for e in log})), lateness(60, corrects=False))
    for number, event in enumerate(log):
        done.feed([event])
        if number in releases:
            held, done.held = done.held, []
            done.too_late -= sum(map(len, held))
            done.shard.counts.late += sum(map(len, held))
            done.release(held)
            done.check_conservation()
    held, done.held = done.held, []
    done.too_late -= sum(map(len, held))
    done.shard.counts.late += sum(map(len, held))
    done.release(held)
    done.end()
    rows = history(done)
    check_chains(rows)
    assert final(rows) == final(history(run(log, None, bound=WIDE)))
    assert done.shard.counts.late == done.too_late == 0


@given(logs(events_max=60))
def test_events_dropped_leave_the_rows_of_the_others(log: list[Event]) -> None:
    """Without lateness rows are those of the events that are not late, and every row has one revision."""
    done = run(log, None)
    assert done.too_late == oracles.judge(log, BOUND, SETS).late
    rows = history(done)
    check_chains(rows)
    assert all(len(revisions) == 1 for revisions in rows.values())


@given(logs(events_max=60), st.sets(st.integers(0, 60), max_size=6), st.data())
def test_events_of_partitions_that_were_idle_are_corrections(
    log: list[Event], stops: set[int], data: st.DataObject
) -> None:
    """Partitions that are left out of the minimum now and then: what they send later ends in the rows of all events."""
    done = Run(tuple(sorted({e.partition for e in log})), lateness(100))
    for number, event in enumerate(log):
        if number in stops:
            idle = data.draw(st.sampled_from(done.partitions))
            done.shard.push(None, done.marks[idle].tick(idle, Status.IDLE), done.partitions)
            done.blocks += done.shard.advance()
        done.feed([event])
        if number % 20 == 7:
            done.check_conservation()
            done.restart()
    done.end()
    rows = history(done)
    check_chains(rows)
    assert done.held == []
    assert final(rows) == final(history(run(log, None, bound=WIDE)))


def test_online_gets_the_newest_row_that_is_not_retracted() -> None:
    """Of a row's revisions the highest, of an entity's rows the latest end; a retracted row is nobody's newest."""
    log = [Event("p-0", i, "x", t * SECOND, 0, (("a", 1.0),)) for i, t in enumerate([0, 20])]
    log.append(Event("p-0", 50, "x", 2 * SECOND, 0, (("a", 9.0),)))
    log.append(Event("p-0", 51, "x", 24 * SECOND, 0, (("a", 1.0),)))
    done = run(log, lateness(30))
    mine = [b for b in done.blocks if b.set_index == 0 and b.place[0, ROW_END] <= 18 * SECOND]
    rows = newest(mine)
    assert rows.revisions is not None
    found = {
        int(p[ROW_SPEC]): (p[ROW_END] // SECOND, int(r))
        for p, r in zip(rows.place, rows.revisions.revision, strict=True)
    }
    assert found[0] == (5, 1)
    assert found[2] == (5, 0)
    retracted = [take_rows(b, np.flatnonzero(b.revisions.retracted)) for b in mine if b.revisions is not None]
    assert sum(map(len, retracted)) == 1
    assert len(newest(retracted)) == 0


def test_one_late_event_changes_what_it_must_and_says_why() -> None:
    """Two late events in a window: one new revision of it and of later windows, with the first as the cause."""
    on_time = [Event("p-0", i, "x", i * SECOND, 0, (("a", float(i)),)) for i in range(21)]
    late = [Event("p-0", 30, "x", 7_500_000, 0, (("a", 9.0),)), Event("p-0", 31, "x", 12_500_000, 0, (("a", 9.0),))]
    calm = [Event("p-0", 40 + i, "x", (21 + i) * SECOND, 0, (("a", 1.0),)) for i in range(10)]
    done = run([*on_time, *late, *calm], lateness(30))
    rows = history(done)
    check_chains(rows)
    five = {end // SECOND: revisions for (s, spec, _, end), revisions in rows.items() if (s, spec) == (0, 0)}
    assert [len(five[end]) for end in (5, 10, 15, 20)] == [1, 2, 2, 1 + (five[20][-1].known_at == 20 * SECOND)]
    assert [(five[end][1].known_at, five[end][1].cause) for end in (10, 15)] == [(20 * SECOND, "late p-0@30 +1")] * 2
    values = rows_of([b for b in done.blocks if b.revisions is not None and b.set_index == 0], SETS)
    assert [v["a__count"] for key, v in sorted(values.items()) if key[2] == "5s"][:2] == [6.0, 6.0]


def test_sessions_that_a_late_event_joins_become_one_and_the_first_is_retracted() -> None:
    """A session that is no more gets a retracted revision without values."""
    times = [0, 1, 5, 6, 20, 21, 22, 23, 24]
    log = [Event("p-0", i, "x", t * SECOND, 0, (("a", 1.0),)) for i, t in enumerate(times)]
    log.insert(5, Event("p-0", 50, "x", 3 * SECOND, 0, (("a", 1.0),)))
    done = run(log, lateness(30))
    sessions = {
        end // SECOND: revisions for (s, spec, _, end), revisions in history(done).items() if (s, spec) == (0, 2)
    }
    assert [r.retracted for r in sessions[4]] == [False, True]
    assert [r.start for r in sessions[9]] == [5 * SECOND, 0]
    retracted = [b for b in done.blocks if b.revisions is not None and b.revisions.retracted.any()]
    (block,) = (b for b in retracted if b.set_index == 0)
    (line,) = block.values[block.revisions.retracted]  # type: ignore[union-attr]
    assert [line[0], line[11]] == [0.0, 0.0]
    assert np.isnan(np.delete(line, [0, 11])).all()


def test_a_storm_of_late_events_of_one_entity_is_corrected_at_once() -> None:
    """50,000 late events of one entity cost one computation of it, not one each."""
    calm = [Event("p-0", i, "x", i * 10_000, 0, (("a", 1.0),)) for i in range(5_000)]
    storm = [Event("p-0", 10_000 + i, "x", 20 * SECOND + i * 20, 1, (("a", 2.0),)) for i in range(50_000)]
    done = Run(("p-0",), lateness(60))
    done.feed(calm)
    done.feed(storm)
    done.end()
    assert done.shard.counts.used == 55_000
    check_chains(history(done))
    assert max(len(r) for r in history(done).values()) == 2


def test_what_is_not_retained_any_more_is_late_and_counted() -> None:
    """Past the limit of events the oldest go, and what would change them is set aside with reason `retention`."""
    done = Run(("p-0",), lateness(1_000, events_max=400))
    for i in range(1_000):
        done.feed([Event("p-0", i, "x", i * SECOND, 0, (("a", 1.0),))])
    assert done.shard.correct(batch_of([Event("p-0", 2_000, "x", 990 * SECOND, 1, (("a", 1.0),))], SETS)) is None
    late = done.shard.correct(batch_of([Event("p-0", 2_001, "x", 10 * SECOND, 1, (("a", 1.0),))], SETS))
    assert late is not None
    assert late.reason == "retention"
    assert done.shard.counts.late == 1
    done.seen += 2
    done.check_conservation()


def test_after_an_end_of_the_log_older_events_are_corrected() -> None:
    """All windows were closed at the end of the log; an older event of a later run corrects them."""
    log = [Event("p-0", i, "x", i * SECOND, 0, (("a", 1.0),)) for i in range(10)]
    more = [Event("p-0", 20 + i, "x", (9 + i) * SECOND + 1, 0, (("a", 2.0),)) for i in range(6)]
    done = run(log, lateness(60))
    done.restart()
    done.feed(more)
    done.end()
    rows = history(done)
    check_chains(rows)
    assert final(rows) == final(history(run([*log, *more], None, bound=WIDE)))
