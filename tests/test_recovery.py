"""The recovery folder: what it refuses, what it purges, and that a run goes on exactly where one has stopped."""

from __future__ import annotations

import pickle
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest
import structlog
from bytewax.recovery import init_db_dir

from dataflows.cli import run as headrace
from dataflows.observability import events
from dataflows.recovery import FORMAT, Recovery, resume_epoch
from operators.errors import ConfigError
from tests.flows import Place, digests, dirty_log, half_way, until
from tests.outcomes import batch_digests, fingerprint, late_ids, prove

LOG = dirty_log(seed=5, events=400)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A lineage that has read half of the log and was stopped; to be copied."""
    return half_way(tmp_path_factory.mktemp("half") / "place", LOG)


@pytest.fixture
def stopped(half: Place, tmp_path: Path) -> Iterator[Place]:
    """A copy of that lineage."""
    opened = Place(shutil.copytree(half.root, tmp_path / "copy"))
    yield opened
    opened.__exit__()


# --- going on ---------------------------------------------------------------------------------------------------------


def test_rescaled_from_4_to_1_to_3_workers(place: Place) -> None:
    """Workers come and go between runs: each event is read once, and the digest stays."""
    log = dirty_log(seed=4, partitions=5)
    read = 0
    for workers, part in zip((4, 1, 3), log.slices(3), strict=True):
        place.write(part)
        run = place.quick(BUS_FOLLOW=1, STREAM_CONCURRENCY=workers, STREAM_BATCH_SIZE=50)
        place.wait_until_read(run)
        assert run.stop()["in"] == len(part.lines)
        read += len(part.lines)
        assert place.totals().seen == read
    assert place.quick().done()["in"] == 0
    prove(place, log, batch_digests(log))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_replays_nothing(place: Place, number: signal.Signals) -> None:
    """A signal in the middle of the work ends it with exit 0, and what was read is not read again."""
    log = dirty_log(seed=6)
    place.write(log)
    run = place.quick(BUS_FOLLOW=1, STREAM_BATCH_SIZE=5)
    until(lambda: run.ended or place.durable_bytes() > 0, "the first snapshot")
    first = run.stop(number)["in"]
    assert 0 < first < len(log.lines)
    assert place.quick().done()["in"] == len(log.lines) - first
    prove(place, log, batch_digests(log))


def test_what_comes_after_an_end(place: Place, tmp_path: Path) -> None:
    """A log that ended and went on: what belongs to closed windows is late, the same events with crashes as without."""
    log = dirty_log(seed=10, events=600)
    with Place(tmp_path / "calm") as calm:
        for part in log.slices(2):
            calm.write(part)
            calm.quick().done()
    faults = iter(
        [
            "stores.log_writer:LogWriter.snapshot:after:2",
            "dataflows.signal_flow:WindowsLogic.snapshot:after:20",
            "os:pwrite:amid:1",
            "stores.offline.parquet:ParquetOfflineStore.publish:before:1",
        ]
    )
    for part in log.slices(2):
        place.write(part)
        for _ in range(2):
            assert place.quick(next(faults), STREAM_BATCH_SIZE=30).wait() == -signal.SIGKILL
        place.quick().done()
    assert (place.totals(), digests(place.offline)) == (calm.totals(), digests(calm.offline))
    late = late_ids(place)
    assert late == late_ids(calm) == sorted(set(late))
    assert place.totals().late == len(late) > len(log.late)
    assert set(late) > set(log.late)
    assert place.totals().seen == len(log.lines)


# --- rows from the future ---------------------------------------------------------------------------------------------


EXECUTION = "INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (?, ?, ?)"
FRONTIER = "INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (1, ?, ?)"
SNAPSHOT = "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES ('flow.step', ?, ?, ?)"


def make_snapshots(folder: Path, frontiers: dict[int, int], rows: list[tuple[str, int, bytes]]) -> None:
    """Write a second execution that began at epoch 3, its workers' frontiers (0: none), rows (key, epoch, state)."""
    paths = sorted(folder.glob("part-*.sqlite3"))
    for index, path in enumerate(paths):
        with closing(sqlite3.connect(path)) as database, database:
            if index == 0:
                database.executemany(EXECUTION, [(0, 3, 1), (1, len(frontiers), 3)])
            database.executemany(FRONTIER, [f for f in frontiers.items() if f[0] % len(paths) == index and f[1]])
            mine = [(key, epoch, pickle.dumps(state)) for key, epoch, state in rows if len(key) % 2 == index]
            database.executemany(SNAPSHOT, mine)


