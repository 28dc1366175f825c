"""A fast lane into Feast's SQLite online store: the values of many rows by one statement.

Feast upserts value by value, about 12 µs each under Python's lock. Here the values of a chunk go down as two blobs,
and SQLite cuts them up itself. The tables stay Feast's, and Feast reads from them what it would have written, but for
`value_text`, which only its search of documents looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime

    import feast
    from feast.infra.provider import Provider
    from numpy.typing import NDArray

_WIDTH = 12
"""Bytes that a value has room for: a tag and a double, or a tag and a varint of 64 bits."""

_DOUBLE_TAG, _INT64_TAG = 5 << 3 | 1, 4 << 3
"""Of `double_val` and `int64_val` in Feast's Value message."""

_COLUMNS = {"entity_key", "feature_name", "value", "event_ts", "created_ts"}

_UPSERT = (
    "INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) {rows}"
    " ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, value_text = excluded.value_text,"
    " event_ts = excluded.event_ts, created_ts = excluded.created_ts"
)
_STORED = (
    "SELECT entity_key FROM headrace_keys AS k"
    " WHERE EXISTS (SELECT 1 FROM {table} AS t WHERE t.entity_key = k.entity_key)"
)
_CUT = (
    "SELECT k.entity_key, n.name,"
    " substr(?1, (k.i * ?4 + n.j) * ?5 + 1, instr(?3, substr(?2, k.i * ?4 + n.j + 1, 1)) - 1), NULL, k.event_ts, NULL"
    " FROM headrace_keys AS k CROSS JOIN headrace_names AS n WHERE true"
)
"""?1: values, each in ?5 bytes. ?2: how long each is, a byte; ?3: the bytes 0, 1, 2, … by which that is looked up."""


class SqliteLane:
    """Writes rows into one view's table of Feast's SQLite store."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        """table: its name, quoted."""
        self._connection = connection
        self._table = table

    def stored(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of the entities have a row."""
        with self._connection as connection:
            _fill_keys(connection, keys)
            found = connection.execute(_STORED.format(table=self._table))
            return {row[0] for row in found}

    def write(
        self, keys: Sequence[bytes], timestamps: Sequence[datetime], rows: pa.RecordBatch, columns: Sequence[str],
        extra: tuple[str, Sequence[bytes]],
    ) -> None:  # fmt: skip
        """Upsert the rows in one transaction.

        keys: Feast's own serialized keys. columns: int64 or float64, null where undefined. extra: a further value of
        each row, its name and serialized messages.
        """
        values, lengths = _encoded([rows.column(name) for name in columns])
        name, messages = extra
        with self._connection as connection:
            _fill_keys(connection, keys, timestamps)
            _fill_names(connection, columns)
            connection.execute(
                _UPSERT.format(table=self._table, rows=_CUT),
                (values, lengths, bytes(range(_WIDTH + 1)), len(columns), _WIDTH),
            )
            connection.executemany(
                _UPSERT.format(table=self._table, rows="VALUES (?, ?, ?, NULL, ?, NULL)"),
                ((key, name, message, ts) for key, message, ts in zip(keys, messages, timestamps, strict=True)),
            )


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
    return SqliteLane(connection, table)


def _fill_keys(
    connection: sqlite3.Connection, keys: Sequence[bytes], timestamps: Sequence[datetime] | None = None
) -> None:
    """Tell SQLite the keys of the rows, numbered, in a temporary table."""
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS headrace_keys (i INTEGER PRIMARY KEY, entity_key BLOB, event_ts timestamp)"
    )
    connection.execute("DELETE FROM headrace_keys")
    times = [None] * len(keys) if timestamps is None else timestamps
    rows = ((i, key, ts) for i, (key, ts) in enumerate(zip(keys, times, strict=True)))
    connection.executemany("INSERT INTO headrace_keys VALUES (?, ?, ?)", rows)


def _fill_names(connection: sqlite3.Connection, columns: Sequence[str]) -> None:
    """Tell SQLite the names of the values, numbered, in a temporary table."""
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS headrace_names (j INTEGER PRIMARY KEY, name TEXT)")
    connection.execute("DELETE FROM headrace_names")
    connection.executemany("INSERT INTO headrace_names VALUES (?, ?)", enumerate(columns))


def _encoded(columns: Sequence[pa.Array]) -> tuple[bytes, bytes]:
    """The values, row by row, as Feast's Value messages of `_WIDTH` bytes at most, and how long each is."""
    n = len(columns[0])
    data = np.zeros((n, len(columns), _WIDTH), np.uint8)
    lengths = np.zeros((n, len(columns)), np.uint8)
    for j, column in enumerate(columns):
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        if column.type == pa.float64():
            data[:, j, 0] = _DOUBLE_TAG
            data[:, j, 1:9] = column.fill_null(0.0).to_numpy().astype("<f8").view(np.uint8).reshape(n, 8)
            lengths[:, j] = np.where(valid, 9, 0)
        else:
            data[:, j, 0] = _INT64_TAG
            length = _varints(column.fill_null(0).to_numpy().astype(np.int64), data[:, j, 1:])
            lengths[:, j] = np.where(valid, 1 + length, 0)
    return data.tobytes(), lengths.tobytes()


def _varints(numbers: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Write each number as a varint (seven bits a byte, low first) to its line of out; return the lengths."""
    rest = numbers.astype(np.uint64)
    length = np.ones(len(numbers), np.int64)
    for at in range(10):
        more = rest >= 128
        out[:, at] = (rest & 127).astype(np.uint8) | np.where(more, 128, 0).astype(np.uint8)
        rest >>= np.uint64(7)
        length += more
    return length
