"""TOPIC_DOCS being read: messages that say what happened to documents become work, a batch at a time.

A batch is planned as a look at the sources is: what its messages name is listed, the ledger is compared. Its position
is noted once everything in it is durable, beside the documents, so that a lost recovery folder costs nothing. What is
read twice changes nothing: the ledger has the place of each document's message, and older ones are left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataflows.observability.events import PartitionReset, PartitionStatus, SourceAway, tell
from dataflows.sources.discovery import Work, plan
from dataflows.sources.port import OUTSIDE
from dataflows.sources.topic import TOPIC_SCHEME, Place, TopicSource
from operators.document_events import DocumentEvent, EventReason
from operators.document_tasks import EVENT_STAGE
from operators.documents import Found, doc_id
from operators.errors import ResumeError, RetryableError, SchemaError, SkippableError
from operators.records import DeadLetter
from stores.deadletters.port import letter_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataflows.buses.port import PartitionReader, Position
    from dataflows.sources.port import Source
    from stores.metadata.port import MetadataStore
    from stores.metadata.records import Known

EVENTS_MAX = 256
"""Messages of one batch …"""

_BATCH_BYTES = 16 << 20
"""… unless they have as many bytes before. What is in a batch is in memory, and is done again after a crash."""

_LISTING_S = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """A message as it came."""

    place: Place
    value: bytes


@dataclass(frozen=True, slots=True)
class EventBatch:
    """What messages ask for.

    Each of the `read` ones is one of these: a task of the work, superseded by a newer message of the same uri, a repeat
    that changes nothing, or a letter.
    """

    work: Work
    read: int
    superseded: int
    repeated: int
    letters: tuple[DeadLetter, ...] = ()


class DocumentEvents:
    """The topic of one run. One process reads all of its partitions; messages of one uri belong into one of them."""

    def __init__(  # noqa: PLR0913  # what it is made of, each once
        self,
        topic: TopicSource,
        sources: Sequence[Source],
        metadata: MetadataStore,
        shape: str,
        *,
        limit_bytes: int,
        may_reset: bool,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """sources: the others, which own their uris. shape, limit_bytes: as for `plan`.

        may_reset: whether a topic that was made anew is read from its beginning, instead of raising ResumeError.
        """
        self._topic = topic
        self._sources = tuple(sorted(sources, key=lambda source: source.name))
        self._metadata = metadata
        self._shape = shape
        self._limit_bytes = limit_bytes
        self._may_reset = may_reset
        self._now_us = now_us
        self._noted = metadata.positions(topic.topic)
        self._readers: dict[str, PartitionReader] = {}
        self._order: deque[str] = deque()
        self._listed_at = -_LISTING_S

    def read(self) -> list[Told] | None:
        """The next messages, those of a partition in its order; [] if some may be on their way; None at the end.

        Does not block, but for the first call, which waits for the brokers. Raises ResumeError if a position does not
        fit the topic any more.
        """
        self._find_partitions()
        told: list[Told] = []
        size, ended = 0, True
        for partition in list(self._order):
            if len(told) >= EVENTS_MAX or size >= _BATCH_BYTES:
                break
            self._order.rotate(-1)  # so that a partition with a long backlog does not keep others waiting
            messages = self._poll(partition, EVENTS_MAX - len(told))
            ended = ended and messages is None
            told += messages or []
            size += sum(len(one.value) for one in messages or [])
        return told or (None if ended else [])

    def batch(self, told: Sequence[Told]) -> EventBatch:
        """What the messages ask for; what they hold is in hand until `done`. In any thread, one at a time."""
        batch = _Batch(self._topic, self._sources, self._metadata)
        letters: list[DeadLetter] = []
        for one in told:
            try:
                batch.take(one)
            except SkippableError as error:
                letters.append(self._letter(one, error))
        for one, event in batch.newest():
            try:
                batch.weigh(one, event)
            except SkippableError as error:
                letters.append(self._letter(one, error))
        self._topic.hold(batch.in_hand)
        work = plan(
            batch.listings, batch.ledger, self._shape, limit_bytes=self._limit_bytes, allow_mass_delete=True
        )  # each document that goes was named by a message
        return EventBatch(work, len(told), batch.superseded, batch.repeated + work.unchanged, tuple(letters))

    def done(self) -> None:
        """Everything that was read so far is durable: note it."""
        self._topic.hold({})
        positions = {partition: reader.position() for partition, reader in self._readers.items()}
        changed = {name: position for name, position in positions.items() if position != self._noted.get(name)}
        if changed:
            self._metadata.note_positions(self._topic.topic, changed)
            self._noted = {**self._noted, **changed}

    def close(self) -> None:
        """Let go of the partitions. Safe to repeat."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._order.clear()

    def _find_partitions(self) -> None:
        now = time.monotonic()
        if now - self._listed_at < _LISTING_S:
            return
        self._listed_at = now
        for partition in self._topic.bus.partitions(self._topic.topic):
            if partition not in self._readers:
                self._readers[partition] = self._open(partition, self._noted.get(partition))
                self._order.append(partition)
                tell(PartitionStatus(partition, "resumed" if partition in self._noted else "found"))

    def _open(self, partition: str, position: object) -> PartitionReader:
        bus, topic = self._topic.bus, self._topic.topic
        try:
            return bus.reader(topic, partition, position)  # type: ignore[arg-type]  # what the reader has given
        except ResumeError as error:
            return self._anew(partition, error)

    def _poll(self, partition: str, room: int) -> list[Told] | None:
        reader = self._readers[partition]
        try:
            chunk = reader.poll(room)
        except ResumeError as error:
            reader.close()
            self._readers[partition] = self._anew(partition, error)
            return []
        if chunk is None:
            return None
        topic_id = _topic_id(reader.position())
        return [
            Told(Place(topic_id, partition, offset), chunk.message(index))
            for index, offset in enumerate(chunk.offsets.tolist())
        ]

    def _anew(self, partition: str, error: ResumeError) -> PartitionReader:
        """The partition from its beginning, if that may be. Documents that are known cost nothing."""
        said = str(error).partition(": ")[0]
        if not self._may_reset:
            raise ResumeError(
                f"{said}: documents are up to date with what was read before. To read on in what is there now, from its"
                " beginning, set KAFKA_OFFSET_RESET to earliest; documents that are known cost nothing"
            ) from error
        wanted = self._noted.get(partition, {}).get("offset", 0)
        reader = self._topic.bus.reader(self._topic.topic, partition, None)
        tell(PartitionReset(partition, int(str(wanted)), int(str(reader.position()["offset"]))))
        return reader

    def _letter(self, one: Told, error: SkippableError) -> DeadLetter:
        place, source = one.place, self._topic.name
        return DeadLetter(
            letter_id=letter_id(self._topic.topic, place.partition, place.offset, EVENT_STAGE),
            time_us=self._now_us(),
            stage=EVENT_STAGE,
            reason=error.reason,
            detail=str(error),
            source=source,
            partition=place.partition,
            offset=place.offset,
            original=one.value,
            trace_id=None,
        )