@pytest.mark.parametrize(
    ("frontiers", "resume"),
    [({0: 7, 1: 9}, 7), ({0: 9, 1: 7}, 7), ({0: 9, 1: 0}, 3), ({0: 0}, 3), ({0: 8}, 8)],
    ids=["first behind", "second behind", "second wrote none", "none", "one worker"],
)
def test_rows_from_the_future_are_purged(tmp_path: Path, frontiers: dict[int, int], resume: int) -> None:
    """Rows at or after the epoch that is resumed are deleted before a run; those before it are what it starts from."""
    epochs = {2, resume - 1, resume, resume + 1}
    rows = [(key, epoch, f"{key}{epoch}".encode()) for key in ("a", "bb") for epoch in sorted(epochs)]
    first = Recovery(tmp_path)
    first.prepare({"flow": "test"})
    first.release()
    make_snapshots(tmp_path, frontiers, rows)
    second = Recovery(tmp_path)
    second.prepare({"flow": "test"})
    left = set()
    for path in sorted(tmp_path.glob("part-*.sqlite3")):
        with closing(sqlite3.connect(path)) as database:
            left |= set(database.execute("SELECT state_key, snap_epoch FROM snaps"))
    assert left == {(key, epoch) for key in ("a", "bb") for epoch in (2, resume - 1)}
    assert second.states("flow.step") == {key: f"{key}{resume - 1}".encode() for key in ("a", "bb")}
    second.release()


def test_a_run_that_goes_on_may_delete_what_is_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are those of one moment: `verify` beside a run met one that was gone when it came to read it."""
    keys = ["a", "bb", "ccc"]
    made = Recovery(tmp_path)
    made.prepare({"flow": "test"})
    made.release()
    make_snapshots(tmp_path, {0: 5}, [(key, 4, f"{key}4".encode()) for key in keys])
    real = pickle.loads

    def loads_and_deletes(data: bytes) -> object:
        for path in tmp_path.glob("part-*.sqlite3"):
            with closing(sqlite3.connect(path)) as run:
                run.execute("DELETE FROM snaps")
                run.commit()
        return real(data)

    monkeypatch.setattr(pickle, "loads", loads_and_deletes)
    assert Recovery(tmp_path).states("flow.step") == {key: f"{key}4".encode() for key in keys}


def crash_epochs(place: Place) -> tuple[int, int]:
    """(Epoch that the next run starts from, newest epoch that a snapshot of a shard is of)."""
    databases = [sqlite3.connect(p) for p in sorted(place.recovery.glob("part-*.sqlite3"))]
    query = "SELECT max(snap_epoch) FROM snaps WHERE step_id = 'signals.windows'"
    try:
        newest = max(d.execute(query).fetchone()[0] or 0 for d in databases)
        return resume_epoch(databases), newest
    finally:
        for database in databases:
            database.close()


@pytest.mark.parametrize("purged", [True, False])
def test_two_crashes(place: Place, purged: bool) -> None:  # noqa: FBT001  # a case
    """A crash between an epoch's rows and its mark, a run that wakes nobody, a second crash: the purge saves the count.

    Without the purge the third run starts from shards that already hold what it reads again.
    """
    log = dirty_log(seed=7)
    keep = [] if purged else ["dataflows.recovery:Recovery._purge:skip:0"]
    place.write(log)
    # Offline writers are snapshotted after the shards' rows are written, so a crash there leaves those behind; early,
    # while the log is still being read, since rows of an epoch in which nothing was read would do no harm.
    snapshot = "stores.writers:OfflineWriter.snapshot:before:6"
    first = place.quick(snapshot, BUS_FOLLOW=1, STREAM_BATCH_SIZE=20)
    assert first.wait() == -signal.SIGKILL
    resume, newest = crash_epochs(place)
    assert newest >= resume
    second = place.quick("dataflows.signal_source:SignalSlot.next_batch:skip:0", *keep, BUS_FOLLOW=1)
    until(lambda: second.ended or crash_epochs(place)[0] > newest, "epochs to pass")
    second.kill()
    place.quick(*keep).done()
    if purged:
        prove(place, log, batch_digests(log))
    else:
        assert (place.totals(), digests(place.offline)) != (log.summary, batch_digests(log))


# --- folders that are refused -----------------------------------------------------------------------------------------


@pytest.fixture
def command(stopped: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The stopped lineage's settings as the environment of commands in this process."""
    for name, value in stopped.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(events, "_hooks", [])
    yield stopped
    structlog.reset_defaults()


