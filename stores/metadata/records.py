"""The values that a metadata store takes and gives: documents, their changes, chunks, spaces, runs, versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from operators.documents import Chunk, doc_id

DocumentState = Literal["ready", "dead"]
"""ready: its chunks can be found; dead: it could not be made into chunks and lies in the dead letters."""

SpaceState = Literal["building", "active", "retired"]
"""building: documents are still missing; active: search answers from it (one at most); retired: to be dropped."""


@dataclass(frozen=True, slots=True)
class Known:
    """A line of the ledger: what must be remembered of a document to tell whether it has changed.

    source: name of the source that listed it. fingerprint: as it was listed. content_hash: of its bytes,
    "" if these were never read. memo_key: hash of the content and of all that shaped the result.
    """

    uri: str
    source: str
    fingerprint: str
    content_hash: str
    memo_key: str
    size_bytes: int
    state: DocumentState = "ready"


@dataclass(frozen=True, slots=True)
class Document:
    """All that is known of a document except its chunks.

    shape: hash of all that shaped the result. metadata: JSON-able. run: the run that wrote it last.
    """

    uri: str
    source: str
    fingerprint: str
    content_hash: str
    memo_key: str
    shape: str
    media_type: str
    size_bytes: int
    run: str
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    state: DocumentState = "ready"

    @property
    def doc_id(self) -> str:
        """32 hexadecimal digits that follow from the uri."""
        return doc_id(self.uri)

    @property
    def known(self) -> Known:
        """Its line in the ledger."""
        return Known(
            self.uri,
            self.source,
            self.fingerprint,
            self.content_hash,
            self.memo_key,
            self.size_bytes,
            self.state,
        )


@dataclass(frozen=True, slots=True)
class Upsert:
    """The document as it is now, with all its chunks in the space: those not named are gone from there.

    Its chunks in other spaces stay as they are.
    """

    document: Document
    space: str
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Touch:
    """Only the fingerprint, or the source that lists it, is another; nothing if the document is not known."""

    uri: str
    source: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Delete:
    """The document is gone, from all spaces; nothing if it is not known."""

    uri: str


@dataclass(frozen=True, slots=True)
class Rename:
    """The document has another uri: the old one goes and the new one comes at the same moment."""

    old_uri: str
    new: Upsert


Change = Upsert | Touch | Delete | Rename
"""What may happen to one document."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """Where a chunk of a document stands, without its text. key: uint64; offset and length: characters."""

    key: int
    ordinal: int
    offset: int
    length: int
    page: int | None
    text_hash: str


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A chunk with its text and its document's name, as a hit shows it."""

    key: int
    heading: tuple[str, ...]
    doc_id: str
    uri: str
    title: str
    ordinal: int
    offset: int
    length: int
    page: int | None
    text: str


@dataclass(frozen=True, slots=True)
class TextHit:
    """A chunk that holds words of the query. score: higher is better; comparable within one answer only."""

    key: int
    score: float


@dataclass(frozen=True, slots=True)
class Space:
    """The chunks of one embedder. documents, chunks: how many are in it."""

    name: str
    state: SpaceState
    documents: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the flow. started_us, ended_us: microseconds since the epoch, UTC.

    ended_us is None while it runs, and for ever if it died.
    """

    run: str
    started_us: int
    shape: str
    ended_us: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A set of artifacts that was written for others. version: from 1, rising by one within its name."""

    name: str
    version: int
    format: str
    path: str
    rows: int
    digest: str
    run: str

    def behind(self, newest: DatasetVersion | None) -> DatasetVersion:
        """What is kept behind the newest version of the name: that one if it holds the same at the same place."""
        if newest is None:
            return replace(self, version=1)
        if replace(self, version=newest.version, run=newest.run) == newest:
            return newest
        return replace(self, version=newest.version + 1)
