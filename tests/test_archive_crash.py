"""kill -9 at every step that the archive and its writer take."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from stores import archive_writer
from stores.archive.parquet import ParquetArchive
from stores.archive_writer import ArchiveWriter, Background
from tests.archive_rows import DAY, numbered, places, put
from tests.test_offline_crash import KILLED, in_child, killed_before_step

EPOCHS = 4
EPOCH_MESSAGES = 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of two epochs are large enough, so that some are merged."""
    monkeypatch.setattr(archive_writer, "FILE_ROWS", 2 * EPOCH_MESSAGES)


def run_sink(folder: Path, name: str, epochs: int) -> None:
    """What the engine does: write, snapshot, commit; after a crash it goes on where the committed snapshot stands."""
    committed = folder.parent / f"{name}.snapshot"
    position, state = 0, None
    if committed.exists():
        head, _, state = committed.read_bytes().partition(b"\n")
        position = int(head)
    background = Background()
    writer = ArchiveWriter(ParquetArchive(folder), background, name, state, durable=True)
    for epoch in range(position, epochs):
        writer.write(numbered(EPOCH_MESSAGES * epoch, EPOCH_MESSAGES))
        state = writer.snapshot()
        fresh = committed.with_suffix(".new")
        fresh.write_bytes(b"%d\n" % (epoch + 1) + state)
        fresh.replace(committed)
    writer.close()
    background.close()


def finished(folder: Path, name: str) -> list[tuple[str, int]]:
    """Run to the end, let snapshots pass until nothing waits, and return what is visible."""
    run_sink(folder, name, EPOCHS)
    run_sink(folder, name, EPOCHS)  # publishes what the last snapshot held
    return sorted(places(ParquetArchive(folder)))


def test_a_writer_killed_at_every_step_archives_each_message_once(tmp_path: Path) -> None:
    """Whatever step of staging, merging, publishing and withholding a kill falls on, no message is doubled or lost.

    Some messages were archived by another lineage before, so that files are rewritten while they are published.
    """
    run_sink(tmp_path / "archive", "aa.0", 2)  # loads what is loaded late, which is no step of the archive
    everything = [("p0", n) for n in range(EPOCHS * EPOCH_MESSAGES)]
    step, killed = 0, True
    while killed:
        folder = tmp_path / str(step) / "archive"
        folder.parent.mkdir()
        put(ParquetArchive(folder), "zz.0", 0, numbered(4, 3))
        killed = killed_before_step(step, partial(run_sink, folder, "aa.0", EPOCHS))
        seen = places(ParquetArchive(folder))
        assert len(seen) == len(set(seen))
        assert finished(folder, "aa.0") == everything, step
        assert list((folder / "_staging" / "writers" / "aa.0").iterdir()) == [], step
        assert len(list((folder / "signals" / f"date={DAY.date}").iterdir())) <= 1 + EPOCHS
        step += 1
    assert step > 30


@pytest.mark.parametrize("seed", range(3))
def test_writers_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    """Two lineages at once, killed by the clock again and again, leave each message once."""
    chance = random.Random(seed)
    folder = tmp_path / "archive"
    for _ in range(8):
        children = [in_child(partial(run_sink, folder, name, EPOCHS)) for name in ("aa.0", "bb.0")]
        for pid in children:
            if chance.random() < 0.8:
                for _ in range(chance.randrange(20_000)):
                    pass
                os.kill(pid, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, KILLED)
        seen = places(ParquetArchive(folder))
        assert len(seen) == len(set(seen))
    finished(folder, "aa.0")
    assert finished(folder, "bb.0") == [("p0", n) for n in range(EPOCHS * EPOCH_MESSAGES)]
