"""A fast lane into Feast's SQLite online store: the values of many rows by one statement.

Feast upserts value by value, about 12 µs each under Python's lock. Here the values of a chunk go down as two blobs,
and SQLite cuts them up itself. The tables stay Feast's, and Feast reads from them what it would have written, but for
`value_text`, which only its search of documents looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stores.features.newest import microseconds

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    import feast
    from feast.infra.provider import Provider
    from numpy.typing import NDArray

_WIDTH = 24
"""Bytes that a value has room for: the longest are two times in the year 9999, with their tags and lengths."""

_DOUBLE_TAG, _INT64_TAG, _INT64_LIST_TAG, _LIST_TAG = 5 << 3 | 1, 4 << 3, 14 << 3 | 2, 1 << 3 | 2
"""Of `double_val`, `int64_val` and `int64_list_val` in Feast's Value message, and of `val` in its Int64List."""

_CACHE_KIB = 32 << 10
"""Pages that SQLite keeps; by default it is less than a chunk of rows touches."""

_COLUMNS = {"entity_key", "feature_name", "value", "event_ts", "created_ts"}

_UPSERT = (
    "INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts)"
    " SELECT k.entity_key, n.name,"
    " substr(?1, (k.i * ?4 + n.j) * ?5 + 1, instr(?3, substr(?2, k.i * ?4 + n.j + 1, 1)) - 1), NULL, k.event_ts, NULL"
    " FROM headrace_keys AS k CROSS JOIN headrace_names AS n WHERE true"
    " ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, value_text = excluded.value_text,"
    " event_ts = excluded.event_ts, created_ts = excluded.created_ts"
)
"""?1: values, each in ?5 bytes. ?2: how long each is, a byte; ?3: the bytes 0, 1, 2, … by which that is looked up."""

_UNLIKE = (
    "SELECT i FROM headrace_keys EXCEPT"
    " SELECT k.i FROM headrace_keys AS k CROSS JOIN {table} AS t ON t.entity_key = k.entity_key"
    " CROSS JOIN headrace_names AS n ON n.name = t.feature_name"
    " WHERE t.event_ts IS k.event_ts AND t.value IS"
    " substr(?1, (k.i * ?4 + n.j) * ?5 + 1, instr(?3, substr(?2, k.i * ?4 + n.j + 1, 1)) - 1)"
    " GROUP BY k.i HAVING count(*) = ?4"
)
"""Parameters as in the upsert. It goes through the values as they lie: to look each one up takes half as long again."""

_STORED = (
    "SELECT entity_key FROM headrace_keys AS k"
    " WHERE EXISTS (SELECT 1 FROM {table} AS t WHERE t.entity_key = k.entity_key)"
)


