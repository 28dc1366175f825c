"""Dead letters in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

from operators.records import DeadLetter
from stores.deadletters.port import EVERY_LETTER, LetterFilter, LetterHead, check_limit, head_of, storable
from stores.sqlite import BUSY_S, SqliteFile, lay_tables, transaction

FORMAT = 1
"""Version of the tables, kept in the file's `user_version`; 0 is a file without tables."""

# The original stands last: SQLite keeps a long row's tail on pages that a listing then need not read.
_TABLES = """
CREATE TABLE dead_letters (
    letter_id TEXT PRIMARY KEY NOT NULL,
    time_us INTEGER NOT NULL,
    stage TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    source TEXT NOT NULL,
    partition TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    trace_id TEXT,
    size_bytes INTEGER NOT NULL,
    original BLOB NOT NULL
)
"""
_INDEX = "CREATE INDEX dead_letters_by_time ON dead_letters (time_us, letter_id)"
_PUT = "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (letter_id) DO NOTHING"
_LIST = """
SELECT letter_id, time_us, stage, reason, detail, source, partition, "offset", trace_id, size_bytes
FROM dead_letters
WHERE (time_us, letter_id) > (:time_us, :letter_id)
    AND (:stage IS NULL OR stage = :stage) AND (:reason IS NULL OR reason = :reason)
    AND (:source IS NULL OR source = :source) AND (:partition IS NULL OR partition = :partition)
ORDER BY time_us, letter_id LIMIT :limit
"""
_COUNT = """
SELECT count(*) FROM dead_letters
WHERE (:stage IS NULL OR stage = :stage) AND (:reason IS NULL OR reason = :reason)
    AND (:source IS NULL OR source = :source) AND (:partition IS NULL OR partition = :partition)
"""
_GET = """
SELECT letter_id, time_us, stage, reason, detail, source, partition, "offset", original, trace_id
FROM dead_letters WHERE letter_id = ?
"""
_AFTER = """
SELECT letter_id, time_us, stage, reason, detail, source, partition, "offset", original, trace_id
FROM dead_letters WHERE (time_us, letter_id) > (?, ?) ORDER BY time_us, letter_id LIMIT ?
"""
_PAGE = 200
_BEFORE_ALL = (-(1 << 63), "")


class SqliteDeadLetters:
    """`DeadLetters` in a file on a local disk; the file and its folder are created on opening."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file, creating its tables if it has none.

        Raises ConfigError if it cannot be opened or was written by a newer Headrace,
        CorruptStoreError if it is not a database.
        """
        self._path = path
        self._file = SqliteFile(path, "dead letters", self._prepare, busy_s=busy_s)
        self._connection = self._file.connection

    def put(self, letters: Sequence[DeadLetter]) -> int:
        """Keep the letters in one transaction; see `DeadLetters.put`."""
        rows = [(*astuple(head_of(letter)), letter.original) for letter in map(storable, letters)]
        with self._file.held("keeping letters in") as connection:
            if not rows:
                return 0
            with transaction(connection):
                before = connection.total_changes
                connection.executemany(_PUT, rows)
                return connection.total_changes - before

    def list(
        self, which: LetterFilter = EVERY_LETTER, *, limit: int = 100, after: tuple[int, str] | None = None
    ) -> Sequence[LetterHead]:
        """Return one page of letters; see `DeadLetters.list`."""
        check_limit(limit)
        time_us, name = after or _BEFORE_ALL
        bound = _bound(which) | {"limit": limit, "time_us": time_us, "letter_id": name}
        with self._file.held("listing") as connection:
            return [LetterHead(*row) for row in connection.execute(_LIST, bound)]

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the letter; see `DeadLetters.get`."""
        with self._file.held("reading") as connection:
            row = connection.execute(_GET, (letter_id,)).fetchone()
        return DeadLetter(*row) if row else None

    def drop(self, letter_ids: Sequence[str]) -> int:
        """Forget the letters and give their space back; see `DeadLetters.drop`."""
        with self._file.held("dropping letters from") as connection:
            with transaction(connection):
                before = connection.total_changes
                connection.executemany("DELETE FROM dead_letters WHERE letter_id = ?", [(name,) for name in letter_ids])
                dropped = connection.total_changes - before
            if dropped:
                # A script, since `execute` would stop at the first page that becomes free.
                connection.executescript("PRAGMA incremental_vacuum")
        return dropped

    def count(self, which: LetterFilter = EVERY_LETTER) -> int:
        """Return how many there are; see `DeadLetters.count`."""
        with self._file.held("counting") as connection:
            (number,) = connection.execute(_COUNT, _bound(which)).fetchone()
        return int(number)

    def forget(self, takes: Callable[[DeadLetter], bool]) -> int:
        """Drop those letters and scrub the file; see `DeadLetters.forget`."""
        gone: list[str] = []
        place = _BEFORE_ALL
        while True:
            with self._file.held("reading") as connection:
                page = [DeadLetter(*row) for row in connection.execute(_AFTER, (*place, _PAGE))]
            if not page:
                break
            gone += [letter.letter_id for letter in page if takes(letter)]
            place = (page[-1].time_us, page[-1].letter_id)
        dropped = self.drop(gone)
        self._file.scrub()
        return dropped

    def close(self) -> None:
        """Close the file; see `DeadLetters.close`."""
        self._file.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        lay_tables(connection, FORMAT, _lay, f"dead letters `{self._path}` are")


def _lay(connection: sqlite3.Connection) -> None:
    connection.execute(_TABLES)
    connection.execute(_INDEX)


def _bound(which: LetterFilter) -> dict[str, str | int | None]:
    return {"stage": which.stage, "reason": which.reason, "source": which.source, "partition": which.partition}
