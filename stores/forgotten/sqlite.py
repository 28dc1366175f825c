"""The list of forgotten names in one SQLite file, which holds hashes alone."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from operators.forgotten import SALT_BYTES, Forgotten, Kind, name_hash, quick_hash
from stores.forgotten.port import MARK_DIGITS, ForgottenName
from stores.sqlite import BUSY_S, SqliteFile, lay_tables

FORMAT = 1
"""Version of the tables, kept in the file's `user_version`; 0 is a file without tables."""

_TABLES = (
    "CREATE TABLE salt (salt BLOB NOT NULL)",
    """
CREATE TABLE forgotten (
    hash BLOB PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
    kind TEXT NOT NULL CHECK (kind IN ('entity', 'document')),
    quick BLOB NOT NULL CHECK (length(quick) = 8),
    since_us INTEGER NOT NULL,
    done INTEGER NOT NULL
)
""",
)
_ADD = "INSERT INTO forgotten VALUES (?, ?, ?, ?, 0) ON CONFLICT (hash) DO UPDATE SET done = 0"
_LIST = "SELECT hash, kind, since_us, done FROM forgotten ORDER BY since_us, hash"


class SqliteForgotten:
    """`ForgottenNames` in a file on a local disk; the file and its folder are created on opening."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file. Raises ConfigError if it cannot be opened, CorruptStoreError if it is no database."""
        self._path = path
        self._file = SqliteFile(path, "names that were forgotten", self._prepare, busy_s=busy_s)
        with self._file.held("reading") as connection:
            self._salt = bytes(connection.execute("SELECT salt FROM salt").fetchone()[0])

    def add(self, kind: Kind, name: str, *, now_us: int) -> None:
        """Put the name on the list; see `ForgottenNames.add`."""
        quick = quick_hash(self._salt, name).to_bytes(8, "little")
        with self._file.written("adding to") as connection:
            connection.execute(_ADD, (name_hash(self._salt, kind, name), kind, quick, now_us))

    def finish(self, kind: Kind, name: str) -> None:
        """Note that nothing is left; see `ForgottenNames.finish`."""
        with self._file.written("changing") as connection:
            connection.execute("UPDATE forgotten SET done = 1 WHERE hash = ?", (name_hash(self._salt, kind, name),))

    def lift(self, name: str) -> int:
        """Take the name off the list; see `ForgottenNames.lift`."""
        named = [name_hash(self._salt, "entity", name), name_hash(self._salt, "document", name), name]
        with self._file.written("lifting from") as connection:
            before = connection.total_changes
            mark = f"lower(hex(substr(hash, 1, {MARK_DIGITS // 2})))"
            connection.execute(f"DELETE FROM forgotten WHERE hash IN (?, ?) OR {mark} = ?", named)  # noqa: S608  # digits of ours
            return connection.total_changes - before

    def list(self) -> Sequence[ForgottenName]:
        """Return all entries; see `ForgottenNames.list`."""
        with self._file.held("listing") as connection:
            rows = connection.execute(_LIST).fetchall()
        return [ForgottenName(key.hex()[:MARK_DIGITS], kind, since, bool(done)) for key, kind, since, done in rows]

    def load(self) -> Forgotten | None:
        """Return the list as it is asked; see `ForgottenNames.load`."""
        with self._file.held("reading") as connection:
            rows = connection.execute("SELECT hash, kind, quick FROM forgotten").fetchall()
        quick = sorted(int.from_bytes(number, "little") for _, kind, number in rows if kind == "entity")
        names = frozenset(bytes(key) for key, _, _ in rows)
        return Forgotten(self._salt, np.array(quick, np.uint64), names) if names else None

    def close(self) -> None:
        """Close the file; see `ForgottenNames.close`."""
        self._file.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        lay_tables(connection, FORMAT, _lay, f"the list `{self._path}` is")


def _lay(connection: sqlite3.Connection) -> None:
    for table in _TABLES:
        connection.execute(table)
    connection.execute("INSERT INTO salt VALUES (?)", (os.urandom(SALT_BYTES),))
