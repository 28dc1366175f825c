"""What Kafka is told: late events, dead letters and results, each as a message with an id that a repeat has too."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from dataflows.set_aside import entity_of
from operators.documents import doc_id
from operators.feature_events import STRUCTURED
from operators.messages import Message
from stores.deadletters.port import storable
from stores.metadata.records import Delete, Rename, Upsert

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dataflows.buses.port import WritableBus
    from operators.records import DeadLetter, SignalBatch
    from stores.index_writer import IndexChange
    from stores.metadata.port import MetadataStore
    from stores.metadata.records import Document

SIGNALS = "/headrace/signals"
DOCUMENTS = "/headrace/documents"


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
    envelope = {
        "specversion": "1.0",
        "id": name,
        "source": source,
        "type": f"headrace.{kind}",
        "datacontenttype": "application/json",
        "subject": subject,
        **({} if time_us is None else {"time": _time(time_us)}),
        "data": data,
    }
    return Message(orjson.dumps(envelope), _utf8(subject), STRUCTURED)


def late_event(value: bytes, batch: SignalBatch, index: int) -> Message:
    """A late event, in its structured envelope, for the late topic."""
    return Message(value, batch.entity(index).encode(), STRUCTURED)


def dead_letter(letter: DeadLetter, original_bytes_max: int) -> Message:
    """A dead letter for its topic: the original as it came, all that is known of it in headers."""
    kept = storable(letter)
    whole = len(kept.original) <= original_bytes_max
    entity = _entity(kept) if whole else None
    headers = {
        "headrace-id": kept.letter_id,
        "headrace-stage": kept.stage,
        "headrace-reason": kept.reason,
        "headrace-detail": kept.detail,
        "headrace-source": kept.source,
        "headrace-partition": kept.partition,
        "headrace-offset": str(kept.offset),
        "headrace-time": _time(kept.time_us),
        **({} if kept.trace_id is None else {"headrace-trace-id": kept.trace_id}),
        **({} if whole else {"headrace-left-out-bytes": str(len(kept.original))}),
    }
    key = None if entity is None else _utf8(entity)
    return Message(kept.original if whole else b"", key, tuple(headers.items()))


def replayed(letter: DeadLetter) -> Message:
    """The original of a dead letter for the topic that it came from, with what it was in headers."""
    entity = _entity(letter)
    headers = (("headrace-id", letter.letter_id), ("headrace-replayed-from", f"{letter.partition}/{letter.offset}"))
    return Message(letter.original, None if entity is None else _utf8(entity), headers)


def signal_failed(letter: DeadLetter) -> Message:
    """The result of a signal that was refused."""
    kept = storable(letter)
    return _failed("signal_failed", SIGNALS, kept, _entity(kept) or kept.partition, {})


def document_failed(letter: DeadLetter) -> Message:
    """The result of a document that was refused."""
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
        "trace_id": letter.trace_id,
    }
    return event(kind, source, letter.letter_id, subject, data, letter.time_us)


def _entity(letter: DeadLetter) -> str | None:
    """Its entity_id, as far as it can be read and written."""
    entity = entity_of(letter.original)
    return None if entity is None else _utf8(entity).decode()


def _time(time_us: int) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000).isoformat()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
