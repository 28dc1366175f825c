"""The document path as processes: stopped, followed, bare, with many workers, and two at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.embedders.stub import StubEmbedder
from tests.documents_place import (
    SERVED,
    SERVED_DIM,
    DocumentPlace,
    sections,
    served_by,
    told,
)
from tests.embedding_servers import Answer, scripted, vectors
from tests.flows import until
from tests.hostile_pdfs import bomb

SMALL = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """Empty stores and no document."""
    with DocumentPlace(tmp_path / "place", settings=dict(SMALL)) as made:
        yield made


def test_sigterm_during_ingest(place: DocumentPlace) -> None:
    """The run ends with 0 though the server has not answered for all, and the next one does what is left, once."""
    embedder = StubEmbedder(SERVED_DIM)
    begun = threading.Event()
    asked: list[str] = []

    def script(request: dict[str, Any]) -> Answer:
        asked.extend(request["input"])
        if len(asked) >= 6:
            begun.set()
        return vectors(embedder.embed(request["input"]).tolist())

    place.put_all({f"{i:03}.md": sections(*range(10 * i, 10 * i + 10)) for i in range(100)})
    with scripted(script) as server:
        settings = {**served_by(server), "MAX_EMBED_BATCH": 2}
        run = place.headrace("documents", "--once", "--json", **settings)
        until(begun.is_set, "the first calls")
        first = told(run.stop(signal.SIGTERM))
        held = place.held(SERVED)
        assert len(held.rows) == first.get("embedded", 0) < 1000
        second = place.ingest(**settings)
        assert second["added"] + first.get("added", 0) == 100
        assert len(place.held(SERVED).rows) == 1000
        assert len(asked) < 1000 + 10


def test_a_run_that_follows_notices_what_happens(place: DocumentPlace) -> None:
    """An edit, a rename, a removal and a root that goes away for a while, all while it runs."""
    place.put_all({f"{i}.md": sections(i) for i in range(5)})
    run = place.start()
    place.wait_until_indexed(run, 5)
    uri = place.put("0.md", sections("edited"))
    until(lambda: "textedited" in " ".join(place.held(whole=False).texts(uri)), "the edit")
    (place.docs / "1.md").rename(place.docs / "moved.md")
    until(lambda: place.uri("moved.md") in place.held(whole=False).documents, "the rename")
    (place.docs / "2.md").unlink()
    place.wait_until_indexed(run, 4)
    place.docs.rename(place.root / "away")
    until(lambda: '"source_away"' in run.errors or "away" in run.errors.splitlines()[-1], "the loss to be told")
    (place.root / "away").rename(place.docs)
    place.put("back.md", sections("back"))
    place.wait_until_indexed(run, 5)
    done = run.stop()
    assert told(done).items() >= {"renamed": 1, "deleted": 1, "updated": 1, "embedded": 7}.items()
    assert len(place.held().rows) == 5


def test_a_bomb_does_not_keep_a_run_from_ending(place: DocumentPlace) -> None:
    """SIGTERM while a hostile PDF is read ends the run at once; the PDF is found again by the next one."""
    place.put("bomb.pdf", bomb())
    place.put_all({f"{i}.md": sections(i) for i in range(3)})
    run = place.start()
    place.wait_until_indexed(run, 3)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(20) == 0


@pytest.mark.parametrize("arguments", [(), ("-r",), ("-w", "2")], ids=["without recovery", "with", "two workers"])
def test_bare_runs(place: DocumentPlace, arguments: tuple[str, ...]) -> None:
    """`python -m bytewax.run dataflows.documents` with BUS_FOLLOW=0 leaves what `headrace documents` does."""
    place.put_all({f"{i}.md": sections(i) for i in range(20)})
    given = tuple(
        part
        for each in arguments
        for part in ((each, str(place.recovery), "-s", "1", "-b", "0") if each == "-r" else (each,))
    )
    place.bare_documents(*given).done()
    with place.metadata() as metadata:
        [last] = metadata.runs(1)
        assert last.ended_us is not None
        assert last.counts["added"] == 20
    (place.docs / "0.md").unlink()
    place.put("1.md", sections("edited"))
    place.bare_documents(*given).done()
    with place.twin("twin") as twin:
        twin.ingest()
        assert twin.held() == place.held()


def test_a_cluster_is_refused(place: DocumentPlace) -> None:
    """Two processes cannot share an index: the bare run with addresses ends with 2 and one sentence."""
    run = place.bare_documents("-i", "0", "-a", "127.0.0.1:2101;127.0.0.1:2102")
    assert run.wait() == 2
    assert run.errors.splitlines()[-1].startswith("headrace: `documents` is run by one process")
    assert not (place.root / "vectors").exists()


def test_two_writers_on_one_index_and_the_second_refuses(place: DocumentPlace) -> None:
    """While one follows, another with the same recovery folder or one of its own ends with 2 and one sentence."""
    place.put("a.md", sections(1))
    first = place.start()
    place.wait_until_indexed(first, 1)
    for settings in ({}, {"RECOVERY_DIR": place.root / "other"}):
        second = place.once(**settings)
        assert second.code == 2
        assert second.err.splitlines()[-1].startswith("headrace: ")
        assert "Traceback" not in second.err
    place.put("b.md", sections(2))
    place.wait_until_indexed(first, 2)
    first.stop()
    assert len(place.held().rows) == 2
