"""Blank messages in the archive's files, published and staged.

A file is replaced by one with the same name and the same row groups, so a segment that somebody has listed is still
what it was. Verdicts go first: the messages tell which they are. A kill leaves each file old or new.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stores.archive.blanks import Blanks
from stores.archive.layout import ArchiveLayout, ArchiveToken, parse_archive_token
from stores.archive.parquet import ParquetStagedFile
from stores.archive.port import SCHEMAS, Mends, Takes
from stores.offline.disk import fsync, locked, translated
from stores.offline.layout import parse_file_name

_NEEDED = ("partition", "offset", "entity_id", "verdict", "reason", "rows", "value")


def blank_files(layout: ArchiveLayout, takes: Takes, mends: Mends) -> int:
    """Blank the messages in every file of the archive; see `Archive.blank`. Memory: a row group."""
    if not layout.root.exists():
        return 0
    count = 0
    with translated(f"blanking messages in `{layout.root}`"), locked(layout.lock):
        _remove_unfinished(layout)
        days = _by_day(layout)
        for files in days.values():
            blanks = Blanks(takes, mends)
            signals = [(t, p) for t, p in files if t.key.kind == "signals" and _finds(blanks, p)]
            for token, path in [(t, p) for t, p in files if t.key.kind == "verdicts" and _judges(blanks, p)] + signals:
                _rewrite(token, path, blanks)
            count += blanks.count
    return count


def _by_day(layout: ArchiveLayout) -> dict[str, list[tuple[ArchiveToken, Path]]]:
    """Every file, published or staged, by date."""
    days: dict[str, list[tuple[ArchiveToken, Path]]] = defaultdict(list)
    paths = [p for kind in SCHEMAS for p in sorted((layout.root / kind).glob("date=*/*.parquet"))]
    for path in paths + sorted(layout.lock.parent.glob("writers/*/*.parquet")):
        text = path.name.replace("~", "/") if "~" in path.name else str(path.relative_to(layout.root))
        if parse_file_name(text.rpartition("/")[2]) is not None:
            token = parse_archive_token(text)
            days[token.key.date].append((token, path))
    return dict(sorted(days.items()))


def _remove_unfinished(layout: ArchiveLayout) -> None:
    """A staged file without an end was cut off by a kill: no snapshot knows it, and nobody can read it."""
    for path in sorted(layout.lock.parent.glob("writers/*/*.parquet")):
        try:
            pq.read_metadata(path)
        except (pa.ArrowInvalid, EOFError):
            path.unlink()
    for path in (*layout.root.glob("*/date=*/.*.parquet"), *layout.lock.parent.glob("writers/*/.*.parquet")):
        path.unlink()


def _finds(blanks: Blanks, path: Path) -> bool:
    found = False
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            found |= bool(blanks.found(file.read_row_group(group, columns=list(_NEEDED))).any())
    return found


def _judges(blanks: Blanks, path: Path) -> bool:
    with pq.ParquetFile(path) as file:
        groups = range(file.num_row_groups)
        return any(blanks.judged(file.read_row_group(g, columns=["partition", "offset"])).any() for g in groups)


def _rewrite(token: ArchiveToken, path: Path, blanks: Blanks) -> None:
    """Replace the file; a row group from which all verdicts go is left out."""
    fresh = path.with_name(f".{path.name}")
    with pq.ParquetFile(path) as source:
        written = ParquetStagedFile(token, fresh, SCHEMAS[token.key.kind], set())
        for group in range(source.num_row_groups):
            rows = blanks.applied(token.key, source.read_row_group(group))
            if rows.num_rows:
                written.write(rows)
        written.finish()
    fresh.replace(path)
    fsync(path.parent)
