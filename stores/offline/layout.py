"""Names of the Parquet store: which row stands in which file, and what a file name tells.

::

    <root>/features/<feature_set>/v<version>/window=<window>/date=<date>/<writer>-<sequence>.parquet
    <root>/_staging/writers/<writer>/<token, "/" as "~">      staged, not yet published
    <root>/_staging/compact/                                  folders being merged, or replaced
    <root>/_staging/<writer>.lock                             held by a backfill as long as it lives
    <root>/_staging/*.lock                                    publish, scan, compact

A token is the path of the published file below `features`. Pure: paths in, names out, no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from operators.errors import ConfigError, CorruptStoreError
from stores.offline.port import MERGED_PART, PartitionKey, lineage_of

_FILE = re.compile(r"(?P<writer>[a-z0-9]{1,32}\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})-(?P<sequence>[0-9]{1,12})\.parquet")
_VERSION = re.compile(r"v([1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True, order=True)
class FileName:
    """The name of a file of rows; names sort by writer and sequence."""

    writer: str
    sequence: int

    def __str__(self) -> str:
        """The name on disk; padded, so that other readers list files in the order of writing."""
        return f"{self.writer}-{self.sequence:08d}.parquet"

    @property
    def merged(self) -> bool:
        """Whether compaction wrote it."""
        return self.writer.partition(".")[2] == MERGED_PART


@dataclass(frozen=True, slots=True)
class Token:
    """A staged or published file: its partition and its name."""

    key: PartitionKey
    name: FileName

    def __str__(self) -> str:
        """The form kept in snapshots."""
        key = self.key
        return f"{key.feature_set}/v{key.version}/window={key.window}/date={key.date}/{self.name}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of one store stand."""

    root: Path

    @property
    def features(self) -> Path:
        """All that readers may see."""
        return self.root / "features"

    @property
    def compacting(self) -> Path:
        """Folders that compaction builds, and those it has replaced."""
        return self.root / "_staging" / "compact"

    def lock(self, name: str) -> Path:
        """The lock file of that name."""
        return self.root / "_staging" / f"{name}.lock"

    def staging(self, writer: str) -> Path:
        """What the writer has staged."""
        return self.root / "_staging" / "writers" / writer

    def folder(self, key: PartitionKey) -> Path:
        """The folder of the partition's published files."""
        return self.features / key.feature_set / f"v{key.version}" / f"window={key.window}" / f"date={key.date}"

    def staged(self, token: Token) -> Path:
        """Where the file stands before it is published."""
        return self.staging(token.name.writer) / str(token).replace("/", "~")

    def published(self, token: Token) -> Path:
        """Where the file stands afterwards, until it is merged."""
        return self.folder(token.key) / str(token.name)


def parse_file_name(name: str) -> FileName | None:
    """Parse the name of a file of rows; None for a name that no writer of ours gives."""
    match = _FILE.fullmatch(name)
    return FileName(match["writer"], int(match["sequence"])) if match else None


def parse_token(text: str) -> Token:
    """Parse what `str(token)` gave. Raises CorruptStoreError for anything else."""
    folder, _, name = text.rpartition("/")
    key = parse_folder(tuple(folder.split("/")))
    file_name = parse_file_name(name)
    if key is None or file_name is None or str(Token(key, file_name)) != text:
        raise CorruptStoreError(f"`{text}` is no token of this offline store; the snapshot that held it is damaged")
    return Token(key, file_name)


def parse_folder(parts: tuple[str, ...]) -> PartitionKey | None:
    """Parse the path of a partition's folder below `features`; None if it is not one."""
    if len(parts) != 4 or not (version := _VERSION.fullmatch(parts[1])):
        return None
    if not parts[2].startswith("window=") or not parts[3].startswith("date="):
        return None
    try:
        return PartitionKey(parts[0], int(version[1]), parts[2].removeprefix("window="), parts[3].removeprefix("date="))
    except ConfigError:
        return None


def rows_in(names: list[str]) -> list[str]:
    """The names that readers take for files of rows, ordered by writer and sequence."""
    return sorted(filter(_is_read, names), key=_order)


def foreign_to(lineage: str, names: list[str]) -> frozenset[str]:
    """The files of rows that another lineage wrote, or nobody whom we know."""
    own = f"{lineage}."
    return frozenset(n for n in names if not n.startswith(own) and _is_read(n))


def own_merged(lineage: str, names: list[str]) -> list[FileName]:
    """The files that compaction made of this lineage's files."""
    parsed = (parse_file_name(n) for n in names if n.startswith(f"{lineage}.{MERGED_PART}-"))
    return sorted(n for n in parsed if n is not None and n.merged and lineage_of(n.writer) == lineage)


def _is_read(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(("_", "."))


def _order(name: str) -> tuple[str, int]:
    parsed = parse_file_name(name)
    return (parsed.writer, parsed.sequence) if parsed else (name, 0)
