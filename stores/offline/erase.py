"""Take an entity out of the Parquet files of the feature history, in the manner of a compaction.

A file that holds rows of the entity becomes a merged file without them, under a name of its own, so that no reader
takes what it knows of the old file for the new one; a folder changes in one system call. Staged files, which have no
readers, are replaced. A kill at any moment leaves each file old or new, and doing it again finishes.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.errors import CorruptStoreError, RetryableError
from stores.offline.compact import GRACE_S, content_digest, joined, put_in_place, remove_leftovers, remove_unseen
from stores.offline.disk import fsync, locked, names_in, translated
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
from stores.offline.port import BATCH_PART, EVERYTHING, MERGED_PART, PartitionKey, lineage_of

_READERS_S = 60.0


def erase_entity(layout: Layout, entity_id: str) -> int:
    """Take out the entity's rows, published and staged; return how many there were. Safe to repeat.

    Raises RetryableError while a compaction or a backfill runs, or if a reader does not end within a minute.
    """
    if not layout.root.exists():
        return 0
    with translated(f"erasing an entity from `{layout.root}`"), ExitStack() as held:
        try:
            held.enter_context(locked(layout.lock("compact"), wait=False))
        except BlockingIOError as exc:
            raise RetryableError(f"a compaction of `{layout.root}` is running; try again when it is done") from exc
        _refuse_backfills(layout, held)
        gone = _erase_staged(layout, entity_id)
        changed = False
        for key in find_partitions(layout, EVERYTHING):
            rows = _erase_partition(layout, key, entity_id)
            gone, changed = gone + rows, changed or rows > 0
        if changed:
            time.sleep(GRACE_S)
        _remove_old(layout)
    return gone


def _refuse_backfills(layout: Layout, held: ExitStack) -> None:
    """A backfill that has begun knows nothing of what is forgotten now, and would publish it."""
    for path in sorted(layout.lock("publish").parent.glob(f"*.{BATCH_PART}.lock")):
        try:
            held.enter_context(locked(path, wait=False))
        except BlockingIOError as exc:
            raise RetryableError(f"a backfill writes to `{layout.root}`; try again when it is done") from exc


def _erase_staged(layout: Layout, entity_id: str) -> int:
    """A staged file keeps its name, by which a snapshot knows it, also if no row is left in it."""
    gone = 0
    with locked(layout.lock("publish")):
        for path in sorted((layout.root / "_staging" / "writers").glob("*/*.parquet")):
            kept, rows = _without(path, entity_id)
            if rows:
                fresh = path.with_name(f".{path.name}")
                _write(kept, fresh)
                fresh.replace(path)
                fsync(path.parent)
            gone += rows
        for leftover in (layout.root / "_staging" / "writers").glob("*/.*.parquet"):
            leftover.unlink()
    return gone


def _erase_partition(layout: Layout, key: PartitionKey, entity_id: str) -> int:
    folder = layout.folder(key)
    found = [name for name in rows_in(names_in(folder)) if _holds(folder / name, entity_id)]
    if not found:
        return 0
    layout.compacting.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=layout.compacting))
    try:
        gone = sum(_rewrite(folder, beside, name, entity_id) for name in found)
        put_in_place(layout, folder, beside, set(found))
    except BaseException:
        remove_unseen(layout, beside)
        raise
    return gone


def _rewrite(folder: Path, beside: Path, name: str, entity_id: str) -> int:
    """Write one file anew beside; under its own name if nobody of ours gave that."""
    kept, gone = _without(folder / name, entity_id)
    parsed = parse_file_name(name)
    if parsed is None:
        _write(kept, beside / name)
        return gone
    metadata = kept.schema.metadata
    merged = merged_from(metadata) if parsed.merged else {parsed.writer: [[parsed.sequence, parsed.sequence]]}
    lineage = lineage_of(parsed.writer)
    last = max((n.sequence for n in own_merged(lineage, names_in(folder) + names_in(beside))), default=0)
    note = {MERGED_FROM: json.dumps({w: joined(r) for w, r in sorted(merged.items())}, separators=(",", ":"))}
    _write(kept.replace_schema_metadata(note), beside / str(FileName(f"{lineage}.{MERGED_PART}", last + 1)))
    return gone


def _holds(path: Path, entity_id: str) -> bool:
    with translated(f"reading `{path}`"), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        if "entity_id" not in parquet.schema_arrow.names:
            return False
        return any(
            pc.any(pc.equal(parquet.read_row_group(group, columns=["entity_id"])["entity_id"], entity_id)).as_py()
            for group in range(parquet.num_row_groups)
        )


def _without(path: Path, entity_id: str) -> tuple[pa.Table, int]:
    """The rows of the others, and how many the entity has."""
    with translated(f"reading `{path}`"):
        rows = read_file(path)
    kept = rows.filter(pc.not_equal(rows["entity_id"], entity_id))
    return kept, rows.num_rows - kept.num_rows


def _write(rows: pa.Table, path: Path) -> None:
    """Write one durable file, with its digest, and make sure that it holds these rows."""
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), **digest_note(rows)})
    with path.open("wb") as file:
        pq.write_table(
            rows,
            file,
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
            compression_level=3,
            dictionary_pagesize_limit=1 << 16,
            write_statistics=[name for name in STATISTICS if name in rows.column_names],
        )
    fsync(path)
    written = pq.ParquetFile(path).read(columns=["content_hash"])
    if (written.num_rows, content_digest(written)) != (rows.num_rows, content_digest(rows)):
        raise CorruptStoreError(f"`{path}` was not written as it should; nothing was replaced by it")


def _remove_old(layout: Layout) -> None:
    """Remove the replaced folders, which hold the entity still; wait for those who read in them."""
    limit = time.monotonic() + _READERS_S
    while layout.compacting.exists() and names_in(layout.compacting):
        remove_leftovers(layout)
        if names_in(layout.compacting) and time.monotonic() > limit:
            raise RetryableError(f"somebody reads the old files in `{layout.compacting}`; try again when that is done")
        time.sleep(0.05)