class SqliteLane:
    """Writes rows into one view's table of Feast's SQLite store."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        """table: its name, quoted."""
        self._connection = connection
        self._table = table

    def stored(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of the entities have a row."""
        with self._connection as connection:
            _fill_keys(connection, keys, [0] * len(keys))
            found = connection.execute(_STORED.format(table=self._table))
            return {row[0] for row in found}

    def write(self, keys: Sequence[bytes], rows: pa.RecordBatch, columns: Sequence[str], times: str) -> None:
        """Upsert the rows in one transaction.

        keys: Feast's own serialized keys. columns: int64 or float64, null where undefined. times: name of a further
        value, [event_time, created_at] in microseconds. Feast's own timestamp is created_at.
        """
        order = sorted(range(len(keys)), key=keys.__getitem__)  # the order of the table's index
        parameters = self._laid([keys[i] for i in order], rows.take(pa.array(order)), [*columns, times])
        with self._connection as connection:
            connection.execute(_UPSERT.format(table=self._table), parameters)

    def unlike(self, keys: Sequence[bytes], rows: pa.RecordBatch, columns: Sequence[str], times: str) -> list[bool]:
        """Say of each row whether anything that `write` would leave of it is not there, bit for bit."""
        parameters = self._laid(keys, rows, [*columns, times])
        with self._connection as connection:
            found = {i for (i,) in connection.execute(_UNLIKE.format(table=self._table), parameters)}
        return [i in found for i in range(len(keys))]

    def _laid(self, keys: Sequence[bytes], rows: pa.RecordBatch, names: Sequence[str]) -> tuple[object, ...]:
        """Tell SQLite keys and names; return the parameters that hold the values. names: the times are the last."""
        created_s = (microseconds(rows, "created_at") // 1_000_000).tolist()
        with self._connection as connection:
            _fill_keys(connection, keys, created_s)
            _fill_names(connection, names)
        values, lengths = _encoded(rows, names[:-1])
        return values, lengths, bytes(range(_WIDTH + 1)), len(names), _WIDTH


def sqlite_lane(provider: Provider, config: Any, view: feast.FeatureView) -> SqliteLane | None:  # noqa: ANN401  # Feast's RepoConfig
    """The lane into the view's table; None for another store, or a table that is not as this code knows it."""
    from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

    store = getattr(provider, "online_store", None)
    if type(store) is not SqliteOnlineStore or config.online_store.vector_enabled:
        return None
    connection = store._get_conn(config)  # noqa: SLF001  # Feast has no other way to its connection
    table = _quote_id(_table_id(config.project, view, config.registry.enable_online_feature_view_versioning))
    found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    if not found >= _COLUMNS | {"value_text"} or "value_num" in found:
        return None
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return SqliteLane(connection, table)


def _fill_keys(connection: sqlite3.Connection, keys: Sequence[bytes], times_s: Sequence[int]) -> None:
    """Tell SQLite the keys of the rows, numbered, with their times as Feast keeps them, in a temporary table."""
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS headrace_keys (i INTEGER PRIMARY KEY, entity_key BLOB, event_ts timestamp)"
    )
    connection.execute("DELETE FROM headrace_keys")
    rows = zip(range(len(keys)), keys, times_s, strict=True)
    connection.executemany("INSERT INTO headrace_keys VALUES (?, ?, ?)", rows)


def _fill_names(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    """Tell SQLite the names of the values, numbered, in a temporary table."""
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS headrace_names (name TEXT PRIMARY KEY, j INTEGER) WITHOUT ROWID"
    )
    connection.execute("DELETE FROM headrace_names")
    connection.executemany("INSERT INTO headrace_names (j, name) VALUES (?, ?)", enumerate(names))


def _encoded(rows: pa.RecordBatch, columns: Sequence[str]) -> tuple[bytes, bytes]:
    """The values, row by row and the times last, as Feast's Value messages of `_WIDTH` bytes at most; their lengths."""
    n = len(rows)
    data = np.zeros((n, len(columns) + 1, _WIDTH), np.uint8)
    lengths = np.zeros((n, len(columns) + 1), np.uint8)
    for j, column in enumerate(map(rows.column, columns)):
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        if column.type == pa.float64():
            data[:, j, 0] = _DOUBLE_TAG
            data[:, j, 1:9] = column.fill_null(0.0).to_numpy().astype("<f8").view(np.uint8).reshape(n, 8)
            lengths[:, j] = np.where(valid, 9, 0)
        else:
            data[:, j, 0] = _INT64_TAG
            end = _varints(column.fill_null(0).to_numpy().astype(np.int64), data[:, j], np.ones(n, np.int64))
            lengths[:, j] = np.where(valid, end, 0)
    lengths[:, -1] = _time_lists(rows, data[:, -1])
    return data.tobytes(), lengths.tobytes()


def _time_lists(rows: pa.RecordBatch, out: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Write [event_time, created_at] of each row to its line of out; return the lengths."""
    end = np.full(len(rows), 4)
    for name in ("event_time", "created_at"):
        end = _varints(microseconds(rows, name), out, end)
    out[:, 0], out[:, 1] = _INT64_LIST_TAG, end - 2
    out[:, 2], out[:, 3] = _LIST_TAG, end - 4
    return end


def _varints(numbers: NDArray[np.int64], out: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Write each number as a varint (seven bits a byte, low first) to its line of out from `at` on; return the ends."""
    rest = numbers.astype(np.uint64)
    lines = np.arange(len(numbers))
    end = at + 1
    for k in range(10):
        more = rest >= 128
        out[lines, at + k] = (rest & 127).astype(np.uint8) | np.where(more, 128, 0).astype(np.uint8)
        rest >>= np.uint64(7)
        end = end + more
        if not more.any():
            break
    return end
