"""The tables of the SQLite adapter, as the list of changes that made them.

What tracks documents and chunks stands apart from the text that is searched and shown, so that the
ledger, the diff and the look-up by hash read small rows. Numbers stand in for names inside the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from operators.errors import ConfigError
from stores.sqlite import transaction

Migration = tuple[str, ...]
"""Statements that lead from one version of the tables to the next, in one transaction."""

_FIRST: Migration = (
    """
CREATE TABLE documents (
    document INTEGER PRIMARY KEY,
    doc_id TEXT NOT NULL UNIQUE,
    uri TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    memo_key TEXT NOT NULL,
    shape TEXT NOT NULL,
    media_type TEXT NOT NULL,
    title TEXT NOT NULL,
    metadata TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ready', 'dead')),
    updated_by TEXT NOT NULL
)
""",
    "CREATE INDEX documents_by_source ON documents (source, uri)",
    """
CREATE TABLE spaces (
    space INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('building', 'active', 'retired'))
)
""",
    "CREATE UNIQUE INDEX one_active_space ON spaces (state) WHERE state = 'active'",
    # Which state of a document a space holds; n_chunks may be 0.
    """
CREATE TABLE document_spaces (
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    space INTEGER NOT NULL REFERENCES spaces,
    memo_key TEXT NOT NULL,
    n_chunks INTEGER NOT NULL,
    PRIMARY KEY (document, space)
) WITHOUT ROWID
""",
    # key: the unsigned key less 2^63, so that SQLite, which knows signed numbers only, sorts keys as what they are.
    """
CREATE TABLE chunks (
    chunk INTEGER PRIMARY KEY,
    space INTEGER NOT NULL REFERENCES spaces,
    key INTEGER NOT NULL,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    length INTEGER NOT NULL,
    page INTEGER,
    text_hash BLOB NOT NULL CHECK (length(text_hash) = 16),
    UNIQUE (space, key)
)
""",
    "CREATE INDEX chunks_by_document ON chunks (document, space)",
    "CREATE INDEX chunks_by_text ON chunks (space, text_hash, key)",
    """
CREATE TABLE chunk_texts (
    chunk INTEGER PRIMARY KEY REFERENCES chunks ON DELETE CASCADE,
    heading TEXT NOT NULL,
    text TEXT NOT NULL
)
""",
    # Its content is chunk_texts: no text is kept twice. The triggers make it part of every transaction on that table.
    """
CREATE VIRTUAL TABLE chunk_words USING fts5(
    heading, text, content = 'chunk_texts', content_rowid = 'chunk', tokenize = 'porter unicode61 remove_diacritics 2'
)
""",
    """
CREATE TRIGGER chunk_words_insert AFTER INSERT ON chunk_texts BEGIN
    INSERT INTO chunk_words (rowid, heading, text) VALUES (new.chunk, new.heading, new.text);
END
""",
    """
CREATE TRIGGER chunk_words_delete AFTER DELETE ON chunk_texts BEGIN
    INSERT INTO chunk_words (chunk_words, rowid, heading, text)
    VALUES ('delete', old.chunk, old.heading, old.text);
END
""",
    """
CREATE TRIGGER chunk_words_update AFTER UPDATE ON chunk_texts BEGIN
    INSERT INTO chunk_words (chunk_words, rowid, heading, text)
    VALUES ('delete', old.chunk, old.heading, old.text);
    INSERT INTO chunk_words (rowid, heading, text) VALUES (new.chunk, new.heading, new.text);
END
""",
    """
CREATE TABLE runs (
    run TEXT PRIMARY KEY NOT NULL,
    started_us INTEGER NOT NULL,
    ended_us INTEGER,
    shape TEXT NOT NULL,
    counts TEXT NOT NULL
)
""",
    """
CREATE TABLE dataset_versions (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    format TEXT NOT NULL,
    path TEXT NOT NULL,
    "rows" INTEGER NOT NULL,
    digest TEXT NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (name, version)
)
""",
)

_POSITIONS: Migration = (
    """
CREATE TABLE positions (
    topic TEXT NOT NULL,
    part TEXT NOT NULL,
    position TEXT NOT NULL,
    PRIMARY KEY (topic, part)
) WITHOUT ROWID
""",
)

MIGRATIONS: tuple[Migration, ...] = (_FIRST, _POSITIONS)
"""Only ever appended to: files of every older version are out there."""


def migrate(connection: sqlite3.Connection, where: str, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the tables of the file `where` to the newest version, one transaction for each step.

    Safe when several processes do it at once, and after a crash in the middle. Raises ConfigError, with
    nothing changed, if a newer Headrace wrote the file, if something else did, or if SQLite was built without FTS5.
    """
    if schema_version(connection, where) == len(migrations):
        return
    if not connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} of this Python has no FTS5; use a Python that has it")
    for number, statements in enumerate(migrations, start=1):
        with transaction(connection):
            found = schema_version(connection, where)  # again, since another process may have been faster
            if found > len(migrations):
                raise ConfigError(
                    f"metadata `{where}` is of version {found}, this Headrace knows {len(migrations)}; upgrade Headrace"
                )
            if found < number:
                _step(connection, number, statements)


def schema_version(connection: sqlite3.Connection, where: str) -> int:
    """The version of the tables; 0 for an empty file. Raises ConfigError if the tables are not ours."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if "schema_version" in tables:
        return int(connection.execute("SELECT max(version) FROM schema_version").fetchone()[0])
    if tables:
        raise ConfigError(f"METADATA_DB_URL names `{where}`, which is another program's database; name another file")
    return 0


def _step(connection: sqlite3.Connection, number: int, statements: Migration) -> None:
    if number == 1:
        connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
    for statement in statements:
        connection.execute(statement)
    connection.execute("DELETE FROM schema_version")
    connection.execute("INSERT INTO schema_version VALUES (?)", (number,))
