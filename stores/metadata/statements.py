"""The SQL of the SQLite adapter. Values are always bound, never written into a statement."""

from __future__ import annotations

KNOWN = """
SELECT uri, source, fingerprint, content_hash, memo_key, size_bytes, state
FROM documents WHERE uri > :after ORDER BY uri LIMIT :limit
"""
KNOWN_OF_SOURCE = """
SELECT uri, source, fingerprint, content_hash, memo_key, size_bytes, state
FROM documents WHERE source = :source AND uri > :after ORDER BY uri LIMIT :limit
"""
DOCUMENT = """
SELECT uri, source, fingerprint, content_hash, memo_key, shape, media_type, size_bytes, updated_by, title,
    metadata, state
FROM documents WHERE doc_id = ?
"""
PUT_DOCUMENT = """
INSERT INTO documents (doc_id, uri, source, fingerprint, content_hash, memo_key, shape, media_type, title,
    metadata, size_bytes, state, updated_by)
VALUES (:doc_id, :uri, :source, :fingerprint, :content_hash, :memo_key, :shape, :media_type, :title,
    :metadata, :size_bytes, :state, :run)
ON CONFLICT (doc_id) DO UPDATE SET source = excluded.source, fingerprint = excluded.fingerprint,
    content_hash = excluded.content_hash, memo_key = excluded.memo_key, shape = excluded.shape,
    media_type = excluded.media_type, title = excluded.title, metadata = excluded.metadata,
    size_bytes = excluded.size_bytes, state = excluded.state, updated_by = excluded.updated_by
RETURNING document
"""
PUT_DOCUMENT_SPACE = """
INSERT INTO document_spaces (document, space, memo_key, n_chunks) VALUES (?, ?, ?, ?)
ON CONFLICT (document, space) DO UPDATE SET memo_key = excluded.memo_key, n_chunks = excluded.n_chunks
"""
TOUCH = "UPDATE documents SET source = ?, fingerprint = ? WHERE doc_id = ?"
DELETE_DOCUMENT = "DELETE FROM documents WHERE doc_id = ?"
INCOMPLETE = """
SELECT uri FROM documents WHERE state = 'ready' AND NOT EXISTS (
    SELECT 1 FROM document_spaces AS held
    WHERE held.document = documents.document AND held.space = ? AND held.memo_key = documents.memo_key
) ORDER BY uri LIMIT ?
"""
COUNT_DOCUMENTS = "SELECT state, count(*) FROM documents GROUP BY state"

OLD_CHUNKS = """
SELECT key, chunk, ordinal, "offset", length, page, heading FROM chunks JOIN chunk_texts USING (chunk)
WHERE document = ? AND space = ?
"""
LAST_CHUNK = """
SELECT max((SELECT coalesce(max(chunk), 0) FROM chunks), (SELECT coalesce(max(chunk), 0) FROM chunk_texts))
"""
PUT_CHUNK = """
INSERT INTO chunks (chunk, space, key, document, ordinal, "offset", length, page, text_hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
PUT_TEXT = "INSERT INTO chunk_texts (chunk, heading, text) VALUES (?, ?, ?)"
MOVE_CHUNK = 'UPDATE chunks SET ordinal = ?, "offset" = ?, length = ?, page = ? WHERE chunk = ?'
MOVE_HEADING = "UPDATE chunk_texts SET heading = ? WHERE chunk = ?"
DELETE_CHUNK = "DELETE FROM chunks WHERE chunk = ?"

CHUNKS_OF = """
SELECT key, ordinal, "offset", length, page, lower(hex(text_hash)) FROM chunks
WHERE document = (SELECT document FROM documents WHERE doc_id = ?) AND space = ? ORDER BY ordinal
"""
KEY_OF_TEXT = "SELECT key FROM chunks WHERE space = ? AND text_hash = ? ORDER BY key LIMIT 1"
CHUNK = """
SELECT heading, doc_id, uri, title, ordinal, "offset", length, page, text
FROM chunks JOIN chunk_texts USING (chunk) JOIN documents USING (document) WHERE space = ? AND key = ?
"""
KEYS = "SELECT key FROM chunks WHERE space = ? AND key >= ? ORDER BY key LIMIT ?"
SEARCH = """
SELECT chunks.key, -bm25(chunk_words) AS score FROM chunk_words JOIN chunks ON chunks.chunk = chunk_words.rowid
WHERE chunk_words MATCH :words AND chunks.space = :space
ORDER BY score DESC, chunks.key LIMIT :limit
"""
SEARCH_IN = """
SELECT chunks.key, -bm25(chunk_words) AS score FROM chunk_words JOIN chunks ON chunks.chunk = chunk_words.rowid
WHERE chunk_words MATCH :words AND chunks.space = :space
    AND chunks.document IN (SELECT document FROM documents WHERE uri GLOB :glob)
