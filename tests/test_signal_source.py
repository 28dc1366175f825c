"""Slots of the source: what is read when, who waits for whom, and what a partition is told to be."""

from __future__ import annotations

import threading
from collections import Counter

import bytewax.operators as op
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, TestingSource, cluster_main
from hypothesis import given
from hypothesis import strategies as st

from dataflows.alignment import SLOTS, slot_of
from dataflows.signal_source import SignalSource
from operators.errors import ResumeError
from operators.records import END_OF_TIME
from operators.shard import shard_keys, siphash13, split
from operators.windows import LateAtShard, Shard
from tests.slots import SETS, Bench, drained

# --- slots ------------------------------------------------------------------------------------------------------------


def test_numbered_partitions_spread_evenly_over_slots() -> None:
    """Any run of numbers fills the slots to within one, whatever stands before the number."""
    for name in ("p-{}", "events.{:05d}", "{}"):
        share = Counter(slot_of(name.format(i)) for i in range(5 * SLOTS))
        assert set(share.values()) == {5}
    assert {slot_of(f"part-{i}") for i in range(3)} == {0, 1, 2}


@given(st.text(min_size=1, max_size=40))
def test_every_name_has_a_slot_that_never_changes(name: str) -> None:
    """A name without a number falls to some slot, the same one in every process."""
    assert 0 <= slot_of(name) < SLOTS
    assert slot_of(name) == slot_of(name)
    assert (slot_of("alpha"), slot_of("бета"), slot_of("p-13")) == (10, 3, 1)


def test_a_slot_reads_its_own_partitions_only() -> None:
    """All slots together read each partition once."""
    bench = Bench()
    for number in range(15):
        bench.write(f"p-{number}", [1.0, 2.0])
    bench.write("unnumbered", [1.0, 2.0])
    source = SignalSource(bench.plan())
    read: Counter[str] = Counter()
    for part in source.list_parts():
        for piece in drained(source.build_part("signals.read", part, None)):
            assert piece.known == bench.bus.partitions("t")
            read[piece.tick.partition] += piece.messages
    assert read == dict.fromkeys(bench.bus.partitions("t"), 2)


def test_a_stopped_slot_ends_at_once() -> None:
    """The signal to stop ends the input before the next read, and the position stays."""
    bench = Bench()
    bench.write("p-0", [1.0])
    slot = bench.slot(0)
    bench.stop.set()
    with pytest.raises(StopIteration):
        slot.next_batch()
    assert orjson.loads(slot.snapshot())["p-0"]["position"]["offset"] == 0


def test_a_log_that_is_not_the_one_that_was_read_is_refused() -> None:
    """A slot does not start from a position beyond the end of the log."""
    bench = Bench()
    bench.write("p-0", [1.0, 2.0])
    slot = bench.slot(0)
    drained(slot)
    bench.bus._logs["t", "p-0"].pop()
    with pytest.raises(ResumeError):
        bench.slot(0, slot.snapshot())


@given(
    st.lists(st.tuples(st.sampled_from(["p-0", "p-12"]), st.integers(0, 40)), max_size=40),
    st.lists(st.integers(1, 7), min_size=1, max_size=9),
    st.lists(st.booleans(), min_size=1, max_size=9),
)
def test_resumed_at_any_point_it_reads_each_event_once(
    log: list[tuple[str, int]], sizes: list[int], stops: list[bool]
) -> None:
    """Reads of any size and restarts at any point: the events, their verdicts and the counts are the same."""

    def read(sizes: list[int], stops: list[bool]) -> list[tuple[str, list[tuple[int, bool]]]]:
        bench = Bench()
        for partition, when in log:
            bench.write(partition, [float(when)])
        slot = bench.slot(0)
        found: dict[str, list[tuple[int, bool]]] = {}
        for step in range(400):
            for piece in slot.next_batch():
                if piece.batch is not None and piece.late is not None:
                    rows = zip(piece.batch.offset.tolist(), piece.late.tolist(), strict=True)
                    found.setdefault(piece.tick.partition, []).extend(rows)
            if stops[step % len(stops)]:
                state = slot.snapshot()
                bench.batch_size = sizes[step % len(sizes)]
                slot = bench.slot(0, state)
            if sum(map(len, found.values())) == len(log):
                break
        counts = {p: state["intake"][1] for p, state in orjson.loads(slot.snapshot()).items()}
        assert counts == {p: len(rows) for p, rows in found.items()}
        return sorted(found.items())

    assert read(sizes, stops) == read([1000], [False])


