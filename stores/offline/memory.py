"""The offline store in memory: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc

from operators.errors import CorruptStoreError, ResumeError
from stores.offline.layout import FileName, Token, parse_token
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
from stores.offline.repeats import ForeignRows


class MemoryOfflineStore:
    """An `OfflineStore` that lives as long as the object; "durable" means no more than that."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._staged: dict[Token, pa.Table] = {}
        self._published: dict[PartitionKey, dict[FileName, pa.Table]] = {}
        self._lock = Lock()
        self._closed = False

    def stage(self, writer: str, sequence: int, tables: Mapping[PartitionKey, pa.Table]) -> Staged:
        """Keep the rows where `scan` does not look; see `OfflineStore.stage`."""
        self._check_open()
        check_tables(writer, sequence, tables)
        name = FileName(writer, sequence)
        withheld = Withheld()
        fresh: dict[Token, pa.Table] = {}
        with self._lock:
            for key, table in sorted(tables.items(), key=lambda item: item[0]):
                kept, back = self._withhold(key, writer, table)
                withheld += back
                if kept.num_rows:
                    fresh[Token(key, name)] = kept
            self._staged = {token: rows for token, rows in self._staged.items() if token.name != name} | fresh
        return Staged(tuple(map(str, fresh)), sum(t.num_rows for t in fresh.values()), withheld)

    def publish(self, tokens: Sequence[str]) -> Withheld:
        """Let `scan` see staged rows; see `OfflineStore.publish`."""
        self._check_open()
        withheld = Withheld()
        with self._lock:
            for token in map(parse_token, tokens):
                files = self._published.get(token.key, {})
                if token not in self._staged:
                    if token.name not in files:
                        raise CorruptStoreError(f"`{token}` was neither staged nor published: rows are missing")
                    continue
                if token.name in files:
                    raise ResumeError(f"`{token}` is published already and staged once more")
                kept, back = self._withhold(token.key, token.name.writer, self._staged.pop(token))
                withheld += back
                self._published.setdefault(token.key, {})[token.name] = kept
        return withheld

    def discard(self, writer: str, keep: Sequence[str]) -> None:
        """Forget what the writer has staged, other than `keep`; see `OfflineStore.discard`."""
        self._check_open()
        check_writer(writer)
        kept = {parse_token(token) for token in keep}
        with self._lock:
            self._staged = {t: rows for t, rows in self._staged.items() if t.name.writer != writer or t in kept}

    def scan(
        self, selection: Selection = EVERYTHING, *, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[PartitionKey, pa.Table]]:
        """Yield the published rows, a table for each that was staged; see `OfflineStore.scan`."""
        self._check_open()
        with self._lock:
            found = [
                (key, self._published[key][name])
                for key in sorted(self._published)
                if selection.takes(key)
                for name in sorted(self._published[key])
            ]
        return ((key, rows if columns is None else rows.select(list(columns))) for key, rows in found if rows.num_rows)

    def forget(self, entity_id: str) -> int:
        """Take out the entity's rows; see `OfflineStore.forget`."""
        self._check_open()
        with self._lock:
            gone = 0
            for files in ({**self._published}.values(), [self._staged]):
                for tables in files:
                    for name, rows in list(tables.items()):
                        tables[name] = kept = rows.filter(pc.not_equal(rows["entity_id"], entity_id))  # type: ignore[index]  # names of either kind
                        gone += rows.num_rows - kept.num_rows
            return gone

    def close(self) -> None:
        """Let go of all rows."""
        self._closed = True
        self._staged.clear()
        self._published.clear()

    def _withhold(self, key: PartitionKey, writer: str, table: pa.Table) -> tuple[pa.Table, Withheld]:
        lineage = lineage_of(writer)
        files = self._published.get(key, {})
        foreign = [rows for name, rows in files.items() if lineage_of(name.writer) != lineage]
        return ForeignRows(foreign).withhold(table) if foreign else (table, Withheld())

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the offline store is closed")