ORDER BY score DESC, chunks.key LIMIT :limit
"""

SPACE = "SELECT space, state FROM spaces WHERE name = ?"
ACTIVE_SPACE = "SELECT name FROM spaces WHERE state = 'active'"
PUT_SPACE = "INSERT INTO spaces (name, state) VALUES (?, 'building') ON CONFLICT (name) DO NOTHING"
WAKE_SPACE = "UPDATE spaces SET state = 'building' WHERE name = ? AND state = 'retired'"
FIRST_ACTIVE = """
UPDATE spaces SET state = 'active' WHERE name = ? AND NOT EXISTS (SELECT 1 FROM spaces WHERE state = 'active')
"""
RETIRE_ACTIVE = "UPDATE spaces SET state = 'retired' WHERE state = 'active'"
SET_STATE = "UPDATE spaces SET state = ? WHERE space = ?"
SPACES = """
SELECT name, state, count(document), coalesce(sum(n_chunks), 0)
FROM spaces LEFT JOIN document_spaces USING (space) GROUP BY space ORDER BY name
"""
EMPTY_SPACE = "DELETE FROM document_spaces WHERE space = ?"
DROP_CHUNKS = "DELETE FROM chunks WHERE chunk IN (SELECT chunk FROM chunks WHERE space = ? LIMIT ?)"
DROP_SPACE = "DELETE FROM spaces WHERE space = ?"

START_RUN = """
INSERT INTO runs (run, started_us, shape, counts) VALUES (?, ?, ?, '{}') ON CONFLICT (run) DO NOTHING
"""
END_RUN = "UPDATE runs SET ended_us = ?, counts = ? WHERE run = ?"
POSITIONS = "SELECT part, position FROM positions WHERE topic = ? ORDER BY part"
PUT_POSITION = """
INSERT INTO positions (topic, part, position) VALUES (?, ?, ?)
ON CONFLICT (topic, part) DO UPDATE SET position = excluded.position
"""

TABLES = ("documents", "spaces", "document_spaces", "chunks", "chunk_texts", "runs", "dataset_versions", "positions")
CHECK_TABLE = "SELECT integrity_check FROM pragma_integrity_check(?) WHERE integrity_check <> 'ok'"
CHECK_REFERENCES = 'SELECT "table", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2 ORDER BY 1, 2'
CHECK_TEXT = "INSERT INTO chunk_words (chunk_words, rank) VALUES ('integrity-check', 1)"
MERGE_TEXT = "INSERT INTO chunk_words (chunk_words) VALUES ('optimize')"
MEND_TEXT = "INSERT INTO chunk_words (chunk_words) VALUES ('rebuild')"

RUNS = "SELECT run, started_us, shape, ended_us, counts FROM runs ORDER BY started_us DESC, run DESC LIMIT ?"
VERSIONS = """
SELECT name, version, format, path, "rows", digest, created_by FROM dataset_versions
WHERE :name IS NULL OR name = :name ORDER BY name, version
"""
NEWEST_VERSION = """
SELECT name, version, format, path, "rows", digest, created_by FROM dataset_versions
WHERE name = ? ORDER BY version DESC LIMIT 1
"""
PUT_VERSION = """
INSERT INTO dataset_versions (name, version, format, path, "rows", digest, created_by) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
