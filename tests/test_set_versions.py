"""A new version of a feature set beside the old one: history, then live, as if it had been there from the beginning."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflows.batch import BatchPlan, run_batch
from dataflows.recovery import Recovery
from dataflows.summary import Summary, summary_of
from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.retained import Lateness
from stores.deadletters import open_dead_letters
from stores.offline.parquet import ParquetOfflineStore
from tests.flows import BOUND, SOAK, Digests, Log, Place, Run, digests, dirty_log
from tests.late_rows import CORRECT, HOLD, LATENESS, check_chains, late_log, revisions
from tests.outcomes import dead_places, fingerprint, late_ids
from tests.strategies import TWO_SETS

SECOND_VERSION = """
[[feature_set]]
name = "fast"
version = 2
fields = ["a", "c"]
windows = ["4s", "6s/2s"]
halflife = "9s"
"""
ALL = parse_feature_sets(TWO_SETS + SECOND_VERSION, where="test.toml")
NEW = FeatureSets(ALL.sets[2:])
OLD = FeatureSets(ALL.sets[:2])
VERSION = ("--feature-set", "fast", "--version", "2")
ARCHIVED: dict[str, Any] = {"ARCHIVE_SIGNALS": 1}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one log."""
    with Place(tmp_path / "place") as opened:
        yield opened


@functools.cache
def batch(log: Log, sets: FeatureSets, lateness: Lateness | None = None) -> tuple[Digests, Summary]:
    """What a batch over the whole log comes to."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name) / "place")
        place.topic.mkdir(parents=True)
        place.write(log)
        store, letters = ParquetOfflineStore(place.offline), open_dead_letters("memory:")
        plan = BatchPlan(sets, 3, BOUND, 1000, 1 << 20, store, letters, lambda _: "signals", lateness)
        done, _ = run_batch(plan, sorted(place.topic.iterdir()), lambda _: None)
        return digests(place.offline, sets), done


def declare_second(place: Place) -> None:
    """Add the second version to the feature sets."""
    (place.root / "sets.toml").write_text(TWO_SETS + SECOND_VERSION, "utf-8")


def quick(place: Place, *command: str, faults: tuple[str, ...] = (), **settings: Any) -> Run:  # noqa: ANN401  # settings of any kind
    """Start a command with short epochs."""
    return place.quick(*faults, "--", *command, "--json", **settings)


def of_version(found: Digests, name: str, version: int) -> Digests:
    """The digests of one version."""
    return {key: value for key, value in found.items() if key[:2] == (name, version)}


class Beside(Place):
    """The same folders, seen from the run of the second version."""

    @property
    def recovery(self) -> Path:
        """Its recovery folder."""
        return self.root / "recovery" / "fast-v2"


def side_folder(place: Place) -> Path:
    """The recovery folder of the second version."""
    return place.recovery / "fast-v2"


@pytest.mark.parametrize("settings", [{}, CORRECT], ids=["drop", "correct"])
def test_backfill_and_then_live_is_one_run(place: Place, settings: dict[str, Any]) -> None:
    """Out of archive and bus, then live, while the first flow goes on: the digests are those of a batch, for both.

    Late events, dead letters and the archive are kept once, by the first flow.
    """
    log = late_log() if settings else dirty_log()
    lateness = LATENESS if settings else None
    first, second, third = log.slices(3)
    both: dict[str, Any] = {**settings, **ARCHIVED, "BUS_FOLLOW": 1}
    place.write(first)
    old = place.quick(**both)
    place.wait_until_read(old)
    declare_second(place)
    done = quick(place, "backfill", "signals", *VERSION, **settings, **ARCHIVED).done()
    assert done["in"] == len(first.lines)
    place.write(second)
    new = quick(place, "signals", *VERSION, **both)
    place.wait_until_read(old)
    place.write(third)
    place.wait_until_read(old)
    Beside(place.root).wait_until_read(new)
    old.stop()
    new.stop()
    quick(place, "signals", *VERSION, **settings, **ARCHIVED).done()
    place.quick(**settings, **ARCHIVED).done()
    for sets in (OLD, NEW):
        expected, summary = batch(log, sets, lateness)
        for one in sets.sets:
            assert of_version(digests(place.offline, ALL), one.name, one.version) == of_version(
                expected, one.name, one.version
            )
        folder = place.recovery if sets is OLD else side_folder(place)
        assert summary_of(Recovery(folder), sets, lateness) == summary
    check_chains([r for r in revisions(place.offline) if r.feature_set == "some"])
    if not settings:
        assert late_ids(place) == log.late
        assert dead_places(place) == log.broken


@pytest.mark.parametrize("seed", range(2 + 10 * SOAK))
def test_killed_at_any_moment_the_backfill_goes_on(place: Place, seed: int) -> None:
    """Killed (-9) in the backfill and in the live run, stopped at random seams: the digests of a batch."""
    chance = random.Random(seed)
    log = late_log(seed, events=700)
    parts = log.slices(3)
    place.write(parts[0])
    if seed % 2 == 0:
        place.quick(**CORRECT, **ARCHIVED, BUS_FOLLOW=0).done()
    declare_second(place)
    for number, part in enumerate(parts[1:]):
        kill = f"steps::before:{chance.randrange(20, 200)}"
        few = {"STREAM_BATCH_SIZE": 30, "STREAM_CONCURRENCY": chance.randrange(1, 4)}
        run = quick(place, "backfill", "signals", *VERSION, faults=(kill,), **CORRECT, **few)
        run.wait()
        if number > 0:
            quick(place, "backfill", "signals", *VERSION, **CORRECT).done()
        place.write(part)
        kill = f"steps::before:{chance.randrange(20, 200)}"
        run = quick(place, "signals", *VERSION, faults=(kill,), BUS_FOLLOW=1, **CORRECT, **few)
        run.lives_for(chance.random() * 2)
        run.kill()
    quick(place, "signals", *VERSION, **CORRECT).done()
    expected, summary = batch(log, NEW, LATENESS)
    assert of_version(digests(place.offline, ALL), "fast", 2) == expected
    assert summary_of(Recovery(side_folder(place)), NEW, LATENESS) == summary


def test_history_that_the_bus_has_lost_comes_out_of_the_archive(place: Place) -> None:
    """Old partition files are gone: the archive has them; without it they are missing, and nothing is made up."""
    log = dirty_log(3, partitions=3)
    place.write(log)
    place.quick(**ARCHIVED).done()
    (place.topic / "p-1.jsonl").unlink()
    declare_second(place)
    quick(place, "backfill", "signals", *VERSION, WATERMARK_IDLE_SECONDS=0).done()
    quick(place, "signals", *VERSION).done()
    expected, _ = batch(log, NEW)
    assert of_version(digests(place.offline, ALL), "fast", 2) == expected


def test_a_gap_in_history_ends_the_backfill_with_its_place(place: Place) -> None:
    """The log begins later than the archive ends: an error that names the partition and the offsets."""
    log = dirty_log(4, partitions=1)
    first, second = log.slices(2)
    place.write(first)
    place.quick(**ARCHIVED).done()
    path = place.topic / "p-0.jsonl"
    shutil.rmtree(place.root / "data" / "archive" / "verdicts", ignore_errors=True)
    size = path.stat().st_size
    path.unlink()
    place.write(Log((("p-0", b"x" * 100), *second.lines)))
    declare_second(place)
    run = quick(place, "backfill", "signals", *VERSION)
    assert run.wait() == 1
    assert "partition `p-0` of topic `signals`" in run.errors.splitlines()[-1]
    assert size > 0
    assert of_version(digests(place.offline, ALL), "fast", 2) == {}


def test_released_events_count_for_a_new_version_too(place: Place) -> None:
    """Under `hold`: what was released before and after the backfill is in the rows of both, and is held once."""
    log = late_log(6)
    place.write(log)
    place.quick(**HOLD).done()
    held = len(log.late)
    assert place.headrace("late", "list", "--json", **HOLD).wait() == 0
    declare_second(place)
    quick(place, "backfill", "signals", *VERSION, **HOLD).done()
    assert place.headrace("late", "release", "--all", "--json", **HOLD).done() == {"released": held}
    done = quick(place, "signals", *VERSION, **HOLD).done()
    assert done["late"] == -held
    place.quick(**HOLD).done()
    rows = [r for r in revisions(place.offline) if r.feature_set == "fast"]
    assert rows
    assert of_version(final_digests(place.offline), "fast", 2) == of_version(batch_of_all(log), "fast", 2)


def batch_of_all(log: Log) -> Digests:
    """What a batch comes to in which nothing is late."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name) / "place")
        place.topic.mkdir(parents=True)
        place.write(log)
        store, letters = ParquetOfflineStore(place.offline), open_dead_letters("memory:")
        plan = BatchPlan(ALL, 3, 10_000_000_000, 1000, 1 << 20, store, letters, lambda _: "signals")
        run_batch(plan, sorted(place.topic.iterdir()), lambda _: None)
        return final_digests(place.offline)


