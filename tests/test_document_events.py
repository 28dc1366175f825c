"""Messages about documents, over memory: what each asks for, which one wins, what is refused, what a crash leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.buses.memory import MemoryBus
from dataflows.document_events import EVENTS_MAX, DocumentEvents, EventBatch
from dataflows.document_source import tasks_of
from dataflows.extraction import Extraction
from dataflows.preparing import Preparer, Stages
from dataflows.sources.discovery import discover
from dataflows.sources.memory import MemorySource
from dataflows.sources.port import Source
from dataflows.sources.topic import TopicSource, tried_again
from operators.chunk import Chunker
from operators.document_tasks import Task
from operators.documents import Chunk, doc_id
from operators.errors import ResumeError, UnavailableError
from operators.messages import Message
from stores.metadata.memory import MemoryMetadata
from stores.metadata.records import Delete, Rename, Upsert
from stores.patience import Patience
from tests.test_document_messages import EVENT_BYTES_MAX, event

TOPIC = "docs"
NAME = f"kafka:{TOPIC}"
SPACE = "stub-16"
LIMIT = 1 << 12


@dataclass
class Desk:
    """A topic, a source of files beside it, and what follows from both, done in one place."""

    stages: Stages
    bus: MemoryBus = field(default_factory=MemoryBus)
    files: MemorySource = field(default_factory=lambda: MemorySource("files"))
    metadata: MemoryMetadata = field(default_factory=MemoryMetadata)
    made: int = 0
    """Documents that were extracted."""

    def __post_init__(self) -> None:
        """Begin."""
        self.metadata.add_space(SPACE)
        self.start()

    def start(self, *, may_reset: bool = False, **stages: object) -> None:
        """As after a crash: only bus, files and metadata are left."""
        self.stages = replace(self.stages, **stages)  # type: ignore[arg-type]  # fields that exist
        self.topic = TopicSource(self.bus, TOPIC, self.metadata, event_bytes_max=EVENT_BYTES_MAX)
        self.events = DocumentEvents(
            self.topic,
            [self.files],
            self.metadata,
            self.stages.shape,
            limit_bytes=LIMIT,
            may_reset=may_reset,
            now_us=lambda: 1,
        )
        sources: dict[str, Source] = {self.files.name: self.files, self.topic.name: self.topic}
        self.preparer = Preparer(sources, self.stages, self.metadata, Patience(tries_max=1), "run", LIMIT)

    def put(self, *messages: bytes, partition: str = "0") -> None:
        """Append messages to the topic."""
        at = self.bus.written(TOPIC, partition)
        self.bus.append(TOPIC, partition, [Message(message) for message in messages], at=at)

    def take(self, *, dies: bool = False) -> EventBatch:
        """Do all that one batch asks for; dies: before it is noted."""
        told = self.events.read()
        batch = self.events.batch(told or [])
        self._do(tasks_of(batch.work, 1))
        if not dies:
            self.events.done()
        return batch

    def look(self) -> None:
        """Do all that a look at both sources asks for."""
        found = discover([self.files, self.topic], self.metadata.ledger(), self.stages.shape, limit_bytes=LIMIT)
        self._do(tasks_of(found.work, 1))

    def texts(self) -> dict[str, str]:
        """What the metadata hold of each document."""
        out = {}
        for known in self.metadata.ledger():
            keys = [chunk.key for chunk in self.metadata.chunks_of(doc_id(known.uri), SPACE)]
            records = self.metadata.chunks(SPACE, keys)
            out[known.uri] = " ".join(records[key].text for key in keys) if known.state == "ready" else "dead"
        return out

    def reasons(self, *messages: bytes) -> list[str]:
        """Why these messages become letters."""
        self.put(*messages)
        return [letter.reason for letter in self.take().letters]

    def _do(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            change = self.preparer.prepare(task).change
            self.made += isinstance(change, Upsert | Rename)
            self.metadata.apply([] if change is None else [change])


@contextmanager
def desk() -> Iterator[Desk]:
    """An empty one."""
    with Extraction() as extraction:
        yield Desk(Stages(extraction, "off", Chunker(80), SPACE))


def counts(batch: EventBatch) -> tuple[int, ...]:
    """(read, added, updated, deleted, superseded, repeated, refused); all but the first add up to it."""
    work = batch.work
    found = (
        len(work.added),
        len(work.updated),
        len(work.deleted),
        batch.superseded,
        batch.repeated,
        len(batch.letters),
    )
    assert batch.read == sum(found)
    return (batch.read, *found)


def test_a_document_comes_changes_and_goes() -> None:
    """By its messages alone: a look at the sources neither removes it nor does anything about it."""
    with desk() as made:
        made.put(event("added", "a:1", "one"), event("added", "a:2", "two"))
        assert counts(made.take()) == (2, 2, 0, 0, 0, 0, 0)
        made.look()
        assert (made.texts(), made.made) == ({"a:1": "one", "a:2": "two"}, 2)
        made.put(event("updated", "a:1", "new"), event("deleted", "a:2"), event("deleted", "a:3"))
        assert counts(made.take()) == (3, 0, 1, 1, 0, 1, 0)
        made.look()
        assert (made.texts(), made.made) == ({"a:1": "new"}, 3)
        assert [known.source for known in made.metadata.ledger()] == [NAME]
        assert made.events.read() is None


def test_an_equal_message_costs_nothing() -> None:
    """The ledger takes its place, so that its bytes are found where the bus keeps them longest."""
    with desk() as made:
        made.put(event("added", "a:1", "one"))
        made.take()
        made.put(event("updated", "a:1", "one"))
        made.take()
        assert made.made == 1
        assert [known.fingerprint for known in made.metadata.ledger()] == ["/0/1"]
        made.put(event("updated", "a:1", "one", suffix="md"))
        made.take()
        assert made.made == 2


def test_of_one_batch_the_newest_wins() -> None:
    """The others are superseded, also by a deletion; a broken message supersedes nothing."""
    with desk() as made:
        made.put(
            event("added", "a:1", "one"),
            event("added", "a:2", "two"),
            event("updated", "a:1", "three"),
            event("deleted", "a:2"),
            event("updated", "a:1", content=7),
            b"",
        )
        assert counts(made.take()) == (6, 1, 0, 0, 2, 2, 1)
        assert (made.texts(), made.made) == ({"a:1": "three"}, 1)


EVENTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "z", None, "bad"]), st.booleans()), max_size=30
)


@given(EVENTS, st.data())
def test_whatever_crashes_the_last_message_of_a_uri_wins(
    history: list[tuple[str, str | None, bool]], data: st.DataObject
) -> None:
    """Batches of any size, restarts that read again what was done: the end is that of the log; nothing goes back."""
    wanted: dict[str, str] = {}
    with desk() as made, pytest.MonkeyPatch.context() as patch:
        for name, text, has_other in history:
            uri, partition = f"a:{name}", "01"[name == "c"]
            if text == "bad":
                made.put(event("updated", uri, content=1), partition=partition)
            elif text is None:
                made.put(event("deleted", uri), partition=partition)
                wanted.pop(uri, None)
            else:
                made.put(event("updated" if has_other else "added", uri, text), partition=partition)
                wanted[uri] = text
        deaths, before = data.draw(st.integers(0, 8)), dict[str, int]()
        while True:
            patch.setattr("dataflows.document_events.EVENTS_MAX", data.draw(st.integers(1, 7)))
            dies = deaths > 0 and data.draw(st.booleans())
            deaths -= dies
            batch = made.take(dies=dies)
            counts(batch)
            after = {known.uri: int(known.fingerprint.rpartition("/")[2]) for known in made.metadata.ledger()}
            assert all(after[uri] >= before[uri] for uri in after.keys() & before.keys())
            before = after
            if dies:
                made.start()
            elif batch.read == 0:
                break
        assert made.texts() == wanted


def test_a_hint_is_looked_at_where_it_points() -> None:
    """Its source says what is true; what is gone goes at once only if the message says so, and nothing else does."""
    with desk() as made:
        known, other = made.files.put("a.md", b"one"), made.files.put("b.md", b"two")
        made.look()
        fresh = made.files.put("c.md", b"three")
        made.files.put("a.md", b"changed")
        made.files.drop("b.md")
        made.put(event("added", fresh), event("updated", known), event("updated", other))
        assert counts(made.take()) == (3, 1, 1, 0, 0, 1, 0)
        assert made.texts() == {known: "changed", other: "two", fresh: "three"}
        made.put(event("deleted", other), event("deleted", known), event("added", fresh))
        assert counts(made.take()) == (3, 0, 0, 1, 0, 2, 0)
        assert made.texts() == {known: "changed", fresh: "three"}
        assert {line.source for line in made.metadata.ledger()} == {"files"}


def test_sources_own_their_uris() -> None:
    """A uri that no source covers is opened by none; what a source covers takes no content from a message."""
    with desk() as made:
        outside = ["file:///etc/passwd", "memory:other/a.md", "https://example.org/a"]
        assert made.reasons(*(event("updated", uri) for uri in outside)) == ["outside"] * 3
        uri = made.files.put("a.md", b"one")
        assert made.reasons(event("added", uri, "mine"), event("added", "memory:files/none", "mine")) == ["covered"] * 2
        made.put(event("added", "a:1", "one"))
        made.take()
        assert made.reasons(event("updated", "a:1")) == ["outside"]
        assert made.texts() == {"a:1": "one"}


def test_a_source_that_is_away_is_left_to_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is no letter: it has only said early what the next look sees."""
    with desk() as made:
        uri = made.files.put("a.md", b"one")

        def away(_: str) -> None:
            raise UnavailableError("not mounted")

        monkeypatch.setattr(made.files, "look", away)
        made.put(event("added", uri))
        assert counts(made.take()) == (1, 0, 0, 0, 0, 1, 0)
        made.look()
        assert made.texts() == {uri: "one"}


