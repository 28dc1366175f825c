"""Compaction: the same rows in fewer files, and no reader that sees one twice or not at all."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, CorruptStoreError, ResumeError, RetryableError
from stores.offline.compact import CompactSummary, compact
from stores.offline.disk import exchange, locked
from stores.offline.layout import Layout
from stores.offline.parquet import ParquetOfflineStore
from stores.offline.port import PartitionKey, Selection, Withheld
from tests.offline_rows import KEY, NEXT_DAY, entities_of, published, put, rows

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lists folders here, but for the one test that says so."""
    monkeypatch.setattr("stores.offline.compact.GRACE_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root of a store."""
    return tmp_path / "offline"


@pytest.fixture
def store(folder: Path) -> ParquetOfflineStore:
    """An open, empty store."""
    return ParquetOfflineStore(folder)


def files(folder: Path) -> list[str]:
    """Names of the published files."""
    return sorted(path.name for path in (folder / "features").rglob("*.parquet"))


def leftovers(folder: Path) -> list[str]:
    """Folders that compaction has not removed."""
    place = Layout(folder).compacting
    return [path.name for path in place.iterdir()] if place.exists() else []


def test_small_files_become_one(folder: Path, store: ParquetOfflineStore) -> None:
    """One file a lineage and date is left, sorted by entity and time, with the same rows and a true summary."""
    for sequence in range(5):
        put(store, "aa.0", sequence, rows(["b", "a"], hour=sequence))
        put(store, "aa.1", sequence, rows(["c"], hour=sequence))
    put(store, "aa.0", 5, rows(["a"], hour=0, revision=1))
    put(store, "aa.0", 6, rows(["d"], key=NEXT_DAY), NEXT_DAY)
    before = sorted(published(store))
    seen: list[tuple[PartitionKey, int, int]] = []
    summary = compact(folder, progress=lambda *args: seen.append(args))
    assert files(folder) == ["aa.0-00000006.parquet", "aa.merged-00000001.parquet"]
    hours = range(5)
    assert published(store) == [
        (KEY, "a", 0, 0),
        (KEY, "a", 0, 1),
        *((KEY, "a", hour, 0) for hour in hours[1:]),
        *((KEY, "b", hour, 0) for hour in hours),
        *((KEY, "c", hour, 0) for hour in hours),
        (NEXT_DAY, "d", 24, 0),
    ]
    assert sorted(published(store)) == before
    assert (summary.partitions, summary.files_before, summary.files_after, summary.rows) == (1, 11, 1, 16)
    assert summary.bytes_after < summary.bytes_before
    assert seen == [(KEY, 0, 2), (NEXT_DAY, 1, 2)]
    assert leftovers(folder) == []
    assert compact(folder) == CompactSummary()


def test_values_survive(folder: Path, store: ParquetOfflineStore) -> None:
    """Schema, nulls, Unicode and empty names are the same after a merge, for other readers too."""
    tables = [rows(["", "😀", "a\n/..", "x" * 10_000]), rows(["温度計"], hour=1)]
    for sequence, table in enumerate(tables):
        put(store, "aa.0", sequence, table)
    compact(folder)
    order = [("entity_id", "ascending"), ("event_time", "ascending")]
    expected = pa.concat_tables(tables).sort_by(order)
    ((_, merged),) = store.scan()
    assert merged.replace_schema_metadata(None).equals(expected)
    assert merged.schema.equals(expected.schema)
    place = folder / "features" / "sensors"
    assert pq.read_table(place).select(expected.column_names).sort_by(order).num_rows == 5
    assert ds.dataset(place, partitioning="hive").to_table(columns=["date"])["date"].to_pylist() == [KEY.date] * 5


def test_what_is_merged_counts_as_published(folder: Path, store: ParquetOfflineStore) -> None:
    """A token whose file was merged, twice even, is published; one that never was is still missed."""
    tokens = [store.stage("aa.0", sequence, {KEY: rows(["a"], hour=sequence)}).tokens for sequence in range(6)]
    for sequence in (0, 1, 3):
        store.publish(tokens[sequence])
    compact(folder)
    store.publish(tokens[4])
    compact(folder)
    for sequence in (0, 1, 3, 4):
        assert store.publish(tokens[sequence]) == Withheld()
    assert store.publish(tokens[2]) == Withheld()
    store.discard("aa.0", [])
    with pytest.raises(CorruptStoreError, match="missing"):
        store.publish(tokens[5])
    again = store.stage("aa.0", 3, {KEY: rows(["z"], hour=9)})
    with pytest.raises(ResumeError, match="published already"):
        store.publish(again.tokens)
    assert [hour for _, _, hour, _ in sorted(published(store))] == [0, 1, 2, 3, 4]


def test_lineages_are_known_after_a_merge(folder: Path, store: ParquetOfflineStore) -> None:
    """Files of two lineages become two files, and rows of the other one are still withheld."""
    for lineage, name in (("aa", "a"), ("bb", "b")):
        for sequence in range(2):
            put(store, f"{lineage}.0", sequence, rows([name], hour=sequence))
    compact(folder)
    assert files(folder) == ["aa.merged-00000001.parquet", "bb.merged-00000001.parquet"]
    for opened in (store, ParquetOfflineStore(folder)):
        assert opened.stage("cc.0", 0, {KEY: rows(["a", "b"])}).withheld == Withheld(repeated=1, different=1)
        assert opened.stage("aa.0", 9, {KEY: rows(["b"], hour=1)}).withheld == Withheld(repeated=1)
        assert opened.stage("bb.0", 9, {KEY: rows(["b"], hour=2)}).withheld == Withheld()


def test_selections(folder: Path, store: ParquetOfflineStore) -> None:
    """Only the selected partitions are touched."""
    for sequence in range(2):
        put(store, "aa.0", 2 * sequence, rows(["a"], hour=sequence))
        put(store, "aa.0", 2 * sequence + 1, rows(["a"], hour=sequence, key=NEXT_DAY), NEXT_DAY)
    assert compact(folder, Selection(date_first=NEXT_DAY.date)).partitions == 1
    assert files(folder) == ["aa.0-00000000.parquet", "aa.0-00000002.parquet", "aa.merged-00000001.parquet"]


def test_large_files_are_left_alone(folder: Path, store: ParquetOfflineStore) -> None:
    """Files near the target stay; small ones are merged into files of about the target."""
    names = [f"sensor-{i}" for i in range(400)]
    put(store, "aa.0", 0, rows(names * 10))
    size_bytes = next((folder / "features").rglob("*.parquet")).stat().st_size
    for sequence in range(1, 9):
        put(store, "aa.0", sequence, rows(names, hour=sequence))
    compact(folder, target_bytes=size_bytes)
    kept, *merged = files(folder)
    assert kept == "aa.0-00000000.parquet"
    assert 1 < len(merged) < 8
    assert len(entities_of(store)) == 400 * 18


def test_files_of_another_schema_are_merged_apart(folder: Path, store: ParquetOfflineStore) -> None:
    """Two schemas in one folder (a set changed without a new version) stay two files."""
    wide = rows(["w"]).append_column("heat__sum", pa.array([1.0]))
    for sequence in range(2):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))
        put(store, "aa.1", sequence, wide)
    assert compact(folder).files_after == 2
    assert sorted(entities_of(store)) == ["a", "a", "w", "w"]


