"""What a run does when its log is not the one it has read, its disk is full, or its snapshots are lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flows import Place, digests, dirty_log, half_way
from tests.outcomes import batch_digests, fingerprint, prove

LOG = dirty_log(seed=8, events=400)


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


def shrink(path: Path) -> None:
    """Cut the last byte off."""
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    """Put another file of other lines, longer, in its place."""
    other = path.with_name("other")
    other.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))) + b"{}\n")
    other.replace(path)


def write_over(path: Path) -> None:
    """Write other lines, more of them, into the same file."""
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))) + b"{}\n")


def remove(path: Path) -> None:
    """Delete it."""
    path.unlink()


DAMAGE = [shrink, replace, write_over, remove]


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_log_that_changed_while_stopped(stopped: Place, harm: Callable[[Path], None]) -> None:
    """A partition file that is no longer what was read stops the run with one sentence; nothing is overwritten."""
    path = stopped.topic / "p-1.jsonl"
    harm(path)
    before = digests(stopped.offline), stopped.totals(), path.exists() and path.read_bytes()
    run = stopped.quick()
    assert run.wait() == 1
    assert run.errors.splitlines()[-1].startswith(f"headrace: partition file `{path}` ")
    assert "Traceback" not in run.errors
    assert (digests(stopped.offline), stopped.totals(), path.exists() and path.read_bytes()) == before


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_log_that_changes_while_it_is_read(stopped: Place, harm: Callable[[Path], None]) -> None:
    """The same at run time: the run ends by itself, and once the file is back the next one goes on from there."""
    path = stopped.topic / "p-1.jsonl"
    run = stopped.quick(BUS_FOLLOW=1)
    stopped.write(LOG.slices(2)[1])
    stopped.wait_until_read(run)
    whole = path.read_bytes()
    harm(path)
    assert run.wait(30) == 1
    assert run.errors.splitlines()[-1].startswith(f"headrace: partition file `{path}` was replaced or has shrunk")
    assert "Traceback" not in run.errors
    path.write_bytes(whole)
    stopped.quick().done()
    prove(stopped, LOG, batch_digests(LOG))


def test_a_replaced_log_ends_a_bare_run_too(stopped: Place) -> None:
    """Bare Bytewax shows a traceback of its own, after our one line that says what happened; exit 1."""
    path = stopped.topic / "p-1.jsonl"
    replace(path)
    before = digests(stopped.offline)
    run = stopped.bare()
    assert run.wait() == 1
    failed = next(line for line in run.errors.splitlines() if '"failed"' in line)
    assert f"partition file `{path}` was replaced or has shrunk" in failed
    assert digests(stopped.offline) == before


FULL = {
    "offline": "stores.offline.parquet:ParquetOfflineStore.stage:full:2000",
    "late topic": "dataflows.buses.folder:FolderBus.append:full:100",
    "dead letters": "stores.deadletters.sqlite:SqliteDeadLetters.put:full:5000",
    "recovery folder": "bytewax.run:cli_main:full:50000",
}
"""Where no file may grow past so many bytes."""


@pytest.mark.parametrize("store", FULL)
def test_a_full_disk(stopped: Place, store: str) -> None:
    """A write that does not fit ends the run with one sentence and exit 1; with room again, everything comes right."""
    stopped.write(LOG.slices(2)[1])
    run = stopped.quick(FULL[store], STREAM_BATCH_SIZE=20)
    assert run.wait() == 1
    assert run.errors.splitlines()[-1].startswith("headrace: ")
    assert "Traceback" not in run.errors
    stopped.quick().done()
    prove(stopped, LOG, batch_digests(LOG))


def lose_one(folder: Path) -> None:
    """One of two snapshot files is gone."""
    (folder / "part-1.sqlite3").unlink()


def lose_all(folder: Path) -> None:
    """All snapshot files are gone."""
    for path in folder.glob("part-*"):
        path.unlink()


def spoil(folder: Path) -> None:
    """One is not a database any more."""
    (folder / "part-0.sqlite3").write_bytes(b"x" * 4096)


def cut(folder: Path) -> None:
    """One has lost its end."""
    os.truncate(folder / "part-1.sqlite3", 5000)


@pytest.mark.parametrize("harm", [lose_one, lose_all, spoil, cut])
def test_lost_snapshots(stopped: Place, harm: Callable[[Path], None]) -> None:
    """Snapshots that are lost or damaged are found before anything is changed, and a person decides."""
    kept = shutil.copytree(stopped.recovery, stopped.root / "kept")
    stopped.write(LOG.slices(2)[1])
    harm(stopped.recovery)
    before = fingerprint(stopped.root / "bus", stopped.offline)
    run = stopped.quick()
    assert run.wait() == 1
    assert run.errors.startswith(f"headrace: RECOVERY_DIR `{stopped.recovery}` ")
    assert run.errors.count("\n") == 1
    assert fingerprint(stopped.root / "bus", stopped.offline) == before
    for path in kept.glob("part-*"):
        if harm is not lose_one or not (stopped.recovery / path.name).exists():  # what was left must be as it was
            shutil.copy(path, stopped.recovery)
    stopped.quick().done()
    prove(stopped, LOG, batch_digests(LOG))
