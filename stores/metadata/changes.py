"""How one document's change is written to the SQLite file, inside a transaction of the caller."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from operators.documents import doc_id
from stores.metadata import statements as sql
from stores.metadata.records import Change, Delete, Document, Rename, Touch, Upsert
from stores.metadata.words import ChunkRow, chunk_rows, json_text, valid

KEY_SHIFT = 1 << 63
"""What a key is less in the file, since SQLite knows signed numbers only; its order stays the same."""


def apply_change(connection: sqlite3.Connection, change: Change) -> None:
    """Write the change. Raises ValueError if its space was never added."""
    match change:
        case Upsert():
            _upsert(connection, change)
        case Touch():
            connection.execute(sql.TOUCH, (valid(change.source), change.fingerprint, doc_id(change.uri)))
        case Delete():
            connection.execute(sql.DELETE_DOCUMENT, (doc_id(change.uri),))
        case Rename():
            connection.execute(sql.DELETE_DOCUMENT, (doc_id(change.old_uri),))
            _upsert(connection, change.new)


def space_number(connection: sqlite3.Connection, space: str) -> int:
    """The number that stands for the space in the file. Raises ValueError if it was never added."""
    row = connection.execute(sql.SPACE, (space,)).fetchone()
    if row is None:
        raise ValueError(f"space `{space}` was never added")
    return int(row[0])


@dataclass(frozen=True, slots=True)
class _Kept:
    """A chunk as the file holds it."""

    chunk: int
    place: tuple[int, int, int, int | None]
    heading: str


def _upsert(connection: sqlite3.Connection, upsert: Upsert) -> None:
    space = space_number(connection, upsert.space)
    [(document,)] = connection.execute(sql.PUT_DOCUMENT, _bound(upsert.document))
    rows = chunk_rows(upsert)
    kept = {
        key + KEY_SHIFT: _Kept(chunk, tuple(place), heading)
        for key, chunk, *place, heading in connection.execute(sql.OLD_CHUNKS, (document, space))
    }
    named = {row.key for row in rows}
    gone = [(old.chunk,) for key, old in kept.items() if key not in named]
    connection.executemany(sql.DELETE_CHUNK, gone)
    _move(connection, [(row, kept[row.key]) for row in rows if row.key in kept])
    _insert(connection, document, space, [row for row in rows if row.key not in kept])
    connection.execute(sql.PUT_DOCUMENT_SPACE, (document, space, upsert.document.memo_key, len(rows)))


def _move(connection: sqlite3.Connection, pairs: Iterable[tuple[ChunkRow, _Kept]]) -> None:
    """Only what stands elsewhere is written: an unchanged chunk costs a comparison."""
    for row, old in pairs:
        place = _place(row)
        if place != old.place:
            connection.execute(sql.MOVE_CHUNK, (*place, old.chunk))
        if row.heading != old.heading:
            connection.execute(sql.MOVE_HEADING, (row.heading, old.chunk))


def _insert(connection: sqlite3.Connection, document: int, space: int, rows: list[ChunkRow]) -> None:
    ((last,),) = connection.execute(sql.LAST_CHUNK)
    connection.executemany(
        sql.PUT_CHUNK,
        [
            (chunk, space, row.key - KEY_SHIFT, document, *_place(row), bytes.fromhex(row.text_hash))
            for chunk, row in enumerate(rows, last + 1)
        ],
    )
    connection.executemany(sql.PUT_TEXT, [(chunk, row.heading, row.text) for chunk, row in enumerate(rows, last + 1)])


def _place(row: ChunkRow) -> tuple[int, int, int, int | None]:
    return row.ordinal, row.offset, row.length, row.page


def _bound(document: Document) -> dict[str, str | int]:
    return {
        "doc_id": document.doc_id,
        "uri": document.uri,
        "source": valid(document.source),
        "fingerprint": document.fingerprint,
        "content_hash": document.content_hash,
        "memo_key": document.memo_key,
        "shape": document.shape,
        "media_type": valid(document.media_type),
        "title": valid(document.title),
        "metadata": json_text(document.metadata),
        "size_bytes": document.size_bytes,
        "state": document.state,
        "run": document.run,
    }
