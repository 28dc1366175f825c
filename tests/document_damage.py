"""Damage that tests do to an index: each function plants one kind and returns the differences that must be named."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from dataflows.sources.files import uri_of
from operators.documents import doc_id
from stores.vectors import open_vectors
from stores.vectors.port import VectorStore, shard_of
from stores.vectors.shard_log import LogFormat, LogReader, LogWriter
from tests.commands import Done, headrace
from tests.documents_place import STUB, DocumentPlace, sections

SETTINGS: dict[str, object] = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}
DOCUMENTS = {
    "a.md": sections("a1", "a2", "a3"),
    "b.md": sections("b1", "b2"),
    "c.txt": "Words of a short text.",
    "d.md": sections("d1"),
    "dead.pdf": "this is no PDF",
}
HALF = 1 << 63
Told = set[tuple[str, str | None]]
"""Differences and the names of their documents."""

Damage = Callable[["Planted"], Told]


class Planted(DocumentPlace):
    """A place whose stores tests damage."""

    def sql(self, statement: str, *values: object) -> None:
        """Change the metadata behind the store's back."""
        with closing(sqlite3.connect(self.root / "metadata.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            assert connection.execute(statement, values).rowcount > 0

    def vectors(self) -> VectorStore:
        """The vectors."""
        return open_vectors(f"usearch:///{self.vectors_folder}", STUB, 384)

    def key(self, name: str, ordinal: int = 0) -> int:
        """The key of a chunk."""
        with self.metadata() as metadata:
            return metadata.chunks_of(doc_id(self.uri(name)), STUB)[ordinal].key

    def shard(self, name: str) -> int:
        """The shard of a document."""
        return shard_of(doc_id(self.uri(name)), self.vectors().shards)

    def log(self, name: str) -> Path:
        """The log of its shard."""
        [log] = (self.vectors_folder / STUB / f"shard-{self.shard(name):03}").glob("log-*")
        return log

    def name_of(self, uri: str | None) -> str | None:
        """The name of a document."""
        return None if uri is None else uri.removeprefix(f"{uri_of(str(self.docs))}/")

    def verify(self, *options: str, **settings: object) -> Done:
        """Run `headrace verify documents --json`."""
        return headrace(self, "verify", "documents", "--json", *options, **settings)


def a_document_more(place: Planted) -> Told:
    """Nobody has ingested it."""
    place.put("new.md", "new")
    return {("missing", "new.md")}


def a_document_less(place: Planted) -> Told:
    """It was there when the index was made."""
    (place.docs / "b.md").unlink()
    return {("gone", "b.md")}


def a_document_moved(place: Planted) -> Told:
    """For a look it is one that is gone and one that is new."""
    (place.docs / "b.md").rename(place.docs / "z.md")
    return {("gone", "b.md"), ("missing", "z.md")}


def a_document_edited(place: Planted) -> Told:
    """Content and fingerprint are others."""
    place.put("c.txt", "Other words.")
    return {("changed", "c.txt")}


def a_dead_document_mended(place: Planted) -> Told:
    """It can be indexed now."""
    place.put("dead.pdf", "Words, and no PDF at all")
    (place.docs / "dead.pdf").rename(place.docs / "alive.txt")
    return {("gone", "dead.pdf"), ("missing", "alive.txt")}


def a_content_altered_in_place(place: Planted) -> Told:
    """As a program does that sets back the time of a file: no listing sees it."""
    path = place.docs / "c.txt"
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"Wards")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {("altered", "c.txt")}


def a_state_that_its_space_lacks(place: Planted) -> Told:
    """The document is there, and not complete."""
    place.sql("DELETE FROM document_spaces WHERE document = (SELECT document FROM documents WHERE uri LIKE '%b.md')")
    return {("incomplete", "b.md")}


def a_gap_between_chunks(place: Planted) -> Told:
    """The middle chunk is lost: its vector has nobody."""
    place.sql("DELETE FROM chunks WHERE key = ?", place.key("a.md", 1) - HALF)
    return {("chunk_order", "a.md"), ("vector_orphan", None)}


def a_lost_tail(place: Planted) -> Told:
    """The last chunk is lost: what is left looks whole but for its vector."""
    place.sql("DELETE FROM chunks WHERE key = ?", place.key("a.md", 2) - HALF)
    return {("chunks", "a.md"), ("vector_orphan", None)}


def a_moved_chunk(place: Planted) -> Told:
    """Its text stands elsewhere in the document."""
    place.sql('UPDATE chunks SET "offset" = "offset" + 1 WHERE key = ?', place.key("a.md", 1) - HALF)
    return {("chunks", "a.md")}


def another_key(place: Planted) -> Told:
    """It leads to no vector, and the vector to no chunk."""
    place.sql("UPDATE chunks SET key = 5 WHERE key = ?", place.key("b.md") - HALF)
    return {("chunk_key", "b.md"), ("vector_missing", "b.md"), ("vector_orphan", None)}


def another_hash(place: Planted) -> Told:
    """It is not that of the text, and the key is not that of the hash."""
    place.sql("UPDATE chunks SET text_hash = zeroblob(16) WHERE key = ?", place.key("b.md") - HALF)
    return {("chunk_hash", "b.md"), ("chunk_key", "b.md")}


def another_text(place: Planted) -> Told:
    """Searches would show what nobody wrote."""
    place.sql(
        "UPDATE chunk_texts SET text = 'forged' WHERE chunk = (SELECT chunk FROM chunks WHERE key = ?)",
        place.key("b.md") - HALF,
    )
    return {("chunk_hash", "b.md"), ("chunk_length", "b.md")}


def another_length(place: Planted) -> Told:
    """Not that of the text."""
    place.sql("UPDATE chunks SET length = length + 1 WHERE key = ?", place.key("b.md") - HALF)
    return {("chunk_length", "b.md")}


def a_chunk_without_text(place: Planted) -> Told:
    """Nothing could be shown."""
    place.sql(
        "DELETE FROM chunk_texts WHERE chunk = (SELECT chunk FROM chunks WHERE key = ?)", place.key("b.md") - HALF
    )
    return {("chunk_text", "b.md")}


def words_without_text(place: Planted) -> Told:
    """The full text knows a chunk by words that it has not."""
    place.sql(
        "INSERT INTO chunk_words (chunk_words, rowid, heading, text)"
        " SELECT 'delete', chunk, heading, text FROM chunk_texts"
    )
    return {("text_index", None)}


def a_vector_less(place: Planted) -> Told:
    """A chunk that no search by meaning finds."""
    with closing(place.vectors().write(place.shard("b.md"))) as writer:
        writer.delete(np.array([place.key("b.md", 1)], np.uint64))
        writer.commit()
    return {("vector_missing", "b.md")}


def a_vector_more(place: Planted) -> Told:
    """As a crash between vectors and metadata leaves one."""
    with closing(place.vectors().write(3)) as writer:
        writer.put(np.array([77], np.uint64), np.eye(1, 384, dtype=np.float32))
        writer.commit()
    return {("vector_orphan", None)}


def a_vector_too_long(place: Planted) -> Told:
    """No writer takes one: it is put into the log by hand."""
    log, form = place.log("b.md"), LogFormat(384, "f16")
    with closing(LogReader(log, form, 0)) as reader:
        records = list(reader.read())
        end = reader.end
    with closing(LogWriter(log, end)) as writer:
        writer.append(form.pack(len(records), {place.key("b.md"): np.full(384, 0.5, np.float32)}))
    return {("vector_length", "b.md")}


def a_torn_last_commit(place: Planted) -> Told:
    """A byte of the last commit is another: it counts as never made."""
    log = place.log("c.txt")
    with closing(LogReader(log, LogFormat(384, "f16"), 0)) as reader:
        *_, last = reader.read()
    flip(log, -1)
    with place.metadata() as metadata:
        records = metadata.chunks(STUB, last.keys.tolist())
    return {("vector_missing", place.name_of(record.uri)) for record in records.values()}


def a_damaged_log(place: Planted) -> Told:
    """A byte of a commit before the last is another: nothing of the store can be trusted."""
    shard = place.vectors().write(place.shard("c.txt"))
    with closing(shard) as writer:
        writer.put(np.array([77], np.uint64), np.eye(1, 384, dtype=np.float32))
        writer.commit()
    flip(place.log("c.txt"), 100)
    return {("vector_damage", None)}


def a_retired_space(place: Planted) -> Told:
    """As a crash behind the change to another model leaves one."""
    place.sql("INSERT INTO spaces (name, state) VALUES ('old-8', 'retired')")
    with closing(open_vectors(f"usearch:///{place.vectors_folder}", "old-8", 8).write(0)):
        pass
    return {("leftover", None)}


def a_lost_ledger(place: Planted) -> Told:
    """The metadata are gone, the vectors are not."""
    (place.root / "metadata.db").unlink()
    return {*(("missing", name) for name in DOCUMENTS), ("vector_orphan", None)}


def flip(path: Path, at: int) -> None:
    """Change a byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: list[Damage] = [
    a_document_more,
    a_document_less,
    a_document_moved,
    a_document_edited,
    a_dead_document_mended,
    a_content_altered_in_place,
    a_state_that_its_space_lacks,
    a_gap_between_chunks,
    a_lost_tail,
    a_moved_chunk,
    another_key,
    another_hash,
    another_text,
    another_length,
    a_chunk_without_text,
    words_without_text,
    a_vector_less,
    a_vector_more,
    a_vector_too_long,
    a_torn_last_commit,
    a_damaged_log,
    a_retired_space,
    a_lost_ledger,
]
"""All of them."""
