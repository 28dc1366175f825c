"""The last steps of the document path, each alone: embed, and write to the index."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflows.embedding import Embedding
from dataflows.preparing import Prepared
from operators.document_tasks import Task, TaskKind
from operators.documents import Chunk, chunk_keys, content_hash, doc_id, memo_key
from operators.embedders.port import Vectors
from operators.embedders.stub import StubEmbedder
from operators.errors import ConfigError, SkippableError, UnavailableError
from operators.records import DeadLetter
from stores.deadletters import open_dead_letters
from stores.index_writer import IndexChange, IndexWriter
from stores.metadata import MetadataStore, open_metadata
from stores.metadata.records import Change, Delete, Document, Rename, Touch, Upsert
from stores.patience import Patience
from stores.vectors import open_vectors
from stores.vectors.port import VectorStore, shard_of

DIM = 16
SPACE = f"stub-{DIM}"
URIS = [f"memory:s/{name}" for name in "abcd"]


def task(kind: TaskKind, uri: str = URIS[0], old: str | None = None) -> Task:
    """A task of the source `s`."""
    return Task(1, kind, uri, "s", "print", 4, old)


class Noted(StubEmbedder):
    """Keeps every text that it was asked for; refuses those with `refused`, is away while `away`."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.calls: list[list[str]] = []
        self.away = False

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder."""
        self.calls.append(list(texts))
        if self.away:
            raise UnavailableError("away")
        if any("refused" in text for text in texts):
            raise SkippableError("embedding_refused", "refused")
        return super().embed(texts)


@dataclass
class Desk:
    """Embedding and writing over stores."""

    embedder: Noted
    vectors: VectorStore
    metadata: MetadataStore
    writer: IndexWriter
    embedding: Embedding
    stop: threading.Event

    def write(self, *batch: Prepared) -> None:
        """Embed the documents and write them."""
        done, _ = self.embedding.embed(batch)
        self.writer.write([IndexChange(e.prepared.change, e.prepared.letter, e.keys, e.vectors) for e in done])

    def keys(self) -> tuple[list[int], list[int]]:
        """Of the metadata and of the vectors, once all is durable."""
        self.writer.snapshot()
        with closing(self.vectors.read()) as reader:
            return list(self.metadata.keys(SPACE)), reader.keys().tolist()


@contextmanager
def desk(kind: str) -> Iterator[Desk]:
    """Stores of a kind, `memory` or `disk`, with one writer."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        urls = (
            ("memory:", "memory:") if kind == "memory" else (f"sqlite:///{root / 'm.db'}", f"usearch:///{root / 'v'}")
        )
        vectors = open_vectors(urls[1], SPACE, DIM, compact_rows=8)
        stop = threading.Event()
        with closing(open_metadata(urls[0])) as metadata, closing(open_dead_letters("memory:")) as letters:
            metadata.add_space(SPACE)
            embedder = Noted()
            patience = Patience(tries_max=2, sleep=lambda _: None)
            with closing(vectors.read()) as reader:
                writer = IndexWriter(vectors, metadata, letters)
                embedding = Embedding(
                    embedder, reader, metadata, batch_max=3, patience=patience, stop=stop, now_us=lambda: 7
                )
                made = Desk(embedder, vectors, metadata, writer, embedding, stop)
                try:
                    yield made
                finally:
                    made.writer.close()


def made_of(uri: str, texts: Sequence[str], old: str | None = None) -> Prepared:
    """A document with these chunks, prepared."""
    digest = content_hash("\0".join(texts).encode())
    document = Document(uri, "s", digest, digest, memo_key(digest, "shape"), "shape", "text/plain", 1, "run")
    change = Upsert(document, SPACE, tuple(Chunk(i, 100 * i, text) for i, text in enumerate(texts)))
    kind: TaskKind = "added" if old is None else "renamed"
    return Prepared(task(kind, uri, old=old), change if old is None else Rename(old, change))


def test_a_text_is_embedded_once_wherever_it_stands() -> None:
    """In a document twice, in two of a batch, in one that is stored; never more texts a call than are allowed."""
    with desk("memory") as made:
        first = [made_of(URIS[0], ["1", "2", "1"]), made_of(URIS[1], ["2", "3", "4"])]
        assert [e.made for e in made.embedding.embed(first)[0]] == [2, 2]
        assert made.embedder.calls == [["1", "2", "3"], ["4"]]
        made.write(*first)
        made.embedder.calls.clear()
        again, _ = made.embedding.embed([made_of(URIS[2], ["4", "3"]), made_of(URIS[0], ["5", "1"])])
        assert [e.made for e in again] == [0, 1]
        assert made.embedder.calls == [["5"]]


