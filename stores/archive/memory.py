"""The archive in memory: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
import pyarrow as pa

from operators.errors import CorruptStoreError, ResumeError
from stores.archive.blanks import Blanks
from stores.archive.columns import in_log_order
from stores.archive.layout import ArchiveToken, parse_archive_token
from stores.archive.port import ALL, ArchiveKey, ArchiveSelection, Kind, Mends, Segment, Takes, check_stage, nothing
from stores.archive.repeats import foreign, segment_of, withhold
from stores.offline.layout import FileName
from stores.offline.port import Withheld, check_writer


class _Staged:
    """A `StagedFile`: tables that nobody sees."""

    def __init__(self, token: ArchiveToken, staged: dict[ArchiveToken, list[pa.Table]]) -> None:
        self._token = token
        self._staged = staged
        self._tables: list[pa.Table] = []

    def write(self, rows: pa.Table) -> None:
        """See `StagedFile.write`."""
        self._tables.append(rows.take(np.arange(rows.num_rows)))

    def finish(self) -> str:
        """See `StagedFile.finish`."""
        self._staged[self._token] = self._tables
        return str(self._token)

    def abandon(self) -> None:
        """See `StagedFile.abandon`."""


class MemoryArchive:
    """An `Archive` that lives as long as the object; "durable" means no more than that."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._staged: dict[ArchiveToken, list[pa.Table]] = {}
        self._published: dict[ArchiveToken, dict[Segment, pa.Table]] = {}
        self._lock = Lock()
        self._closed = False

    def stage(self, writer: str, sequence: int, key: ArchiveKey) -> _Staged:
        """Begin a list of tables; see `Archive.stage`."""
        self._check_open()
        check_stage(writer, sequence)
        token = ArchiveToken(key, FileName(writer, sequence))
        with self._lock:
            self._staged.pop(token, None)
        return _Staged(token, self._staged)

    def merge(self, tokens: Sequence[str], sequence: int) -> str:
        """Join staged tables; see `Archive.merge`."""
        self._check_open()
        parsed = [parse_archive_token(token) for token in tokens]
        target = ArchiveToken(parsed[0].key, FileName(parsed[0].name.writer, sequence))
        with self._lock:
            gone = [str(token) for token in parsed if token not in self._staged]
            if gone:
                raise CorruptStoreError(f"`{gone[0]}` was staged and is gone: messages are missing")
            self._staged[target] = [in_log_order(table for token in parsed for table in self._staged[token])]
        return str(target)

    def publish(self, tokens: Sequence[str]) -> Withheld:
        """Let readers see staged tables; see `Archive.publish`."""
        self._check_open()
        withheld = Withheld()
        with self._lock:
            for token in map(parse_archive_token, tokens):
                published = token in self._published
                if token not in self._staged:
                    if not published:
                        raise CorruptStoreError(f"`{token}` was neither staged nor published: messages are missing")
                    continue
                if published:
                    raise ResumeError(f"`{token}` is published already and staged once more")
                withheld += self._publish(token)
        return withheld

    def discard(self, writer: str, keep: Sequence[str]) -> None:
        """Forget what the writer has staged, other than `keep`; see `Archive.discard`."""
        self._check_open()
        check_writer(writer)
        kept = {parse_archive_token(token) for token in keep}
        with self._lock:
            self._staged = {t: rows for t, rows in self._staged.items() if t.name.writer != writer or t in kept}

    def segments(self, kind: Kind, selection: ArchiveSelection = ALL) -> list[Segment]:
        """The published tables, one each; see `Archive.segments`."""
        self._check_open()
        with self._lock:
            found = [s for token in sorted(self._published) if token.key.kind == kind for s in self._published[token]]
        return [s for s in found if selection.may_take(s)]

    def read(self, segment: Segment, columns: Sequence[str] | None = None) -> pa.Table:
        """One of the published tables; see `Archive.read`."""
        self._check_open()
        token = ArchiveToken(segment.key, FileName(segment.writer, segment.sequence))
        with self._lock:
            rows = self._published.get(token, {}).get(segment)
        if rows is None:
            raise CorruptStoreError(f"`{token}` is gone from the archive")
        return rows if columns is None else rows.select(list(columns))

    def blank(self, takes: Takes, mends: Mends = nothing) -> int:
        """Blank messages; see `Archive.blank`."""
        self._check_open()
        blanks = Blanks(takes, mends)
        with self._lock:
            for kind in ("signals", "verdicts"):
                for token in [t for t in self._staged if t.key.kind == kind]:
                    self._staged[token] = [blanks.applied(token.key, rows) for rows in self._staged[token]]
                for token in [t for t in self._published if t.key.kind == kind]:
                    found = {s: blanks.applied(token.key, rows) for s, rows in self._published[token].items()}
                    self._published[token] = {replace(s, rows=len(r)): r for s, r in found.items() if len(r)}
        return blanks.count

    def close(self) -> None:
        """Let go of all messages."""
        self._closed = True
        self._staged.clear()
        self._published.clear()

    def _publish(self, token: ArchiveToken) -> Withheld:
        withheld = Withheld()
        there = {s: rows for found in self._published.values() for s, rows in found.items()}
        mine: dict[Segment, pa.Table] = {}
        for index, table in enumerate(self._staged.pop(token)):
            blank = Segment(token.key, token.name.writer, token.name.sequence, index, 0, "", "", 0, 0)
            segment, rows = segment_of(table, blank), table
            others = foreign(segment, there) if token.key.kind == "signals" else []
            if others:
                rows, back = withhold(table, [there[s] for s in others])
                withheld += back
            if rows.num_rows:
                mine[segment_of(rows, blank)] = rows
        self._published[token] = mine
        return withheld

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the archive is closed")
