"""What every offline store promises, and what the Parquet files promise to other readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, CorruptStoreError, ResumeError
from operators.records import feature_row_schema
from stores.offline import open_offline
from stores.offline.memory import MemoryOfflineStore
from stores.offline.parquet import ParquetOfflineStore
from stores.offline.port import OfflineStore, PartitionKey, Selection, Withheld
from tests.offline_rows import KEY, NEXT_DAY, SENSORS, entities_of, published, put, rows

Opener = Callable[[], OfflineStore]


@pytest.fixture(params=["memory", "parquet"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens a store that starts empty; each call gives a new one over the same place, if there is a place."""
    if request.param == "memory":
        return MemoryOfflineStore
    return lambda: ParquetOfflineStore(tmp_path / "offline")


@pytest.fixture
def store(opener: Opener) -> OfflineStore:
    """One open, empty store."""
    return opener()


def test_staged_rows_are_seen_once_they_are_published(store: OfflineStore) -> None:
    """Staging shows nothing; publishing shows every row once; publishing again changes nothing."""
    staged = store.stage("aa.0", 0, {KEY: rows(["a", "b"]), NEXT_DAY: rows(["c"], key=NEXT_DAY)})
    assert (staged.rows, staged.withheld, len(staged.tokens)) == (3, Withheld(), 2)
    assert published(store) == []
    for _ in range(2):
        assert store.publish(staged.tokens) == Withheld()
        assert published(store) == [(KEY, "a", 0, 0), (KEY, "b", 0, 0), (NEXT_DAY, "c", 24, 0)]


def test_values_come_back_as_they_went(store: OfflineStore) -> None:
    """Schema, nulls, names of any script, quotes, newlines, path parts and long entity names survive."""
    names = ["", "émile", "温度計", "😀", "a\"b'c", "a\nb\tc\0", "../../etc", "a/b=c", "x" * 10_000]
    table = rows(names)
    put(store, "aa.0", 0, table)
    ((key, back),) = store.scan()
    assert key == KEY
    assert back.schema.equals(feature_row_schema(SENSORS), check_metadata=False)
    assert back.equals(table)


def test_columns_are_chosen_and_ordered(store: OfflineStore) -> None:
    """A scan reads only the columns asked for, in that order; a column that is not there is a KeyError."""
    put(store, "aa.0", 0, rows(["a"]))
    ((_, back),) = store.scan(columns=["revision", "entity_id"])
    assert back.column_names == ["revision", "entity_id"]
    with pytest.raises(KeyError):
        list(store.scan(columns=["heat__median"]))


def test_nothing_is_nothing(store: OfflineStore) -> None:
    """No tables, empty tables, no tokens and unknown writers change nothing."""
    assert store.stage("aa.0", 0, {}).tokens == ()
    assert store.stage("aa.0", 0, {KEY: rows([])}).tokens == ()
    assert store.publish([]) == Withheld()
    store.discard("aa.0", [])
    store.discard("bb.unknown", [])
    assert published(store) == []


def test_staging_a_sequence_again_replaces_it(store: OfflineStore) -> None:
    """After a lost epoch the same sequence is staged anew, with other rows and other partitions."""
    lost = store.stage("aa.0", 7, {KEY: rows(["a"]), NEXT_DAY: rows(["b"], key=NEXT_DAY)})
    staged = store.stage("aa.0", 7, {KEY: rows(["a", "c"])})
    store.publish(staged.tokens)
    assert entities_of(store) == ["a", "c"]
    with pytest.raises(CorruptStoreError, match="2024-10-05"):
        store.publish(lost.tokens)


def test_discard_removes_what_the_snapshot_does_not_know(store: OfflineStore) -> None:
    """Only the tokens to keep can still be published; other writers and published rows are not touched."""
    put(store, "aa.0", 0, rows(["published"]))
    kept = store.stage("aa.0", 1, {KEY: rows(["kept"], hour=1)})
    lost = store.stage("aa.0", 2, {KEY: rows(["lost"], hour=2)})
    other = store.stage("aa.1", 2, {KEY: rows(["other"], hour=3)})
    store.discard("aa.0", kept.tokens)
    store.discard("aa.0", kept.tokens)
    store.publish(kept.tokens + other.tokens)
    assert entities_of(store) == ["published", "kept", "other"]
    with pytest.raises(CorruptStoreError, match="missing"):
        store.publish(lost.tokens)


def test_a_sequence_is_published_once(store: OfflineStore) -> None:
    """A recovery folder older than the store is refused, and the published rows stay as they are."""
    put(store, "aa.0", 0, rows(["a"]))
    again = store.stage("aa.0", 0, {KEY: rows(["b"])})
    with pytest.raises(ResumeError, match="published already"):
        store.publish(again.tokens)
    assert entities_of(store) == ["a"]


