"""kill -9 of the whole flow, at named points and at random moments and steps: nothing lost, nothing twice."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows import SOAK, Log, Place, Run, dirty_log, until
from tests.outcomes import batch_digests, prove

KILLED = -signal.SIGKILL
STORE = "stores.offline.parquet:ParquetOfflineStore"
LETTERS = "stores.deadletters.sqlite:SqliteDeadLetters"

NAMED = {
    "start": [
        "dataflows.recovery:init_db_dir:before:1",
        "dataflows.recovery:init_db_dir:after:1",
        "dataflows.recovery:Recovery._purge:before:1",
        "dataflows.recovery:Recovery._purge:after:1",
        "dataflows.recovery:Recovery.states:after:2",
        "dataflows.signal_source:SignalSlot.next_batch:after:1",
    ],
    "snapshots": [
        "dataflows.signal_source:SignalSlot.snapshot:before:3",
        "dataflows.signal_source:SignalSlot.snapshot:after:20",
        "dataflows.signal_flow:WindowsLogic.snapshot:before:5",
        "dataflows.signal_flow:WindowsLogic.snapshot:after:30",
        "stores.writers:OfflineWriter.snapshot:before:2",
        "stores.writers:OfflineWriter.snapshot:after:9",
    ],
    "rows": [
        f"{STORE}.stage:before:1",
        "stores.offline.parquet:_write:after:2",
        f"{STORE}.stage:after:1",
        f"{STORE}.publish:before:1",
        f"{STORE}._publish:before:2",
        f"{STORE}.publish:after:2",
    ],
    "set aside": [
        f"{LETTERS}.put:before:1",
        f"{LETTERS}.put:after:1",
        "dataflows.buses.folder:FolderBus.append:before:1",
        "os:pwrite:amid:1",
        "dataflows.buses.folder:FolderBus.append:after:1",
        "stores.log_writer:LogWriter.snapshot:after:3",
    ],
    "stop": [
        "dataflows.runner:settle:before:1",
        f"{STORE}.publish:before:3",
        "dataflows.runner:settle:after:1",
    ],
}
"""Lineages of runs, each killed where it says."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


def finish(place: Place, log: Log) -> None:
    """Let a last run end the log, and prove that every crash before it left no trace."""
    place.quick().done()
    prove(place, log, batch_digests(log))


def started(runs: list[Run]) -> None:
    """Wait until every process has said that its run begins."""
    until(lambda: all(run.ended or '"started"' in run.errors for run in runs), "the runs to start")


@pytest.mark.parametrize("lineage", NAMED)
def test_killed_at_named_points(place: Place, lineage: str) -> None:
    """Whatever the flow was about to write or had just written when it died, the next run mends it."""
    log = dirty_log(seed=1)
    points = NAMED[lineage]
    for number, (point, part) in enumerate(zip(points, log.slices(len(points)), strict=True)):
        place.write(part)
        run = place.quick(point, BUS_FOLLOW=1, STREAM_BATCH_SIZE=50, STREAM_CONCURRENCY=1 + number % 2)
        if lineage == "stop":
            until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the log to be read")  # noqa: B023  # called at once
            run.process.terminate()
        assert run.wait() == KILLED, (point, run.errors)
    finish(place, log)


@pytest.mark.parametrize("seed", range(2 + 10 * SOAK))
def test_killed_at_random_steps(place: Place, seed: int) -> None:
    """A kill before any step that touches a file leaves no trace."""
    chance = random.Random(seed)
    log = dirty_log(seed)
    for part in log.slices(4):
        place.write(part)
        point = f"steps::before:{chance.randrange(1, 300)}"
        run = place.quick(point, BUS_FOLLOW=1, STREAM_BATCH_SIZE=20, STREAM_CONCURRENCY=chance.randrange(1, 4))
        until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the end or a kill")  # noqa: B023  # called at once
        run.kill()
    finish(place, log)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("seed", range(1 + 10 * SOAK))
def test_killed_at_random_moments(place: Place, seed: int, processes: int) -> None:
    """A kill by the clock leaves no trace, of one process or of all processes of a cluster."""
    chance = random.Random(seed)
    log = dirty_log(seed)
    for part in log.slices(5):
        place.write(part)
        settings = {"BUS_FOLLOW": 1, "STREAM_BATCH_SIZE": 10}
        runs = place.cluster(place.quick, **settings) if processes == 2 else [place.quick(epoch_ms=40, **settings)]
        started(runs)
        for run in runs:
            assert run.lives_for(chance.uniform(0, 0.5)), run.errors
        for run in runs:
            run.kill()
    finish(place, log)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_of_a_cluster_is_killed(place: Place, victim: int) -> None:
    """The other process notices and ends with one sentence; started again together, they go on as if nothing was."""
    log = dirty_log(seed=9)
    first, second = log.slices(2)
    place.write(first)
    second_process, first_process = place.cluster(place.quick, BUS_FOLLOW=1, STREAM_BATCH_SIZE=20)
    runs = [first_process, second_process]
    until(lambda: any(run.ended for run in runs) or place.durable_bytes() > 0, "the first snapshot")
    runs[victim].kill()
    survivor = runs[1 - victim]
    assert survivor.wait(60) == 1
    assert survivor.errors.splitlines()[-1].startswith("headrace: ")
    assert "Traceback" not in survivor.errors
    place.write(second)
    for run in place.cluster(place.quick):
        run.done()
    prove(place, log, batch_digests(log))
