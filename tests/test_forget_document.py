"""`headrace forget --document`: no word of it is left, the others answer as before, and runs pass it over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import headrace
from tests.contracts.test_forgetting import left_in
from tests.documents_place import DocumentPlace

WORD = "quibblezorp"
NAME = "zyxq-unmistakable.md"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """An index of some documents, one of which is to be forgotten, and of one that cannot be read."""
    with DocumentPlace(tmp_path / "place") as opened:
        opened.put_all({f"doc-{n}.md": f"# Pumps {n}\n\nThe pump number {n} turns and hums." for n in range(12)})
        opened.put(NAME, f"# About {WORD}\n\n" + f"The {WORD} pump turns. " * 80)
        opened.put("zyxq-broken.pdf", b"no pdf")
        opened.ingest()
        headrace(opened, "backfill", "documents", "--out", str(opened.root / "out"), "--json")
        yield opened


def left(place: DocumentPlace) -> list[str]:
    """Files that hold its name or its word, other than itself."""
    found = left_in(place.root, WORD, NAME.removesuffix(".md"), WORD[:8])
    return [name for name in found if not name.startswith(("docs/", "run-"))]


def answers(place: DocumentPlace, query: str) -> list[str]:
    """Documents that a search finds."""
    return sorted({str(hit["uri"]) for hit in headrace(place, "search", query, "-k", "99", "--json").records})


def forget(place: DocumentPlace, name: str = NAME) -> list[dict[str, object]]:
    """The receipt."""
    return headrace(place, "forget", "--document", str(place.docs / name), "--yes", "--json").records


def test_no_word_is_left_and_looks_pass_it_over(place: DocumentPlace) -> None:
    """Chunks, full text, vectors and the file for others lose it; runs do not bring it back until it is lifted."""
    assert {name.partition("/")[0] for name in left(place)} >= {"metadata.db"}
    others = [uri for uri in answers(place, "pump turns") if NAME not in uri]
    *places, summary = forget(place)
    assert left(place) == []
    assert summary["left"] == 0
    removed = {str(p["place"]).split()[0]: p["removed"] for p in places}
    assert all(removed[name] for name in ("vectors", "metadata", "artifact", "recovery"))
    assert answers(place, "pump turns") == others
    assert answers(place, WORD) == [uri for uri in answers(place, WORD) if NAME not in uri]
    assert place.ingest() == {"unchanged": 13}
    assert left(place) == []
    assert headrace(place, "verify", "documents", "--json").records[-1]["equal"]
    assert forget(place)[-1]["removed"] == 0
    assert headrace(place, "forget", "lift", str(place.docs / NAME), "--json").records == [{"lifted": 1}]
    assert place.ingest()["added"] == 1
    assert place.uri(NAME) in answers(place, WORD)


def test_a_document_that_was_refused_is_forgotten_with_its_letter(place: DocumentPlace) -> None:
    """Its dead letter goes, and the next look does not write another."""
    assert len(headrace(place, "dlq", "list", "--json").records) == 1
    assert forget(place, "zyxq-broken.pdf")[-1]["left"] == 0
    assert headrace(place, "dlq", "list", "--json").records == []
    assert place.ingest() == {"unchanged": 13}
    assert left_in(place.root, "zyxq-broken") == []


@pytest.mark.parametrize("step", [4, 20, 40])
def test_killed_half_way_it_is_finished_by_doing_it_again(place: DocumentPlace, step: int) -> None:
    """Killed (-9) at any step that touches a file; again, and nothing is left, and the index is whole."""
    command = ("forget", "--document", str(place.docs / NAME), "--yes", "--json")
    run = place.quick(f"steps::before:{step}", "--", *command)
    assert run.wait() in (0, -signal.SIGKILL)
    assert forget(place)[-1]["left"] == 0
    assert left(place) == []
    assert headrace(place, "verify", "documents", "--json").records[-1]["equal"]
