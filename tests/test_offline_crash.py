"""kill -9 at every step that the offline store and its compaction take, and at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stores.offline.compact import compact
from stores.offline.layout import Layout
from stores.offline.parquet import ParquetOfflineStore
from tests.offline_rows import KEY, NEXT_DAY, entities_of, put, rows

STEPS = {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "os.truncate"}
"""Audit events before which a process is killed: all that touch names or contents of files."""

KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lists folders here."""
    monkeypatch.setattr("stores.offline.compact.GRACE_S", 0.0)


def in_child(action: Callable[[], object]) -> int:
    """Start a child process that does the action; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads in the parent
        pid = os.fork()
    if pid:
        return pid
    try:
        action()
    except BaseException:  # noqa: BLE001 - nothing may leave the child but its exit code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed_before_step(step: int, action: Callable[[], object]) -> bool:
    """Do the action in a child that is killed before that step; False if it was done before that."""

    def counted() -> None:
        left = step

        def hook(event: str, _args: tuple[object, ...]) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        action()

    code = os.waitstatus_to_exitcode(os.waitpid(in_child(counted), 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def run_sink(folder: Path, epochs: int) -> None:
    """What a sink does: stage, commit the snapshot, publish; after a crash it goes on where the snapshot stands."""
    snapshot = folder.parent / "snapshot.json"
    sequence, tokens = json.loads(snapshot.read_text()) if snapshot.exists() else (0, [])
    store = ParquetOfflineStore(folder)
    store.discard("aa.0", tokens)
    store.publish(tokens)
    for epoch in range(sequence, epochs):
        tables = {KEY: rows([f"k{epoch}"], hour=epoch), NEXT_DAY: rows([f"n{epoch}"], key=NEXT_DAY)}
        staged = store.stage("aa.0", epoch, tables)
        fresh = snapshot.with_suffix(".new")
        fresh.write_text(json.dumps([epoch + 1, staged.tokens]))
        fresh.replace(snapshot)
        store.publish(staged.tokens)


def test_a_sink_killed_at_every_step_writes_each_row_once(tmp_path: Path) -> None:
    """Whatever step of staging and publishing a kill falls on, no row is ever doubled and none is lost."""
    run_sink(tmp_path / "offline", 2)  # loads what is loaded late, which is no step of the store
    step, killed = 0, True
    while killed:
        folder = tmp_path / str(step) / "offline"
        folder.parent.mkdir()
        killed = killed_before_step(step, partial(run_sink, folder, 2))
        seen = entities_of(ParquetOfflineStore(folder))
        assert len(seen) == len(set(seen))
        run_sink(folder, 2)
        assert sorted(entities_of(ParquetOfflineStore(folder))) == ["k0", "k1", "n0", "n1"], step
        assert list((folder / "_staging" / "writers" / "aa.0").iterdir()) == []
        step += 1
    assert step > 20


def test_a_compaction_killed_at_every_step_leaves_old_or_new(tmp_path: Path) -> None:
    """Whatever step a kill falls on, each row is visible once, writers go on, and the next one cleans up."""
    put(ParquetOfflineStore(tmp_path / "first"), "aa.0", 0, rows(["a"]))
    compact(tmp_path / "first")
    step, killed = 0, True
    while killed:
        folder = tmp_path / str(step)
        store = ParquetOfflineStore(folder)
        for sequence in range(3):
            put(store, "aa.0", sequence, rows([f"a{sequence}"]))
        put(store, "bb.0", 0, rows(["b"]))
        killed = killed_before_step(step, partial(compact, folder))
        assert sorted(entities_of(store)) == ["a0", "a1", "a2", "b"], step
        put(store, "aa.0", 3, rows(["a3"]))
        compact(folder)
        assert sorted(entities_of(store)) == ["a0", "a1", "a2", "a3", "b"], step
        assert list(Layout(folder).compacting.iterdir()) == []
        assert len(list(Layout(folder).folder(KEY).iterdir())) == 2
        step += 1
    assert step > 20


@pytest.mark.parametrize("seed", range(4))
def test_a_compaction_killed_at_a_random_moment(tmp_path: Path, seed: int) -> None:
    """A kill by the clock, while another process publishes, leaves each row visible exactly once."""
    chance = random.Random(seed)
    store = ParquetOfflineStore(tmp_path)
    names: list[str] = []

    def forever() -> None:
        while True:
            compact(tmp_path, target_bytes=chance.choice([1 << 12, 1 << 20]))

    for _ in range(6):
        pid = in_child(forever)
        for _ in range(chance.randrange(1, 12)):
            names.append(str(len(names)))
            put(store, "aa.0", len(names), rows(names[-1:]))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED
        assert sorted(entities_of(store)) == sorted(names)
    compact(tmp_path)
    assert sorted(entities_of(store)) == sorted(names)
