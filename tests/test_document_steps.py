"""The first steps of the document path, each alone: drop repeats, prepare."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from dataflows.extraction import Extraction
from dataflows.preparing import Prepared, Preparer, Stages
from dataflows.sources.memory import MemorySource
from operators.chunk import Chunker
from operators.document_tasks import Passed, Task, TaskKind
from operators.documents import Text, content_hash
from operators.errors import UnavailableError
from stores.metadata.memory import MemoryMetadata
from stores.metadata.records import Delete, Rename, Touch, Upsert
from stores.patience import Patience

DIM = 16
SPACE = f"stub-{DIM}"
URIS = [f"memory:s/{name}" for name in "abcd"]
LIMIT = 1 << 16


def task(kind: TaskKind, uri: str = URIS[0], turn: int = 1, old: str | None = None) -> Task:
    """A task of the source `s`."""
    return Task(turn, kind, uri, "s", f"print-{turn}", 4, old)


KINDS: st.SearchStrategy[TaskKind] = st.sampled_from(["added", "updated", "deleted", "relisted"])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(URIS), st.sampled_from(["added", "deleted"])), max_size=40)
)
def test_only_what_is_newer_is_handed_on(delivered: list[tuple[int, str, TaskKind]]) -> None:
    """In whatever order tasks come and repeat, each is newer than the last, none from before a deletion."""
    passed = Passed()
    last: dict[str, int] = {}
    deleted = 0
    for turn, uri, kind in delivered:
        new, passed = passed.take(task(kind, uri, turn))
        assert new == (turn >= deleted and turn > last.get(uri, -1))
        if new and kind == "deleted":
            last.pop(uri, None)
            deleted = max(deleted, turn)
        elif new:
            last[uri] = turn
        restored = Passed.restored(pickle.loads(pickle.dumps(passed.snapshot())))  # noqa: S301  # what the engine does
        assert (restored, restored.snapshot()) == (passed, passed.snapshot())
        passed = restored


@given(st.data())
def test_nothing_is_dropped_that_comes_once_and_in_turn(data: st.DataObject) -> None:
    """What a source hands on, look after look, is all new, also after a stop anywhere."""
    passed = Passed()
    for turn in range(1, 6):
        for uri in data.draw(st.permutations(URIS)):
            kind = data.draw(KINDS)
            new, passed = passed.take(task(kind, uri, turn))
            assert new
            if data.draw(st.booleans()):
                passed = Passed.restored(passed.snapshot())


def test_a_snapshot_does_not_show_the_order_in_which_documents_came() -> None:
    """Equal states have equal bytes, 24 a document."""
    both = [Passed(), Passed()]
    for passed, uris in zip(both, (URIS, URIS[::-1]), strict=True):
        for uri in uris:
            passed.take(task("added", uri))
    assert both[0].snapshot() == both[1].snapshot()


@dataclass
class Kitchen:
    """A preparer over memory."""

    source: MemorySource
    metadata: MemoryMetadata
    preparer: Preparer

    def put(self, name: str, content: bytes, kind: TaskKind = "added", old: str | None = None) -> Prepared:
        """Put a document and prepare it."""
        return self.preparer.prepare(task(kind, self.source.put(name, content), old=old))


@contextmanager
def kitchen(**changed: object) -> Iterator[Kitchen]:
    """A preparer over memory; `changed` fields of it are other ones."""
    source, metadata = MemorySource("s"), MemoryMetadata()
    metadata.add_space(SPACE)
    with Extraction() as extraction:
        stages = Stages(extraction, "regex", Chunker(80), SPACE)
        preparer = Preparer({"s": source}, stages, metadata, Patience(tries_max=3, sleep=lambda _: None), "run", LIMIT)
        yield Kitchen(source, metadata, replace(preparer, **changed))  # type: ignore[arg-type]  # what a test says


@given(st.binary(max_size=300), st.sampled_from(["a.md", "a.txt", "a"]))
def test_whatever_a_text_holds_it_is_prepared_or_dead(content: bytes, name: str) -> None:
    """No bytes stop the flow: they become chunks that stand in the document's order, or one letter and a dead line."""
    with kitchen() as made:
        prepared = made.put(name, content)
    change = prepared.change
    assert isinstance(change, Upsert)
    assert change.document.content_hash == content_hash(content)
    assert (change.document.state == "dead") == (prepared.letter is not None)
    assert [chunk.ordinal for chunk in change.chunks] == list(range(len(change.chunks)))
    assert all(chunk.text.strip() == chunk.text != "" for chunk in change.chunks)
    if prepared.letter is not None:
        assert change.chunks == ()
        assert (prepared.letter.partition, prepared.letter.source) == (change.document.uri, "s")


