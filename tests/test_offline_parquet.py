"""What the Parquet files of the offline store promise beyond the contract: other readers, reopening, full disks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from operators.digests import change
from operators.errors import CorruptStoreError, FatalError
from stores.offline.compact import compact
from stores.offline.parquet import ParquetOfflineStore, noted_changes
from stores.offline.port import PartitionKey, Withheld
from tests.offline_rows import KEY, entities_of, published, put, rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root of a Parquet store."""
    return tmp_path / "offline"


def test_reopening_finds_staged_and_published_rows(folder: Path) -> None:
    """Another process finds what was published, and can publish what was staged."""
    first = ParquetOfflineStore(folder)
    put(first, "aa.0", 0, rows(["a"]))
    staged = first.stage("aa.0", 1, {KEY: rows(["b"], hour=1)})
    first.close()
    second = ParquetOfflineStore(folder)
    assert entities_of(second) == ["a"]
    second.discard("aa.0", staged.tokens)
    second.publish(staged.tokens)
    assert entities_of(second) == ["a", "b"]


SLIDING = PartitionKey("sensors", 1, "6h_1h", "2024-10-04")
SESSION = PartitionKey("sensors", 1, "session:30s", "2024-10-05")


@pytest.fixture
def dataset(folder: Path) -> Path:
    """The folder of a feature set with three windows and two days, some rows staged and not published."""
    store = ParquetOfflineStore(folder)
    tables = {KEY: rows(["a", "b", "c"]), SLIDING: rows(["a"], key=SLIDING), SESSION: rows(["d"], key=SESSION)}
    store.publish(store.stage("aa.0", 0, tables).tokens)
    put(store, "aa.1", 0, rows(["e"], hour=5))
    store.stage("aa.1", 1, {KEY: rows(["hidden"], hour=6)})
    return folder / "features" / "sensors"


EXPECTED = [
    ("a", "1h", "2024-10-04"),
    ("a", "6h_1h", "2024-10-04"),
    ("b", "1h", "2024-10-04"),
    ("c", "1h", "2024-10-04"),
    ("d", "session:30s", "2024-10-05"),
    ("e", "1h", "2024-10-04"),
]


def test_pyarrow_reads_the_files(dataset: Path) -> None:
    """`read_table` and `dataset` give every published row with window and date from the path."""
    for table in (pq.read_table(dataset), ds.dataset(dataset, partitioning="hive").to_table()):
        found = zip(*(table[name].to_pylist() for name in ("entity_id", "window", "date")), strict=True)
        assert sorted(found) == EXPECTED
        assert table.schema.field("content_hash").type == pa.binary(16)
    one = ds.dataset(dataset / "v1", partitioning="hive").to_table(filter=ds.field("window") == "6h_1h")
    assert one["entity_id"].to_pylist() == ["a"]


def test_duckdb_reads_the_files(dataset: Path) -> None:
    """DuckDB's hive partitioning gives every published row with window and date from the path."""
    duckdb = pytest.importorskip("duckdb", reason="a reader of the offline rows")
    query = """
        SELECT entity_id, "window", CAST(date AS VARCHAR)
        FROM read_parquet(?, hive_partitioning=true) ORDER BY ALL
    """
    with duckdb.connect() as connection:
        found = connection.execute(query, [f"{dataset}/**/*.parquet"]).fetchall()
        assert found == EXPECTED
        path = f"{dataset}/v1/window=session:30s/**/*.parquet"
        assert connection.execute("SELECT entity_id, revision FROM read_parquet(?)", [path]).fetchall() == [("d", 0)]


def test_polars_reads_the_files(dataset: Path) -> None:
    """Polars' hive partitioning gives every published row with window and date from the path."""
    polars = pytest.importorskip("polars", reason="a reader of the offline rows")
    frame = polars.read_parquet(dataset, hive_partitioning=True, try_parse_hive_dates=False)
    assert sorted(frame.select("entity_id", "window", "date").rows()) == EXPECTED


def test_files_that_nobody_of_ours_wrote(folder: Path) -> None:
    """A damaged or foreign file among the rows is named and stops; hidden files and other folders are passed over."""
    store = ParquetOfflineStore(folder)
    put(store, "aa.0", 0, rows(["a"]))
    place = folder / "features" / "sensors" / "v1" / "window=1h" / "date=2024-10-04"
    (place / "_metadata").write_text("x")
    (place / ".aa.0-00000009.parquet").write_text("x")
    (place.parent / "date=yesterday").mkdir()
    assert entities_of(store) == ["a"]
    pq.write_table(rows(["b"]), place / "copied.parquet")
    assert entities_of(store) == ["a", "b"]
    assert put(store, "aa.0", 1, rows(["b", "c"], hour=1)) == Withheld()
    assert put(store, "aa.0", 2, rows(["b"])) == Withheld(repeated=1)
    (place / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptStoreError, match=r"cut\.parquet"):
        published(store)
    with pytest.raises(CorruptStoreError, match=r"cut\.parquet"):
        store.stage("aa.0", 3, {KEY: rows(["d"])})


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from operators.errors import FatalError
from stores.offline.parquet import ParquetOfflineStore
from tests.offline_rows import KEY, NEXT_DAY, entities_of, put, rows
folder = Path({folder!r})
store = ParquetOfflineStore(folder)
put(store, "aa.0", 0, rows(["a"]))
small = rows(["b"], hour=1)
large = rows([str(i) * 9 for i in range(20_000)], key=NEXT_DAY)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    store.stage("aa.0", 1, {{KEY: small, NEXT_DAY: large}})
except FatalError as error:
    print(error)
assert [p.name for p in (folder / "_staging" / "writers" / "aa.0").iterdir()] == []
assert entities_of(store) == ["a"]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.publish(store.stage("aa.0", 1, {{KEY: small, NEXT_DAY: large}}).tokens)
print(len(entities_of(store)))
"""


def test_a_full_disk_stops_without_a_trace(folder: Path) -> None:
    """A disk that fills while staging is a FatalError that says what to do; nothing is half there; a repeat works."""
    root = Path(__file__).parents[1]
    code = FULL_DISK.format(root=str(root), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    message, count = done.stdout.splitlines()
    assert "the disk is full" in message
    assert "start again" in message
    assert count == "20002"


def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    """A place that cannot become the store's folder is named in one sentence."""
    folder.write_text("a file, not a folder")
    with pytest.raises(FatalError, match="offline"):
        ParquetOfflineStore(folder).stage("aa.0", 0, {KEY: rows(["a"])})


def test_files_say_their_digests_and_compaction_keeps_the_sum(tmp_path: Path) -> None:
    """What the footers say adds up to the digest of the rows, file by file and merged; nothing without a file."""
    store = ParquetOfflineStore(tmp_path)
    put(store, "aa.w0", 0, rows(["a", "b"]))
    put(store, "aa.w0", 1, rows(["c"]))
    read = pa.concat_tables([table for _, table in store.scan()])
    assert noted_changes(tmp_path) == {KEY: change(read)}
    compact(tmp_path)
    assert len(list(tmp_path.glob("features/**/*.parquet"))) == 1
    assert noted_changes(tmp_path) == {KEY: change(read)}
    path = next(tmp_path.glob("features/**/*.parquet"))
    pq.write_table(pq.ParquetFile(path).read().replace_schema_metadata(None), path)
    assert noted_changes(tmp_path) == {KEY: None}