@dataclass
class _Batch:
    """Messages being sorted out: by uri the newest, then what is listed because of them."""

    topic: TopicSource
    sources: Sequence[Source]
    metadata: MetadataStore
    superseded: int = 0
    repeated: int = 0
    listings: dict[str, list[Found]] = field(default_factory=dict)
    ledger: list[Known] = field(default_factory=list)
    in_hand: dict[str, DocumentEvent] = field(default_factory=dict)
    _newest: dict[str, tuple[Told, DocumentEvent]] = field(default_factory=dict)

    def take(self, one: Told) -> None:
        """Read a message and let it supersede older ones. Raises SkippableError."""
        if not one.value:  # a tombstone: it lets compaction forget a key, and says nothing of its own
            self.repeated += 1
            return
        event = self.topic.parse(one.value)
        self.superseded += event.uri in self._newest
        self._newest[event.uri] = (one, event)

    def newest(self) -> Iterable[tuple[Told, DocumentEvent]]:
        """Of each uri the newest message."""
        return self._newest.values()

    def weigh(self, one: Told, event: DocumentEvent) -> None:
        """List what the message is about, and what is known of it. Raises SkippableError."""
        document = self.metadata.document(doc_id(event.uri))
        known = None if document is None else document.known
        try:
            covering, found = self._look(event.uri)
        except RetryableError as error:
            tell(SourceAway(self.topic.name, f"the next look at it tells what a message hinted at: {error}"))
            self.repeated += 1
            return
        if covering:
            self._list_covered(event, known, covering, found)
        elif known is not None and _is_old(known, one.place, self.topic.name):
            self.repeated += 1
        elif event.content is not None:
            content = event.content
            self._add(known, self.topic.name, Found(event.uri, one.place.fingerprint, len(content)))
            self.in_hand[event.uri] = event
        elif event.kind == "deleted" and known is None:
            self.repeated += 1
        elif event.kind == "deleted" and known is not None and known.source.startswith(TOPIC_SCHEME):
            self._add(known, known.source, None)
        else:
            said = "is covered by no source of INGEST_SOURCES: send its content along, or name its source"
            raise SchemaError(EventReason.OUTSIDE, f"`{event.uri}` {said}")

    def _look(self, uri: str) -> tuple[list[Source], dict[str, Found]]:
        """The sources that cover the uri, and by name what stands there now. Raises RetryableError if one is away."""
        covering: list[Source] = []
        found: dict[str, Found] = {}
        for source in self.sources:
            try:
                one = source.look(uri)
            except SkippableError as error:
                if error.reason == OUTSIDE:
                    continue
                raise
            covering.append(source)
            if one is not None:
                found[source.name] = one
        return covering, found

    def _list_covered(
        self, event: DocumentEvent, known: Known | None, covering: Sequence[Source], found: dict[str, Found]
    ) -> None:
        """A hint: the uri's source says what is true of it. What is gone goes at once only if the message says so."""
        if event.content is not None:
            said = f"is a document of the source `{covering[0].name}`, which says what it holds: send no content"
            raise SchemaError(EventReason.COVERED, f"`{event.uri}` {said}")
        names = {source.name for source in covering}
        owned = known is not None and (known.source in names or known.source.startswith(TOPIC_SCHEME))
        if found:
            for name, one in found.items():
                self._add(None, name, one)
            self._add(known, next(iter(found)), None)
        elif known is not None and owned and event.kind == "deleted":
            self._add(known, known.source, None)
        else:
            self.repeated += 1

    def _add(self, known: Known | None, source: str, found: Found | None) -> None:
        """List one document, or that the source has none there."""
        listing = self.listings.setdefault(source, [])
        if found is not None:
            listing.append(found)
        if known is not None:
            self.ledger.append(known)


def _is_old(known: Known, place: Place, source: str) -> bool:
    """Whether the ledger has this message's document already, or a newer one."""
    at = Place.of(known.fingerprint) if known.source == source else None
    return at is not None and place.is_behind(at)


def _topic_id(position: Position) -> str:
    return str(position.get("topic_id", ""))
