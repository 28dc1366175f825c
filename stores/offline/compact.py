"""Merge the small files of a partition without a moment at which a row is visible twice or not at all.

The merged folder is built beside the published one, checked, and the two are exchanged in one system
call. A kill at any moment leaves the old folder or the new one; what else it leaves stands in the
staging area, and the next compaction removes it. Files published meanwhile are linked into the new
folder before the exchange, under the lock that `publish` takes too. Files of different lineages stay
different files, since the name of a file tells its lineage.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import CorruptStoreError, RetryableError
from operators.hashes import digest
from stores.offline.disk import exchange, fsync, locked, names_in, remove_folder, translated
from stores.offline.layout import FileName, Layout, own_merged, parse_file_name, rows_in
from stores.offline.parquet import (
    MERGED_FROM,
    ROW_GROUP_ROWS,
    STATISTICS,
    digest_note,
    find_partitions,
    merged_from,
    read_file,
)
from stores.offline.port import EVERYTHING, MERGED_PART, PartitionKey, Selection, lineage_of

GRACE_S = 2.0
"""How long a folder that was exchanged keeps its files: a reader that had opened it just before would list an
empty folder and miss rows without noticing; so it lists files that are gone, which it notices."""

TARGET_BYTES = 128 << 20
"""A merged file is made of about as many bytes; files of half that size are left alone."""

_ORDER = [(name, "ascending") for name in ("entity_id", "event_time", "revision", "window_start")]


@dataclass(frozen=True, slots=True)
class CompactSummary:
    """What a compaction did: counts of partitions rewritten, and their files, bytes and rows."""

    partitions: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rows: int = 0

    def __add__(self, other: CompactSummary) -> CompactSummary:
        """Add up two summaries."""
        return CompactSummary(
            self.partitions + other.partitions,
            self.files_before + other.files_before,
            self.files_after + other.files_after,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
            self.rows + other.rows,
        )


@dataclass(slots=True)
class _Group:
    """Files of one lineage and one schema that become one file."""

    names: list[FileName] = field(default_factory=list)
    size_bytes: int = 0


def compact(
    root: Path,
    selection: Selection = EVERYTHING,
    *,
    progress: Callable[[PartitionKey, int, int], None] | None = None,
    target_bytes: int = TARGET_BYTES,
) -> CompactSummary:
    """Merge the small files of every selected partition; rows are sorted by entity_id, event_time, revision.

    Writers and readers may go on. progress(key, done, count) is called before each partition, done
    from 0. Memory: several times target_bytes. Safe to repeat, and to kill at any moment.
    Raises RetryableError if another compaction runs, ConfigError where the file system cannot exchange
    folders, CorruptStoreError for a file that cannot be read or a merge that does not add up (nothing
    is changed then), FatalError when the disk is full.
    """
    layout = Layout(root)
    summary = CompactSummary()
    with translated(f"compacting `{root}`"):
        if not layout.features.exists():
            return summary
        try:
            with locked(layout.lock("compact"), wait=False):
                remove_leftovers(layout)
                keys = find_partitions(layout, selection)
                for done, key in enumerate(keys):
                    if progress:
                        progress(key, done, len(keys))
                    summary += _compact_partition(layout, key, target_bytes)
                if summary.partitions:
                    time.sleep(GRACE_S)
                    remove_leftovers(layout)
        except BlockingIOError as exc:
            raise RetryableError(f"another compaction of `{root}` is running; try again when it is done") from exc
    return summary


def _compact_partition(layout: Layout, key: PartitionKey, target_bytes: int) -> CompactSummary:
    folder = layout.folder(key)
    names = rows_in(names_in(folder))
    groups = _plan(folder, names, target_bytes)
    if not groups:
        return CompactSummary()
    layout.compacting.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=layout.compacting))
    try:
        summary = CompactSummary(partitions=1)
        for lineage, group in groups:
            last = max((n.sequence for n in own_merged(lineage, names_in(folder) + names_in(beside))), default=0)
            merged = beside / str(FileName(f"{lineage}.{MERGED_PART}", last + 1))
            rows = _merge(folder, group, merged)
            size_bytes = merged.stat().st_size
            summary += CompactSummary(0, len(group.names), 1, group.size_bytes, size_bytes, rows)
        put_in_place(layout, folder, beside, {str(name) for _, group in groups for name in group.names})
    except BaseException:
        remove_unseen(layout, beside)
        raise
    return summary


def _plan(folder: Path, names: list[str], target_bytes: int) -> list[tuple[str, _Group]]:
    """Groups of at least two small files; files that are large, or that nobody of ours named, stay."""
    groups: list[tuple[str, _Group]] = []
    open_groups: dict[tuple[str, str], _Group] = {}
    for text in names:
        name, size_bytes = parse_file_name(text), (folder / text).stat().st_size
        if name is None or size_bytes >= target_bytes // 2:
            continue
        with translated(f"reading `{folder / text}`"):
            schema = pq.read_schema(folder / text).remove_metadata()
        kind = (lineage_of(name.writer), schema.to_string())
        group = open_groups.get(kind)
        if group is None or group.size_bytes + size_bytes > target_bytes:
            group = open_groups[kind] = _Group()
            groups.append((kind[0], group))
        group.names.append(name)
        group.size_bytes += size_bytes
    return [(lineage, group) for lineage, group in groups if len(group.names) > 1]


def _merge(folder: Path, group: _Group, target: Path) -> int:
    """Write the group's rows, sorted, into one durable file; return their number once it is verified."""
    tables: list[pa.Table] = []
    sequences: dict[str, list[list[int]]] = {}
    for name in group.names:
        path = folder / str(name)
        with translated(f"reading `{path}`"):
            table = read_file(path)
        merged = merged_from(table.schema.metadata) if name.merged else {name.writer: [[name.sequence, name.sequence]]}
        for writer, ranges in merged.items():
            sequences.setdefault(writer, []).extend(ranges)
        tables.append(table.replace_schema_metadata(None))
    rows = pa.concat_tables(tables).combine_chunks()
    del tables
    count: int
    count, total = rows.num_rows, content_digest(rows)
    merged_of = json.dumps({w: joined(r) for w, r in sorted(sequences.items())}, separators=(",", ":"))
    note = {**digest_note(rows), MERGED_FROM: merged_of}
    ordered = rows.sort_by(_ORDER).replace_schema_metadata(note)
    with target.open("wb") as file:
        pq.write_table(
            ordered,
            file,
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
            compression_level=3,
            dictionary_pagesize_limit=1 << 16,
            write_statistics=list(STATISTICS),
        )
    del rows, ordered
    fsync(target)
    written = pq.ParquetFile(target).read(columns=["content_hash"])
    if (written.num_rows, content_digest(written)) != (count, total):
        raise CorruptStoreError(f"merging `{folder}` did not give the same rows; the folder is left as it was")
    return count