# --- shards -----------------------------------------------------------------------------------------------------------


class Seen(StatefulBatchLogic[int, int, int]):
    """Notes which thread, that is which worker, a key lives on."""

    def on_batch(self, values: list[int]) -> tuple[list[int], bool]:
        """Give the thread."""
        return [threading.get_ident() for _ in values], False

    def snapshot(self) -> int:
        """Nothing to keep."""
        return 0


@pytest.mark.parametrize(("shards", "workers"), [(12, 2), (12, 3), (12, 4), (5, 5)])
def test_the_engine_spreads_shards_evenly(shards: int, workers: int) -> None:
    """Bytewax sends a shard to the worker that its name was chosen for, so each worker gets the same share."""
    keys = shard_keys(shards)
    out: list[tuple[str, int]] = []
    flow = Dataflow("spread")
    pairs = op.input("in", flow, TestingSource([(key, 0) for key in keys]))
    op.output("out", op.stateful_batch("seen", pairs, lambda _: Seen()), TestingSink(out))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)  # type: ignore[no-untyped-call]  # bytewax does not type it
    by_worker: dict[int, set[int]] = {}
    for key, thread in out:
        by_worker.setdefault(thread, set()).add(int(key.partition(".")[0]))
    expected = [{shard for shard in range(shards) if shard % workers == w} for w in range(workers)]
    assert sorted(by_worker.values(), key=min) == expected
    for key in keys:
        assert siphash13(key.encode() + b"\xff") % workers == int(key.partition(".")[0]) % workers


# --- the end ----------------------------------------------------------------------------------------------------------


def run_to_the_end(
    bench: Bench, shard: Shard, states: dict[int, bytes]
) -> tuple[int, list[LateAtShard], dict[int, bytes]]:
    """One run with BUS_FOLLOW=0 over two slots and a shard: (rows, late at the shard, snapshots of the slots)."""
    bench.follow = False
    source = SignalSource(bench.plan())
    slots = {n: source.build_part("signals.read", f"slot-{n:02d}", states.get(n)) for n in (0, 1)}
    running = dict(slots)
    rows, late = 0, []
    while running:
        for number, slot in list(running.items()):
            try:
                pieces = slot.next_batch()
            except StopIteration:
                del running[number]
                continue
            for piece in pieces:
                batch = None if piece.batch is None or piece.late is None else split(piece.batch, piece.late, 1)[0]
                below = shard.push(batch, piece.tick, piece.known)
                late += [] if below is None else [below]
                rows += sum(len(block) for block in shard.advance())
    return rows, late, {n: slot.snapshot() for n, slot in slots.items()}


def test_the_end_of_the_log_closes_all_windows() -> None:
    """When every partition has ended, every window that holds an event is out, even one that was open."""
    bench = Bench(batch_size=3)
    bench.write("p-0", [1.0, 2.0, 3.0, 11.0])
    bench.write("p-1", [2.5, 4.0])
    bench.touch("p-13")
    shard = Shard(SETS)
    rows, late, _ = run_to_the_end(bench, shard, {})
    assert (rows, late) == (shard.counts.rows, [])
    assert shard.counts.used == 6
    whole = Shard(SETS, shard.snapshot())
    assert whole.advance() == []
    assert whole.watermark.value != END_OF_TIME


def test_after_an_end_what_belongs_to_closed_windows_is_late() -> None:
    """A later run goes on after the last window: older events are late with reason `closed`, newer ones count."""
    bench = Bench()
    bench.write("p-0", [100.0, 101.0])
    bench.write("p-1", [100.5])
    shard = Shard(SETS)
    _, _, states = run_to_the_end(bench, shard, {})
    bench.write("p-0", [101.5, 150.0])
    resumed = Shard(SETS, shard.snapshot())
    rows, late, _ = run_to_the_end(bench, resumed, states)
    assert [(each.reason, each.events.offset.tolist()) for each in late] == [("closed", [2])]
    assert (resumed.counts.used, resumed.counts.late) == (4, 1)
    assert rows > 0
