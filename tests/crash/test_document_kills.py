"""kill -9 of the document path, at named points and at random: it converges, and embeds nothing twice."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from operators.chunk import Chunker
from operators.documents import chunk_keys, content_hash, doc_id
from operators.errors import SkippableError
from operators.extract import extract
from operators.normalise import normalise
from stores.vectors import open_vectors
from tests.commands import headrace
from tests.documents_place import SERVED, SERVED_DIM, STUB, DocumentPlace, sections, serving, texts_of
from tests.embedding_servers import ScriptedServer
from tests.flows import SOAK, Run, until

KILLED = -signal.SIGKILL
SMALL = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0, "MAX_EMBED_BATCH": 5}
VECTORS = "stores.vectors.shard_writer:UsearchVectorWriter"
METADATA = "stores.metadata.sqlite:SqliteMetadata"
LETTERS = "stores.deadletters.sqlite:SqliteDeadLetters"
INDEX = "stores.index_writer:IndexWriter"
SOURCE = "dataflows.document_source:_Partition"

NAMED = {
    "start": [
        "dataflows.document_wiring:DocumentRun.start:after:1",
        "dataflows.recovery:Recovery._purge:after:1",
        "stores.vectors.shard_writer:create_log:after:2",
        f"{SOURCE}.next_batch:after:1",
        "dataflows.preparing:Preparer.prepare:after:3",
    ],
    "vectors": [
        f"{INDEX}._write:before:1",
        f"{VECTORS}.commit:before:1",
        "os:pwrite:amid:1",
        f"{VECTORS}.commit:after:1",
        f"{VECTORS}.commit:after:3",
    ],
    "metadata": [
        f"{METADATA}.apply:before:1",
        "stores.metadata.sqlite:apply_change:after:3",
        f"{METADATA}.apply:after:1",
        f"{VECTORS}.delete:before:1",
        f"{LETTERS}.put:after:1",
    ],
    "snapshots": [
        f"{SOURCE}.snapshot:after:1",
        "dataflows.document_flow:DocumentsLogic.snapshot:before:1",
        "dataflows.document_flow:DocumentsLogic.on_batch:after:1",
        f"{INDEX}.snapshot:after:1",
    ],
    "end": [
        f"{LETTERS}.put:before:1",
        f"{INDEX}.sweep:before:1",
        f"{INDEX}.sweep:after:1",
        f"{INDEX}.close:before:1",
        "dataflows.document_wiring:DocumentRun.end:before:1",
    ],
}
"""Lineages of runs, each killed where it says, with edits in between."""

NEW_SPACE = [
    f"{METADATA}.add_space:after:1",
    f"{METADATA}.apply:before:1",
    f"{METADATA}.activate:before:1",
    "dataflows.document_wiring:drop_vectors:after:1",
    f"{METADATA}.drop_space:after:1",
]
"""Where runs are killed that build the vectors of another model."""


class Index:
    """Documents that are edited, runs over them that are killed, and what the embedding server was asked meanwhile."""

    def __init__(self, place: DocumentPlace, server: ScriptedServer, seed: object) -> None:
        self.place = place
        self._server = server
        self._chance = random.Random(f"{seed}")
        self._made = 0
        for number in range(40):
            place.put(f"{number:02}.md", self._new())
        place.put_all({"dead.txt": b"\0", "empty.txt": b"", "copy.md": sections(1, 2), "other.md": sections(1, 2)})

    def edit(self) -> None:
        """Change something of every kind; no document twice."""
        chance = self._chance
        names = sorted(path.name for path in self.place.docs.glob("[0-9]*.md"))
        chance.shuffle(names)
        for name in names[:6]:
            self._rewrite(name)
        (self.place.docs / names[6]).unlink()
        for name in names[7:10]:
            (self.place.docs / name).rename(self.place.docs / f"{self._number():02}.md")
        self.place.put(f"{self._number():02}.md", (self.place.docs / names[10]).read_bytes())
        for _ in range(3):
            self.place.put(f"{self._number():02}.md", self._new())
        self.place.put("dead.txt", b"\0" * self._number())

    def run(self, *faults: str, **settings: object) -> Run:
        """Start a run that may be killed."""
        self._before = (len(texts_of(self._server)), self._committed())
        return self.place.faulty(*faults, **settings)

    def check(self) -> None:
        """Of what was committed when the last run began, nothing was embedded by it."""
        begin, committed = self._before
        assert committed.isdisjoint(texts_of(self._server)[begin:])

    def prove(self) -> None:
        """Let a last run end, and hold the stores against those of one run that nobody has killed."""
        self._before = (len(texts_of(self._server)), self._committed())
        assert self.place.ingest(BUS_FOLLOW=0)
        self.check()
        held = self.place.held(SERVED)
        assert set(held.documents) == {self.place.uri(path.name) for path in self.place.docs.iterdir()}
        verified = headrace(self.place, "verify", "documents", "--json")
        assert verified.code == 0, verified.text
        with self.place.twin("twin") as twin:
            twin.ingest()
            assert twin.held(SERVED) == held
            letters = {head.letter_id for head in twin.letters()}
        mine = [head.letter_id for head in self.place.letters()]
        assert letters <= set(mine)
        assert len(mine) == len(set(mine))
        with self.place.metadata() as metadata:
            assert metadata.active_space() == SERVED
            assert [space.name for space in metadata.spaces()] == [SERVED]
        assert "embedded" not in self.place.ingest()

    def _committed(self) -> set[str]:
        """The texts that need not be embedded any more.

        Their vectors stand under the keys of each document that has them, or of one that the metadata know.
        """
        wanted = {self.place.uri(path.name): _texts(path) for path in self.place.docs.iterdir()}
        found, lacking = set[str](), set[str]()
        store = open_vectors(f"usearch:///{self.place.vectors_folder}", SERVED, SERVED_DIM)
        with closing(store.read()) as reader:
            for uri, texts in wanted.items():
                keys = chunk_keys(doc_id(uri), [content_hash(text.encode()) for text in texts])
                _, known = reader.get(np.array(keys, np.uint64))
                for text, there in zip(texts, known.tolist(), strict=True):
                    (found if there else lacking).add(text)
        found -= lacking
        if not (self.place.root / "metadata.db").exists():
            return found
        with self.place.metadata() as metadata:
            if SERVED not in {space.name for space in metadata.spaces()}:
                return found
            for row in metadata.chunks(SERVED, metadata.keys(SERVED, limit=1_000_000)).values():
                if row.text in wanted.get(row.uri, [row.text]):  # of a document that is as it was, or that is gone
                    found.add(row.text)
        return found

    def _rewrite(self, name: str) -> None:
        kept = (self.place.docs / name).read_text("utf-8").split("# ")[1:]
        kept[self._chance.randrange(len(kept))] = self._new(1)[2:]
        self.place.put(name, "".join(f"# {part}" for part in kept[: self._chance.randrange(1, 4)]))

    def _new(self, count: int = 3) -> str:
        return sections(*(self._number() for _ in range(count)), words=20)

    def _number(self) -> int:
        self._made += 1
        return 100 + self._made


def _texts(path: Path) -> list[str]:
    try:
        text = normalise(extract(path.read_bytes(), path.name, pdf="pdfium"))
    except SkippableError:
        return []
    return [chunk.text for chunk in Chunker(300, 0).chunks(text)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """Empty stores and no document."""
    with DocumentPlace(tmp_path / "place", settings=dict(SMALL)) as made:
        yield made


@pytest.mark.parametrize("lineage", NAMED)
def test_killed_at_named_points(place: DocumentPlace, lineage: str) -> None:
    """Whatever the flow was about to write or had just written when it died, the next run mends it."""
    with serving() as (server, settings):
        place.settings |= settings
        index = Index(place, server, lineage)
        if lineage in {"snapshots", "end"}:
            place.ingest()
        for number, point in enumerate(NAMED[lineage]):
            if number > 0 or lineage in {"snapshots", "end"}:
                index.edit()
            run = index.run(point, STREAM_CONCURRENCY=1 + 2 * (number % 2))
            assert run.wait() == KILLED, (point, run.errors)
            index.check()
        index.prove()


def test_killed_while_another_space_is_built_and_taken(place: DocumentPlace) -> None:
    """Searches are answered from the old space or from the new one, whole, and in the end the old one is gone."""
    with serving() as (server, settings):
        index = Index(place, server, "spaces")
        place.ingest()
        chunks = len(place.held().rows)
        place.settings |= settings
        for point in NEW_SPACE:
            run = index.run(point)
            assert run.wait() == KILLED, (point, run.errors)
            index.check()
            with place.metadata() as metadata:
                active = metadata.active_space()
                assert active in {STUB, SERVED}
                assert {space.name: space.chunks for space in metadata.spaces()}[str(active)] == chunks
        index.prove()


@pytest.mark.parametrize("seed", range(1 + 10 * SOAK))
def test_killed_at_random_steps(place: DocumentPlace, seed: int) -> None:
    """A kill before any step that touches a file leaves no trace."""
    chance = random.Random(seed)
    with serving() as (server, settings):
        place.settings |= settings
        index = Index(place, server, seed)
        for _ in range(3):
            run = index.run(f"steps::before:{chance.randrange(1, 250)}", STREAM_CONCURRENCY=chance.randrange(1, 4))
            assert run.wait() in {0, KILLED}, run.errors
            index.check()
            index.edit()
        index.prove()


@pytest.mark.parametrize("seed", range(1 + 10 * SOAK))
def test_killed_at_random_moments(place: DocumentPlace, seed: int) -> None:
    """A kill by the clock leaves no trace, also while documents change under the run."""
    chance = random.Random(seed)
    with serving() as (server, settings):
        place.settings |= settings
        index = Index(place, server, seed)
        for number in range(4):
            run = index.run(STREAM_CONCURRENCY=1 + number % 3, BUS_FOLLOW=1)
            until(lambda: run.ended or '"started"' in run.errors, "the run to start")  # noqa: B023  # called at once
            assert run.lives_for(chance.uniform(0, 0.5)), run.errors
            if number % 2:
                index.edit()
                assert run.lives_for(chance.uniform(0, 0.3)), run.errors
            run.kill()
            if number % 2 == 0:
                index.check()
                index.edit()
        index.prove()