def test_a_letter_holds_the_message_and_its_place() -> None:
    """As it came, so that it can be mended and sent again; the same message is the same letter."""
    with desk() as made:
        made.put(b"fine" * 3, event("added", "a:1", "one"))
        first = made.take(dies=True).letters
        made.start()
        assert made.take().letters == first
        [letter] = first
        assert (letter.stage, letter.partition, letter.offset) == ("event", "0", 0)
        assert (letter.original, letter.source, letter.reason) == (b"fine" * 3, NAME, "not_json")
        assert made.texts() == {"a:1": "one"}


def test_a_content_above_the_limit_is_a_dead_document() -> None:
    """The ledger has it, and a limit that lets it pass later finds it on the bus."""
    with desk() as made:
        made.put(event("added", "a:1", "x" * (LIMIT + 1)))
        made.take()
        assert made.texts() == {"a:1": "dead"}
        made.preparer = replace(made.preparer, limit_bytes=2 * LIMIT)
        found = discover([made.topic], made.metadata.ledger(), made.stages.shape, limit_bytes=2 * LIMIT)
        assert [item.found.uri for item in found.work.updated] == ["a:1"]


def test_a_dead_document_can_be_tried_again() -> None:
    """A replay of its letter makes the next look read its message again, once."""
    with desk() as made:
        made.put(event("added", "a:1", "no PDF", suffix="pdf"))
        made.take()
        made.look()
        assert made.made == 1
        document = made.metadata.document(doc_id("a:1"))
        assert document is not None
        made.metadata.apply([tried_again(document, SPACE)])
        made.look()
        made.look()
        assert (made.made, made.texts()) == (2, {"a:1": "dead"})
        assert tried_again(replace(document, source="files"), SPACE) == Delete("a:1")


