"""Windows of one shard: the properties that every streaming kernel must have, against a slow oracle."""

from __future__ import annotations

import math
import pickle
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import rows
from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.kernels import PANE, pane_join, pane_update, window_statistics
from operators.records import RowBlock
from operators.rows import hash_table, to_tables
from operators.shard import shard_keys, siphash13, split
from operators.watermark import PartitionWatermark, Status
from operators.window_loops import ROW_SPEC
from operators.windows import Shard
from tests import oracles
from tests.oracles import Event
from tests.strategies import SECOND, TWO_SETS, batch_of, logs, two_sets

BOUND = 5 * SECOND
SETS = two_sets()
Key = tuple[str, int, str, str, int, int]


def rows_of(blocks: list[RowBlock], sets: FeatureSets) -> dict[Key, dict[str, float | None]]:
    """Rows by key; a key that comes twice fails."""
    out: dict[Key, dict[str, float | None]] = {}
    for index, declared in enumerate(sets.sets):
        for spec_index, date, table in to_tables([b for b in blocks if b.set_index == index], declared):
            spec = declared.windows[spec_index]
            hashes = np.frombuffer(b"".join(table["content_hash"].to_pylist()), np.uint8).reshape(-1, 16)
            assert (hash_table(table, declared, spec) == hashes).all()
            times = (table[c].cast(pa.int64()).to_pylist() for c in ("window_start", "event_time"))
            for record, start, end in zip(table.to_pylist(), *times, strict=True):
                assert date == record["event_time"].date().isoformat()
                key = (declared.name, declared.version, spec.folder, record["entity_id"], start, end)
                assert key not in out
                out[key] = {c: record[c] for c in declared.columns}
    return out


class Run:
    """Drives partitions through watermarks and one shard, as a source and a flow would."""

    def __init__(self, partitions: list[str], sets: FeatureSets = SETS) -> None:
        self.sets = sets
        self.known = tuple(sorted(partitions))
        self.marks = {p: PartitionWatermark(BOUND) for p in self.known}
        self.shard = Shard(sets)
        self.blocks: list[RowBlock] = []
        self.late = 0

    def feed(self, events: list[Event]) -> None:
        """Events of one partition, in the order of its log."""
        batch = batch_of(events, self.sets)
        mark = self.marks[batch.partition]
        late = mark.mark(batch.event_time)
        self.late += int(late.sum())
        piece = split(batch, late, 1)[0]
        assert self.shard.push(piece, mark.tick(batch.partition, Status.LIVE), self.known) is None
        self.blocks += self.shard.advance()

    def end(self) -> None:
        """The logs end: all windows close."""
        for p in self.known:
            self.shard.push(None, self.marks[p].tick(p, Status.ENDED), self.known)
            self.blocks += self.shard.advance()

    def restart(self) -> None:
        """Go on from a pickled snapshot, as after a crash."""
        self.shard = Shard(self.sets, pickle.loads(pickle.dumps(self.shard.snapshot())))  # noqa: S301  # our own bytes


def run(log: list[Event], cuts: list[int] | None = None, *, restart_at: int = -1) -> Run:
    """Run a log in pieces: cut where the partition changes, and at `cuts`."""
    out = Run(sorted({e.partition for e in log}))
    pieces: list[list[Event]] = []
    marks = set(cuts or [])
    for _, group in groupby(enumerate(log), key=lambda pair: (pair[1].partition, sum(m <= pair[0] for m in marks))):
        pieces.append([event for _, event in group])
    for number, piece in enumerate(pieces):
        if number == restart_at:
            out.restart()
        out.feed(piece)
    out.end()
    return out


def close(mine: float | None, theirs: float | None) -> bool:
    """Equal within 1e-9 relative, null where null."""
    if mine is None or theirs is None:
        return mine is theirs
    return math.isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-12)


