"""Metadata in one SQLite file: the ledger, the chunks and their full text, changed together."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

from stores.metadata import statements as sql
from stores.metadata.changes import KEY_SHIFT, apply_change, space_number
from stores.metadata.records import (
    Change,
    ChunkRecord,
    DatasetVersion,
    Document,
    Known,
    Run,
    Space,
    StoredChunk,
    TextHit,
)
from stores.metadata.schema import migrate
from stores.metadata.words import check_limit, json_text, query_words, uri_pattern, valid
from stores.sqlite import BUSY_S, SqliteFile, transaction

_LEDGER_PAGE = 5_000
_DROP_PAGE = 1_000
_CACHE_KIB = 32 << 10


class SqliteMetadata:
    """`MetadataStore` in a file on a local disk; the file and its folder are created on opening."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        """Open the file and bring its tables up to date.

        Raises ConfigError if it cannot be opened, is another program's or was written by a newer Headrace,
        CorruptStoreError if it is not a database.
        """

        def prepare(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            migrate(connection, str(path))

        self._file = SqliteFile(path, "metadata", prepare, busy_s=busy_s)

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes in one transaction; see `Ledger.apply`."""
        with self._file.held("changing") as connection:
            if not changes:
                return
            with transaction(connection):
                for change in changes:
                    apply_change(connection, change)

    def ledger(self, source: str | None = None) -> Iterator[Known]:
        """Yield what is known of every document, read in pages; see `Ledger.ledger`."""
        query = sql.KNOWN if source is None else sql.KNOWN_OF_SOURCE
        bound: dict[str, object] = {"limit": _LEDGER_PAGE, "after": ""}
        if source is not None:
            bound["source"] = valid(source)
        while True:
            with self._file.held("reading") as connection:
                page = [Known(*row) for row in connection.execute(query, bound)]
            yield from page
            if len(page) < _LEDGER_PAGE:
                return
            bound["after"] = page[-1].uri

    def document(self, doc_id: str) -> Document | None:
        """Return the document; see `Ledger.document`."""
        with self._file.held("reading") as connection:
            row = connection.execute(sql.DOCUMENT, (doc_id,)).fetchone()
        if row is None:
            return None
        *fields, metadata, state = row
        return replace(Document(*fields), metadata=json.loads(metadata), state=state)

    def incomplete(self, space: str, limit: int = 1000) -> Sequence[str]:
        """Return the uris that the space lacks; see `Ledger.incomplete`."""
        check_limit(limit)
        with self._file.unchanging("reading") as connection:
            return [uri for (uri,) in connection.execute(sql.INCOMPLETE, (space_number(connection, space), limit))]

    def counts(self) -> Mapping[str, int]:
        """Return the number of documents by state; see `Ledger.counts`."""
        with self._file.held("counting") as connection:
            return {"ready": 0, "dead": 0} | dict(connection.execute(sql.COUNT_DOCUMENTS))

    def chunks_of(self, doc_id: str, space: str) -> Sequence[StoredChunk]:
        """Return the document's chunks; see `Chunks.chunks_of`."""
        with self._file.unchanging("reading") as connection:
            rows = connection.execute(sql.CHUNKS_OF, (doc_id, space_number(connection, space)))
            return [StoredChunk(key + KEY_SHIFT, *rest) for key, *rest in rows]

    def find_by_text_hash(self, space: str, text_hashes: Sequence[str]) -> Mapping[str, int]:
        """Return keys of chunks with these texts; see `Chunks.find_by_text_hash`."""
        found: dict[str, int] = {}
        with self._file.unchanging("reading") as connection:
            number = space_number(connection, space)
            for text_hash in text_hashes:
                row = connection.execute(sql.KEY_OF_TEXT, (number, bytes.fromhex(text_hash))).fetchone()
                if row:
                    found[text_hash] = row[0] + KEY_SHIFT
        return found

    def chunks(self, space: str, keys: Sequence[int]) -> Mapping[int, ChunkRecord]:
        """Return the chunks with these keys; see `Chunks.chunks`."""
        found: dict[int, ChunkRecord] = {}
        with self._file.unchanging("reading") as connection:
            number = space_number(connection, space)
            for key in map(int, keys):
                row = connection.execute(sql.CHUNK, (number, key - KEY_SHIFT)).fetchone()
                if row:
                    heading, *fields = row
                    found[key] = ChunkRecord(key, tuple(json.loads(heading)), *fields)
        return found

    def keys(self, space: str, *, after: int | None = None, limit: int = 10_000) -> Sequence[int]:
        """Return one page of keys; see `Chunks.keys`."""
        check_limit(limit)
        first = 0 if after is None else int(after) + 1
        with self._file.unchanging("reading") as connection:
            number = space_number(connection, space)
            if first >= 2 * KEY_SHIFT:
                return []
            rows = connection.execute(sql.KEYS, (number, first - KEY_SHIFT, limit))
            return [key + KEY_SHIFT for (key,) in rows]

    def search_text(self, space: str, query: str, *, limit: int, uri_glob: str | None = None) -> Sequence[TextHit]:
        """Return the best chunks by BM25; see `Chunks.search_text`."""
        check_limit(limit)
        # Each word is a quoted string, in which FTS5 knows no operator.
        bound: dict[str, object] = {"words": " OR ".join(f'"{word}"' for word in query_words(query)), "limit": limit}
        if uri_glob is not None:
            bound["glob"] = uri_pattern(uri_glob)
        with self._file.unchanging("searching") as connection:
            bound["space"] = space_number(connection, space)
            if not bound["words"]:
                return []
            rows = connection.execute(sql.SEARCH if uri_glob is None else sql.SEARCH_IN, bound)
            return [TextHit(key + KEY_SHIFT, score) for key, score in rows]

    def add_space(self, space: str) -> None:
        """Make sure that the space is there; see `Spaces.add_space`."""
        with self._file.written("changing") as connection:
            for statement in (sql.PUT_SPACE, sql.WAKE_SPACE, sql.FIRST_ACTIVE):
                connection.execute(statement, (space,))

    def spaces(self) -> Sequence[Space]:
        """Return all spaces; see `Spaces.spaces`."""
        with self._file.held("reading") as connection:
            return [Space(*row) for row in connection.execute(sql.SPACES)]

    def active_space(self) -> str | None:
        """Return the space that search answers from; see `Spaces.active_space`."""
        with self._file.held("reading") as connection:
            row = connection.execute(sql.ACTIVE_SPACE).fetchone()
        return str(row[0]) if row else None

    def activate(self, space: str) -> bool:
        """Answer searches from this space if it is complete; see `Spaces.activate`."""
        with self._file.written("changing") as connection:
            number = space_number(connection, space)
            if connection.execute(sql.ACTIVE_SPACE).fetchone() == (space,):
                return True
            if connection.execute(sql.INCOMPLETE, (number, 1)).fetchone():
                return False
            connection.execute(sql.RETIRE_ACTIVE)
            connection.execute(sql.SET_STATE, ("active", number))
            return True

    def drop_space(self, space: str) -> None:
        """Forget the space, in pages, so that readers and writers get in between; see `Spaces.drop_space`."""
        with self._file.written("changing") as connection:
            row = connection.execute(sql.SPACE, (space,)).fetchone()
            if row is None:
                return
            number, state = row
            if state == "active":
                raise ValueError(f"space `{space}` is active: searches are answered from it")
            connection.execute(sql.SET_STATE, ("retired", number))
            connection.execute(sql.EMPTY_SPACE, (number,))
        while True:
            with self._file.written("dropping a space from") as connection:
                if connection.execute(sql.DROP_CHUNKS, (number, _DROP_PAGE)).rowcount == 0:
                    connection.execute(sql.DROP_SPACE, (number,))
                    break
        with self._file.held("shrinking") as connection:
            # A script, since `execute` would stop at the first page that becomes free.
            connection.executescript("PRAGMA incremental_vacuum")

    def start_run(self, run: str, *, started_us: int, shape: str) -> None:
        """Note that a run has begun; see `Runs.start_run`."""
        with self._file.written("changing") as connection:
            connection.execute(sql.START_RUN, (run, started_us, shape))

    def end_run(self, run: str, *, ended_us: int, counts: Mapping[str, int]) -> None:
        """Note how the run ended; see `Runs.end_run`."""
        with self._file.written("changing") as connection:
            connection.execute(sql.END_RUN, (ended_us, json_text(counts), run))

    def runs(self, limit: int = 100) -> Sequence[Run]:
        """Return the latest runs; see `Runs.runs`."""
        check_limit(limit)
        with self._file.held("reading") as connection:
            rows = connection.execute(sql.RUNS, (limit,))
            return [Run(run, start, shape, end, json.loads(counts)) for run, start, shape, end, counts in rows]

    def add_version(self, version: DatasetVersion) -> DatasetVersion:
        """Keep a dataset version; see `Runs.add_version`."""
        with self._file.written("changing") as connection:
            row = connection.execute(sql.NEWEST_VERSION, (version.name,)).fetchone()
            newest = DatasetVersion(*row) if row else None
            kept = version.behind(newest)
            if kept != newest:
                connection.execute(sql.PUT_VERSION, astuple(kept))
        return kept

    def versions(self, name: str | None = None) -> Sequence[DatasetVersion]:
        """Return dataset versions; see `Runs.versions`."""
        with self._file.held("reading") as connection:
            return [DatasetVersion(*row) for row in connection.execute(sql.VERSIONS, {"name": name})]

    def positions(self, topic: str) -> Mapping[str, Mapping[str, object]]:
        """Return how far the topic has been read; see `Positions.positions`."""
        with self._file.held("reading") as connection:
            return {part: json.loads(position) for part, position in connection.execute(sql.POSITIONS, (topic,))}

    def note_positions(self, topic: str, positions: Mapping[str, Mapping[str, object]]) -> None:
        """Note how far the topic has been read, in one transaction; see `Positions.note_positions`."""
        with self._file.written("changing") as connection:
            rows = [(topic, part, json_text(position)) for part, position in sorted(positions.items())]
            connection.executemany(sql.PUT_POSITION, rows)

    def check(self) -> Sequence[str]:
        """Return a sentence for each damage; see `Upkeep.check`."""
        with self._file.held("checking") as connection:
            damages = [said for table in sql.TABLES for (said,) in connection.execute(sql.CHECK_TABLE, (table,))]
            for table, parent, rows in connection.execute(sql.CHECK_REFERENCES):
                damages.append(f"{rows} rows of `{table}` belong to no row of `{parent}`")
        return [f"`{self._file.path}`: {damage}" for damage in damages]

    def text_is_whole(self) -> bool:
        """Whether the full text fits the chunks; see `Upkeep.text_is_whole`."""
        with self._file.held("checking the full text of") as connection:
            connection.execute("BEGIN")  # to be rolled back: the check is an INSERT, and would touch the file
            try:
                connection.execute(sql.CHECK_TEXT)
            except sqlite3.DatabaseError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_CORRUPT_VTAB:
                    raise
                return False
            finally:
                connection.execute("ROLLBACK")
            return True

    def mend_text(self) -> None:
        """Make the full text anew; see `Upkeep.mend_text`."""
        with self._file.written("mending the full text of") as connection:
            connection.execute(sql.MEND_TEXT)

    def scrub(self) -> None:
        """Merge the full text, which keeps deleted words until then, and write the file anew; see `Upkeep.scrub`."""
        with self._file.written("scrubbing") as connection:
            connection.execute(sql.MERGE_TEXT)
        self._file.scrub()

    def close(self) -> None:
        """Close the file; see `MetadataStore.close`."""
        self._file.close()
