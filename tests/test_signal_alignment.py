"""Which partition may read when, and what a partition is told to be: live, idle, new."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dataflows.alignment import Alignment
from dataflows.signal_source import SignalSource
from operators.messages import Message
from operators.records import NO_WATERMARK
from operators.watermark import Status
from stores.writers import EPOCHS_MAX
from tests.slots import IDLE_S, Bench, drained, told
from tests.strategies import SECOND

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
    bench.bus.append("t", "p-12", [Message(b"garbage")], at=0)
    slot = bench.slot(0)
    drained(slot)
    for second in range(1, 2 * int(IDLE_S)):
        bench.clock.seconds += 1
        bench.bus.append("t", "p-12", [Message(b"garbage")], at=second)
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