def put_in_place(layout: Layout, folder: Path, beside: Path, merged: set[str]) -> None:
    """Put the new folder in the place of the old one, with all that is not in `merged` linked into it."""
    shutil.copymode(folder, beside)
    with locked(layout.lock("publish")):
        for name in names_in(folder):
            if name not in merged:
                os.link(folder / name, beside / name)
        fsync(beside)
        exchange(beside, folder)
        fsync(folder.parent)
        fsync(beside.parent)


def remove_leftovers(layout: Layout) -> None:
    """Remove what a killed compaction, or one that had readers, has left."""
    if layout.compacting.exists():
        for path in layout.compacting.iterdir():
            remove_unseen(layout, path)


def remove_unseen(layout: Layout, path: Path) -> None:
    """Remove the folder unless a scan may be reading in it; then the next compaction does."""
    with suppress(BlockingIOError), locked(layout.lock("scan"), wait=False):
        remove_folder(path)


def content_digest(rows: pa.Table) -> int:
    """The sum of the rows' content hashes."""
    hashes = rows["content_hash"].combine_chunks()
    data = np.frombuffer(hashes.buffers()[1], np.uint8).reshape(-1, 16)
    return digest(data[hashes.offset : hashes.offset + len(hashes)])


def joined(ranges: list[list[int]]) -> list[list[int]]:
    """Ranges in order, those that touch made one."""
    out: list[list[int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1][1] = max(out[-1][1], last)
        else:
            out.append([first, last])
    return out
