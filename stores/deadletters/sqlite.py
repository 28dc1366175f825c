"""Dead letters in one SQLite file.

The write-ahead log lets readers list while others write. `synchronous=FULL` makes every commit reach
the disk: with NORMAL a loss of power may take back the last commits, and the flow, which has moved
on, would never offer those letters again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from threading import Lock

from operators.errors import ConfigError, CorruptStoreError, FatalError, HeadraceError, RetryableError
from operators.records import DeadLetter
from stores.deadletters.port import EVERY_LETTER, LetterFilter, LetterHead, check_limit, head_of, storable

FORMAT = 1
"""Version of the tables, kept in the file's `user_version`; 0 is a file without tables."""

BUSY_S = 30.0
"""How long a call waits for other writers before it raises RetryableError."""

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
_BEFORE_ALL = (-(1 << 63), "")


class SqliteDeadLetters:
    """`DeadLetters` in a file on a local disk; the file and its folder are created on opening."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file, creating its tables if it has none.

        Raises ConfigError if it cannot be opened or was written by a newer Headrace,
        CorruptStoreError if it is not a database.
        """
        self._path = path
        self._lock = Lock()
        self._closed = False
        with self._translated("opening"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def put(self, letters: Sequence[DeadLetter]) -> int:
        """Keep the letters in one transaction; see `DeadLetters.put`."""
        rows = [(*astuple(head_of(letter)), letter.original) for letter in map(storable, letters)]
        with self._held("keeping letters in") as connection:
            if not rows:
                return 0
            with _transaction(connection):
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
        with self._held("listing") as connection:
            return [LetterHead(*row) for row in connection.execute(_LIST, bound)]

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the letter; see `DeadLetters.get`."""
        with self._held("reading") as connection:
            row = connection.execute(_GET, (letter_id,)).fetchone()
        return DeadLetter(*row) if row else None

    def drop(self, letter_ids: Sequence[str]) -> int:
        """Forget the letters and give their space back; see `DeadLetters.drop`."""
        with self._held("dropping letters from") as connection:
            with _transaction(connection):
                before = connection.total_changes
                connection.executemany("DELETE FROM dead_letters WHERE letter_id = ?", [(name,) for name in letter_ids])
                dropped = connection.total_changes - before
            if dropped:
                # A script, since `execute` would stop at the first page that becomes free.
                connection.executescript("PRAGMA incremental_vacuum")
        return dropped

    def count(self, which: LetterFilter = EVERY_LETTER) -> int:
        """Return how many there are; see `DeadLetters.count`."""
        with self._held("counting") as connection:
            (number,) = connection.execute(_COUNT, _bound(which)).fetchone()
        return int(number)

    def close(self) -> None:
        """Close the file; see `DeadLetters.close`."""
        with self._lock, self._translated("closing"):
            self._closed = True
            self._connection.close()

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded by a new file only
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        if self._format() == FORMAT:
            return
        with _transaction(connection):
            found = self._format()  # again, since another process may have been faster
            if found == 0:
                connection.execute(_TABLES)
                connection.execute(_INDEX)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            elif found != FORMAT:
                raise ConfigError(
                    f"dead letters `{self._path}` are of format {found}, this Headrace knows {FORMAT}; upgrade Headrace"
                )

    def _format(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _held(self, doing: str) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock:
            if self._closed:
                raise ValueError(f"the dead letters `{self._path}` are closed")
            with self._translated(doing):
                yield self._connection

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        what = f"{doing} the dead letters `{self._path}`"
        try:
            yield
        except sqlite3.Error as exc:
            raise _ours(exc, what) from exc
        except OSError as exc:
            raise ConfigError(f"{what}: {exc.strerror}; name a place that this user may write to") from exc


def _ours(exc: sqlite3.Error, what: str) -> HeadraceError:
    match getattr(exc, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return RetryableError(f"{what}: another process holds them locked ({exc}); try again")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return CorruptStoreError(f"{what}: the file is damaged ({exc}); restore it, or move it away to start anew")
        case sqlite3.SQLITE_FULL:
            return FatalError(f"{what}: the disk is full ({exc}); nothing was lost. Free space and start again")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return ConfigError(f"{what}: {exc}; name a file that this user may write")
        case _:
            return FatalError(f"{what}: {exc}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. IMMEDIATE, since a reader that turns writer fails at once instead of waiting."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself may have rolled back, as it does on a full disk
            connection.execute("ROLLBACK")
        raise


def _bound(which: LetterFilter) -> dict[str, str | int | None]:
    return {"stage": which.stage, "reason": which.reason, "source": which.source, "partition": which.partition}
