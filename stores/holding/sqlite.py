"""Held events in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from stores.holding.port import HeldEvent
from stores.sqlite import BUSY_S, SqliteFile, lay_tables

FORMAT = 1
"""Version of the tables, kept in the file's `user_version`; 0 is a file without tables."""

# The original stands last: SQLite keeps a long row's tail on pages that a listing then need not read.
_TABLES = """
CREATE TABLE held (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'released', 'dropped')),
    number INTEGER UNIQUE,
    topic TEXT NOT NULL,
    partition TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    row INTEGER NOT NULL,
    reason TEXT NOT NULL,
    watermark_us INTEGER NOT NULL,
    entity_id TEXT NOT NULL,
    event_time_us INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    original BLOB NOT NULL,
    UNIQUE (topic, partition, "offset", row)
)
"""
_INDEX = "CREATE INDEX held_by_state ON held (state, place)"
_COLUMNS = 'topic, partition, "offset", reason, watermark_us, entity_id, event_time_us, sequence, original, row'
_PUT = f"INSERT INTO held ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608  # names of ours
_HELD = "state = 'held' AND (:reason IS NULL OR reason = :reason)"
_LIST = f"SELECT {_COLUMNS} FROM held WHERE {_HELD} ORDER BY place LIMIT :limit"  # noqa: S608  # names of ours
_COUNT = f"SELECT count(*) FROM held WHERE {_HELD}"  # noqa: S608  # names of ours
_RELEASED = f"SELECT number, {_COLUMNS} FROM held WHERE number > ? AND state = 'released' ORDER BY number LIMIT ?"  # noqa: S608  # names of ours
_FORGOTTEN = """
UPDATE held SET state = 'dropped', topic = '', partition = '', "offset" = -place, row = -1, reason = '',
    watermark_us = 0, entity_id = '', event_time_us = 0, sequence = 0, original = x''
WHERE entity_id = ? AND number IS NOT NULL
"""
_ALL = "SELECT place FROM held WHERE state = 'held' ORDER BY topic, partition, \"offset\", row"
_NAMED = """
SELECT place FROM held WHERE state = 'held'
    AND topic || '/' || partition || '/' || "offset" || iif(row < 0, '', '/' || row) = ?
"""
_IN_ORDER = 'SELECT topic, partition, "offset", row FROM held WHERE place = ?'


class SqliteHolding:
    """A `Holding` in a file on a local disk; the file and its folder are created on opening."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file, creating its tables if it has none.

        Raises ConfigError if it cannot be opened or was written by a newer Headrace, CorruptStoreError if it is not
        a database.
        """
        self._path = path
        self._file = SqliteFile(path, "held events", self._prepare, busy_s=busy_s)

    def put(self, events: Sequence[HeldEvent]) -> int:
        """Hold the events in one transaction; see `Holding.put`."""
        rows = [astuple(event) for event in events]
        with self._file.written("keeping") as connection:
            before = connection.total_changes
            connection.executemany(_PUT, rows)
            return connection.total_changes - before

    def list(self, *, reason: str | None = None, limit: int = 100) -> Sequence[HeldEvent]:
        """Return events that are held; see `Holding.list`."""
        with self._file.held("listing") as connection:
            return [HeldEvent(*row) for row in connection.execute(_LIST, {"reason": reason, "limit": limit})]

    def count(self, *, reason: str | None = None) -> int:
        """Return how many are held; see `Holding.count`."""
        with self._file.held("counting") as connection:
            return int(connection.execute(_COUNT, {"reason": reason}).fetchone()[0])

    def release(self, event_ids: Sequence[str] | None) -> int:
        """Release events in one transaction; see `Holding.release`."""
        with self._file.written("releasing") as connection:
            places = _places(connection, event_ids)
            last = int(connection.execute("SELECT coalesce(max(number), 0) FROM held").fetchone()[0])
            numbered = [(last + 1 + i, place) for i, place in enumerate(places)]
            connection.executemany("UPDATE held SET state = 'released', number = ? WHERE place = ?", numbered)
        return len(places)

    def drop(self, event_ids: Sequence[str] | None) -> int:
        """Drop events in one transaction; see `Holding.drop`."""
        with self._file.written("dropping") as connection:
            places = _places(connection, event_ids)
            rows = [(place,) for place in places]
            connection.executemany("UPDATE held SET state = 'dropped', original = x'' WHERE place = ?", rows)
        return len(places)

    def released(self, after: int, *, limit: int = 1000) -> Sequence[tuple[int, HeldEvent]]:
        """Return released events; see `Holding.released`."""
        with self._file.held("reading") as connection:
            rows = connection.execute(_RELEASED, (after, limit)).fetchall()
        return [(number, HeldEvent(*row)) for number, *row in rows]

    def forget(self, entity_id: str) -> int:
        """Delete the entity's events; see `Holding.forget`. A number that was given keeps an empty row."""
        with self._file.written("forgetting") as connection:
            before = connection.total_changes
            connection.execute("DELETE FROM held WHERE entity_id = ? AND number IS NULL", (entity_id,))
            connection.execute(_FORGOTTEN, (entity_id,))
            gone = connection.total_changes - before
        self._file.scrub()
        return gone

    def close(self) -> None:
        """Close the file; see `Holding.close`."""
        self._file.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        lay_tables(connection, FORMAT, _lay, f"held events `{self._path}` are")


def _places(connection: sqlite3.Connection, event_ids: Sequence[str] | None) -> list[int]:
    """Rows of the events that are held, in the order of the log."""
    if event_ids is None:
        return [int(row[0]) for row in connection.execute(_ALL)]
    found = [row for name in dict.fromkeys(event_ids) for row in connection.execute(_NAMED, (name,))]
    return [int(p) for (p,) in sorted(found, key=lambda row: connection.execute(_IN_ORDER, row).fetchone())]


def _lay(connection: sqlite3.Connection) -> None:
    connection.execute(_TABLES)
    connection.execute(_INDEX)
