"""Late events corrected, from end to end: live and batch come to the same revisions, whatever happens on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows import SOAK, Place, until
from tests.late_rows import CORRECT, late_log, prove_corrected


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 65_536), (1, 7), (3, 50)])
def test_live_gives_the_revisions_of_batch(place: Place, workers: int, batch_size: int) -> None:
    """Workers and batch sizes do not show in any revision, its time, its cause or its hash."""
    log = late_log()
    place.write(log)
    place.quick(STREAM_CONCURRENCY=workers, STREAM_BATCH_SIZE=batch_size, **CORRECT).done()
    prove_corrected(place, log)


def test_two_processes_then_one_come_to_the_same_revisions(place: Place) -> None:
    """A lineage that is moved from a cluster to one process with two workers goes on correcting."""
    log = late_log(1)
    first, second = log.slices(2)
    place.write(first)
    runs = place.cluster(place.quick, BUS_FOLLOW=1, STREAM_BATCH_SIZE=20, **CORRECT)
    until(lambda: any(r.ended for r in runs) or place.durable_bytes() >= place.whole_bytes(), "the log to be read")
    for run in runs:
        run.process.terminate()
    for run in runs:
        run.done()
    place.write(second)
    place.quick(STREAM_CONCURRENCY=2, **CORRECT).done()
    prove_corrected(place, log)


@pytest.mark.parametrize("seed", range(1 + 10 * SOAK))
def test_kills_leave_no_trace_in_any_revision(place: Place, seed: int) -> None:
    """Killed (-9) at random moments, with another number of workers each time."""
    chance = random.Random(seed)
    log = late_log(seed)
    for part in log.slices(4):
        place.write(part)
        run = place.quick(
            f"steps::before:{chance.randrange(20, 250)}",
            BUS_FOLLOW=1,
            STREAM_BATCH_SIZE=30,
            STREAM_CONCURRENCY=chance.randrange(1, 4),
            **CORRECT,
        )
        until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the end or a kill")  # noqa: B023  # called at once
        run.kill()
    place.quick(**CORRECT).done()
    prove_corrected(place, log)


def test_another_policy_or_limit_refuses_the_recovery_folder(place: Place) -> None:
    """State that was kept under one policy is not gone on with under another."""
    place.write(late_log(events=20))
    place.quick(**CORRECT).done()
    others: list[dict[str, Any]] = [
        {},
        {**CORRECT, "ALLOWED_LATENESS_SECONDS": 61},
        {**CORRECT, "LATE_EVENT_POLICY": "hold"},
    ]
    for settings in others:
        run = place.quick(**settings)
        assert run.wait() == 2
        assert "belongs to a run with another" in run.errors.splitlines()[-1]
    assert place.quick().wait() == 2
