"""The folder of a shard, and the manifest that says which of its files count.

::

    <space>/shard-003/manifest.json            base and logs; replaced as a whole
                      base-000000000041.usearch   everything up to commit 41
                      log-000000000042         commits from 42 on
                      lock                     held by the writer

Files are never changed once a manifest without them as last log is there, only removed. What no manifest
names is a leftover of a crash, and the next writer removes it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path

from operators.errors import ConfigError, CorruptStoreError, FatalError
from stores.offline.disk import fsync, locked, make_folders, names_in

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_MANIFEST = "manifest.json"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Base:
    """A usearch file. rows: vectors in it. removed: rows that were taken out since it was last built anew."""

    name: str
    rows: int
    removed: int
    size_bytes: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What counts: the base, if any, and the logs on top of it in order; commits are appended to the last."""

    base: Base | None
    logs: tuple[str, ...]


class ShardFolder:
    """Paths, lock and manifest of one shard."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is touched."""
        self.path = path

    def log(self, sequence: int) -> str:
        """Name of the log whose first record has that sequence number."""
        return f"log-{sequence:012}"

    def base(self, sequence: int) -> str:
        """Name of the base that holds everything up to that sequence number."""
        return f"base-{sequence:012}.usearch"

    def lock(self) -> ExitStack:
        """Make the folder and hold its lock. Raises ConfigError if another writer does."""
        with translated(f"opening `{self.path}`"):
            for parent in sorted(make_folders(self.path)):
                fsync(parent)
            held = ExitStack()
            try:
                held.enter_context(locked(self.path / _LOCK, wait=False))
            except BlockingIOError as exc:
                raise ConfigError(
                    f"the vectors in `{self.path}` have another writer; stop that run, or name another folder"
                ) from exc
        return held

    def manifest(self) -> Manifest | None:
        """Read the manifest; None before the first writer made one. Raises CorruptStoreError if it is none of ours."""
        path = self.path / _MANIFEST
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            data = json.loads(raw)
            return Manifest(Base(**data["base"]) if data["base"] else None, tuple(data["logs"]))
        except (ValueError, KeyError, TypeError) as exc:
            raise CorruptStoreError(f"`{path}` is no manifest ({exc}); restore the store or remove it") from exc

    def publish(self, manifest: Manifest) -> None:
        """Replace the manifest; durable when this returns, and the names of the files it mentions with it."""
        fresh = self.path / f"{_MANIFEST}.new"
        with fresh.open("wb") as file:
            file.write(json.dumps(asdict(manifest)).encode())
            file.flush()
            os.fsync(file.fileno())
        fsync(self.path)
        fresh.replace(self.path / _MANIFEST)
        fsync(self.path)

    def remove_leftovers(self, manifest: Manifest) -> None:
        """Remove what the manifest does not name."""
        keep = {_LOCK, _MANIFEST, *manifest.logs, *([manifest.base.name] if manifest.base else [])}
        for name in names_in(self.path):
            if name not in keep:
                (self.path / name).unlink()


def sequence_of(name: str) -> int:
    """The sequence number in the name of a log. Raises CorruptStoreError if there is none."""
    kind, _, digits = name.partition("-")
    if kind != "log" or not digits.isdecimal():
        raise CorruptStoreError(f"a manifest names `{name}`, which is no log; restore the store or remove it")
    return int(digits)


def digest_of(path: Path) -> str:
    """BLAKE2b of a file: 128 hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "blake2b").hexdigest()


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn errors of the operating system into ours; `doing` names act and thing."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise FatalError(
                f"{doing}: the disk is full ({exc.strerror}); what was committed is safe. Free space and start again"
            ) from exc
        if exc.errno in _FORBIDDEN:
            raise ConfigError(f"{doing}: {exc.strerror}; give this user the right to write there") from exc
        raise FatalError(f"{doing}: {exc.strerror} (`{exc.filename}`); mend that and start again") from exc
