"""kill -9 at every step that a shard's writer takes, damaged files, full disks, and readers in the midst of it."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from operators.errors import ConfigError, CorruptStoreError, FatalError
from stores.vectors.port import VectorReader
from tests.crash.launch import set_fault
from tests.vector_rows import holds, keys, local_store, put, row, rows

COMMITS = 9
COMPACT_ROWS = 8
WAIT_S = 60


def in_child(action: Callable[[], object]) -> int:
    """Start a child process that does the action; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads in the parent
        pid = os.fork()
    if pid:
        return pid
    signal.alarm(2 * WAIT_S)  # a child whose parent has failed ends too
    try:
        action()
    except BaseException:  # noqa: BLE001  # nothing may leave the child but its exit code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """Wait for a child; its exit code, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def state(commits: int) -> dict[int, int]:
    """What is there after so many commits of `work`: keys and their versions."""
    versions: dict[int, int] = {}
    for number in range(commits):
        versions |= dict.fromkeys((number, number + 1, number + 2), number)
        versions |= {1_000: number}
        versions.pop(number - 3, None)
    return versions


def work(folder: Path, journal: Path, commits: int) -> None:
    """Commit from where the journal stands; it tells before and after each commit that it is made."""
    with journal.open("ab", buffering=0) as file:
        number = len(journal.read_bytes().splitlines()) // 2
        writer = local_store(folder, compact_rows=COMPACT_ROWS).write(0)
        for commit in range(number, commits):
            file.write(b"begin\n")
            versions = dict.fromkeys((commit, commit + 1, commit + 2, 1_000), commit)
            writer.put(keys(versions), rows(versions))
            writer.delete(keys([max(commit - 3, 0)] if commit >= 3 else []))
            writer.commit()
            file.write(b"done\n")
        writer.close()


def settle(folder: Path, journal: Path) -> int:
    """Check that exactly a committed state is there; write the journal accordingly; return the number of commits."""
    lines = journal.read_bytes().splitlines() if journal.exists() else []
    done = lines.count(b"done")
    reader = local_store(folder, compact_rows=COMPACT_ROWS).read()
    counts = [commits for commits in range(done, lines.count(b"begin") + 1) if holds(reader, state(commits))]
    assert counts, f"neither {done} commits nor the one that was begun"
    journal.write_bytes(b"begin\ndone\n" * counts[0])
    reader.close()
    return counts[0]


def survives(folder: Path, fault: str) -> bool:
    """Work with that fault, and once more without; whether the fault killed the first."""

    def faulty() -> None:
        set_fault(fault)
        work(folder / "v", folder / "journal", COMMITS)

    folder.mkdir()
    code = ended(in_child(faulty))
    assert code in (0, -signal.SIGKILL)
    commits = settle(folder / "v", folder / "journal")
    local_store(folder / "v", compact_rows=COMPACT_ROWS).write(0).close()
    assert settle(folder / "v", folder / "journal") == commits
    work(folder / "v", folder / "journal", COMMITS + 1)
    assert settle(folder / "v", folder / "journal") == COMMITS + 1
    assert local_store(folder / "v", compact_rows=COMPACT_ROWS).check() == []
    shard = folder / "v" / "test-16" / "shard-000"
    assert len(list(shard.iterdir())) == 4  # lock, manifest, base and log: no leftovers
    return code != 0


