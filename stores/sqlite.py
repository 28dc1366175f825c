"""One SQLite file as a store: how it is opened, held, written to, and which of our errors its errors are.

The write-ahead log lets readers read while others write. `synchronous=FULL` makes every commit reach
the disk: with NORMAL a loss of power may take back the last commits, and the flow, which has moved
on, would never offer them again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from urllib.parse import unquote

from operators.errors import ConfigError, CorruptStoreError, FatalError, HeadraceError, RetryableError

BUSY_S = 30.0
"""How long a call waits for other writers before it raises RetryableError."""

_WAL_BYTES_MAX = 64 << 20
_INCREMENTAL = 2
"""What SQLite answers for `auto_vacuum = INCREMENTAL`."""


def sqlite_path(url: str) -> Path | None:
    """The file that `sqlite:///<file>` names (relative; four slashes for an absolute path); None if it names none."""
    rest = url.removeprefix("sqlite:")
    path = unquote(rest.removeprefix("///"))
    return Path(path) if rest.startswith("///") and path not in ("", ":memory:") else None


class SqliteFile:
    """A file on a local disk, used by one thread of this process at a time and by any number of processes.

    It and its folder are created on opening. Every call may raise RetryableError when others hold the
    file locked for too long, CorruptStoreError when it is damaged, FatalError when the disk is full or
    fails, and ValueError once it is closed.
    """

    def __init__(
        self, path: Path, what: str, prepare: Callable[[sqlite3.Connection], None], *, busy_s: float = BUSY_S
    ) -> None:
        """Open the file of `what` (a noun in the plural) and let `prepare` make or check its tables.

        Raises ConfigError if it cannot be opened, CorruptStoreError if it is not a database.
        """
        self.path = path
        self._what = what
        self._lock = Lock()
        self._closed = False
        with self._translated("opening"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            try:
                _configure(self.connection)
                prepare(self.connection)
            except BaseException:
                self.connection.close()
                raise

    @contextmanager
    def held(self, doing: str) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; `doing` begins the message of an error."""
        with self._lock:
            if self._closed:
                raise ValueError(f"the {self._what} `{self.path}` are closed")
            with self._translated(doing):
                yield self.connection

    @contextmanager
    def written(self, doing: str) -> Iterator[sqlite3.Connection]:
        """The connection inside a transaction that is durable afterwards, or undone by an exception."""
        with self.held(doing) as connection, transaction(connection):
            yield connection

    @contextmanager
    def unchanging(self, doing: str) -> Iterator[sqlite3.Connection]:
        """The connection inside a transaction that sees one state of the file, whatever others write."""
        with self.held(doing) as connection, transaction(connection, "DEFERRED"):
            yield connection

    def scrub(self) -> None:
        """Leave no byte of what was deleted or replaced, neither in the file nor in its write-ahead log.

        Outside of transactions. Raises RetryableError while another process reads or writes.
        """
        with self.held("scrubbing") as connection:
            if not scrubbed(connection):
                raise RetryableError(f"scrubbing the {self._what} `{self.path}`: another process reads them; try again")

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        with self._lock, self._translated("closing"):
            self._closed = True
            self.connection.close()

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        what = f"{doing} the {self._what} `{self.path}`"
        try:
            yield
        except sqlite3.Error as exc:
            raise _ours(exc, what) from exc
        except OSError as exc:
            raise ConfigError(f"{what}: {exc.strerror}; name a place that this user may write to") from exc


def scrubbed(connection: sqlite3.Connection) -> bool:
    """Write the file anew without what was deleted, and empty its write-ahead log; False while others read that."""
    connection.execute("VACUUM")
    return int(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) == 0


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All or nothing. IMMEDIATE, since a reader that turns writer fails at once instead of waiting."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself may have rolled back, as it does on a full disk
            connection.execute("ROLLBACK")
        raise


def lay_tables(
    connection: sqlite3.Connection, version: int, lay: Callable[[sqlite3.Connection], None], what: str
) -> None:
    """Let `lay` make the tables of a file that has none yet, once, whichever process comes first.

    what: begins the sentence about a file of another version, as "held events `x` are". Raises ConfigError for one.
    """
    if _version(connection) == version:
        return
    with transaction(connection):
        found = _version(connection)  # again, since another process may have been faster
        if found == 0:
            lay(connection)
            connection.execute(f"PRAGMA user_version = {version}")
        elif found != version:
            raise ConfigError(f"{what} of format {found}, this Headrace knows {version}; upgrade Headrace")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _configure(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):  # to set it again writes to the file
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded by a new file only
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted may be personal: its pages are overwritten
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_MAX}")


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
