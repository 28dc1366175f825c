"""The offline store as a folder of Parquet files, readable by anything that reads hive partitions.

Durable means: the file is synced, then the folder that names it. Visible means: renamed into the
partition's folder, which is atomic. `stores/offline/layout.py` draws the folders.

A reader that listed a folder before a compaction and opens its files after it may find one gone
(FileNotFoundError): it lists again. Our own `scan` looks at one state of each folder and never sees that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.digests import DIGEST_KEY, Change, change, parse_change
from operators.errors import CorruptStoreError, ResumeError
from stores.offline.claims import BatchClaims
from stores.offline.disk import FolderView, fsync, locked, make_folders, names_in, translated, viewed
from stores.offline.layout import (
    FileName,
    Layout,
    Token,
    foreign_to,
    own_merged,
    parse_folder,
    parse_token,
    rows_in,
)
from stores.offline.port import (
    EVERYTHING,
    PartitionKey,
    Selection,
    Staged,
    Withheld,
    check_tables,
    check_writer,
    lineage_of,
)
from stores.offline.repeats import COLUMNS, ForeignRowsCache

ROW_GROUP_ROWS = 1 << 17
"""Rows that a reader has to hold at once."""

STATISTICS = ("entity_id", "window_start", "event_time")
"""Columns by which readers skip row groups; statistics of the others would only cost."""

MERGED_FROM = b"headrace.merged_from"
"""Metadata of a merged file: JSON {writer: [[first, last], …]}, the sequences that are in it."""

DIGEST_COLUMNS = ("entity_id", "event_time", "revision", "content_hash", "supersedes", "retracted")
"""What a digest is made of."""

_LOCKS = ("publish", "scan", "compact")


class ParquetOfflineStore:
    """An `OfflineStore` in a folder of a local file system; opening it touches nothing."""

    def __init__(self, root: Path) -> None:
        """Keep the folder's path."""
        self._layout = Layout(root)
        self._foreign = ForeignRowsCache()
        self._checked: dict[str, frozenset[str]] = {}  # token → foreign files that its rows were compared with
        self._claims = BatchClaims(self._layout)
        self._closed = False

    def stage(self, writer: str, sequence: int, tables: Mapping[PartitionKey, pa.Table]) -> Staged:
        """Write the rows where no reader sees them; see `OfflineStore.stage`."""
        self._check_open()
        check_tables(writer, sequence, tables)
        name = FileName(writer, sequence)
        staging = self._layout.staging(writer)
        written: list[Future[None]] = []
        rows, withheld, tokens = 0, Withheld(), []
        with (
            translated(f"staging rows of writer `{writer}` in `{self._layout.root}`"),
            ExitStack() as undo,
            ThreadPoolExecutor(1, "sync") as beside,
        ):
            self._claims.take(writer)
            changed = self._make_staging(staging)
            undo.callback(_remove_sequence, staging, name)
            _remove_sequence(staging, name)
            for key, table in sorted(tables.items(), key=lambda item: item[0]):
                token = Token(key, name)
                kept, back = self._withhold(token, table)
                withheld += back
                if kept.num_rows:
                    _write(kept, self._layout.staged(token))
                    written.append(beside.submit(fsync, self._layout.staged(token)))  # while the next is written
                    tokens.append(str(token))
                    rows += kept.num_rows
            for synced in written:
                synced.result()
            for path in (staging, *changed):
                fsync(path)
            undo.pop_all()
        return Staged(tuple(tokens), rows, withheld)

    def publish(self, tokens: Sequence[str]) -> Withheld:
        """Make staged rows visible; see `OfflineStore.publish`."""
        self._check_open()
        parsed = [parse_token(token) for token in tokens]
        withheld = Withheld()
        changed: set[Path] = set()
        if not parsed:
            return withheld
        with translated(f"publishing rows in `{self._layout.root}`"):
            with locked(self._layout.lock("publish")):
                for token in parsed:
                    withheld += self._publish(token, changed)
            # New names before old ones: a loss of power between the two must not lose the file.
            for folder in sorted(changed, key=lambda path: path.is_relative_to(self._layout.features), reverse=True):
                fsync(folder)
        return withheld

    def discard(self, writer: str, keep: Sequence[str]) -> None:
        """Remove what the writer has staged, other than `keep`; see `OfflineStore.discard`."""
        self._check_open()
        check_writer(writer)
        kept = {self._layout.staged(parse_token(token)).name for token in keep}
        staging = self._layout.staging(writer)
        with translated(f"discarding leftovers of writer `{writer}` in `{self._layout.root}`"):
            if not staging.exists():
                return
            for path in staging.iterdir():
                if path.name not in kept:
                    path.unlink(missing_ok=True)
                    self._checked.pop(path.name.replace("~", "/"), None)
            fsync(staging)

    def scan(
        self, selection: Selection = EVERYTHING, *, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[PartitionKey, pa.Table]]:
        """Yield the published rows, a row group at a time; see `OfflineStore.scan`."""
        self._check_open()
        return self._scan(selection, None if columns is None else list(columns))

    def forget(self, entity_id: str) -> int:
        """Write the files anew that hold the entity's rows; see `OfflineStore.forget`."""
        from stores.offline.erase import erase_entity  # it builds on this module

        self._check_open()
        gone = erase_entity(self._layout, entity_id)
        self._foreign = ForeignRowsCache()
        self._checked.clear()
        return gone

    def close(self) -> None:
        """Forget what was cached, and let go of what backfills have claimed."""
        self._closed = True
        self._claims.release()
        self._foreign = ForeignRowsCache()
        self._checked.clear()

    def _scan(self, selection: Selection, columns: list[str] | None) -> Iterator[tuple[PartitionKey, pa.Table]]:
        for key in find_partitions(self._layout, selection):
            folder = self._layout.folder(key)
            with viewed(folder, self._layout.lock("scan")) as view:
                for name in rows_in(view.names):
                    with translated(f"reading `{folder / name}`"), view.open(name) as file:
                        parquet = pq.ParquetFile(file)
                        for group in range(parquet.num_row_groups):
                            rows = parquet.read_row_group(group, columns=columns)
                            yield key, rows if columns is None else rows.select(columns)

    def _make_staging(self, staging: Path) -> set[Path]:
        """Create the writer's folder, and with the first one the locks: a reader cannot create them."""
        changed = make_folders(staging)
        for name in _LOCKS if changed else ():
            self._layout.lock(name).touch()
        return changed

    def _withhold(self, token: Token, table: pa.Table) -> tuple[pa.Table, Withheld]:
        """Split off the rows that another lineage has published, and note against which files."""
        with viewed(self._layout.folder(token.key), self._layout.lock("scan")) as view:
            foreign = foreign_to(lineage_of(token.name.writer), view.names)
            self._checked[str(token)] = foreign
            if not foreign:
                return table, Withheld()
            return self._foreign.rows(token.key, foreign, partial(_read_columns, view)).withhold(table)

    def _publish(self, token: Token, changed: set[Path]) -> Withheld:
        """Publish one file under the lock; add the folders whose names changed to `changed`."""
        staged, target = self._layout.staged(token), self._layout.published(token)
        with viewed(target.parent, self._layout.lock("scan")) as view:
            published = _holds(view, token.name)
            foreign = foreign_to(lineage_of(token.name.writer), view.names)
        if not staged.exists():
            if not published:
                raise CorruptStoreError(f"`{token}` was staged and is gone from `{staged.parent}`: rows are missing")
            # Whoever published it may have died before the folders were synced, so that is done now.
            changed.update(target.parents[: len(target.relative_to(self._layout.root).parts)])
            return Withheld()
        if published:
            raise ResumeError(
                f"`{token}` is published already and staged once more: the recovery folder is older than the offline"
                " store. Start with a new recovery folder; rows that are published will not be written again"
            )
        withheld = Withheld()
        if foreign != self._checked.pop(str(token), frozenset()):
            withheld = self._withhold_latecomers(token, staged)
        changed |= make_folders(target.parent) | {target.parent, staged.parent}
        staged.rename(target)
        return withheld

    def _withhold_latecomers(self, token: Token, staged: Path) -> Withheld:
        """Take rows out of a staged file that another lineage published after it was staged.

        A file that loses all its rows stays, empty, so that its token is published like any other.
        """
        with translated(f"reading `{staged}`"):
            table = read_file(staged)
        kept, withheld = self._withhold(token, table)
        self._checked.pop(str(token), None)
        if kept.num_rows < table.num_rows:
            fresh = staged.with_name(f".{staged.name}")
            _write(kept, fresh)
            fsync(fresh)
            fresh.replace(staged)
        return withheld

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the offline store `{self._layout.root}` is closed")