def test_files_published_meanwhile_are_carried_over(
    folder: Path, store: ParquetOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is published after the merge was planned is visible before, during and after the exchange."""
    for sequence in range(3):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))
    copymode = shutil.copymode

    def publish_first(source: Path, target: Path) -> None:
        put(store, "aa.0", 3, rows(["late"]))
        copymode(source, target)

    monkeypatch.setattr(shutil, "copymode", publish_first)
    assert compact(folder).files_before == 3
    assert files(folder) == ["aa.0-00000003.parquet", "aa.merged-00000001.parquet"]
    assert sorted(entities_of(store)) == ["a", "a", "a", "late"]


def test_publishing_waits_for_the_exchange(
    folder: Path, store: ParquetOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While folders are exchanged the lock of `publish` is taken, so no file can land in the old folder."""
    for sequence in range(2):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))

    def taken(one: Path, other: Path) -> None:
        with pytest.raises(BlockingIOError), locked(Layout(folder).lock("publish"), wait=False):
            pass
        exchange(one, other)

    monkeypatch.setattr("stores.offline.compact.exchange", taken)
    assert compact(folder).partitions == 1


def test_a_scan_outlives_a_compaction(folder: Path, store: ParquetOfflineStore) -> None:
    """A scan that has begun sees the folder as it was; what it reads is removed by a later compaction."""
    for sequence in range(3):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))
    scan = store.scan(columns=["entity_id"])
    next(scan)
    compact(folder)
    assert len(leftovers(folder)) == 1
    assert sum(table.num_rows for _, table in scan) == 2
    assert entities_of(store) == ["a", "a", "a"]
    compact(folder)
    assert leftovers(folder) == []