def test_vectors_of_a_lost_attempt_are_found_again() -> None:
    """What was committed before the metadata knew of it stands under the document's own keys."""
    with desk("memory") as made:
        [lost], _ = made.embedding.embed([made_of(URIS[0], ["1", "2"])])
        for shard in range(made.vectors.shards):
            made.writer._writers[shard].put(lost.keys, lost.vectors)
            made.writer._writers[shard].commit()
        made.embedder.calls.clear()
        [found], _ = made.embedding.embed([made_of(URIS[0], ["2", "1", "3"])])
        assert (found.made, made.embedder.calls) == (1, [["3"]])


def test_a_refused_text_kills_its_document_alone() -> None:
    """Those that share its call, or its other texts, are embedded; the letter names the document and not the text."""
    with desk("memory") as made:
        batch = [made_of(URIS[0], ["1"]), made_of(URIS[1], ["refused", "1"], old=URIS[3]), made_of(URIS[2], ["2"])]
        (good, bad, other), _ = made.embedding.embed(batch)
        assert (len(good.keys), len(bad.keys), len(other.keys)) == (1, 0, 1)
        assert isinstance(bad.prepared.change, Rename)
        assert bad.prepared.change.new.document.state == "dead"
        letter = bad.prepared.letter
        assert letter is not None
        assert (letter.stage, letter.partition, letter.time_us) == ("embed", URIS[1], 7)


def test_stop_leaves_out_what_is_not_embedded() -> None:
    """A deletion, and a document all of whose texts are known, go on; nothing is asked for."""
    with desk("memory") as made:
        made.write(made_of(URIS[0], ["1"]))
        made.embedder.calls.clear()
        made.stop.set()
        deletion = Prepared(task("deleted", URIS[3]), Delete(URIS[3]))
        done, _ = made.embedding.embed([made_of(URIS[1], ["1"]), made_of(URIS[2], ["1", "new"]), deletion])
        assert [e.prepared.task.uri for e in done] == [URIS[1], URIS[3]]
        assert made.embedder.calls == []


def test_an_embedder_that_stays_away_is_told_of() -> None:
    """It is called as often as the patience says; documents that need nothing new are handed on, and the reason."""
    with desk("memory") as made:
        made.write(made_of(URIS[0], ["1"]))
        made.embedder.away = True
        before = len(made.embedder.calls)
        done, away = made.embedding.embed([made_of(URIS[1], ["2"]), made_of(URIS[2], ["1"])])
        assert ([one.prepared.task.uri for one in done], type(away)) == ([URIS[2]], UnavailableError)
        assert len(made.embedder.calls) == before + 2


def test_a_text_on_its_way_is_not_embedded_again() -> None:
    """What was embedded for one document and is not written yet serves the next one, as between two workers."""
    with desk("memory") as made:
        made.embedding.embed([made_of(URIS[0], ["1", "2"])])
        (second,), _ = made.embedding.embed([made_of(URIS[1], ["2", "3"])])
        assert second.made == 1


def test_a_vector_that_somebody_removed_is_put_again() -> None:
    """Where the metadata names a key whose vector is gone, writing the document brings it back."""
    with desk("disk") as made:
        made.write(made_of(URIS[0], ["1"]))
        writer = made.writer._writers[shard_of(doc_id(URIS[0]), made.vectors.shards)]
        writer.delete(np.array(made.keys()[0], np.uint64))
        writer.commit()
        assert made.keys()[1] == []
        made.write(made_of(URIS[0], ["1"]))
        _check(made, {URIS[0]: ["1"]})


def test_the_letters_of_a_document_go_when_it_is_good_or_gone() -> None:
    """Only its own, and only those of documents; what is refused again keeps them."""
    with closing(open_dead_letters("memory:")) as letters, closing(open_metadata("memory:")) as metadata:
        metadata.add_space(SPACE)
        with closing(IndexWriter(open_vectors("memory:", SPACE, DIM), metadata, letters)) as writer:
            letter = DeadLetter("id", 1, "fetch", "unavailable", "away", "s", URIS[0], 0, b"{}", None)
            others = [replace(letter, letter_id="o", partition=URIS[1]), replace(letter, letter_id="d", stage="decode")]
            nothing = (np.empty(0, np.uint64), np.empty((0, DIM), np.float32))
            letters.put([letter, *others])
            writer.write([IndexChange(Delete(URIS[0]), replace(letter, letter_id="again"), *nothing)])
            assert letters.count() == 4
            writer.write([IndexChange(Delete(URIS[0]), None, *nothing)])
            assert {head.letter_id for head in letters.list()} == {"o", "d"}


Texts = st.lists(st.sampled_from(["1", "2", "3", "4", "5"]), max_size=6)
Step = tuple[str, object, list[str]]
Steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(URIS), Texts),
    st.tuples(st.just("delete"), st.sampled_from(URIS), st.just([])),
    st.tuples(st.just("touch"), st.sampled_from(URIS), st.just([])),
    st.tuples(st.just("rename"), st.permutations(URIS).map(lambda uris: tuple(uris[:2])), Texts),
)


