"""The archive as a folder of Parquet files, readable by anything that reads hive partitions.

Durable means: the file is synced, then the folder that names it. Visible means: renamed into the folder of its
date, which is atomic. `stores/archive/layout.py` draws the folders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import CorruptStoreError, ResumeError
from stores.archive.columns import in_log_order
from stores.archive.layout import ArchiveLayout, ArchiveToken, parse_archive_token, parse_date_folder
from stores.archive.port import (
    ALL,
    SCHEMAS,
    ArchiveKey,
    ArchiveSelection,
    Kind,
    Mends,
    Segment,
    Takes,
    check_stage,
    nothing,
)
from stores.archive.repeats import COLUMNS, foreign, withhold
from stores.offline.disk import fsync, locked, make_folders, names_in, translated
from stores.offline.layout import FileName, parse_file_name
from stores.offline.parquet import read_file
from stores.offline.port import Withheld, check_writer

LEVEL = 1
"""Of zstd. Level 1 takes 0.5 s for a million JSON messages, as snappy and lz4 do, and gives half their bytes."""

STATISTICS = ["partition", "offset", "event_time"]
"""Columns by which readers skip row groups."""

_FOOTERS_MAX = 4096
_UNKNOWN = ("", chr(0x10FFFF), -(1 << 63), (1 << 63) - 1)


class ParquetStagedFile:
    """A `StagedFile` that is being written; its rows are durable once `finish` returns."""

    def __init__(self, token: ArchiveToken, path: Path, schema: pa.Schema, unsynced: set[Path]) -> None:
        """Create the file. unsynced: folders that got a new name on the way to it."""
        self._token = token
        self._path = path
        self._unsynced = unsynced
        with translated(f"staging messages in `{path}`"):
            self._file = pa.OSFile(str(path), "wb")  # a file of Python's would be written under its lock
            self._writer = pq.ParquetWriter(self._file, schema, **_options(schema))

    def write(self, rows: pa.Table) -> None:
        """See `StagedFile.write`."""
        with translated(f"staging messages in `{self._path}`"):
            self._writer.write_table(rows.unify_dictionaries(), row_group_size=rows.num_rows)

    def finish(self) -> str:
        """See `StagedFile.finish`."""
        with translated(f"staging messages in `{self._path}`"):
            self._writer.close()
            self._file.close()
            for path in (self._path, self._path.parent, *sorted(self._unsynced)):
                fsync(path)
        return str(self._token)

    def abandon(self) -> None:
        """See `StagedFile.abandon`."""
        with suppress(OSError, pa.ArrowException):  # what stands there is worth nothing any more
            self._writer.close()
        self._file.close()


class ParquetArchive:
    """An `Archive` in a folder of a local file system; opening it touches nothing."""

    def __init__(self, root: Path) -> None:
        """Keep the folder's path."""
        self._layout = ArchiveLayout(root)
        self._footers: OrderedDict[tuple[str, int], list[Segment]] = OrderedDict()
        self._lock = Lock()
        self._closed = False

    def stage(self, writer: str, sequence: int, key: ArchiveKey) -> ParquetStagedFile:
        """Create a file where no reader sees it; see `Archive.stage`."""
        self._check_open()
        check_stage(writer, sequence)
        token = ArchiveToken(key, FileName(writer, sequence))
        path = self._layout.staged(token)
        with translated(f"staging messages of writer `{writer}` in `{self._layout.root}`"):
            changed = make_folders(path.parent)
        return ParquetStagedFile(token, path, SCHEMAS[key.kind], changed)

    def merge(self, tokens: Sequence[str], sequence: int) -> str:
        """Write the rows of small staged files as one; see `Archive.merge`."""
        self._check_open()
        parsed = [parse_archive_token(token) for token in tokens]
        for path in map(self._layout.staged, parsed):
            if not path.exists():
                raise CorruptStoreError(f"`{path}` was staged and is gone: messages are missing")
        with translated(f"merging staged files in `{self._layout.root}`"):
            rows = in_log_order(read_file(self._layout.staged(token)) for token in parsed)
        file = self.stage(parsed[0].name.writer, sequence, parsed[0].key)
        file.write(rows)
        return file.finish()

    def publish(self, tokens: Sequence[str]) -> Withheld:
        """Rename staged files to where readers look; see `Archive.publish`."""
        self._check_open()
        parsed = [parse_archive_token(token) for token in tokens]
        withheld = Withheld()
        changed: set[Path] = set()
        if not parsed:
            return withheld
        with translated(f"publishing messages in `{self._layout.root}`"):
            with locked(self._layout.lock):
                for token in parsed:
                    withheld += self._publish(token, changed)
            # New names before old ones: a loss of power between the two must not lose the file.
            staging = self._layout.lock.parent
            for folder in sorted(changed, key=lambda path: path.is_relative_to(staging)):
                fsync(folder)
        return withheld

    def discard(self, writer: str, keep: Sequence[str]) -> None:
        """Remove what the writer has staged, other than `keep`; see `Archive.discard`."""
        self._check_open()
        check_writer(writer)
        kept = {self._layout.staged(parse_archive_token(token)).name for token in keep}
        staging = self._layout.staging(writer)
        with translated(f"discarding leftovers of writer `{writer}` in `{self._layout.root}`"):
            if not staging.exists():
                return
            for path in staging.iterdir():
                if path.name not in kept:
                    path.unlink(missing_ok=True)
            fsync(staging)

    def segments(self, kind: Kind, selection: ArchiveSelection = ALL) -> list[Segment]:
        """The row groups of the published files, by their footers; see `Archive.segments`."""
        self._check_open()
        folder = self._layout.root / kind
        found: list[Segment] = []
        with translated(f"listing `{folder}`"):
            names = names_in(folder) if folder.exists() else []
        keys = (parse_date_folder(kind, name) for name in names)
        for key in sorted(k for k in keys if k is not None and selection.takes_date(k.date)):
            found += self._published(key)
        return [s for s in found if selection.may_take(s)]

    def read(self, segment: Segment, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a row group; see `Archive.read`."""
        self._check_open()
        path = self._layout.published(_token_of(segment))
        if not path.exists():
            raise CorruptStoreError(f"`{path}` is gone from the archive: messages are missing")
        with translated(f"reading `{path}`"), pq.ParquetFile(path) as file:
            rows = file.read_row_group(segment.index, columns=None if columns is None else list(columns))
        return rows if columns is None else rows.select(list(columns))

    def blank(self, takes: Takes, mends: Mends = nothing) -> int:
        """Write the files anew that hold such messages; see `Archive.blank`."""
        from stores.archive.erase import blank_files  # it builds on this module

        self._check_open()
        gone = blank_files(self._layout, takes, mends)
        self._footers.clear()
        return gone

    def close(self) -> None:
        """Forget what was cached."""
        self._closed = True
        self._footers.clear()

    def _publish(self, token: ArchiveToken, changed: set[Path]) -> Withheld:
        """Publish one file under the lock; add the folders whose names changed to `changed`."""
        staged, target = self._layout.staged(token), self._layout.published(token)
        if not staged.exists():
            if not target.exists():
                raise CorruptStoreError(
                    f"`{token}` was staged and is gone from `{staged.parent}`: messages are missing"
                )
            # Whoever published it may have died before the folders were synced, so that is done now.
            changed.update(target.parents[: len(target.relative_to(self._layout.root).parts)])
            return Withheld()
        if target.exists():
            raise ResumeError(
                f"`{token}` is published already and staged once more: the recovery folder is older than the archive."
                " Start with a new recovery folder; messages that are archived will not be archived again"
            )
        withheld = self._withhold(token, staged) if token.key.kind == "signals" else Withheld()
        changed |= make_folders(target.parent) | {target.parent, staged.parent}
        staged.rename(target)
        return withheld

    def _withhold(self, token: ArchiveToken, staged: Path) -> Withheld:
        """Take messages out of a staged file that another lineage has published.

        A file that loses all of them stays, empty, so that its token is published like any other.
        """
        published = self._published(token.key)
        mine = _segments_of(token, staged)
        if not any(foreign(segment, published) for segment in mine):
            return Withheld()
        withheld = Withheld()
        fresh = staged.with_name(f".{staged.name}")
        with pq.ParquetFile(staged) as source:
            rewritten = ParquetStagedFile(token, fresh, SCHEMAS[token.key.kind], set())
            for segment in mine:
                rows = source.read_row_group(segment.index)
                others = foreign(segment, published)
                if others:
                    rows, back = withhold(rows, [self.read(s, COLUMNS) for s in others])
                    withheld += back
                if rows.num_rows:
                    rewritten.write(rows)
            rewritten.finish()
        fresh.replace(staged)
        return withheld

    def _published(self, key: ArchiveKey) -> list[Segment]:
        """The segments of one folder, by writer, sequence and index; each footer is read once."""
        folder = self._layout.folder(key)
        with translated(f"listing `{folder}`"):
            names = names_in(folder) if folder.exists() else []
        parsed = sorted(name for name in map(parse_file_name, names) if name is not None)
        found: list[Segment] = []
        for name in parsed:
            token = ArchiveToken(key, name)
            path = self._layout.published(token)
            with translated(f"reading `{path}`"):
                seen = (str(token), path.stat().st_mtime_ns)
                with self._lock:
                    segments = self._footers.pop(seen, None)
                if segments is None:
                    segments = _segments_of(token, path)
                with self._lock:
                    self._footers[seen] = segments
                    while len(self._footers) > _FOOTERS_MAX:
                        self._footers.popitem(last=False)
            found += segments
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the archive `{self._layout.root}` is closed")


def _segments_of(token: ArchiveToken, path: Path) -> list[Segment]:
    footer = pq.read_metadata(path)
    places = {footer.schema.column(i).name: i for i in range(footer.num_columns)}
    found: list[Segment] = []
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        names, offsets = (group.column(places[c]).statistics for c in ("partition", "offset"))
        known = all(s is not None and s.has_min_max for s in (names, offsets))
        bounds = (names.min, names.max, offsets.min, offsets.max) if known else _UNKNOWN
        found.append(Segment(token.key, token.name.writer, token.name.sequence, index, group.num_rows, *bounds))
    return found


def _token_of(segment: Segment) -> ArchiveToken:
    return ArchiveToken(segment.key, FileName(segment.writer, segment.sequence))


def _options(schema: pa.Schema) -> dict[str, Any]:
    """How the columns are written: numbers that rise as differences, words once, messages as they are."""
    rising = [f.name for f in schema if f.type == pa.int64() or pa.types.is_timestamp(f.type)]
    words = [f.name for f in schema if f.name not in rising and f.name != "value"]
    return {
        "use_dictionary": words,
        "column_encoding": dict.fromkeys(rising, "DELTA_BINARY_PACKED"),
        "compression": {f.name: "zstd" if f.name == "value" else "snappy" for f in schema},
        "compression_level": {"value": LEVEL} if "value" in schema.names else None,
        "write_statistics": STATISTICS,
    }
