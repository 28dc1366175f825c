"""Slots of the source: what is read when, who waits for whom, and what a partition is told to be."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import bytewax.operators as op
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, TestingSource, cluster_main
from hypothesis import given
from hypothesis import strategies as st

from dataflows.buses.memory import MemoryBus
from dataflows.signal_source import SLOTS, Alignment, SignalSlot, SignalSource, SourcePlan, slot_of
from operators.errors import ResumeError
from operators.intake import Piece
from operators.records import END_OF_TIME, NO_WATERMARK
from operators.shard import shard_keys, siphash13, split
from operators.watermark import Status
from operators.windows import LateAtShard, Shard
from stores.writers import EPOCHS_MAX
from tests.strategies import SECOND, two_sets

SETS = two_sets()
IDLE_S = 30.0


@dataclass
class Clock:
    """A monotonic clock that a test moves."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.seconds


@dataclass
class Bench:
    """A memory bus, a clock, and the slots that read it."""

    bus: MemoryBus = field(default_factory=MemoryBus)
    clock: Clock = field(default_factory=Clock)
    stop: threading.Event = field(default_factory=threading.Event)
    follow: bool = True
    batch_size: int = 1000

    def plan(self) -> SourcePlan:
        """What the slots need to know."""
        return SourcePlan(
            bus=self.bus,
            topic="t",
            sets=SETS,
            bound_us=5 * SECOND,
            idle_s=IDLE_S,
            batch_size=self.batch_size,
            event_bytes_max=1 << 20,
            follow=self.follow,
            stop=self.stop,
            epoch_s=None,
            now=self.clock,
        )

    def write(self, partition: str, times: Sequence[float]) -> None:
        """Append an event for each time, seconds."""
        at = self.bus.end("t", partition)
        events = [
            {"entity_id": "x", "event_time": int(t * 1000), "sequence": at + i, "payload": {"a": t, "b": 1}}
            for i, t in enumerate(times)
        ]
        self.bus.append("t", partition, [orjson.dumps(event) for event in events], at=at)

    def touch(self, partition: str) -> None:
        """Make a partition that has no event yet."""
        self.bus.append("t", partition, [b""], at=0)
        self.bus._logs["t", partition].clear()

    def slot(self, number: int, resume: bytes | None = None) -> SignalSlot:
        """Open one slot."""
        return SignalSource(self.plan()).build_part("signals.read", f"slot-{number:02d}", resume)


def told(pieces: Sequence[Piece]) -> list[tuple[str, int, Status]]:
    """Partition, events and status of each piece."""
    return [(p.tick.partition, p.messages, p.tick.status) for p in pieces]


def drained(slot: SignalSlot, calls: int = 30) -> list[Piece]:
    """Everything that a slot gives until it has nothing now."""
    out: list[Piece] = []
    for _ in range(calls):
        more = slot.next_batch()
        if not more:
            return out
        out += more
    raise AssertionError(f"still reading after {calls} calls")


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


# --- alignment --------------------------------------------------------------------------------------------------------


def test_alignment_lets_the_slowest_and_those_near_it_read() -> None:
    """A partition may run ahead of the slowest by a minute or four bounds, whichever is more."""
    alignment = Alignment(5 * SECOND)
    alignment.note("slow", 0)
    assert not alignment.is_ahead(60 * SECOND)
    assert alignment.is_ahead(60 * SECOND + 1)
    wide = Alignment(100 * SECOND)
    wide.note("slow", 0)
    assert not wide.is_ahead(400 * SECOND)
    assert wide.is_ahead(400 * SECOND + 1)
    alignment.leave("slow")
    assert not alignment.is_ahead(10**15)


def test_before_all_have_begun_those_that_have_are_ahead() -> None:
    """As long as some partition has shown no event, every one that has is ahead."""
    alignment = Alignment(SECOND)
    alignment.note("new", NO_WATERMARK)
    assert not alignment.is_ahead(NO_WATERMARK)
    assert alignment.is_ahead(5)
    alignment.note("new", 7)
    assert not alignment.is_ahead(5)


def test_a_partition_far_ahead_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would only wait in the shards is left in the log until the slowest partition has come nearer."""
    monkeypatch.setattr("dataflows.signal_source._AHEAD_EVENTS_MAX", 10)
    bench = Bench(batch_size=10)
    bench.write("p-0", [float(t) for t in range(0, 300, 10)])
    bench.write("p-12", [1000.0 + t for t in range(30)])
    slot = bench.slot(0)
    order = [piece.tick.partition for piece in drained(slot) if piece.messages]
    assert order == ["p-0", "p-12", "p-0", "p-0"]
    assert slot.next_awake() is None
    bench.write("p-0", [950.0])
    assert [piece.tick.partition for piece in drained(slot) if piece.messages] == ["p-0", "p-12"]


def test_a_clock_in_the_far_future_does_not_hold_its_own_partition_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it all other events of the partition are late; late events wait nowhere, so they are read and told."""
    monkeypatch.setattr("dataflows.signal_source._AHEAD_EVENTS_MAX", 10)
    bench = Bench(batch_size=5)
    bench.write("p-0", [10.0])
    bench.write("p-12", [4e9, *(20.0 + t for t in range(50))])
    pieces = drained(bench.slot(0))
    assert sum(len(piece.originals) for piece in pieces) == 50


def test_a_partition_of_broken_messages_alone_becomes_idle() -> None:
    """A producer that sends nothing but garbage, again and again, must not keep the windows of the others open."""
    bench = Bench()
    bench.write("p-0", [10.0])
    bench.bus.append("t", "p-12", [b"garbage"], at=0)
    slot = bench.slot(0)
    drained(slot)
    for second in range(1, 2 * int(IDLE_S)):
        bench.clock.seconds += 1
        bench.bus.append("t", "p-12", [b"garbage"], at=second)
        if ("p-12", 0, Status.IDLE) in told(drained(slot)):
            return
    pytest.fail("it never became idle")


