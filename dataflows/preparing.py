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

from dataflows.sources.port import VANISHED
from operators.document_tasks import Task
from operators.documents import Chunk, Text, content_hash, memo_key
from operators.errors import RetryableError, SkippableError
from operators.normalise import NORMALISER, normalise
from operators.records import DeadLetter
from operators.redact import Mode, redact, redaction_shape
from stores.deadletters.port import letter_id
from stores.metadata.records import Change, Delete, Document, Rename, Touch, Upsert

if TYPE_CHECKING:
    from dataflows.extraction import Extraction
    from dataflows.sources.port import Source
    from operators.chunk import Chunker
    from stores.metadata.port import MetadataStore
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
        try:
            content = self.patience.call(lambda: self.sources[task.source].read(task.uri, self.limit_bytes))
        except RetryableError as error:
            return Prepared(task, None, self._letter(task, "fetch", UNAVAILABLE, error))
        except SkippableError as error:
            gone = error.reason == VANISHED  # the next look at the sources tells what became of it
            return Prepared(task, None) if gone else self._refused(task, "", "fetch", error)
        return self._read(replace(task, size_bytes=len(content)), content)  # it may have changed since it was listed

    def _read(self, task: Task, content: bytes) -> Prepared:
        digest = content_hash(content)
        known = self.metadata.document(task.doc_id)
        done = known is not None and known.state == "ready" and known.memo_key == memo_key(digest, self.stages.shape)
        if done:
            return Prepared(task, Touch(task.uri, task.source, task.fingerprint))
        kept = self._kept(digest, known)
        if kept is not None:
            assert known is not None
            document = self._document(task, digest)
            same = replace(document, media_type=known.media_type, title=known.title, metadata=known.metadata)
            return self._upsert(task, same, kept, None)
        try:
            text = self.patience.call(lambda: self.stages.extraction.extract(content, task.uri))
        except RetryableError as error:
            return Prepared(task, None, self._letter(task, "extract", UNAVAILABLE, error))
        except SkippableError as error:
            return self._refused(task, digest, "extract", error)
        return self._made(task, digest, text)

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

    def _kept(self, digest: str, known: Document | None) -> tuple[Chunk, ...] | None:
        """The chunks that the same content gave under the same text shape for another space; None if none."""
        if known is None or known.state != "ready" or known.content_hash != digest:
            return None
        text_shape, _, space = known.shape.partition("/")
        if text_shape != self.stages.text_shape or space == self.stages.space:
            return None
        stored = self.metadata.chunks_of(known.doc_id, space)
        found = self.metadata.chunks(space, [chunk.key for chunk in stored])
        if len(found) != len(stored):
            return None
        records = [found[chunk.key] for chunk in stored]
        return tuple(Chunk(r.ordinal, r.offset, r.text, r.page, r.heading) for r in records)

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