def assert_rows(mine: dict[Key, dict[str, float | None]], theirs: dict[Key, dict[str, float | None]]) -> None:
    """Same keys; each value within the tolerance."""
    assert sorted(mine) == sorted(theirs)
    for key, row in theirs.items():
        assert list(mine[key]) == list(row)
        for column, value in row.items():
            assert close(mine[key][column], value), (key, column, mine[key][column], value)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_statistics_equal_the_oracle(offset: float) -> None:
    """Every statistic of every window equals direct sums within 1e-9, also at an offset of 1e9."""

    @given(logs(offset=offset))
    def check(log: list[Event]) -> None:
        done = run(log)
        verdict = oracles.judge(log, BOUND, SETS)
        counts = done.shard.counts
        assert (counts.used, counts.duplicate, counts.conflict, done.late, counts.late) == (
            len(verdict.used),
            verdict.duplicate,
            verdict.conflict,
            verdict.late,
            0,
        )
        assert len(log) == counts.used + counts.duplicate + counts.conflict + done.late
        rows = rows_of(done.blocks, SETS)
        assert counts.rows == len(rows)
        assert_rows(rows, oracles.rows(verdict.used, SETS))

    check()


def bits(done: Run) -> dict[tuple[int, int, str, int, int], bytes]:
    """Content hash of each row by its key."""
    out: dict[tuple[int, int, str, int, int], bytes] = {}
    for index, declared in enumerate(done.sets.sets):
        for spec, _, table in to_tables([b for b in done.blocks if b.set_index == index], declared):
            start, end = (table[c].cast(pa.int64()).to_pylist() for c in ("window_start", "event_time"))
            names, hashes = table["entity_id"].to_pylist(), table["content_hash"].to_pylist()
            for name, s, e, content in zip(names, start, end, hashes, strict=True):
                out[index, spec, name, s, e] = content
    return out