def test_slots_of_one_process_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition waits for those of other slots too."""
    monkeypatch.setattr("dataflows.signal_source._AHEAD_EVENTS_MAX", 10)
    bench = Bench(batch_size=10)
    source = SignalSource(bench.plan())
    bench.write("p-0", [float(t) for t in range(20)])
    bench.write("p-1", [1000.0 + t for t in range(20)])
    behind, ahead = (source.build_part("signals.read", f"slot-0{n}", None) for n in (0, 1))
    assert [told(s.next_batch()) for s in (ahead, behind, ahead)] == [
        [("p-1", 10, Status.LIVE)],
        [("p-0", 10, Status.LIVE)],
        [("p-1", 0, Status.LIVE)],
    ]
    assert drained(ahead) == []
    drained(behind)
    bench.clock.seconds += IDLE_S
    assert told(behind.next_batch()) == [("p-0", 0, Status.IDLE)]
    assert told(ahead.next_batch()) == [("p-1", 10, Status.LIVE)]


# --- what a partition is ----------------------------------------------------------------------------------------------


def test_a_silent_partition_becomes_idle_and_wakes() -> None:
    """At the end of its log for long enough it is marked idle, once; with its next event it counts again."""
    bench = Bench()
    bench.write("p-0", [10.0])
    slot = bench.slot(0)
    assert told(drained(slot)) == [("p-0", 1, Status.LIVE), ("p-0", 0, Status.LIVE)]
    bench.clock.seconds += IDLE_S - 0.001
    assert drained(slot) == []
    bench.clock.seconds += 0.001
    (idle,) = drained(slot)
    assert (idle.tick.status, idle.tick.watermark) == (Status.IDLE, 5 * SECOND)
    bench.clock.seconds += 10 * IDLE_S
    assert drained(slot) == []
    bench.write("p-0", [20.0])
    assert told(drained(slot)) == [("p-0", 1, Status.LIVE)]
    bench.clock.seconds += IDLE_S
    assert told(drained(slot)) == [("p-0", 0, Status.IDLE)]


def test_an_empty_partition_becomes_idle_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never had an event holds the others only until it is idle."""
    monkeypatch.setattr("dataflows.signal_source._AHEAD_EVENTS_MAX", 4096)
    bench = Bench(batch_size=4096)
    bench.touch("p-12")
    bench.write("p-0", [float(t) for t in range(5000)])
    slot = bench.slot(0)
    assert sum(piece.messages for piece in drained(slot)) == 4096
    bench.clock.seconds += IDLE_S
    assert ("p-12", 0, Status.IDLE) in told(slot.next_batch())
    assert sum(piece.messages for piece in drained(slot)) == 904


def test_no_partition_is_idle_if_that_is_off() -> None:
    """WATERMARK_IDLE_SECONDS=0: silence means nothing."""
    bench = Bench()
    bench.write("p-0", [10.0])
    plan = replace(bench.plan(), idle_s=0.0)
    slot = SignalSource(plan).build_part("signals.read", "slot-00", None)
    drained(slot)
    bench.clock.seconds += 1e9
    assert drained(slot) == []


def test_a_partition_that_waits_for_others_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has more to read, so its own silence says nothing."""
    monkeypatch.setattr("dataflows.signal_source._AHEAD_EVENTS_MAX", 10)
    bench = Bench(batch_size=10)
    bench.write("p-0", [0.0])
    bench.write("p-12", [1000.0 + t for t in range(20)])
    slot = bench.slot(0)
    drained(slot)
    bench.clock.seconds += IDLE_S
    assert told(slot.next_batch()) == [("p-0", 0, Status.IDLE)]
    assert told(slot.next_batch()) == [("p-12", 10, Status.LIVE)]


def test_new_partitions_are_found_without_a_restart() -> None:
    """Within a second of its making a partition is read by its slot, and known to the others."""
    bench = Bench()
    bench.write("p-0", [1.0])
    source = SignalSource(bench.plan())
    zero, one = (source.build_part("signals.read", f"slot-0{n}", None) for n in (0, 1))
    drained(zero)
    bench.write("p-1", [2.0, 3.0])
    bench.write("p-0", [4.0])
    assert one.next_batch() == []
    assert [piece.known for piece in drained(zero)] == [("p-0",)]
    bench.clock.seconds += 1.0
    bench.write("p-0", [5.0])
    assert [piece.known for piece in drained(zero)] == [("p-0", "p-1")]
    assert ("p-1", 2, Status.LIVE) in told(drained(one))


def test_time_is_seen_to_pass_for_a_few_silent_epochs() -> None:
    """Ticks follow the last event for so long that everything staged gets published; then there is silence."""
    bench = Bench()
    bench.write("p-0", [1.0])
    slot = bench.slot(0)
    drained(slot)
    ticks = []
    for _ in range(EPOCHS_MAX + 5):
        slot.snapshot()
        ticks.append(len(drained(slot)))
    assert ticks == [1] * (EPOCHS_MAX + 2) + [0] * 3


def test_it_sleeps_only_when_there_is_nothing_to_do() -> None:
    """A slot that may have more wants to be called at once, an idle one some milliseconds later."""
    bench = Bench(batch_size=1)
    bench.write("p-0", [1.0, 2.0])
    slot = bench.slot(0)
    slot.next_batch()
    assert slot.next_awake() is None
    drained(slot)
    wake = slot.next_awake()
    assert wake is not None
    assert 0 < (wake - datetime.now(UTC)).total_seconds() <= 0.02


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