@pytest.mark.parametrize(
    "fault",
    [
        "steps::before:{}",
        "os:pwrite:before:{}",
        "os:pwrite:amid:{}",
        "os:pwrite:after:{}",
        "os:fsync:before:{}",
        "os:fsync:after:{}",
        "stores.vectors.compaction:save_index:before:{}",
        "stores.vectors.compaction:save_index:after:{}",
    ],
)
def test_a_writer_killed_at_every_step_leaves_a_committed_state(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step a kill falls on, the store holds all of a commit or nothing of it, and none made is lost."""
    monkeypatch.chdir(tmp_path)  # a step counts below the working directory
    work(tmp_path / "first", tmp_path / "journal", COMMITS)  # loads what is loaded late, which is no step of the store
    number = 1
    while survives(tmp_path / str(number), fault.format(number)):
        number += 1
    assert number > 2


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_at_a_random_moment(tmp_path: Path, seed: int) -> None:
    """A kill by the clock, again and again on the same store, leaves exactly what was committed."""
    chance = random.Random(seed)
    journal = tmp_path / "journal"
    commits = 0
    for _ in range(8):
        pid = in_child(lambda: work(tmp_path / "v", journal, 100_000))
        wanted = 2 * (commits + chance.randrange(1, 30))
        limit = time.monotonic() + WAIT_S
        while not journal.exists() or len(journal.read_bytes().splitlines()) < wanted:
            assert time.monotonic() < limit
        for _ in range(chance.randrange(2_000)):
            pass
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        commits = settle(tmp_path / "v", journal)


def version_of(reader: VectorReader, document: int) -> int:
    """The one version that all ten chunks of a document have in this view."""
    vectors, found = reader.get(keys(range(document, document + 10)))
    assert found.all()
    assert reader.count() == 20
    version = reader.search(vectors[0], 1)[0]
    assert version.score == 1.0
    versions = {int(v) for v in range(400) if abs(float(row(document, v) @ vectors[0]) - 1) < 1e-5}
    assert len(versions) == 1
    assert holds_version(reader, document, min(versions))
    return min(versions)


def holds_version(reader: VectorReader, document: int, version: int) -> bool:
    """Whether every chunk of the document has that version."""
    numbers = range(document, document + 10)
    vectors, _ = reader.get(keys(numbers))
    return bool(abs(vectors - rows(dict.fromkeys(numbers, version))).max() < 1e-6)


def test_a_reader_sees_whole_commits(tmp_path: Path) -> None:
    """While another process commits and compacts, a view of a document is of one version, never older than before."""
    store = local_store(tmp_path, shards=2, compact_rows=50)
    documents = (0, 100)

    def write_on() -> None:
        writers = [store.write(shard) for shard in range(2)]
        for version in range(1, 300):
            for writer, document in zip(writers, documents, strict=True):
                put(writer, dict.fromkeys(range(document, document + 10), version))
        for writer in writers:
            writer.close()

    for shard, document in enumerate(documents):
        writer = store.write(shard)
        put(writer, dict.fromkeys(range(document, document + 10), 0))
        writer.close()
    reader = store.read()
    pid = in_child(write_on)
    seen = [0, 0]
    views = set()
    limit = time.monotonic() + WAIT_S
    while seen != [299, 299]:
        assert time.monotonic() < limit
        reader.refresh()
        now = [version_of(reader, document) for document in documents]
        assert now[0] >= seen[0]
        assert now[1] >= seen[1]
        seen = now
        views.add(tuple(now))
    assert ended(pid) == 0
    assert len(views) > 3
    assert store.check() == []


def test_a_killed_writer_lets_go(tmp_path: Path) -> None:
    """A writer in another process keeps others out as long as it lives, and no longer."""
    store = local_store(tmp_path)
    ready, tell = os.pipe()

    def hold() -> None:
        writer = store.write(0)
        os.write(tell, b"!")
        signal.pause()
        writer.close()

    pid = in_child(hold)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(ConfigError, match="another writer"):
        store.write(0)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    put(store.write(0), {1: 1})
    assert holds(store.read(), {1: 1})
    os.close(ready)
    os.close(tell)


def test_a_torn_or_damaged_log(tmp_path: Path) -> None:
    """A last record that is cut or changed anywhere is passed over; one before it is damage, found by all who read."""
    store = local_store(tmp_path)
    writer = store.write(0)
    put(writer, {1: 1})
    shard = tmp_path / "test-16" / "shard-000"
    log = next(shard.glob("log-*"))
    first = log.stat().st_size
    put(writer, {1: 2, 2: 2})
    writer.close()
    whole = log.read_bytes()
    for size in range(first, len(whole)):
        log.write_bytes(whole[:size])
        assert holds(store.read(), {1: 1}), size
    for place in range(first, len(whole), 7):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert holds(store.read(), {1: 1}), place
        writer = store.write(0)  # cuts it off
        put(writer, {3: 3})
        writer.close()
        assert holds(store.read(), {1: 1, 3: 3})
        assert store.check() == []
    for place in range(0, first, 7):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for use in (store.read, lambda: store.write(0)):
            with pytest.raises(CorruptStoreError, match="log-"):
                use()
        assert len(store.check()) == 1
    log.unlink()
    with pytest.raises(CorruptStoreError, match="lacks a file"):
        store.read()
    assert len(store.check()) == 1


def test_a_damaged_base(tmp_path: Path) -> None:
    """A changed byte is told by `check` and stops a compaction before it replaces anything; a cut file stays shut."""
    store = local_store(tmp_path, compact_rows=COMPACT_ROWS)
    writer = store.write(0)
    versions = dict.fromkeys(range(20), 0)
    put(writer, versions)
    writer.close()
    base = next((tmp_path / "test-16" / "shard-000").glob("base-*"))
    whole = base.read_bytes()
    base.write_bytes(whole[:100] + b"?" + whole[101:])
    assert len(store.check()) == 1
    writer = store.write(0)
    put(writer, dict.fromkeys(range(20, 40), 1))
    with pytest.raises(CorruptStoreError, match="not as it was written"):
        writer.close()
    assert holds(store.read(), dict.fromkeys(range(20), 0) | dict.fromkeys(range(20, 40), 1))
    with pytest.raises(CorruptStoreError, match="not as it was written"):
        store.write(0).close()
    base.write_bytes(whole)
    writer = store.write(0)
    put(writer, {50: 1})
    writer.close()
    assert store.check() == []
    base = next(base.parent.glob("base-*"))
    whole = base.read_bytes()
    base.write_bytes(whole[:-1])
    with pytest.raises(CorruptStoreError, match="bytes"):
        store.read()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that finds no room says so; the store keeps what was committed, and takes the same commit later."""
    store = local_store(tmp_path)
    writer = store.write(0)
    put(writer, {1: 1})
    real = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        real(file, bytes(data)[:9], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(FatalError, match="disk is full"):
            put(writer, {2: 2})
    with pytest.raises(FatalError, match="disk is full"):
        put(writer, {3: 3})
    writer.close()
    assert holds(store.read(), {1: 1})
    writer = store.write(0)
    put(writer, {2: 2})
    writer.close()
    assert holds(store.read(), {1: 1, 2: 2})


def test_a_compaction_that_fails_is_told_and_costs_nothing(tmp_path: Path) -> None:
    """The failure of a compaction stops the writer with its next call; all commits are kept, and it is tried again."""
    store = local_store(tmp_path, compact_rows=COMPACT_ROWS)
    writer = store.write(0)
    obstacle = tmp_path / "test-16" / "shard-000" / "base-000000000000.usearch"
    obstacle.mkdir()
    put(writer, dict.fromkeys(range(8), 0))
    with pytest.raises(FatalError, match="base-000000000000"):
        writer.close()
    writer.close()
    obstacle.rmdir()
    assert holds(store.read(), dict.fromkeys(range(8), 0))
    writer = store.write(0)
    put(writer, {9: 9})
    writer.close()
    assert holds(store.read(), {**dict.fromkeys(range(8), 0), 9: 9})
    assert obstacle.with_name("base-000000000001.usearch").is_file()
