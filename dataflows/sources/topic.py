"""Documents that came in messages: the ledger lists them, and the bus still holds them, or not any more.

A document's fingerprint is the place of its message, so that its bytes can be found again. They are kept nowhere else:
the metadata hold only what is left after redaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dataflows.sources.port import FORGOTTEN, OUTSIDE
from operators.document_events import DocumentEvent, parse_event
from operators.documents import Found, content_hash, doc_id
from operators.errors import ResumeError, SkippableError
from stores.metadata.records import Delete, Upsert

if TYPE_CHECKING:
    from dataflows.buses.port import Bus
    from stores.metadata.port import Ledger
    from stores.metadata.records import Change, Document

TOPIC_SCHEME = "kafka:"
"""Names of such sources begin so; no listing removes their documents."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands. topic_id: tells a topic from another one of the same name; "" if the bus tells none."""

    topic_id: str
    partition: str
    offset: int

    @property
    def fingerprint(self) -> str:
        """The place as the ledger keeps it."""
        return f"{self.topic_id}/{self.partition}/{self.offset}"

    @staticmethod
    def of(fingerprint: str) -> Place | None:
        """The place that the ledger keeps; None if it is the fingerprint of something else."""
        parts = fingerprint.rsplit("/", 2)  # an id may hold slashes
        return Place(parts[0], parts[1], int(parts[2])) if len(parts) == 3 and parts[2].isdecimal() else None

    def is_behind(self, other: Place) -> bool:
        """Whether a message here is no newer than the one there, as far as that can be told."""
        same = (self.topic_id, self.partition) == (other.topic_id, other.partition)
        return same and self.offset <= other.offset


class TopicSource:
    """A `Source` of the documents that messages of a topic have held.

    Those that are in hand are read from memory, others from the bus by their place.
    """

    def __init__(self, bus: Bus, topic: str, ledger: Ledger, *, event_bytes_max: int) -> None:
        """Nobody is asked anything yet."""
        self.name = f"{TOPIC_SCHEME}{topic}"
        self.bus = bus
        self.topic = topic
        self._ledger = ledger
        self._event_bytes_max = event_bytes_max
        self._in_hand: Mapping[str, DocumentEvent] = {}
        self._said: dict[str, str | None] = {}

    def hold(self, events: Mapping[str, DocumentEvent]) -> None:
        """Let these, by uri, be what is in hand; all have content."""
        self._in_hand = events

    def parse(self, message: bytes) -> DocumentEvent:
        """Read a message. Raises SkippableError."""
        return parse_event(message, bytes_max=self._event_bytes_max)

    def list(self) -> Iterator[Found]:
        """See Source: what the ledger has of it. Fails while the bus is away, since nothing could be read then."""
        known_here = list(self._ledger.ledger(self.name))
        if known_here:
            self.bus.partitions(self.topic)
        for known in known_here:
            yield Found(known.uri, known.fingerprint, known.size_bytes)

    def look(self, uri: str) -> Found | None:
        """See Source."""
        document = self._ledger.document(doc_id(uri))
        if document is None or document.source != self.name:
            raise SkippableError(OUTSIDE, f"`{uri}` is no document of `{self.name}`")
        return Found(uri, document.fingerprint, document.size_bytes)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """See Source."""
        event = self._in_hand.get(uri) or self._found_again(uri)
        content = event.content or b""
        if len(content) > limit_bytes:
            raise SkippableError("too_large", f"`{uri}` has {len(content)} bytes, {limit_bytes} are allowed")
        self._said[uri] = event.media_type
        return content

    def media_type(self, uri: str) -> str | None:
        """See Source."""
        return self._said.pop(uri, None)

    def _found_again(self, uri: str) -> DocumentEvent:
        """The document's message from the bus. Raises SkippableError `forgotten` if it is there no longer."""
        document = self._ledger.document(doc_id(uri))
        place = None if document is None or document.source != self.name else Place.of(document.fingerprint)
        if document is None or place is None:
            raise SkippableError(OUTSIDE, f"`{uri}` is no document of `{self.name}`")
        where = f"message {place.offset} of partition `{place.partition}` of topic `{self.topic}`"
        try:
            event = self.parse(self.bus.fetch(self.topic, place.partition, place.offset))
        except (ResumeError, SkippableError) as error:
            raise SkippableError(FORGOTTEN, f"{where}, which held `{uri}`, is gone: send it again") from error
        same = event.uri == uri and event.content is not None
        if not same or document.content_hash not in ("", content_hash(event.content or b"")):
            raise SkippableError(FORGOTTEN, f"{where} no longer holds `{uri}`: send it again")
        return event


def reading_order(source: str, uri: str, fingerprint: str) -> tuple[str, str, int, str]:
    """What documents are sorted by to be read fast: by uri, those in messages as these stand in their partitions."""
    place = Place.of(fingerprint) if source.startswith(TOPIC_SCHEME) else None
    return ("", "", 0, uri) if place is None else (place.topic_id, place.partition, place.offset, uri)


def tried_again(document: Document, space: str) -> Change:
    """What makes the next look at its source try a dead document again.

    It is forgotten, so that it is found as a new one; one that came in a message stays known, since only its line in
    the ledger tells where the message is.
    """
    if not document.source.startswith(TOPIC_SCHEME):
        return Delete(document.uri)
    return Upsert(replace(document, memo_key=""), space)