def test_order_is_by_key_then_writer_then_sequence(store: OfflineStore) -> None:
    """A scan comes in one order, whatever the order of publishing; rows keep the order they were staged in."""
    staged = [
        store.stage("bb.0", 0, {KEY: rows(["z", "y"], hour=4)}),
        store.stage("aa.0", 10, {KEY: rows(["c"], hour=3)}),
        store.stage("aa.0", 9, {NEXT_DAY: rows(["d"], key=NEXT_DAY), KEY: rows(["b"], hour=2)}),
        store.stage("aa.0", 1, {KEY: rows(["a"], hour=1)}),
    ]
    for one in staged:
        store.publish(one.tokens)
    assert entities_of(store) == ["a", "b", "c", "z", "y", "d"]


def test_selections(store: OfflineStore) -> None:
    """A scan takes the partitions that every filter takes; dates are inclusive."""
    minute = PartitionKey("sensors", 2, "session:30s", "2024-10-05")
    for sequence, key in enumerate([KEY, NEXT_DAY, minute]):
        put(store, "aa.0", sequence, rows(["a"], key=key), key)

    def keys(selection: Selection) -> list[PartitionKey]:
        return [key for key, _ in store.scan(selection)]

    assert keys(Selection()) == [KEY, NEXT_DAY, minute]
    assert keys(Selection(version=2)) == keys(Selection(window="session:30s")) == [minute]
    assert keys(Selection(date_last="2024-10-04")) == [KEY]
    assert keys(Selection(feature_set="sensors", version=1, date_first="2024-10-05")) == [NEXT_DAY]
    assert keys(Selection(feature_set="other")) == []


def test_rows_of_another_lineage_are_not_written_again(store: OfflineStore) -> None:
    """The same row is withheld, counted by whether its content is the same; revisions are rows of their own."""
    assert put(store, "aa.0", 0, rows(["a", "b", "c"])) == Withheld()
    assert put(store, "aa.0", 1, rows(["a"], revision=1)) == Withheld()
    replay = store.stage("bb.0", 0, {KEY: rows(["a", "b", "c", "d"])})
    assert (replay.rows, replay.withheld) == (1, Withheld(repeated=3))
    assert store.publish(replay.tokens) == Withheld()
    assert put(store, "cc.0", 0, rows(["a", "b"], content=9)) == Withheld(different=2)
    assert put(store, "cc.0", 1, rows(["a", "b"], revision=1, content=9)) == Withheld(different=1)
    assert published(store) == [
        (KEY, "a", 0, 0),
        (KEY, "b", 0, 0),
        (KEY, "c", 0, 0),
        (KEY, "a", 0, 1),
        (KEY, "d", 0, 0),
        (KEY, "b", 0, 1),
    ]


def test_two_lineages_at_once_write_a_row_once(store: OfflineStore) -> None:
    """A row staged by two lineages before either published it is visible once, and the other is counted."""
    first = store.stage("aa.0", 0, {KEY: rows(["a", "b"])})
    second = store.stage("bb.0", 0, {KEY: rows(["b", "c"], content=5)})
    third = store.stage("cc.0", 0, {KEY: rows(["a"])})
    assert store.publish(first.tokens) == Withheld()
    assert store.publish(second.tokens) == Withheld(different=1)
    assert store.publish(third.tokens) == Withheld(repeated=1)
    assert store.publish(second.tokens + third.tokens) == Withheld()
    assert entities_of(store) == ["a", "b", "c"]


