"""From a task to what shall be written: fetch, extract, normalise, redact, chunk. In any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from posixpath import basename
from typing import TYPE_CHECKING
from urllib.parse import unquote

import orjson

from dataflows.sources.port import FORGOTTEN, VANISHED
from operators.document_tasks import Task
from operators.documents import Chunk, Text, content_hash, memo_key, rebuilt_text
from operators.errors import RetryableError, SkippableError
from operators.extract import media_type_of
from operators.normalise import NORMALISER, normalise
from operators.records import DeadLetter
from operators.redact import Mode, redact, redaction_shape
from stores.deadletters.port import letter_id
from stores.metadata.records import Change, Delete, Document, Rename, Touch, Upsert

if TYPE_CHECKING:
    from dataflows.extraction import Extraction
    from dataflows.sources.port import Source
    from operators.chunk import Chunker
    from stores.metadata.port import Chunks, MetadataStore
    from stores.patience import Patience

UNAVAILABLE = "unavailable"
"""Reason of a letter whose document is tried again at each look."""

_TITLE_CHARS = 200


@dataclass(frozen=True, slots=True)
class Prepared:
    """What shall be written of one document.

    change: None if nothing is to be written now (it is gone, or its source is away). letter: why it could not be
    prepared. redacted: how much of each kind of personal data was replaced.
    """

    task: Task
    change: Change | None
    letter: DeadLetter | None = None
    redacted: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """Everything that shapes a document's chunks, and the space that its vectors are in."""

    extraction: Extraction
    redaction: Mode
    chunker: Chunker
    space: str

    @property
    def text_shape(self) -> str:
        """Names all that shapes the chunks: with the same one, the same bytes give the same chunks."""
        parts = (self.extraction.shape, NORMALISER, redaction_shape(self.redaction), self.chunker.shape)
        return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()

    @property
    def shape(self) -> str:
        """Names all that shapes chunks and vectors."""
        return f"{self.text_shape}/{self.space}"