def find_partitions(layout: Layout, selection: Selection) -> list[PartitionKey]:
    """The selected partitions that have a folder, sorted; other folders are passed over."""
    with translated(f"listing `{layout.features}`"):
        found = layout.features.glob("*/v*/window=*/date=*/")
        keys = (parse_folder(path.relative_to(layout.features).parts) for path in found)
        return sorted(key for key in keys if key is not None and selection.takes(key))


def partitions_in(root: Path, selection: Selection = EVERYTHING) -> list[PartitionKey]:
    """The selected partitions of the store in that folder, sorted, without a look into any file."""
    return find_partitions(Layout(root), selection)


def merged_from(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[list[int]]]:
    """Writers and sequences whose rows are in a merged file, from its Parquet metadata.

    Raises CorruptStoreError if the metadata does not say.
    """
    try:
        merged: dict[str, list[list[int]]] = json.loads((metadata or {})[MERGED_FROM])
    except (KeyError, ValueError) as exc:
        raise CorruptStoreError("a merged file does not say which files are in it; restore it") from exc
    return merged


def digest_note(rows: pa.Table) -> dict[bytes, bytes]:
    """What the metadata of a file of these rows says of its digest; nothing of rows that lack a column for it."""
    if not set(DIGEST_COLUMNS) <= set(rows.column_names):
        return {}
    return {DIGEST_KEY: change(rows).encoded()}