LONG = "# Title\n\n" + " ".join(f"word{number}" for number in range(40))


def test_another_shape_finds_the_content_on_the_bus() -> None:
    """The next look cuts every document anew from its message, of the kind that the message says."""
    with desk() as made:
        made.put(event("added", "a:1", LONG, suffix="md"), event("added", "a:2", "two"))
        made.take()
        made.start(chunker=Chunker(30))
        made.look()
        with desk() as fresh:
            fresh.start(chunker=Chunker(30))
            fresh.put(event("added", "a:1", LONG, suffix="md"), event("added", "a:2", "two"))
            fresh.take()
            assert fresh.texts() == made.texts()
            assert _rows(made) == _rows(fresh)


@pytest.mark.parametrize("change", ["size", "space", "both"])
def test_another_shape_without_the_messages(change: str) -> None:
    """What the metadata have is cut anew; with the same cut no chunk is another one, and no document is lost."""
    with desk() as made:
        made.put(event("added", "a:1", LONG, suffix="md"), event("added", "a:2", "\0bad", suffix="pdf"))
        made.take()
        before = _rows(made)
        made.bus = MemoryBus()
        made.put(event("added", "a:9", "another topic's"), *[b""] * 9)
        space = SPACE if change == "size" else "other-16"
        made.metadata.add_space(space)
        made.start(chunker=Chunker(80 if change == "space" else 30), space=space)
        made.look()
        after = _rows(made, space)
        assert (after == before) == (change == "space")
        assert "".join(after[1]).split() != []
        document = made.metadata.document(doc_id("a:1"))
        assert document is not None
        assert (document.state, document.shape, document.media_type) == ("ready", made.stages.shape, "text/markdown")
        assert list(made.metadata.incomplete(space)) == []
        dead = made.metadata.document(doc_id("a:2"))
        assert dead is not None
        assert (dead.state, dead.shape) == ("dead", made.stages.shape)
        done = made.made
        made.look()
        assert made.made == done