def _prepared(step: Step, model: dict[str, list[str]]) -> Prepared:
    """The step as it is prepared; the model follows it."""
    kind, where, texts = step
    if kind == "rename":
        old, new = cast("tuple[str, str]", where)
        model.pop(old, None)
        model[new] = texts
        return made_of(new, texts, old)
    uri = str(where)
    if kind == "put":
        model[uri] = texts
        return made_of(uri, texts)
    if kind == "delete":
        model.pop(uri, None)
        return Prepared(task("deleted", uri), Delete(uri))
    return Prepared(task("relisted", uri), Touch(uri, "s", "other"))


def _check(made: Desk, model: dict[str, list[str]]) -> None:
    """The stores hold the model's documents, each with the vectors of its texts, and nothing else."""
    expected = {uri: chunk_keys(doc_id(uri), [Chunk(0, 0, text).text_hash for text in model[uri]]) for uri in model}
    named, held = made.keys()
    assert named == held == sorted(key for keys in expected.values() for key in keys)
    assert {known.uri for known in made.metadata.ledger()} == set(model)
    with closing(made.vectors.read()) as reader:
        for uri, keys in expected.items():
            records = made.metadata.chunks(SPACE, keys)
            assert [records[key].text for key in keys] == model[uri]
            if keys:
                vectors, _ = reader.get(np.array(keys, np.uint64))
                assert np.allclose(vectors, StubEmbedder(DIM).embed(model[uri]), atol=1e-3)


@pytest.mark.parametrize(("kind", "examples"), [("memory", 60), ("disk", 12)])
def test_any_changes_in_any_batches_leave_what_they_say(kind: str, examples: int) -> None:
    """Vectors and metadata hold the same, also where a batch changes a document twice; to repeat a batch is nothing."""

    @settings(max_examples=examples)
    @given(st.lists(st.lists(Steps, max_size=4), max_size=6))
    def changes(batches: list[list[Step]]) -> None:
        with desk(kind) as made:
            model: dict[str, list[str]] = {}
            for batch in batches:
                prepared = [_prepared(step, model) for step in batch]
                made.write(*prepared)
                _check(made, model)
                made.write(*prepared)
                _check(made, model)
            assert made.writer.sweep() == 0

    changes()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_orphans_are_swept_and_nothing_else(kind: str) -> None:
    """Vectors that no document names go, however many; those that one names stay, in every shard."""
    with desk(kind) as made:
        made.write(*(made_of(uri, ["1", uri]) for uri in URIS))
        _, before = made.keys()
        for shard, writer in enumerate(made.writer._writers):
            keys = np.arange(1 + shard, 400, 4, dtype=np.uint64)
            writer.put(keys, np.tile(StubEmbedder(DIM).embed(["lost"]), (len(keys), 1)))
            writer.commit()
        assert made.writer.sweep() == 399
        assert made.keys() == (before, before)
        assert made.writer.sweep() == 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_second_writer_is_refused_and_holds_nothing(kind: str) -> None:
    """While one writes, another is a ConfigError, also if only the last shard is taken; then it may."""
    with desk(kind) as made, closing(open_dead_letters("memory:")) as letters:
        with pytest.raises(ConfigError):
            IndexWriter(made.vectors, made.metadata, letters)
        made.write(made_of(URIS[0], ["1"]))
        _check(made, {URIS[0]: ["1"]})
        for writer in made.writer._writers[:-1]:
            writer.close()
        with pytest.raises(ConfigError) as refused:
            IndexWriter(made.vectors, made.metadata, letters)
        made.writer._writers[-1].close()
        made.writer = IndexWriter(made.vectors, made.metadata, letters)
        made.write(made_of(URIS[1], ["2"]))
        _check(made, {URIS[0]: ["1"], URIS[1]: ["2"]})
        del refused  # its traceback holds what the refused one had taken, had it let go of nothing


def test_letters_come_before_everything_and_alone() -> None:
    """A letter without a change is kept once; one with a change is there before the metadata are."""
    with closing(open_dead_letters("memory:")) as letters, closing(open_metadata("memory:")) as metadata:
        metadata.add_space(SPACE)
        vectors = open_vectors("memory:", SPACE, DIM)
        with closing(IndexWriter(vectors, metadata, letters)) as writer:
            letter = DeadLetter("id", 1, "fetch", "unavailable", "away", "s", URIS[0], 0, b"{}", None)
            nothing = (np.empty(0, np.uint64), np.empty((0, DIM), np.float32))
            for _ in range(2):
                writer.write([IndexChange(None, letter, *nothing)])
            assert (letters.count(), list(metadata.ledger())) == (1, [])
            unknown = cast("Upsert", made_of(URIS[0], []).change)
            change: Change = replace(unknown, space="never added")
            with pytest.raises(ValueError, match="never added"):
                writer.write([IndexChange(change, replace(letter, letter_id="other"), *nothing)])
            assert (letters.count(), list(metadata.ledger())) == (2, [])
