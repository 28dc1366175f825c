"""Workers of unequal speed: the faster one keeps its rate, in a model of the engine's epochs and in the engine."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

import bytewax.operators as op
import numpy as np
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from bytewax.testing import TestingSink

from dataflows.alignment import Alignment
from dataflows.buses.memory import MemoryBus
from dataflows.epoch_sync import EpochSync
from dataflows.signal_source import SignalSlot, SignalSource, SourcePlan
from operators.records import RawChunk
from tests.strategies import SECOND, two_sets

# --- by hand ----------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """A monotonic clock that a test moves."""

    seconds: float = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.seconds


def calls(sync: EpochSync, clock: Clock, *, step: float, until: float) -> list[float]:
    """Call at every step until then; return what each call was told, relative to now, 0 for `once`."""
    out = []
    while clock.seconds < until:
        stretch = sync.call()
        out.append(round(stretch - clock.seconds, 6) if stretch else 0.0)
        sync.done()
        clock.seconds += step
    return out


def test_a_worker_that_is_not_held_back_is_left_alone() -> None:
    """Without a wait one call an epoch goes on for two steps instead of one, and all others fetch once."""
    clock = Clock()
    sync = EpochSync(1.0, clock)
    assert calls(sync, clock, step=0.125, until=1.0) == [0.0] * 8
    for epoch in range(1, 4):
        sync.snapped()
        told = calls(sync, clock, step=0.125, until=1.0 * (epoch + 1) - 0.125)
        assert told.count(0.0) >= len(told) - 1
        assert max(told) <= 0.25


def test_the_last_call_of_an_epoch_gives_the_wait_back() -> None:
    """What the engine held back after the snapshot is added to the last call that starts within the interval."""
    clock = Clock()
    sync = EpochSync(1.0, clock)
    calls(sync, clock, step=0.125, until=1.0)
    sync.snapped()  # the epoch began at the last call, 0.875
    clock.seconds += 0.25  # held back until 1.25: 0.375 since the last call
    told = calls(sync, clock, step=0.125, until=1.875)
    assert told == [0.0, 0.0, 0.0, 0.0, 0.5]  # at 1.75: until 0.875 + 1 + 0.375 = 2.25
    assert clock.seconds == 1.875


def test_a_stretch_ends_an_interval_after_the_epoch_at_the_latest() -> None:
    """However long the wait was, say of a machine that slept, no call goes on past the second interval."""
    clock = Clock()
    sync = EpochSync(1.0, clock)
    calls(sync, clock, step=0.25, until=1.0)
    clock.seconds = 100.0
    sync.call()
    sync.done()
    sync.snapped()  # the epoch began at 100
    clock.seconds = 100.1
    sync._ended = 0.0  # held back for 100 seconds
    assert sync.call() == 102.0


def test_epochs_that_are_over_before_they_begin_get_their_share() -> None:
    """After three epochs of a single call that call fetches for a quarter of the interval, until there are more."""
    clock = Clock()
    sync = EpochSync(1.0, clock)
    told = []
    for _ in range(5):
        clock.seconds += 1.5
        told.append(sync.call() - clock.seconds)
        sync.done()
        sync.snapped()
    assert [t if t > 0 else 0.0 for t in told] == [0.0, 0.0, 0.25, 0.25, 0.25]
    clock.seconds += 0.5
    assert sync.call() == 0.0


# --- in a model of the engine -----------------------------------------------------------------------------------------


@dataclass
class Partition:
    """A source partition of a worker: each fetch takes `cost` seconds; silent until an epoch, if it says so."""

    cost: float
    sync: EpochSync | None
    clock: Clock
    silent: int = 0
    epoch: int = 0
    started: float = 0.0
    fetches: list[int] = field(default_factory=lambda: [0])

    def next_batch(self) -> None:
        """As SignalSlot: fetch once, or until the sync says so."""
        until = 0.0 if self.sync is None else self.sync.call()
        while self._fetch() and self.clock() < until:
            pass
        if self.sync is not None:
            self.sync.done()

    def _fetch(self) -> bool:
        if self.epoch < self.silent:
            self.clock.seconds += 0.001
            return False
        self.clock.seconds += self.cost
        self.fetches[-1] += 1
        return True


def model(costs: list[float], *, interval: float, epochs: int, synced: bool, silent: int = 0) -> list[list[int]]:
    """Fetches an epoch of one partition a worker.

    An epoch ends for a worker in the first step that begins after the interval, counted from such a step. No worker
    calls its source in an epoch before every worker has ended the one before; that is durable 10 ms later.
    """
    workers = []
    for number, cost in enumerate(costs):
        clock = Clock()
        sync = EpochSync(interval, clock) if synced else None
        workers.append(Partition(cost, sync, clock, silent=silent if number == 0 else 0))
    ended: list[float] = []
    while min(w.epoch for w in workers) < epochs:
        mine = min(workers, key=lambda w: w.clock.seconds)
        now = mine.clock.seconds
        held = mine.epoch > 0 and (len(ended) < mine.epoch or ended[mine.epoch - 1] + 0.01 > now)
        if not held:
            mine.next_batch()
            if now - mine.started >= interval:
                if mine.sync is not None:
                    mine.sync.snapped()
                mine.epoch += 1
                mine.started = now
                mine.fetches.append(0)
                if min(w.epoch for w in workers) > len(ended):
                    ended.append(max(w.clock.seconds for w in workers))
        mine.clock.seconds += 0.0005
    return [w.fetches[:epochs] for w in workers]


def test_the_model_stalls_without_sync() -> None:
    """The engine as it is: the faster worker loses some of each epoch until it makes one fetch an epoch."""
    fast, slow = model([0.002, 0.02], interval=0.2, epochs=40, synced=False)
    assert all(later <= earlier + 2 for earlier, later in pairwise(fast[1:]))
    assert set(fast[-10:]) == {1}
    assert min(slow[1:]) >= 9


@pytest.mark.parametrize(("fast_s", "slow_s"), [(0.002, 0.02), (0.001, 0.06), (0.01, 0.03), (0.05, 0.07), (0.02, 0.02)])
@pytest.mark.parametrize("interval", [0.2, 1.0, 10.0])
def test_the_model_keeps_its_rate_with_sync(fast_s: float, slow_s: float, interval: float) -> None:
    """With it each worker fetches for nearly the whole of every epoch, however different their steps are."""
    fast, slow = model([fast_s, slow_s], interval=interval, epochs=40, synced=True)
    for cost, fetches in ((fast_s, fast), (slow_s, slow)):
        assert median(fetches[-20:]) >= 0.7 * (interval / (cost + 0.0005)) - 1


def test_a_partition_that_was_silent_for_long_is_not_starved() -> None:
    """It lost its place in the epoch while it had nothing to fetch; still it gets its share when it speaks again."""
    fast, slow = model([0.002, 0.05], interval=0.2, epochs=80, synced=True, silent=40)
    assert min(fast[-20:]) >= 0.2 / 0.002 / 5
    assert min(slow[1:]) >= 3


# --- in the engine ----------------------------------------------------------------------------------------------------

INTERVAL_S = 0.1
EPOCHS = 30


class Endless:
    """A reader that always has one more event, and takes `cost` seconds to get it."""

    def __init__(self, partition: str, cost: float) -> None:
        self.partition, self.cost, self.count = partition, cost, 0

    def poll(self, events_max: int) -> RawChunk | None:
        """One event."""
        del events_max
        threading.Event().wait(self.cost)  # lets the other worker run, as reading and decoding do
        event = {"entity_id": "x", "event_time": self.count, "sequence": self.count, "payload": {"a": 1}}
        message = np.frombuffer(orjson.dumps(event), np.uint8)
        self.count += 1
        size = np.array([len(message)])
        return RawChunk(self.partition, message, np.zeros(1, np.int64), size, np.array([self.count]))

    def position(self) -> dict[str, object]:
        """Events so far."""
        return {"offset": self.count}

    def close(self) -> None:
        """Nothing to close."""


class EndlessBus(MemoryBus):
    """Two partitions, of two slots and so of two workers."""

    def __init__(self, costs: dict[str, float]) -> None:
        super().__init__()
        self.readers = {partition: Endless(partition, cost) for partition, cost in costs.items()}

    def partitions(self, topic: str) -> tuple[str, ...]:
        """Both, always."""
        del topic
        return tuple(sorted(self.readers))

    def reader(self, topic: str, partition: str, position: object) -> Endless:
        """The one reader of the partition."""
        del topic, position
        return self.readers[partition]


class CountedSource(SignalSource):
    """The real source, and how many fetches each partition made in each epoch."""

    def __init__(self, plan: SourcePlan, bus: EndlessBus) -> None:
        super().__init__(plan)
        self._alignment = Alignment(100 * 365 * 86_400 * SECOND)  # neither waits for the other in event time
        self.bus, self.stop = bus, plan.stop
        self.fetches: dict[str, list[int]] = {partition: [] for partition in bus.readers}

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> SignalSlot:
        """Open the slot, and listen to its snapshots."""
        slot = super().build_part(step_id, for_part, resume_state)
        real = slot.snapshot

        def snapshot() -> bytes:
            for partition in slot._feeds:
                counts = self.fetches[partition]
                counts.append(self.bus.readers[partition].count - sum(counts))
                if len(counts) >= EPOCHS:
                    self.stop.set()
            return real()

        slot.snapshot = snapshot  # type: ignore[method-assign]  # the engine looks it up at each call
        return slot


def fetches_an_epoch(folder: Path, *, synced: bool) -> tuple[list[int], list[int]]:
    """Run two workers, one ten times slower, for thirty epochs: (fetches of the fast one, of the slow one)."""
    bus = EndlessBus({"p-0": 0.002, "p-1": 0.02})
    plan = SourcePlan(
        bus=bus,
        topic="t",
        sets=two_sets(),
        bound_us=5 * SECOND,
        idle_s=0.0,
        batch_size=10,
        event_bytes_max=1 << 20,
        follow=True,
        stop=threading.Event(),
        epoch_s=INTERVAL_S if synced else None,
    )
    source = CountedSource(plan, bus)
    flow = Dataflow("uneven")
    op.output("out", op.input("read", flow, source), TestingSink([]))
    folder.mkdir()
    init_db_dir(folder, 1)  # type: ignore[no-untyped-call]  # bytewax does not type it
    recovery = RecoveryConfig(folder, timedelta(0))  # type: ignore[no-untyped-call]  # bytewax does not type it
    interval = timedelta(seconds=INTERVAL_S)
    cli_main(flow, workers_per_process=2, epoch_interval=interval, recovery_config=recovery)  # type: ignore[no-untyped-call]  # as above
    return source.fetches["p-0"], source.fetches["p-1"]


def test_thirty_epochs_with_one_slow_worker(tmp_path: Path) -> None:
    """In the engine itself: with the sync the fast worker keeps its rate; without it, it starves."""
    fast, slow = fetches_an_epoch(tmp_path / "synced", synced=True)
    assert median(fast[-12:]) >= 0.5 * median(fast[2:8]), fast
    assert median(slow[-12:]) > 1, slow  # one is what a starved worker gets
    starved, _ = fetches_an_epoch(tmp_path / "as it is", synced=False)
    assert median(starved[-12:]) < 0.4 * median(fast[-12:]), (starved, fast)