def _rows(made: Desk, space: str = SPACE) -> tuple[list[Chunk], list[str]]:
    keys = [chunk.key for chunk in made.metadata.chunks_of(doc_id("a:1"), space)]
    records = [made.metadata.chunks(space, keys)[key] for key in keys]
    return [Chunk(r.ordinal, r.offset, r.text, r.page, r.heading) for r in records], [r.text for r in records]


def test_no_look_and_no_mass_delete_removes_what_a_message_brought() -> None:
    """Also where its topic is named no more; a deletion by another topic does."""
    with desk() as made:
        made.put(event("added", "a:1", "one"))
        made.take()
        found = discover(
            [made.files], made.metadata.ledger(), made.stages.shape, limit_bytes=LIMIT, allow_mass_delete=True
        )
        assert (found.work.nothing, dict(found.unnamed)) == (True, {})
        made.topic = TopicSource(made.bus, "others", made.metadata, event_bytes_max=EVENT_BYTES_MAX)
        events = DocumentEvents(
            made.topic, [made.files], made.metadata, made.stages.shape, limit_bytes=LIMIT, may_reset=False
        )
        made.bus.append("others", "0", [Message(event("deleted", "a:1"))], at=0)
        assert len(events.batch(events.read() or []).work.deleted) == 1


def test_a_topic_that_was_made_anew() -> None:
    """It is an error that says what to do; with the setting it is read from its beginning."""
    with desk() as made:
        made.put(event("added", "a:1", "one"), event("added", "a:2", "two"))
        made.take()
        made.bus = MemoryBus()
        made.put(event("added", "a:3", "three"))
        made.start()
        with pytest.raises(ResumeError, match="KAFKA_OFFSET_RESET"):
            made.events.read()
        made.start(may_reset=True)
        made.take()
        assert made.texts() == {"a:1": "one", "a:2": "two", "a:3": "three"}


def test_a_long_partition_does_not_keep_others_waiting() -> None:
    """Each batch begins with the next partition."""
    with desk() as made:
        made.put(*[event("added", f"a:{number}", "x") for number in range(2 * EVENTS_MAX)])
        made.put(event("added", "b:1", "y"), partition="1")
        assert [len(made.take().work.added) for _ in range(3)] == [EVENTS_MAX, EVENTS_MAX, 1]