def final_digests(offline: Path) -> Digests:
    """Rows and digest of the newest revisions."""
    from stores.offline.digests import digest_of, recomputed

    found = digest_of(ParquetOfflineStore(offline), hashes=recomputed(ALL))
    return {(k.feature_set, k.version, k.window, k.date): (d.rows, d.total) for k, d in found.items()}


def test_a_changed_set_under_the_same_version_is_refused_with_what_to_do(place: Place) -> None:
    """Halflife changed: no folder is touched, and the sentence holds the command."""
    place.write(dirty_log(events=50))
    place.quick().done()
    before = fingerprint(place.offline)
    text = (place.root / "sets.toml").read_text("utf-8")
    (place.root / "sets.toml").write_text(text.replace('halflife = "4s"', 'halflife = "5s"'), "utf-8")
    run = place.quick()
    assert run.wait() == 2
    assert "headrace backfill signals --feature-set fast --version 2" in run.errors.splitlines()[-1]
    declare_second(place)
    run = place.quick()
    assert run.wait() == 2
    assert (
        "`headrace backfill signals --feature-set fast --version 2` computes it beside" in run.errors.splitlines()[-1]
    )
    assert fingerprint(place.offline) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--feature-set", "fast", "--version", "9"), "not declared in version 9 but in 1, 2"),
        (("--feature-set", "fast"), "declared in versions 1, 2; name one with --version"),
        (("--feature-set", "slow"), "`slow` is not declared"),
        (("--version", "2"), "--version needs --feature-set"),
        ((), "name either files with --input or a version"),
        (("--input", "x", "--feature-set", "some"), "name either files with --input or a version"),
    ],
)
def test_bad_use_is_one_sentence(place: Place, arguments: tuple[str, ...], said: str) -> None:
    """Nothing is made before it is clear what is meant."""
    declare_second(place)
    run = place.headrace("backfill", "signals", *arguments)
    assert run.wait() == 2
    assert said in run.errors
    assert not place.recovery.exists()
