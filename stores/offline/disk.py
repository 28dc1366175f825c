"""The system calls that durability rests on, each with its errors translated."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from operators.errors import ConfigError, CorruptStoreError, FatalError, HeadraceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn errors of the operating system and of Arrow into ours; `doing` names act and thing."""
    try:
        yield
    except OSError as exc:
        raise _ours(exc, doing) from exc
    except pa.ArrowInvalid as exc:
        message = f"{doing}: not a readable Parquet file ({exc}); move it away or restore it"
        raise CorruptStoreError(message) from exc


def _ours(exc: OSError, doing: str) -> HeadraceError:
    if exc.errno in _FULL:
        return FatalError(
            f"{doing}: the disk is full ({exc.strerror}); no row is lost, and none is visible twice. Free space"
            " (drop old `date=` folders, or move the store to a larger disk) and start again"
        )
    if exc.errno in _FORBIDDEN:
        return ConfigError(f"{doing}: {exc.strerror}; give this user the right to write there")
    if exc.errno is None:
        # Arrow raises OSError without a number for a file that is cut short or was never Parquet.
        return CorruptStoreError(f"{doing}: not a readable Parquet file ({exc}); move it away or restore it")
    return FatalError(f"{doing}: {exc.strerror} (`{exc.filename}`); mend that and start again")


def names_in(folder: Path | int) -> list[str]:
    """Names in the folder, in no order."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's list of names, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(path: Path) -> set[Path]:
    """Create the folder and its parents; return the folders that got a new name and need an fsync."""
    changed: set[Path] = set()
    missing = path
    while not missing.exists():
        changed.add(missing.parent)
        missing = missing.parent
    path.mkdir(parents=True, exist_ok=True)
    return changed


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock of that file, against threads and processes; a killed holder lets go.

    Raises BlockingIOError if it is taken and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # For reading only, so that a reader without write permission can share it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


class FolderView:
    """The files of one folder as they were at one moment, also after the folder was exchanged."""

    def __init__(self, descriptor: int | None) -> None:
        """Look at the folder behind the descriptor; None is a folder that does not exist."""
        self._descriptor = descriptor
        self.names = [] if descriptor is None else names_in(descriptor)

    def open(self, name: str) -> BinaryIO:
        """Open one of `names` for reading."""
        return os.fdopen(os.open(name, os.O_RDONLY, dir_fd=self._descriptor), "rb")


@contextmanager
def viewed(folder: Path, lock: Path) -> Iterator[FolderView]:
    """Give a view of the folder; as long as it is held, compaction removes none of its files.

    lock: shared by all who look, taken by who removes. Where it does not exist nothing was ever
    compacted; it is not created, since a reader may lack the permission.
    """
    with locked(lock, shared=True) if lock.exists() else nullcontext():
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            yield FolderView(None)
            return
        try:
            yield FolderView(descriptor)
        finally:
            os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders of one file system: at every moment each name leads to one of them.

    Raises ConfigError where kernel, C library or file system cannot do it.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise ConfigError("compaction needs renameat2 (Linux with glibc 2.28 or newer), which this system lacks")
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise ConfigError(
            f"the file system of `{other}` cannot exchange two folders (RENAME_EXCHANGE);"
            " compact on ext4, xfs, btrfs or tmpfs"
        )
    raise OSError(number, os.strerror(number), os.fspath(other))


def remove_folder(path: Path) -> None:
    """Remove the folder and what is in it; one that is gone already is fine."""
    if path.exists():
        shutil.rmtree(path)
