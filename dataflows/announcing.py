"""What Kafka is told: late events, dead letters and results, each as a message with an id that a repeat has too."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from dataflows.buses.cloudevents import CloudEvent, attribute, binary, structured
from dataflows.set_aside import entity_of
from operators.document_tasks import DOCUMENT_STAGES, EVENT_STAGE
from operators.documents import doc_id
from operators.messages import Message
from operators.signal_rules import ENTITY_BYTES_MAX
from stores.deadletters.port import storable
from stores.metadata.records import Delete, Rename, Upsert

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dataflows.buses.port import WritableBus
    from operators.records import DeadLetter
    from stores.index_writer import IndexChange
    from stores.metadata.port import MetadataStore
    from stores.metadata.records import Document

SIGNALS = "/headrace/signals"
DOCUMENTS = "/headrace/documents"
_TRACE_MAX = 256
"""Characters of a trace's id that are told; a sender may have written anything there."""


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where to tell what. topic_results: None if nobody wants results.

    original_bytes_max: a longer original stays in the store of the dead letters alone; the topic is told of it.
    """

    bus: WritableBus
    topic_dlq: str
    topic_results: str | None
    original_bytes_max: int


def event(kind: str, source: str, name: str, subject: str, data: object, time_us: int | None = None) -> Message:
    """A structured CloudEvent of type `headrace.<kind>`, keyed by its subject. name: its id."""
    told = CloudEvent(
        attribute(name),
        source,
        f"headrace.{kind}",
        orjson.dumps(data),
        subject=attribute(subject),
        time_us=time_us,
    )
    return structured(told, _utf8(subject))


def dead_letter(letter: DeadLetter, original_bytes_max: int) -> Message:
    """A dead letter for its topic: a binary CloudEvent, its data the original, all else in its attributes."""
    kept = storable(letter)
    whole = len(kept.original) <= original_bytes_max
    entity = _entity(kept) if whole else None
    known = {
        "stage": kept.stage,
        "reason": kept.reason,
        "detail": kept.detail,
        "origin": kept.source,
        "partition": kept.partition,
        "offset": str(kept.offset),
        "traceid": (kept.trace_id or "")[:_TRACE_MAX],
        "leftoutbytes": "" if whole else str(len(kept.original)),
    }
    told = CloudEvent(
        kept.letter_id,
        DOCUMENTS if kept.stage in (*DOCUMENT_STAGES, EVENT_STAGE) else SIGNALS,
        "headrace.dead_letter",
        kept.original if whole else b"",
        "application/octet-stream",
        subject=None if not entity else attribute(entity),
        time_us=kept.time_us,
        extensions={name: attribute(text) for name, text in known.items() if text},
    )
    return binary(told, None if entity is None else _utf8(entity))


def replayed(letter: DeadLetter) -> Message:
    """The original of a dead letter for the topic that it came from, keyed as it was, with what it was in headers."""
    entity = _uri(letter.original) if letter.stage == EVENT_STAGE else _entity(letter)
    headers = (("headrace-id", letter.letter_id), ("headrace-replayed-from", f"{letter.partition}/{letter.offset}"))
    return Message(letter.original, None if entity is None else _utf8(entity), headers)


def signal_failed(letter: DeadLetter) -> Message:
    """The result of a signal that was refused."""
    kept = storable(letter)
    return _failed("signal_failed", SIGNALS, kept, _entity(kept) or kept.partition, {})


def document_failed(letter: DeadLetter) -> Message:
    """The result of a document, or of a message about one, that was refused."""
    if letter.stage == EVENT_STAGE:
        return _failed("doc_failed", DOCUMENTS, storable(letter), _uri(letter.original) or letter.partition, {})
    document = doc_id(letter.partition)
    return _failed("doc_failed", DOCUMENTS, storable(letter), document, {"doc_id": document, "uri": letter.partition})


def document_events(changes: Sequence[IndexChange], metadata: MetadataStore) -> Iterator[Message]:
    """The results of changes that are about to be made. metadata: as it is before them."""
    for change in changes:
        match change.change:
            case Upsert(document=document, chunks=chunks) if document.state == "ready":
                yield _indexed(document, len(chunks))
            case Delete(uri=uri):
                yield from _deleted(uri, metadata)
            case Rename(old_uri=old, new=Upsert(document=document, chunks=chunks)):
                yield from _deleted(old, metadata)
                if document.state == "ready":
                    yield _indexed(document, len(chunks))


class DocumentAnnouncer:
    """Tells Kafka of documents; at least once, with ids that a repeat has too. See Announcer of stores.index_writer."""

    def __init__(self, outlets: Outlets, metadata: MetadataStore) -> None:
        """outlets: with a bus that is at least once."""
        self._outlets = outlets
        self._metadata = metadata

    def refused(self, letters: Sequence[DeadLetter]) -> None:
        """See Announcer."""
        out = self._outlets
        self._tell(out.topic_dlq, [dead_letter(letter, out.original_bytes_max) for letter in letters])
        self._tell(out.topic_results, [document_failed(letter) for letter in letters])

    def changing(self, changes: Sequence[IndexChange]) -> None:
        """See Announcer."""
        self._tell(self._outlets.topic_results, list(document_events(changes, self._metadata)))

    def _tell(self, topic: str | None, messages: list[Message]) -> None:
        if topic is not None and messages:
            self._outlets.bus.append(topic, "documents", messages, at=0)


def _indexed(document: Document, chunks: int) -> Message:
    data = {
        "doc_id": document.doc_id,
        "uri": document.uri,
        "source": document.source,
        "content_hash": document.content_hash,
        "shape": document.shape,
        "media_type": document.media_type,
        "size_bytes": document.size_bytes,
        "title": document.title,
        "chunks": chunks,
    }
    return event("doc_indexed", DOCUMENTS, _version("indexed", document), document.doc_id, data)


def _deleted(uri: str, metadata: MetadataStore) -> Iterator[Message]:
    known = metadata.document(doc_id(uri))
    if known is not None:  # else it was told before a crash, or never indexed
        data = {"doc_id": known.doc_id, "uri": uri, "source": known.source}
        yield event("doc_deleted", DOCUMENTS, _version("deleted", known), known.doc_id, data)


def _version(what: str, document: Document) -> str:
    """An id for something that happens to a document once as it is."""
    state = (document.memo_key, document.fingerprint, document.source)
    return f"{document.doc_id}/{what}/{blake2b(orjson.dumps(state), digest_size=8).hexdigest()}"


def _failed(kind: str, source: str, letter: DeadLetter, subject: str, more: dict[str, str]) -> Message:
    data = {
        **more,
        "letter_id": letter.letter_id,
        "stage": letter.stage,
        "reason": letter.reason,
        "detail": letter.detail,
        "source": letter.source,
        "partition": letter.partition,
        "offset": letter.offset,
        "trace_id": None if letter.trace_id is None else letter.trace_id[:_TRACE_MAX],
    }
    return event(kind, source, letter.letter_id, subject, data, letter.time_us)


def _entity(letter: DeadLetter) -> str | None:
    """Its entity_id, as far as it can be read and written."""
    entity = entity_of(letter.original)
    return None if entity is None or len(_utf8(entity)) > ENTITY_BYTES_MAX else _utf8(entity).decode()


def _uri(original: bytes) -> str | None:
    """The uri of a message about a document, as far as it can be read."""
    try:
        uri = orjson.loads(original)["data"]["uri"]
    except (KeyError, TypeError, ValueError):
        return None
    return uri if isinstance(uri, str) and 0 < len(_utf8(uri)) <= ENTITY_BYTES_MAX else None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
