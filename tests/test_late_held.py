"""Late events held, then released or dropped over the command line, from end to end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflows.demo.night import main as write_night
from dataflows.recovery import Recovery
from dataflows.summary import Summary, summary_of
from operators.errors import HeadraceError
from operators.retained import Lateness
from tests.commands import headrace
from tests.flows import BOUND, SETS, SOAK, Log, Place, until
from tests.late_rows import HOLD, WIDE, batch_rows, check_chains, late_log, newest, revisions, whole_summary
from tests.strategies import SECOND

LATENESS = Lateness(600 * SECOND, BOUND, corrects=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


def totals(place: Place) -> Summary:
    """The counts since the recovery folder was made."""
    try:
        return summary_of(Recovery(place.recovery), SETS, LATENESS)
    except HeadraceError:
        return Summary()  # no run has made it yet


def prove_whole(place: Place, log: Log) -> None:
    """Assert that rows and counts are those of a log in which nothing came late."""
    rows = revisions(place.offline)
    check_chains(rows)
    assert newest(rows) == newest(batch_rows(log, None, WIDE)[0])
    assert totals(place) == whole_summary(log, len(rows))


def test_what_is_held_is_listed_released_and_applied_by_the_next_run(place: Place) -> None:
    """All late events are held and counted as late; after a release, none is, and rows are those of the whole log."""
    log = late_log()
    place.write(log)
    place.quick(**HOLD).done()
    listed = headrace(place, "late", "list", "--json", "--limit", "10000", **HOLD).records
    assert sorted(str(e["id"]) for e in listed) == log.late
    assert totals(place).late == len(log.late)
    assert newest(revisions(place.offline)) == newest(batch_rows(log, None, BOUND)[0])
    assert headrace(place, "late", "release", str(listed[0]["id"]), "--json", **HOLD).records == [{"released": 1}]
    assert headrace(place, "late", "release", "--all", "--json", **HOLD).records == [{"released": len(log.late) - 1}]
    assert headrace(place, "late", "list", "--json", **HOLD).records == []
    place.quick(STREAM_CONCURRENCY=2, **HOLD).done()
    prove_whole(place, log)
    assert not list((place.root / "bus" / "late").glob("*.jsonl"))


def test_what_is_released_behind_the_end_of_a_log_stays_retained_until_it_counts(place: Place) -> None:
    """By the time that it counts it is older than what is kept; its segment has waited for it, and the run goes on."""
    night: dict[str, Any] = {
        "FEATURE_SETS_PATH": str(Path(__file__).parents[1] / "feature_repo" / "feature_sets.toml"),
        "WATERMARK_SECONDS": 600,
        "ALLOWED_LATENESS_SECONDS": 5400,
        "LATE_EVENT_POLICY": "hold",
    }
    write_night(place.root / "bus" / "signals")
    place.quick(**night).done()
    assert headrace(place, "late", "release", "--all", "--json", **night).records == [{"released": 8}]
    place.quick(**night).done()
    done = headrace(place, "signals", "--json", BUS_FOLLOW=0, **night)
    assert (done.code, done.records[-1]["late"]) == (0, 0)


def test_dropped_events_stay_late_and_change_nothing(place: Place) -> None:
    """After a drop the rows are those of the events that were not late, also after another run."""
    log = late_log(3, events=300)
    place.write(log)
    place.quick(**HOLD).done()
    assert headrace(place, "late", "drop", "--all", "--json", **HOLD).records == [{"dropped": len(log.late)}]
    place.quick(**HOLD).done()
    rows = revisions(place.offline)
    assert rows == batch_rows(log, None, BOUND)[0]
    assert totals(place).late == len(log.late)
    unknown = headrace(place, "late", "release", "signals/p-0/1", **HOLD)
    assert (unknown.code, "there is no held event" in unknown.err) == (2, True)


def test_without_hold_there_is_nothing_to_release(place: Place) -> None:
    """One sentence says which setting is in the way."""
    done = headrace(place, "late", "release", "--all")
    assert done.code == 2
    assert "LATE_EVENT_POLICY is `drop`" in done.err


@pytest.mark.parametrize("seed", range(1 + 10 * SOAK))
def test_kills_around_releases_leave_no_trace(place: Place, seed: int) -> None:
    """A running flow takes up what is released, each event once, though it and the release are killed at random."""
    chance = random.Random(seed)
    log = late_log(seed, events=900)
    for part in log.slices(3):
        place.write(part)
        point = f"steps::before:{chance.randrange(20, 250)}"
        run = place.quick(point, BUS_FOLLOW=1, STREAM_BATCH_SIZE=30, STREAM_CONCURRENCY=chance.randrange(1, 4), **HOLD)
        until(lambda: run.ended or place.durable_bytes() > 0, "the first snapshot")  # noqa: B023  # called at once
        release = place.headrace("late", "release", "--all", **HOLD)
        if chance.random() < 0.5:
            release.lives_for(chance.uniform(0.5, 2))
        release.kill()
        until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the end or a kill")  # noqa: B023  # called at once
        run.kill()
    place.quick(**HOLD).done()
    headrace(place, "late", "release", "--all", **HOLD)
    place.quick(**HOLD).done()
    prove_whole(place, log)


def test_a_running_flow_applies_what_is_released(place: Place) -> None:
    """Without a restart: the counts say soon that nothing is late any more."""
    log = late_log(5, events=400)
    place.write(log)
    run = place.quick(BUS_FOLLOW=1, **HOLD)
    place.wait_until_read(run)
    until(lambda: totals(place).late == len(log.late), "all to be counted")
    headrace(place, "late", "release", "--all", **HOLD)
    until(lambda: totals(place).late == 0, "the release to be taken up")
    run.stop()
    place.quick(**HOLD).done()
    prove_whole(place, log)
