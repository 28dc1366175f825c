"""The archive written by the flow: every message once, with what became of it, under every policy and through kills."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflows.recovery import Recovery
from dataflows.summary import Summary, summary_of
from stores.archive.parquet import ParquetArchive
from stores.archive.reading import judged
from tests.flows import SETS, SOAK, Log, Place, dirty_log, until
from tests.late_rows import CORRECT, HOLD, LATENESS, late_log
from tests.oracles import Event
from tests.outcomes import batch_digests, prove

ARCHIVED = {"ARCHIVE_SIGNALS": 1}
Told = dict[tuple[str, int], tuple[str, str | None, bytes]]
"""(partition, offset) → (verdict, reason, message)."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


def told(place: Place) -> Told:
    """What the archive says of every message; none is there twice."""
    out: Told = {}
    for rows in judged(ParquetArchive(place.root / "archive")):
        for row in rows.to_pylist():
            at = (row["partition"], row["offset"])
            assert at not in out
            out[at] = (row["verdict"], row["reason"], row["value"])
    return out


def counted(found: Told) -> dict[str, int]:
    """How many messages have each verdict."""
    words = [verdict for verdict, _, _ in found.values()]
    return {word: words.count(word) for word in ("used", "duplicate", "conflict", "late", "dead")}


def fates(events: list[Event]) -> dict[tuple[str, int], str]:
    """What becomes of events if none of them is late: the last of each key in the log is used."""
    groups: dict[object, list[Event]] = {}
    for event in sorted(events, key=lambda e: (e.partition, e.offset)):
        groups.setdefault((event.entity, event.time, event.sequence), []).append(event)
    out = {}
    for *others, last in groups.values():
        out[last.partition, last.offset] = "used"
        for event in others:
            same = said(event) == said(last)
            out[event.partition, event.offset] = "duplicate" if same else "conflict"
    return out


def said(event: Event) -> object:
    """What an event says, as far as anybody wants to know."""
    return SETS.mask(event.source), [event.fields.get(field) for field in SETS.fields]


def late_places(log: Log) -> set[tuple[str, int]]:
    """Where the late events stand, by their partitions' watermarks."""
    return {(p, int(o)) for p, o in (name.split("/")[1:] for name in log.late)}


def messages(log: Log) -> dict[tuple[str, int], bytes]:
    """Every message by its place."""
    return {(partition, offset): line for partition, offset, line in log._placed}


def environment(place: Place) -> dict[str, Any]:
    """Settings that turn the archive on."""
    return {**ARCHIVED, "ARCHIVE_PATH": place.root / "archive"}


def check(place: Place, log: Log, expected: dict[tuple[str, int], str]) -> None:
    """Assert that the archive holds every message of the log as it came, with these verdicts and `dead` else."""
    found = told(place)
    assert {at: value for at, (_, _, value) in found.items()} == messages(log)
    assert {at: verdict for at, (verdict, _, _) in found.items()} == dict.fromkeys(log.broken, "dead") | expected


def dropped(log: Log) -> dict[tuple[str, int], str]:
    """Verdicts under `drop`."""
    late = late_places(log)
    on_time = [e for e in log.events if (e.partition, e.offset) not in late]
    return dict.fromkeys(late, "late") | fates(on_time)


@pytest.mark.parametrize("workers", [1, 3])
def test_each_message_is_archived_once_with_its_verdict(place: Place, workers: int) -> None:
    """Used, duplicate, conflict, late and dead, each exactly where the rules say, and rows as without the archive."""
    log = dirty_log(3)
    place.write(log)
    place.quick(STREAM_CONCURRENCY=workers, STREAM_BATCH_SIZE=100, **environment(place)).done()
    check(place, log, dropped(log))
    prove(place, log, batch_digests(log))


def test_late_events_that_corrected_are_used_in_the_end(place: Place) -> None:
    """Under `correct` verdicts are those of a log in which nothing is late, those of corrected keys included."""
    log = late_log(2)
    place.write(log)
    place.quick(STREAM_BATCH_SIZE=30, **environment(place), **CORRECT).done()
    check(place, log, fates(log.events))


def test_held_events_are_late_until_they_are_released(place: Place) -> None:
    """Under `hold` the verdict changes with the release."""
    log = late_log(4)
    place.write(log)
    place.quick(**environment(place), **HOLD).done()
    check(place, log, dropped(log))
    place.headrace("late", "release", "--all", **HOLD).done()
    place.quick(**environment(place), **HOLD).done()
    check(place, log, fates(log.events))


@pytest.mark.parametrize("seed", range(2 + 10 * SOAK))
def test_kills_leave_no_trace_in_the_archive(place: Place, seed: int) -> None:
    """Killed (-9) at random steps, with another number of workers each time: every message once, the right verdicts."""
    chance = random.Random(seed)
    log = late_log(seed + 10)
    for part in log.slices(4):
        place.write(part)
        run = place.quick(
            f"steps::before:{chance.randrange(20, 400)}",
            BUS_FOLLOW=1,
            STREAM_BATCH_SIZE=30,
            STREAM_CONCURRENCY=chance.randrange(1, 4),
            **environment(place),
            **CORRECT,
        )
        until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the end or a kill")  # noqa: B023  # called at once
        run.kill()
    place.quick(**environment(place), **CORRECT).done()
    check(place, log, fates(log.events))


def test_it_can_be_turned_on_and_off_in_one_lineage(place: Place) -> None:
    """The archive holds what was read while it was on; what is found out meanwhile of other messages is no trouble."""
    log = dirty_log(7)
    parts = log.slices(4)
    kept: set[tuple[str, int]] = set()
    before: set[tuple[str, int]] = set()
    done: tuple[tuple[str, bytes], ...] = ()
    for number, part in enumerate(parts):
        place.write(part)
        done += part.lines
        there = set(messages(Log(done)))
        kept |= there - before if number % 2 else set()
        before = there
        settings = environment(place) if number % 2 else {}
        run = place.quick(BUS_FOLLOW=1, **settings)
        place.wait_until_read(run)
        run.stop()
    found = told(place)
    assert set(found) == kept
    place.quick().done()
    prove(place, log, batch_digests(log))


def test_totals_do_not_count_the_archive(place: Place) -> None:
    """The archive's state in the snapshots is no partition: counts are those of the log."""
    log = late_log(6, events=300)
    place.write(log)
    done = place.quick(**environment(place), **CORRECT).done()
    totals: Summary = summary_of(Recovery(place.recovery), SETS, LATENESS)
    assert (done["in"], totals.seen) == (len(log.lines), len(log.lines))
    assert counted(told(place))["used"] == totals.used
