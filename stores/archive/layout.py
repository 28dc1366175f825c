"""Names of the archive's files, and what a name tells.

::

    <root>/signals/date=<date>/<writer>-<sequence>.parquet      messages
    <root>/verdicts/date=<date>/<writer>-<sequence>.parquet     what was found out about them later
    <root>/_staging/writers/<writer>/<token, "/" as "~">        staged, not yet published
    <root>/_staging/publish.lock

A token is the path of the published file below the root. Pure: paths in, names out, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from operators.errors import ConfigError, CorruptStoreError
from stores.archive.port import ArchiveKey, Kind
from stores.offline.layout import FileName, parse_file_name


@dataclass(frozen=True, slots=True, order=True)
class ArchiveToken:
    """A staged or published file: its key and its name."""

    key: ArchiveKey
    name: FileName

    def __str__(self) -> str:
        """The form kept in snapshots."""
        return f"{self.key.kind}/date={self.key.date}/{self.name}"


@dataclass(frozen=True, slots=True)
class ArchiveLayout:
    """Where the parts of one archive stand."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by whoever publishes."""
        return self.root / "_staging" / "publish.lock"

    def staging(self, writer: str) -> Path:
        """What the writer has staged."""
        return self.root / "_staging" / "writers" / writer

    def folder(self, key: ArchiveKey) -> Path:
        """The folder of the key's published files."""
        return self.root / key.kind / f"date={key.date}"

    def staged(self, token: ArchiveToken) -> Path:
        """Where the file stands before it is published."""
        return self.staging(token.name.writer) / str(token).replace("/", "~")

    def published(self, token: ArchiveToken) -> Path:
        """Where the file stands afterwards."""
        return self.folder(token.key) / str(token.name)


def parse_archive_token(text: str) -> ArchiveToken:
    """Parse what `str(token)` gave. Raises CorruptStoreError for anything else."""
    kind, _, rest = text.partition("/")
    folder, _, name = rest.partition("/")
    file_name = parse_file_name(name)
    try:
        token = None if file_name is None else ArchiveToken(_key(kind, folder), file_name)
    except ConfigError:
        token = None
    if token is None or str(token) != text:
        raise CorruptStoreError(f"`{text}` is no token of this archive; the snapshot that held it is damaged")
    return token


def parse_date_folder(kind: Kind, name: str) -> ArchiveKey | None:
    """Parse the name of a key's folder; None if it is not one."""
    try:
        return _key(kind, name)
    except ConfigError:
        return None


def _key(kind: str, folder: str) -> ArchiveKey:
    return ArchiveKey(cast("Kind", kind), folder.removeprefix("date=") if folder.startswith("date=") else "")