@dataclass(frozen=True, slots=True)
class Preparer:
    """Prepares tasks; threads share it. run: name of this run. limit_bytes: of a document."""

    sources: Mapping[str, Source]
    stages: Stages
    metadata: MetadataStore
    patience: Patience
    run: str
    limit_bytes: int
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000

    def prepare(self, task: Task) -> Prepared:
        """What shall be written. A document that cannot be prepared has a letter; nothing else is raised for it.

        Raises what a person must mend (ConfigError) and FatalError of the metadata store.
        """
        if task.kind == "deleted":
            return Prepared(task, Delete(task.uri))
        if task.kind == "relisted":
            return Prepared(task, Touch(task.uri, task.source, task.fingerprint))
        source = self.sources[task.source]
        try:
            content = self.patience.call(lambda: source.read(task.uri, self.limit_bytes))
        except RetryableError as error:
            return Prepared(task, None, self._letter(task, "fetch", UNAVAILABLE, error))
        except SkippableError as error:
            if error.reason == VANISHED:  # the next look at the sources tells what became of it
                return Prepared(task, None)
            return self._rebuilt(task, error) if error.reason == FORGOTTEN else self._refused(task, "", "fetch", error)
        said = source.media_type(task.uri)
        return self._read(replace(task, size_bytes=len(content)), content, said)  # it may have changed since then

    def _read(self, task: Task, content: bytes, said: str | None) -> Prepared:
        digest = content_hash(content)
        known = self.metadata.document(task.doc_id)
        same_kind = known is not None and known.media_type == media_type_of(content, task.uri, said)
        if known is not None and known.state == "ready" and same_kind:
            if known.memo_key == memo_key(digest, self.stages.shape):
                return Prepared(task, Touch(task.uri, task.source, task.fingerprint))
            kept = self._kept(digest, known)
            if kept is not None:
                return self._upsert(task, self._as_known(task, known), kept, None)
        try:
            text = self.patience.call(lambda: self.stages.extraction.extract(content, task.uri, said))
        except RetryableError as error:
            return Prepared(task, None, self._letter(task, "extract", UNAVAILABLE, error))
        except SkippableError as error:
            return self._refused(task, digest, "extract", error)
        return self._made(task, digest, text)

    def _rebuilt(self, task: Task, error: SkippableError) -> Prepared:
        """The document from what the metadata have of it, since its bytes are nowhere any more: cut and redacted anew.

        One that was refused is refused for good.
        """
        known = self.metadata.document(task.doc_id)
        if known is None:
            return Prepared(task, None)
        if known.state == "dead":
            return self._refused(task, known.content_hash, "fetch", error)
        chunks = self._kept(known.content_hash, known)
        counts: Mapping[str, int] | None = None
        if chunks is None:
            text = rebuilt_text(self._chunks(known), known.media_type, dict(known.metadata))
            text, counts = redact(text, self.stages.redaction)
            chunks = tuple(self.stages.chunker.chunks(text))
        return self._upsert(task, self._as_known(task, known), chunks, counts)

    def _chunks(self, known: Document) -> list[Chunk]:
        """Its chunks in the space that has its latest state, or where that is gone in any other."""
        names = sorted(space.name for space in self.metadata.spaces())
        names.sort(key=lambda name: name != known.shape.partition("/")[2])
        found = (stored_chunks(self.metadata, known.doc_id, name) for name in names)
        return next((list(chunks) for chunks in found if chunks), [])

    def _made(self, task: Task, digest: str, text: Text) -> Prepared:
        text, counts = redact(normalise(text), self.stages.redaction)
        chunks = tuple(self.stages.chunker.chunks(text))
        document = replace(
            self._document(task, digest),
            media_type=text.media_type,
            title=self._title(text, chunks, task.uri),
            metadata={**text.metadata, "redacted": counts} if counts else text.metadata,
        )
        return self._upsert(task, document, chunks, counts)

    def _title(self, text: Text, chunks: tuple[Chunk, ...], uri: str) -> str:
        """What the document says of itself, else its first heading, else the name of its file, redacted like a text."""
        said = text.metadata.get("title")
        if isinstance(said, str) and said.strip():
            return said.strip()[:_TITLE_CHARS]
        first = next((chunk.heading[0] for chunk in chunks if chunk.heading), "")
        name = Text(unquote(basename(uri), errors="replace"), text.media_type)
        return (first or redact(name, self.stages.redaction)[0].text)[:_TITLE_CHARS]

    def _document(self, task: Task, digest: str) -> Document:
        return Document(
            uri=task.uri,
            source=task.source,
            fingerprint=task.fingerprint,
            content_hash=digest,
            memo_key=memo_key(digest, self.stages.shape),
            shape=self.stages.shape,
            media_type="",
            size_bytes=task.size_bytes,
            run=self.run,
        )

    def _as_known(self, task: Task, known: Document) -> Document:
        """The document under this shape, with what is known of it besides its chunks."""
        document = self._document(task, known.content_hash)
        return replace(document, media_type=known.media_type, title=known.title, metadata=known.metadata)

    def _kept(self, digest: str, known: Document) -> tuple[Chunk, ...] | None:
        """The chunks that the same content gave under the same text shape for another space; None if none."""
        text_shape, _, space = known.shape.partition("/")
        if known.content_hash != digest or text_shape != self.stages.text_shape or space == self.stages.space:
            return None
        return stored_chunks(self.metadata, known.doc_id, space)

    def _upsert(
        self, task: Task, document: Document, chunks: tuple[Chunk, ...], counts: Mapping[str, int] | None
    ) -> Prepared:
        change = Upsert(document, self.stages.space, chunks)
        return Prepared(task, change if task.old_uri is None else Rename(task.old_uri, change), None, counts)

    def _refused(self, task: Task, digest: str, stage: str, error: SkippableError) -> Prepared:
        """The document has no chunks, and is not tried again until it or the settings have changed."""
        document = replace(self._document(task, digest), state="dead")
        return replace(self._upsert(task, document, (), None), letter=self._letter(task, stage, error.reason, error))

    def _letter(self, task: Task, stage: str, reason: str, error: Exception) -> DeadLetter:
        return letter_of(task, stage, reason, str(error), self.now_us())


def stored_chunks(metadata: Chunks, document: str, space: str) -> tuple[Chunk, ...] | None:
    """The document's chunks in a space, in order; None if they are not whole."""
    stored = metadata.chunks_of(document, space)
    found = metadata.chunks(space, [chunk.key for chunk in stored])
    if len(found) != len(stored):
        return None
    records = [found[chunk.key] for chunk in stored]
    return tuple(Chunk(r.ordinal, r.offset, r.text, r.page, r.heading) for r in records)


def letter_of(task: Task, stage: str, reason: str, detail: str, now_us: int) -> DeadLetter:
    """The dead letter of a document: it holds where the document is, not what it says.

    The same document with the same fingerprint, refused by the same stage, is the same letter; so is one that could
    not be had, whatever its fingerprint, for it is tried again at each look.
    """
    place = task.uri if reason == UNAVAILABLE else f"{task.uri}\0{task.fingerprint}"
    original = {"uri": task.uri, "source": task.source, "fingerprint": task.fingerprint, "size_bytes": task.size_bytes}
    return DeadLetter(
        letter_id=letter_id(task.source, place, 0, stage),
        time_us=now_us,
        stage=stage,
        reason=reason,
        detail=detail,
        source=task.source,
        partition=task.uri,
        offset=0,
        original=orjson.dumps(original),
        trace_id=None,
    )
