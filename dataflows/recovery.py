"""The recovery folder: made, checked, locked and purged before a run; read after it.

Bytewax keeps snapshots in SQLite files; a kill between the rows of an epoch and the mark that closes it
leaves rows "from the future", which a second crash would load. They are deleted before every start.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import shutil
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from bytewax.recovery import init_db_dir

from operators.errors import ConfigError, FatalError, ResumeError, RetryableError
from stores.offline.disk import fsync
from stores.sqlite import scrubbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PARTS = 2
"""SQLite files of a new recovery folder."""

FORMAT = 2
"""Version of the snapshots' content."""

_MANIFEST = "headrace.json"
_DRAFT = "headrace.part"
_LOCK = "headrace.lock"
_OTHERS = ("documents",)
"""Recovery folders of other flows, which stand in that of the first one."""

_PAGE_BYTES = 32_768
_ROOM_BYTES = 2 << 20
"""What two empty databases with their logs need, and the files of ours, rounded up."""

_WAIT_S = 60.0


class Recovery:
    """One recovery folder, held by one run. Every method may raise ResumeError or ConfigError."""

    def __init__(self, folder: Path) -> None:
        """Nothing is touched yet."""
        self.folder = folder
        self._lock = -1

    def prepare(self, identity: Mapping[str, object]) -> str:
        """Lock the folder, make it if it is new, check that it is this flow's, purge it; return the lineage.

        identity: what must not change as long as the snapshots live, JSON-able. Raises ConfigError, with
        nothing touched, if another run holds the folder or if it belongs to another flow.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"RECOVERY_DIR `{self.folder}` cannot be made: {error.strerror}") from error
        self._refuse_strangers()
        self._take_lock()
        self._refuse_strangers()
        if not (self.folder / _MANIFEST).exists():
            with _written(self.folder):
                self._make({"identity": {"format": FORMAT, **identity}, "lineage": uuid.uuid4().hex[:8]})
        lineage = self._checked(identity)
        self._purge()
        return lineage

    def wait_until_prepared(self, identity: Mapping[str, object]) -> str:
        """In a process that is not the first of its cluster: wait for the first one; return the lineage.

        Raises ConfigError if the folder is not this process's flow's: its settings are not those of the first.
        """
        limit = time.monotonic() + _WAIT_S
        while not (self.folder / _MANIFEST).exists():
            if time.monotonic() > limit:
                raise ConfigError(f"RECOVERY_DIR `{self.folder}`: the first process of the cluster has not made it")
            time.sleep(0.05)
        return self._checked(identity)

    def look(self, identity: Mapping[str, object]) -> str | None:
        """Check as `prepare` does, with nothing touched: the lineage, or None if a run would make the folder.

        Raises ConfigError as `prepare` does, but not for a folder that is in use.
        """
        if not self.folder.is_dir():
            return None
        self._refuse_strangers()
        return self._checked(identity) if (self.folder / _MANIFEST).exists() else None

    def holder(self) -> int | None:
        """The process whose run holds the folder: 0 if it cannot be seen from here, None if there is none."""
        try:
            lock = os.open(self.folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = _lock_holder(os.fstat(lock))
            if found is None:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        finally:
            os.close(lock)
        return found

    def states(self, step_id: str) -> dict[str, bytes]:
        """The committed snapshot of every key of a step; keys without one are left out."""
        newest: dict[str, tuple[int, sqlite3.Connection, int]] = {}
        states: dict[str, bytes] = {}
        with _open_all(self.folder) as databases:
            for database in databases:
                database.execute("BEGIN")  # all of it at one moment: a run that goes on deletes what is no longer new
            resume = resume_epoch(databases)
            for database in databases:
                rows = database.execute(
                    "SELECT rowid, state_key, snap_epoch FROM snaps WHERE step_id = ? AND snap_epoch < ?",
                    (step_id, resume),
                )
                for row, key, epoch in rows:
                    if key not in newest or newest[key][0] < epoch:
                        newest[key] = epoch, database, row
            for key, (_, database, row) in sorted(newest.items()):
                (change,) = database.execute("SELECT ser_change FROM snaps WHERE rowid = ?", (row,)).fetchone()
                if change is not None:
                    states[key] = pickle.loads(change)  # noqa: S301  # written by this program's own engine
        return states

    def hold(self) -> bool:
        """Keep runs away from the folder if one has made it; whether it has.

        For whoever changes snapshots and runs nothing. Raises ConfigError if a run holds the folder.
        """
        if not (self.folder / _MANIFEST).exists():
            return False
        self._take_lock()
        return True

    def rewrite(self, change: Callable[[str, bytes], bytes | None]) -> int:
        """Change the snapshots of all epochs that are kept, of the held folder; return how many changed.

        change: (step, state) → the state as it is to be, None for as it is. No byte of what was before is left; a kill
        leaves each snapshot as it was or as it is to be. Raises RetryableError while another process reads.
        """
        self._purge()
        count = 0
        with _open_all(self.folder) as databases:
            for database in databases:
                for row, step in database.execute("SELECT rowid, step_id FROM snaps").fetchall():
                    saved = database.execute("SELECT ser_change FROM snaps WHERE rowid = ?", (row,)).fetchone()[0]
                    state = None if saved is None else pickle.loads(saved)  # noqa: S301  # written by this program's own engine
                    changed = change(step, state) if isinstance(state, bytes) else None
                    if changed is not None:
                        database.execute(
                            "UPDATE snaps SET ser_change = ? WHERE rowid = ?", (pickle.dumps(changed), row)
                        )
                        count += 1
                database.commit()
                if not scrubbed(database):
                    raise RetryableError(f"RECOVERY_DIR `{self.folder}` is being read by another process; try again")
        return count

    def release(self) -> None:
        """Let another run have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _refuse_strangers(self) -> None:
        """Raise ConfigError if there are files that no run of ours has made, before one of ours is among them."""
        names = {path.name for path in self.folder.iterdir() if not was_made(path)} - {_LOCK, *_OTHERS}
        if names and not (self.folder / _DRAFT).exists() and not (self.folder / _MANIFEST).exists():
            raise ConfigError(
                f"RECOVERY_DIR `{self.folder}` is not empty and was not made by Headrace; name an empty folder"
            )

    def _checked(self, identity: Mapping[str, object]) -> str:
        """Return the folder's lineage. Raises ConfigError if its identity is another one."""
        path = self.folder / _MANIFEST
        try:
            saved = orjson.loads(path.read_bytes())
            was, lineage = dict(saved["identity"]), str(saved["lineage"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"RECOVERY_DIR `{self.folder}` is damaged, `{path.name}` cannot be read: restore it, or name an empty"
                " folder to start anew"
            ) from error
        _compare(self.folder, was, orjson.loads(orjson.dumps({"format": FORMAT, **identity})))
        return lineage

    def _make(self, manifest: dict[str, object]) -> None:
        """Make the snapshots' files.

        The draft comes first: it tells the next run that a folder without a manifest is not a stranger's
        but one whose making was cut short.
        """
        draft = self.folder / _DRAFT
        _write_durably(draft, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        for leftover in self.folder.glob("part-*.sqlite3*"):
            leftover.unlink()
        for part in range(PARTS):
            _lay_pages(self.folder / f"part-{part}.sqlite3")
        init_db_dir(self.folder, PARTS)  # type: ignore[no-untyped-call]  # bytewax does not type it
        draft.rename(self.folder / _MANIFEST)
        fsync(self.folder)

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise ConfigError(
                f"RECOVERY_DIR `{self.folder}` is in use by another run; stop it, or name another folder"
            ) from error

    def _purge(self) -> None:
        with _open_all(self.folder) as databases:
            resume = resume_epoch(databases)
            for database in databases:
                database.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (resume,))
                database.commit()


def was_made(folder: Path) -> bool:
    """Whether it is a recovery folder, or was about to become one."""
    return any((folder / name).exists() for name in (_MANIFEST, _DRAFT))


def is_held(folder: Path) -> bool:
    """Whether a run holds the folder now."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def resume_epoch(databases: list[sqlite3.Connection]) -> int:
    """The first epoch that is not durable: least of the frontiers of the last execution's workers."""
    query = "SELECT ex_num, worker_count, resume_epoch FROM exs"
    executions = [row for d in databases for row in d.execute(query)]
    if not executions:
        return 1
    number, workers, start = max(executions)
    frontier: dict[int, int] = dict.fromkeys(range(workers), start)
    for database in databases:
        marks = database.execute("SELECT worker_index, worker_frontier FROM fronts WHERE ex_num = ?", (number,))
        for worker, epoch in marks:
            frontier[worker] = max(frontier.get(worker, start), epoch)
    return min(frontier.values())


@contextmanager
def _open_all(folder: Path) -> Iterator[list[sqlite3.Connection]]:
    paths = sorted(folder.glob("part-*.sqlite3"))
    if not paths:
        raise ResumeError(f"RECOVERY_DIR `{folder}` has lost its snapshots; start anew with an empty folder")
    databases: list[sqlite3.Connection] = []
    try:
        databases.extend(sqlite3.connect(p, timeout=30) for p in paths)
        made = databases[0].execute("SELECT part_count FROM parts").fetchone()
        if made is None or made[0] != len(paths):  # judged by some alone, good rows would look like future ones
            raise ResumeError(
                f"RECOVERY_DIR `{folder}` has lost some of its snapshot files, `part-*.sqlite3`: restore them, or start"
                " anew with an empty folder"
            )
        yield databases
    except sqlite3.Error as error:
        raise FatalError(f"RECOVERY_DIR `{folder}` cannot be read or written: {error}") from error
    finally:
        for database in databases:
            with closing(database):
                database.rollback()


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Raise FatalError if the disk is full or broken: the engine, which makes its tables itself, would panic."""
    if shutil.disk_usage(folder).free < _ROOM_BYTES:
        raise FatalError(f"RECOVERY_DIR `{folder}` has no room for snapshots: make room and start again")
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise FatalError(f"RECOVERY_DIR `{folder}` cannot be written: {error}") from error


def _lay_pages(path: Path) -> None:
    """Make an empty database of large pages: the state of a shard is one value, which small ones cut into thousands.

    Bytewax makes its tables in it. Nothing is synced yet: what it writes then is, and a file that is not whole is
    made again, since the draft is still there.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        database.execute("CREATE TABLE empty (x)")
        database.execute("DROP TABLE empty")


def _lock_holder(file: os.stat_result) -> int | None:
    """The process that holds a lock on the file, as far as Linux tells."""
    try:
        lines = Path("/proc/locks").read_text("utf-8").splitlines()
    except OSError:
        return None
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    held = [words for words in map(str.split, lines) if words[1] == "FLOCK" and words[5] == place]
    return int(held[0][4]) if held else None


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file and the name of it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fsync(path.parent)


def _compare(folder: Path, saved: dict[str, object], wanted: dict[str, object]) -> None:
    """Raise ConfigError naming what differs between the folder's flow and this one."""
    difference = _first_difference("", saved, wanted)
    if difference is not None:
        name, was, now = difference
        if name == "format":
            raise ConfigError(
                f"RECOVERY_DIR `{folder}` was written by another version of Headrace (its format is `{was}`, that of"
                f" this version `{now}`): go on with that version, or name an empty folder to start anew at the"
                " beginning of the log"
            )
        raise ConfigError(
            f"RECOVERY_DIR `{folder}` belongs to a run with another {name} (there `{was}`, here `{now}`);"
            f" {_version_hint(name, was)}set it back, or name an empty folder to start anew"
        )


def _version_hint(name: str, was: object) -> str:
    """What to do if it is a feature set that has changed, or is new: a version is never mixed with another one."""
    found = re.fullmatch(r"feature set(?: `(\w+)` version (\d+)(.*))?", name)
    if found is None or found[1] is None:
        return ""
    if was == "not declared" and not found[3]:
        return f"`headrace backfill signals --feature-set {found[1]} --version {found[2]}` computes it beside; or "
    version = int(found[2]) + 1
    return (
        f"declare what has changed as version {version} beside version {found[2]}, and `headrace backfill signals"
        f" --feature-set {found[1]} --version {version}` computes it; or "
    )


def _first_difference(name: str, was: object, now: object) -> tuple[str, object, object] | None:
    if was == now:
        return None
    if isinstance(was, dict) and isinstance(now, dict):
        found = (_first_difference(f"{name} {k}".strip(), was.get(k), now.get(k)) for k in sorted({*was, *now}))
        return next((f for f in found if f is not None), None)
    short = [v if not isinstance(v, dict) else "declared" for v in (was, now)]
    return (name, *("not declared" if v is None else v for v in short))  # type: ignore[return-value]  # two values