def noted_changes(root: Path, selection: Selection = EVERYTHING) -> dict[PartitionKey, Change | None]:
    """What the files of each selected partition say they add to its digest, summed, without reading a row.

    None where a file does not say. With nothing revised it is the partition's digest, as the rows were written.
    """
    layout = Layout(root)
    out: dict[PartitionKey, Change | None] = {}
    for key in find_partitions(layout, selection):
        total: Change | None = Change()
        folder = layout.folder(key)
        with viewed(folder, layout.lock("scan")) as view:
            for name in rows_in(view.names):
                with translated(f"reading `{folder / name}`"), view.open(name) as file:
                    noted = (pq.read_metadata(file).metadata or {}).get(DIGEST_KEY)
                total = None if total is None or noted is None else total + parse_change(noted)
        out[key] = total
    return out


def read_file(path: Path) -> pa.Table:
    """All rows of one file, without the columns that its path holds."""
    with path.open("rb") as file:
        return pq.ParquetFile(file).read()


def _holds(view: FolderView, name: FileName) -> bool:
    """Whether the folder holds the rows of this file, as itself or merged into another."""
    if str(name) in view.names:
        return True
    for merged in own_merged(lineage_of(name.writer), view.names):
        with view.open(str(merged)) as file:
            ranges = merged_from(pq.read_metadata(file).metadata).get(name.writer, [])
        if any(first <= name.sequence <= last for first, last in ranges):
            return True
    return False


def _read_columns(view: FolderView, name: str) -> pa.Table:
    with translated(f"reading `{name}` of another lineage"), view.open(name) as file:
        table = pq.ParquetFile(file).read(columns=list(COLUMNS))
    if len(table.column_names) < len(COLUMNS):
        raise CorruptStoreError(f"`{name}` stands among the feature rows and lacks their columns; move it away")
    return table


def _write(table: pa.Table, path: Path) -> None:
    """Write one file, as fast as it goes: compaction makes it small later.

    Full-precision floats and hashes barely compress, so they stay as they are; the rest repeats.
    """
    repeating = [f.name for f in table.schema if not pa.types.is_floating(f.type) and f.name != "content_hash"]
    options: dict[str, Any] = {
        "use_dictionary": repeating,
        "compression": {name: "snappy" if name in repeating else "none" for name in table.column_names},
        "write_statistics": [name for name in STATISTICS if name in table.column_names],
    }
    noted = table.replace_schema_metadata({**(table.schema.metadata or {}), **digest_note(table)})
    with pa.OSFile(str(path), "wb") as file:  # a file of Python's would be written under its lock
        pq.write_table(noted, file, row_group_size=ROW_GROUP_ROWS, **options)


def _remove_sequence(staging: Path, name: FileName) -> None:
    """Remove what an earlier attempt at the same sequence has staged."""
    for entry in names_in(staging):
        if entry.endswith(f"~{name}"):
            (staging / entry).unlink(missing_ok=True)