def _change_manifest(name: str, value: object) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        path = place.recovery / "headrace.json"
        manifest = orjson.loads(path.read_bytes())
        manifest["identity"][name] = value
        path.write_bytes(orjson.dumps(manifest))

    return change


def _replace_folder(make: Callable[[Path], object]) -> Callable[[Place], None]:
    def replace(place: Place) -> None:
        shutil.rmtree(place.recovery)
        make(place.recovery)

    return replace


def _foreign_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", "utf-8")


def _foreign_snapshots(folder: Path) -> None:
    folder.mkdir()
    init_db_dir(folder, 2)  # type: ignore[no-untyped-call]  # bytewax does not type it


def _change_sets(place: Place) -> None:
    path = place.root / "sets.toml"
    path.write_text(path.read_text("utf-8").replace('halflife = "4s"', 'halflife = "5s"'), "utf-8")


def _nothing(place: Place) -> None:
    del place


def _damage(place: Place) -> None:
    (place.recovery / "headrace.json").write_text("{", "utf-8")


Case = tuple[Callable[[Place], None], dict[str, str], str]
"""What is changed in the place, which settings are changed, what the sentence says."""

REFUSED: dict[str, Case] = {
    "another flow": (_change_manifest("flow", "documents"), {}, "another flow (there `documents`, here `signals`)"),
    "another format": (_change_manifest("format", 0), {}, f"its format is `0`, that of this version `{FORMAT}`"),
    "another shard count": (_nothing, {"SIGNAL_SHARDS": "7"}, "another SIGNAL_SHARDS (there `12`, here `7`)"),
    "another topic": (_nothing, {"TOPIC_SIGNALS": "others"}, "another TOPIC_SIGNALS (there `signals`, here `others`)"),
    "another bound": (_nothing, {"WATERMARK_SECONDS": "6"}, "another WATERMARK_SECONDS (there `5.0`, here `6.0`)"),
    "other windows": (_nothing, {"FEATURE_WINDOWS": "5s"}, "another feature set `fast` version 1 windows"),
    "another version": (_nothing, {"FEATURE_SET_VERSION": "9"}, "set `fast` version 1 (there `declared`,"),
    "another halflife": (_change_sets, {}, "set `fast` version 1 halflife_us (there `4000000`, here `5000000`)"),
    "somebody's files": (_replace_folder(_foreign_files), {}, "is not empty and was not made by Headrace"),
    "somebody's snapshots": (_replace_folder(_foreign_snapshots), {}, "is not empty and was not made by Headrace"),
    "a file": (_replace_folder(lambda path: path.write_text("mine", "utf-8")), {}, "cannot be made"),
    "a damaged manifest": (_damage, {}, "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_does_not_fit(
    command: Place, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of another flow, shape or owner is refused in one sentence with exit 2, and nothing is touched."""
    change, settings, sentence = REFUSED[case]
    change(command)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before = fingerprint(command.root)
    assert headrace(["signals", "--json"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("headrace: RECOVERY_DIR `")
    assert sentence in told.err
    assert fingerprint(command.root) == before


def test_a_folder_in_use(command: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """While one run holds the folder another is refused, by command and bare; afterwards it may have it."""
    holder = Recovery(command.recovery)
    lineage = holder.prepare(orjson.loads((command.recovery / "headrace.json").read_bytes())["identity"])
    before = fingerprint(command.root / "bus", command.recovery, command.offline)
    assert headrace(["signals", "--json"]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    bare = command.bare()
    assert bare.wait() == 2
    assert bare.errors.startswith("headrace: RECOVERY_DIR `")
    assert bare.errors.count("\n") == 1
    assert fingerprint(command.root / "bus", command.recovery, command.offline) == before
    holder.release()
    again = Recovery(command.recovery)
    assert again.prepare(orjson.loads((command.recovery / "headrace.json").read_bytes())["identity"]) == lineage
    again.release()


def test_every_process_of_a_cluster_checks_the_folder(stopped: Place) -> None:
    """A process whose settings are not those of the first one is refused too, before it joins."""
    manifest = orjson.loads((stopped.recovery / "headrace.json").read_bytes())
    second = Recovery(stopped.recovery)
    assert second.wait_until_prepared(manifest["identity"]) == manifest["lineage"]
    with pytest.raises(ConfigError, match=r"another SIGNAL_SHARDS \(there `12`, here `5`\)"):
        second.wait_until_prepared({**manifest["identity"], "SIGNAL_SHARDS": 5})