def test_folder_modes_survive(folder: Path, store: ParquetOfflineStore) -> None:
    """The merged folder may be read by whoever could read the old one."""
    for sequence in range(2):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))
    place = Layout(folder).folder(KEY)
    place.chmod(0o750)
    compact(folder)
    assert place.stat().st_mode & 0o777 == 0o750


def test_a_damaged_file_stops_and_nothing_changes(folder: Path, store: ParquetOfflineStore) -> None:
    """A file that cannot be read is named, the folder stays as it was, and nothing is left behind."""
    for sequence in range(3):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))
    before = files(folder)
    damaged = Layout(folder).folder(KEY) / before[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(CorruptStoreError, match=damaged.name):
        compact(folder)
    assert (files(folder), leftovers(folder)) == (before, [])


def test_one_compaction_at_a_time(folder: Path, store: ParquetOfflineStore) -> None:
    """A second compaction of the same store is told to come back later."""
    put(store, "aa.0", 0, rows(["a"]))
    with locked(Layout(folder).lock("compact")), pytest.raises(RetryableError, match="another compaction"):
        compact(folder)


def test_a_system_without_exchange_says_so(
    folder: Path, store: ParquetOfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders cannot be exchanged atomically nothing is merged, and the message says what is needed."""
    for sequence in range(2):
        put(store, "aa.0", sequence, rows(["a"], hour=sequence))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: object())
    with pytest.raises(ConfigError, match="renameat2"):
        compact(folder)
    assert (len(files(folder)), leftovers(folder)) == (2, [])


def test_an_empty_store_has_nothing_to_do(folder: Path) -> None:
    """A store that does not exist is not created."""
    assert compact(folder) == CompactSummary()
    assert not folder.exists()


@settings(max_examples=15)
@given(steps=st.lists(st.sampled_from(["compact", "aa.0", "aa.1", "bb.0"]), max_size=14))
def test_any_mix_of_publishing_and_compacting(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is published and compacted in between, each row is there once and each token stays published."""
    folder = tmp_path_factory.mktemp("mix")
    store = ParquetOfflineStore(folder)
    tokens: list[str] = []
    for sequence, step in enumerate(steps):
        if step == "compact":
            compact(folder)
            continue
        staged = store.stage(step, sequence, {KEY: rows([str(sequence)])})
        store.publish(staged.tokens)
        tokens += staged.tokens
    store.publish(tokens)
    expected = [str(sequence) for sequence, step in enumerate(steps) if step != "compact"]
    assert sorted(entities_of(store)) == sorted(expected)


READER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import pyarrow.dataset as ds
from stores.offline.parquet import ParquetOfflineStore

folder, counter, stop = Path({folder!r}), Path({counter!r}), Path({stop!r})
store = ParquetOfflineStore(folder)


def scanned():
    return [name for _, table in store.scan(columns=["entity_id"]) for name in table["entity_id"].to_pylist()]


def listed():
    while True:
        try:
            rows = ds.dataset(folder / "features", partitioning="hive").to_table(columns=["entity_id"])
            return rows["entity_id"].to_pylist()
        except FileNotFoundError:
            continue  # listed before an exchange, opened after it


reads = 0
while not stop.exists() or reads < 4:
    published = int(counter.read_text() or 0)
    names = (listed if reads % 2 else scanned)()
    numbers = sorted(int(name) for name in names)
    assert len(numbers) == len(set(numbers)), "a row was visible twice"
    assert numbers == list(range(len(numbers))) and len(numbers) >= published, (numbers, published)
    reads += 1
print(reads)
"""


def test_readers_see_each_row_exactly_once(
    folder: Path, store: ParquetOfflineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that reads all the time, through us and through pyarrow, never misses or doubles a row."""
    monkeypatch.setattr("stores.offline.compact.GRACE_S", 0.3)
    counter, stop = tmp_path / "counter", tmp_path / "stop"
    put(store, "aa.0", 0, rows(["0"]))
    counter.write_text("1")
    code = READER.format(root=str(ROOT), folder=str(folder), counter=str(counter), stop=str(stop))
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for number in range(1, 240):
            put(store, "aa.0", number, rows([str(number)]))
            fresh = tmp_path / "counter.new"
            fresh.write_text(str(number + 1))
            fresh.replace(counter)
            if number % 12 == 0:
                compact(folder)
            if reader.poll() is not None:
                break
    finally:
        stop.touch()
    out, err = reader.communicate(timeout=60)
    assert reader.returncode == 0, err
    assert int(out) >= 4
