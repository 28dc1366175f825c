"""`backfill documents`: the chunks of the index as one file for others, and the version of it that is remembered."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import orjson
import pyarrow as pa

from dataflows.document_wiring import cores, metadata_as_it_is, server_for_search, vectors_of
from dataflows.search import open_for_search
from operators.documents import doc_id
from operators.errors import ConfigError, FatalError, UnavailableError
from stores.metadata.records import DatasetVersion
from stores.offline.disk import fsync, locked, make_folders

if TYPE_CHECKING:
    from dataflows.config import Settings
    from stores.metadata.port import MetadataStore
    from stores.metadata.records import ChunkRecord, Document, StoredChunk
    from stores.vectors.port import VectorReader

Format = Literal["parquet", "jsonl"]

NAME = "documents"
"""Of the dataset, and of its file."""

SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("page", pa.int32()),
        pa.field("heading", pa.list_(pa.string()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_hash", pa.string(), nullable=False),
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("space", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)
"""The columns of the artifact: a row a chunk. page and embedding are null where there is none."""

_GROUP_ROWS = 2048
_ATTEMPTS = 5

Row = dict[str, object]


def write_artifact(
    settings: Settings, folder: Path, form: Format, *, advanced: Callable[[int, int], None] = lambda _done, _of: None
) -> DatasetVersion:
    """Write the chunks of the active space to `<folder>/documents.<form>`, and return the version that it is.

    Rows by uri, then ordinal. The file comes whole, in the place of one that was there; the same content gives the
    same bytes and the same version. Memory does not grow with the index. advanced: hears (documents written, of so
    many). Raises ConfigError if nothing was indexed yet, the folder cannot be written to, or another run writes to it.
    """
    with closing(metadata_as_it_is(settings)) as metadata, ExitStack() as opened:
        space = metadata.active_space()
        if space is None:
            raise ConfigError(
                f"METADATA_DB_URL `{settings.metadata_db_url}` holds no chunks yet;"
                " `headrace documents --once` makes them"
            )
        embedder = opened.enter_context(
            closing(open_for_search(space, settings.embeddings, server=server_for_search(settings), threads=cores()))
        )
        reader = opened.enter_context(closing(vectors_of(settings, space, embedder.dim).read()))
        rows = _Rows(metadata, reader, space, advanced)
        path = folder.resolve() / f"{NAME}.{form}"
        try:
            digest = _write(rows, path, form)
        except ValueError as error:  # the space is there no more
            raise _switched(space) from error
        runs = metadata.runs(1)
        run = runs[0].run if runs else ""
        return metadata.add_version(DatasetVersion(NAME, 0, form, str(path), rows.count, digest, run))


def take_out(version: DatasetVersion, uri: str) -> DatasetVersion | None:
    """Write the file of a version anew without a document; return what the version then is, or None if it has none.

    The file changes at once. Raises ConfigError while another run writes to it, KeyError if it is none of ours.
    """
    path = Path(version.path)
    if not path.exists():
        return None
    form: Format = "jsonl" if version.format == "jsonl" else "parquet"
    if not any(row["uri"] == uri for row in _read(path, form)):
        return None
    kept = _Kept(path, form, uri)
    digest = _write(kept, path, form)
    return replace(version, rows=kept.count, digest=digest)


class _Kept:
    """The rows of a file without those of a document; `count` of them were given."""

    def __init__(self, path: Path, form: Format, uri: str) -> None:
        self.count = 0
        self._rows = (row for row in _read(path, form) if row["uri"] != uri)

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            yield row


def _read(path: Path, form: Format) -> Iterator[Row]:
    """The rows of a file as they were written to it."""
    if form == "jsonl":
        with path.open("rb") as lines:
            for line in lines:
                yield _with_floats(orjson.loads(line))
        return
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_GROUP_ROWS):
            for row in batch.to_pylist():
                yield _with_floats(row)


def _with_floats(row: Row) -> Row:
    """Numbers of an embedding as they are stored, so that they are written alike."""
    vector = row.get("embedding")
    return row if vector is None else {**row, "embedding": np.array(vector, np.float32)}


def _switched(space: str) -> UnavailableError:
    return UnavailableError(f"another model's chunks have replaced those of `{space}` meanwhile; write them again")


class _Rows:
    """The rows of a space, in their order; `count` of them were given."""

    def __init__(
        self, metadata: MetadataStore, reader: VectorReader, space: str, advanced: Callable[[int, int], None]
    ) -> None:
        self.count = 0
        self._metadata = metadata
        self._reader = reader
        self._space = space
        self._advanced = advanced

    def __iter__(self) -> Iterator[Row]:
        documents = sum(self._metadata.counts().values())
        for done, known in enumerate(self._metadata.ledger(), start=1):
            for row in self._of_document(known.uri):
                self.count += 1
                yield row
            self._advanced(done, documents)
        if self._metadata.active_space() != self._space:
            raise _switched(self._space)

    def _of_document(self, uri: str) -> list[Row]:
        """Its chunks at one moment. Raises UnavailableError if it changes again and again."""
        name = doc_id(uri)
        for _ in range(_ATTEMPTS):
            document = self._metadata.document(name)
            stored = self._metadata.chunks_of(name, self._space)
            records = self._metadata.chunks(self._space, [chunk.key for chunk in stored])
            if document is None or not stored:
                return []
            if len(records) == len(stored) and self._metadata.document(name) == document:
                return self._rows(document, stored, records)
        raise UnavailableError(f"`{uri}` changes while it is read; try again when the run that writes it is done")

    def _rows(self, document: Document, stored: Sequence[StoredChunk], records: Mapping[int, ChunkRecord]) -> list[Row]:
        keys = np.array([chunk.key for chunk in stored], np.uint64)
        vectors, there = self._reader.get(keys)
        if not there.all():  # written since the reader has looked
            self._reader.refresh()
            vectors, there = self._reader.get(keys)
        return [
            {
                "doc_id": document.doc_id,
                "uri": document.uri,
                "title": document.title,
                "media_type": document.media_type,
                "content_hash": document.content_hash,
                "ordinal": chunk.ordinal,
                "offset": chunk.offset,
                "length": chunk.length,
                "page": chunk.page,
                "heading": list(records[chunk.key].heading),
                "text": records[chunk.key].text,
                "text_hash": chunk.text_hash,
                "key": chunk.key,
                "space": self._space,
                "embedding": vectors[at] if there[at] else None,
            }
            for at, chunk in enumerate(stored)
        ]


class _Writer(Protocol):
    """Writes rows to an open file; `close` writes what is still kept."""

    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class _JsonLines:
    """A JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, row: Row) -> None:
        self._file.write(_line(row))

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """Row groups of a fixed number of rows."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetWriter(path, SCHEMA, compression="zstd")
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        try:
            if self._rows:
                self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows = []


_WRITERS: dict[Format, Callable[[Path], _Writer]] = {"parquet": _Parquet, "jsonl": _JsonLines}


@dataclass
class _Digest:
    """Of rows, whatever file they are in: the sum of their hashes, so their order does not count."""

    total: int = 0

    def add(self, row: Row) -> None:
        self.total += int.from_bytes(blake2b(_line(row), digest_size=32).digest(), "little")

    def hex(self) -> str:
        return f"{self.total % (1 << 256):064x}"


def _write(rows: Iterable[Row], path: Path, form: Format) -> str:
    """Write the rows to the path, all or none, and return their digest: 64 hexadecimal digits."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        for parent in sorted(make_folders(path.parent)):
            fsync(parent)
        with locked(path.with_name(f".{path.name}.lock"), wait=False):
            try:
                digest = _fill(rows, _WRITERS[form](fresh))
                fsync(fresh)
                fresh.replace(path)
                fsync(path.parent)
            finally:
                fresh.unlink(missing_ok=True)
    except BlockingIOError as error:
        raise ConfigError(f"`{path}` is being written by another run; wait for it, or name another folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FatalError(f"writing `{path}`: the disk is full; what was there before is there still") from error
        raise ConfigError(f"`{path}` cannot be written: {error.strerror}; name a folder of this user's") from error
    return digest


def _fill(rows: Iterable[Row], writer: _Writer) -> str:
    """Write the rows and return their digest."""
    digest = _Digest()
    with closing(writer):
        for row in rows:
            digest.add(row)
            writer.write(row)
    return digest.hex()


def _line(row: Row) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