@given(logs(), st.integers(1, 5))
def test_tables_of_any_size_hold_the_same_rows(log: list[Event], rows_max: int) -> None:
    """Blocks that are cut or gathered into smaller tables lose nothing."""
    done = run(log)
    whole = rows_of(done.blocks, SETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_TABLE_ROWS", rows_max)
        assert rows_of(done.blocks, SETS) == whole
        for index, declared in enumerate(SETS.sets):
            for _, _, table in to_tables([b for b in done.blocks if b.set_index == index], declared):
                assert 1 <= table.num_rows <= rows_max


@given(logs(), st.lists(st.integers(0, 60)), st.integers(0, 40))
def test_any_cut_and_any_restart_gives_the_same_bits(log: list[Event], cuts: list[int], restart_at: int) -> None:
    """Batch boundaries and a restart from a pickled snapshot leave no trace in the rows."""
    whole = run(log)
    pieces = run(log, cuts, restart_at=restart_at)
    assert bits(pieces) == bits(whole)
    assert pieces.shard.counts == whole.shard.counts


@given(logs(), st.randoms(use_true_random=False))
def test_any_interleaving_of_partitions_gives_the_same_bits(log: list[Event], random: object) -> None:
    """Only the order within a partition counts, not how partitions are interleaved."""
    queues = {p: [e for e in log if e.partition == p] for p in sorted({e.partition for e in log})}
    order = [e.partition for e in log]
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis' Random
    assert bits(run([queues[p].pop(0) for p in order])) == bits(run(log))


@given(logs(partitions=1), st.integers(0, 60))
def test_more_input_never_changes_rows_that_are_out(log: list[Event], stop: int) -> None:
    """Causality: what was emitted for a beginning of the log is emitted for the whole log too."""
    if not log:
        return
    begun = Run([log[0].partition])
    for event in log[:stop]:
        begun.feed([event])
    emitted = bits(begun)
    assert emitted.items() <= bits(run(log)).items()


@given(logs(partitions=1))
def test_a_push_leaves_its_input_unchanged(log: list[Event]) -> None:
    """Purity: the arrays given to a shard are not written to, and rows do not alias state."""
    if not log:
        return
    batch = batch_of(log, SETS)
    before = pickle.dumps(batch)
    done = Run([log[0].partition])
    mark = PartitionWatermark(BOUND)
    mark.mark(batch.event_time)
    done.shard.push(batch, mark.tick(batch.partition, Status.LIVE), done.known)
    emitted = done.shard.advance()
    copies = pickle.dumps([b.values for b in emitted])
    done.end()
    assert pickle.dumps(batch) == before
    assert pickle.dumps([b.values for b in emitted]) == copies


@given(logs(partitions=1, events_max=40), st.integers(1, 4))
def test_shards_together_are_one(log: list[Event], shards: int) -> None:
    """The number of shards does not show: every entity lives in one of them."""
    if not log:
        return
    batch = batch_of(log, SETS)
    mark = PartitionWatermark(BOUND)
    pieces = split(batch, mark.mark(batch.event_time), shards)
    together: dict[tuple[int, int, str, int, int], bytes] = {}
    for piece in pieces:
        each = Run([batch.partition])
        each.shard.push(pickle.loads(pickle.dumps(piece)), mark.tick(batch.partition, Status.ENDED), each.known)  # noqa: S301  # our own bytes
        each.blocks = each.shard.advance()
        together |= bits(each)
    assert together == bits(run(log))


def test_an_idle_partition_does_not_hold_the_others_and_its_events_come_late() -> None:
    """A partition left out of the minimum: windows close without it; what it then sends is late `idle`."""
    done = Run(["p-0", "p-1"])
    done.feed([Event("p-0", 0, "x", 1 * SECOND, 0, (("a", 1.0),))])
    done.feed([Event("p-0", 1, "x", 60 * SECOND, 0, (("a", 2.0),))])
    assert done.blocks == []
    done.shard.push(None, done.marks["p-1"].tick("p-1", Status.IDLE), done.known)
    assert len(done.shard.advance()) > 0
    late = done.shard.push(
        batch_of([Event("p-1", 0, "x", 2 * SECOND, 1, (("a", 9.0),))], SETS),
        done.marks["p-1"].tick("p-1", Status.LIVE),
        done.known,
    )
    assert late is not None
    assert (late.reason, late.events.entity(0), late.watermark) == ("idle", "x", 55 * SECOND)
    assert done.shard.counts.late == 1


def test_a_run_after_an_end_goes_on_after_the_last_window() -> None:
    """All windows were closed at the end of the log: an older event is late `closed`, a newer one is used."""
    done = Run(["p-0"])
    done.feed([Event("p-0", 0, "x", 1 * SECOND, 0, (("a", 1.0),))])
    done.end()
    done.restart()
    again = batch_of([Event("p-0", 1, "x", 2 * SECOND, 0, (("a", 1.0),))], SETS)
    late = done.shard.push(again, done.marks["p-0"].tick("p-0", Status.LIVE), done.known)
    assert late is not None
    assert late.reason == "closed"
    done.feed([Event("p-0", 2, "x", 20 * SECOND, 0, (("a", 1.0),))])
    done.end()
    assert rows_of(done.blocks, SETS)


def test_one_entity_with_all_events_in_reverse_is_sorted_in_good_time() -> None:
    """A reversed batch must not cost a quadratic insertion sort."""
    events = [Event("p-0", i, "x", (4000 - i) * 1000, 0, (("a", float(i)),)) for i in range(4000)]
    done = run(events)
    assert done.shard.counts.used == 4000
    fast = [r for key, r in rows_of(done.blocks, SETS).items() if key[2] == "5s"]
    assert [(r["a__count"], r["a__first"], r["a__last"]) for r in fast] == [(4000, 3999.0, 0.0)]


def test_shard_names_spread_evenly_over_every_divisor() -> None:
    """Twelve shards give 1, 2, 3, 4, 6 and 12 workers the same share."""
    keys = shard_keys(12)
    for workers in (1, 2, 3, 4, 6, 12):
        share = np.bincount([siphash13(k.encode() + b"\xff") % workers for k in keys], minlength=workers)
        assert set(share) == {12 // workers}


def test_a_value_past_all_measure_is_forgotten_in_time() -> None:
    """Values whose spread leaves float64's range make statistics null for a while, never for ever."""
    wild = [Event("p-0", 0, "x", 0, 0, (("a", 1.5e308),)), Event("p-0", 1, "x", SECOND, 0, (("a", -1.5e308),))]
    calm = [Event("p-0", 2 + i, "x", (2 + i) * SECOND, 0, (("a", float(i % 5)),)) for i in range(100)]
    rows = rows_of(run([*wild, *calm]).blocks, SETS)
    last = max(key for key in rows if key[2] == "5s")
    assert rows[last]["a__ewma"] == pytest.approx(2.0, abs=1.0)
    assert rows[last]["a__zscore"] is not None


def test_room_for_rows_follows_the_time_span_not_the_events() -> None:
    """Many events of one entity in a window of a thousand slides need room for what can close, not for all of it."""
    sets = parse_feature_sets(TWO_SETS.replace('"6s/2s"', '"1024s/1s"'), where="test.toml")
    done = Run(["p-0"], sets)
    done.feed([Event("p-0", i, "x", i * 10_000, 0, (("a", 1.0),)) for i in range(20_000)])
    done.end()
    assert max(len(each._room.place) for each in done.shard._sets) <= 1 << 13
    assert sum(int((b.place[:, ROW_SPEC] == 1).sum()) for b in done.blocks if b.set_index == 0) == 200 + 1023


@given(logs(partitions=1), st.lists(st.floats(0, 4.9), min_size=60, max_size=60))
def test_any_disorder_within_the_watermark_gives_the_same_bits(log: list[Event], delays: list[float]) -> None:
    """Events that arrive up to the bound later than their time change nothing, as long as each key is sent once."""
    unique = list({(e.entity, e.time, e.sequence): e for e in log}.values())
    in_order = sorted(unique, key=lambda e: (e.time, e.offset))
    arrival = [e.time + int(d * SECOND) for e, d in zip(in_order, delays, strict=False)]
    arrived = [e for _, e in sorted(zip(arrival, in_order, strict=False), key=lambda pair: (pair[0], pair[1].offset))]
    calm, wild = run(in_order[: len(arrived)]), run(arrived)
    assert (calm.late, wild.late) == (0, 0)
    assert bits(wild) == bits(calm)


@given(st.lists(st.floats(-1000, 1000).map(lambda x: round(x, 6)), min_size=3, max_size=30), st.data())
def test_panes_join_in_any_grouping_to_what_one_pass_gives(values: list[float], data: st.DataObject) -> None:
    """Merge: however values are cut into panes, and the panes grouped, they join to one pass within rounding."""
    offset = data.draw(st.sampled_from([0.0, 1e9]))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values) - 1), min_size=2, max_size=2)))
    parts = [pane_of([v + offset for v in part]) for part in np.split(np.array(values), cuts)]
    left = joined(joined(parts[0], parts[1]), parts[2])
    right = joined(parts[0], joined(parts[1], parts[2]))
    whole = statistics_of(pane_of([v + offset for v in values]))
    for grouped in (left, right):
        assert statistics_of(grouped) == pytest.approx(whole, rel=1e-9, abs=1e-9)


def pane_of(values: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """A pane that took the values one after the other."""
    pane = np.zeros((1, PANE))
    for value in values:
        pane_update(pane, 0, 0, value)
    return pane


def joined(
    earlier: np.ndarray[tuple[int, int], np.dtype[np.float64]], later: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """A new pane of both."""
    out = earlier.copy()
    pane_join(out, 0, later, 0, 0)
    return out


def statistics_of(pane: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[float]:
    """Count, sum, mean, std, min, max and first."""
    out = np.zeros((1, 11))
    window_statistics(pane, 0, 0, out, 0, 0)
    return [float(x) for x in out[0, :7]]