@settings(max_examples=30)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from(["aa", "bb", "cc"]),
            st.lists(st.tuples(st.sampled_from("pqrs"), st.integers(0, 3)), max_size=6, unique=True),
            st.booleans(),
        ),
        max_size=12,
    ),
    adapter=st.sampled_from(["memory", "parquet"]),
)
def test_any_mix_of_lineages_leaves_each_row_once(
    batches: list[tuple[str, list[tuple[str, int]], bool]], adapter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However lineages interleave staging and publishing, visible and withheld rows together are all rows."""
    store = open_offline(f"{adapter}:///{tmp_path_factory.mktemp('mix')}")
    written: dict[str, set[tuple[str, int]]] = {"aa": set(), "bb": set(), "cc": set()}
    waiting: list[str] = []
    offered, withheld = 0, Withheld()
    for sequence, (lineage, chosen, publish_now) in enumerate(batches):
        fresh = [row for row in chosen if row not in written[lineage]]  # a lineage never repeats itself
        written[lineage].update(fresh)
        offered += len(fresh)
        table = pa.concat_tables([rows([entity], hour=hour) for entity, hour in fresh] or [rows([])])
        staged = store.stage(f"{lineage}.0", sequence, {KEY: table})
        withheld += staged.withheld
        waiting += staged.tokens
        if publish_now:
            withheld += store.publish(waiting)
            waiting = []
    withheld += store.publish(waiting)
    visible = [(entity, hour) for _, entity, hour, _ in published(store)]
    assert sorted(visible) == sorted(set.union(*written.values()))
    assert (len(visible) + withheld.repeated, withheld.different) == (offered, 0)


def test_a_very_large_batch(store: OfflineStore) -> None:
    """A quarter of a million rows go in at once and come back in bounded tables."""
    base = rows(["a"])
    count = 250_000
    hashes = np.zeros((count, 2), "<u8")
    hashes[:, 0] = np.arange(count)
    columns = {name: base[name].combine_chunks().take(np.zeros(count, np.int64)) for name in base.column_names}
    columns["entity_id"] = pa.array([f"sensor-{i}" for i in range(count)])
    columns["content_hash"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(hashes)])
    large = pa.table(columns, schema=base.schema)
    put(store, "aa.0", 0, large)
    assert put(store, "bb.0", 0, large) == Withheld(repeated=count)
    back = pa.concat_tables([table for _, table in store.scan()])
    assert back.equals(large)


@pytest.mark.parametrize(
    "name",
    ["", "aa", "aa.", ".0", "AA.0", "aa.0/1", "../x.0", "aa..", "aa.x\n", "aa.\0", "aa.merged", "a" * 33 + ".0"],
)
def test_hostile_writers_are_refused(store: OfflineStore, name: str) -> None:
    """A name that could leave its folder, or be taken for another's, is a ConfigError before anything is written."""
    with pytest.raises(ConfigError, match="writer"):
        store.stage(name, 0, {KEY: rows(["a"])})
    with pytest.raises(ConfigError, match="writer"):
        store.discard(name, [])


@pytest.mark.parametrize(
    ("feature_set", "version", "window", "date"),
    [
        ("..", 1, "1h", "2024-10-04"),
        ("a/b", 1, "1h", "2024-10-04"),
        ("", 1, "1h", "2024-10-04"),
        ("a", 0, "1h", "2024-10-04"),
        ("a", 1, "1m/10s", "2024-10-04"),
        ("a", 1, "../1h", "2024-10-04"),
        ("a", 1, "1h\n", "2024-10-04"),
        ("a", 1, "1h", "2024-02-30"),
        ("a", 1, "1h", "2024-10-04/.."),
        ("a", 1, "1h", "20241004"),
    ],
)
def test_hostile_partitions_are_refused(feature_set: str, version: int, window: str, date: str) -> None:
    """No partition key can be made that would not be a plain folder below the store."""
    with pytest.raises(ConfigError):
        PartitionKey(feature_set, version, window, date)


@pytest.mark.parametrize("token", ["", "x", "../../etc/passwd", "sensors/v1/window=1h/date=2024-10-04/aa.0-7.parquet"])
def test_tokens_that_stage_never_gave_are_refused(store: OfflineStore, token: str) -> None:
    """A token that is damaged, or written another way than ours are, is a CorruptStoreError."""
    with pytest.raises(CorruptStoreError, match="token"):
        store.publish([token])


def test_tables_of_another_shape_are_refused(store: OfflineStore) -> None:
    """Missing columns, columns that the path holds, another date and a bad sequence are ValueErrors."""
    table = rows(["a"])
    with pytest.raises(ValueError, match="lack"):
        store.stage("aa.0", 0, {KEY: table.drop_columns(["revision"])})
    with pytest.raises(ValueError, match="path holds"):
        store.stage("aa.0", 0, {KEY: table.append_column("window", pa.array(["1h"]))})
    with pytest.raises(ValueError, match="another date"):
        store.stage("aa.0", 0, {NEXT_DAY: table})
    with pytest.raises(ValueError, match="sequence"):
        store.stage("aa.0", -1, {KEY: table})
    assert published(store) == []


def test_a_closed_store_says_so(store: OfflineStore) -> None:
    """After close, which may be repeated, every call is a ValueError."""
    staged = store.stage("aa.0", 0, {KEY: rows(["a"])})
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.stage("aa.0", 1, {}),
        lambda: store.publish(staged.tokens),
        lambda: store.discard("aa.0", []),
        store.scan,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


def test_urls_choose_the_adapter(tmp_path: Path) -> None:
    """`open_offline` opens what the scheme says and refuses the rest in one sentence."""
    assert isinstance(open_offline("memory:"), MemoryOfflineStore)
    store = open_offline(f"parquet:///{tmp_path}/with%20space")
    put(store, "aa.0", 0, rows(["a"]))
    assert (tmp_path / "with space" / "features" / "sensors" / "v1" / "window=1h" / "date=2024-10-04").is_dir()
    for url in ("parquet:", "parquet:///", "s3://bucket", ""):
        with pytest.raises(ConfigError, match="offline store"):
            open_offline(url)