def test_what_is_known_is_not_prepared_again() -> None:
    """Same bytes and settings: a touch; another setting, or a line that is dead: all of it again."""
    with kitchen() as made:
        first = made.put("a.md", b"text").change
        assert isinstance(first, Upsert)
        made.metadata.apply([first])
        assert made.put("a.md", b"text", "updated").change == Touch(URIS[0] + ".md", "s", "print-1")
        other = replace(made.preparer, stages=replace(made.preparer.stages, chunker=Chunker(79)))
        again = other.prepare(task("updated", URIS[0] + ".md")).change
        assert isinstance(again, Upsert)
        made.metadata.apply([replace(first, document=replace(first.document, state="dead"), chunks=())])
        assert isinstance(made.put("a.md", b"text", "updated").change, Upsert)


def test_a_document_that_has_changed_since_it_was_listed() -> None:
    """What the ledger says of its size is what was read: a rename is found by it."""
    with kitchen() as made:
        change = made.put("a.md", b"longer than it was").change
        assert isinstance(change, Upsert)
        assert (change.document.size_bytes, change.document.fingerprint) == (18, "print-1")


def test_tasks_that_need_no_bytes() -> None:
    """A deletion and a document that another source lists are prepared though nobody can read them."""
    with kitchen(sources={}) as made:
        assert made.preparer.prepare(task("deleted")).change == Delete(URIS[0])
        assert made.preparer.prepare(task("relisted")).change == Touch(URIS[0], "s", "print-1")


def test_a_renamed_document_takes_its_old_line_along() -> None:
    """Ready or dead, the new name comes as the old one goes."""
    with kitchen() as made:
        for content in (b"text", b"\0"):
            change = made.put("b.md", content, "renamed", "memory:s/a.md").change
            assert isinstance(change, Rename)
            assert (change.old_uri, change.new.document.uri) == ("memory:s/a.md", "memory:s/b.md")


def test_other_reasons_why_there_is_nothing_to_write() -> None:
    """A vanished document leaves nothing at all; one that is away leaves a letter and no line, so it is tried again."""
    with kitchen() as made:
        assert made.preparer.prepare(task("added")) == Prepared(task("added"), None)
        uri = made.source.put("a.md", b"text")
    with kitchen(sources={"s": Away()}) as made:
        gone = made.preparer.prepare(task("added", uri))
        assert gone.change is None
        assert gone.letter is not None
        assert (gone.letter.stage, gone.letter.reason) == ("fetch", "unavailable")


def test_a_reader_of_documents_that_does_not_start() -> None:
    """It is tried again with patience, then the document has a letter and no line; the flow goes on."""
    with kitchen() as made:
        away = Away()
        stages = replace(made.preparer.stages, extraction=cast("Extraction", away))
        made.source.put("a.md", b"text")
        prepared = replace(made.preparer, stages=stages).prepare(task("added", URIS[0] + ".md"))
        assert prepared.change is None
        assert prepared.letter is not None
        assert (prepared.letter.stage, prepared.letter.reason, away.calls) == ("extract", "unavailable", 3)


class Away(MemorySource):
    """A source, and a reader of documents, that never answers."""

    def __init__(self) -> None:
        super().__init__("s")
        self.calls = 0
        self.shape = "away"

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """See Source."""
        raise UnavailableError(f"`{uri}` is away ({limit_bytes})")

    def extract(self, data: bytes, uri: str, said: str | None = None) -> Text:
        """See Extraction."""
        self.calls += 1
        raise UnavailableError(f"no process for `{uri}` ({len(data)}, {said})")
