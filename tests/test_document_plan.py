from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflows.sources.files import FileSource
from operators.documents import Found
from operators.embedders.stub import StubEmbedder
from operators.errors import UnavailableError
from tests.commands import headrace
from tests.documents_place import DocumentPlace, prose, sections, serving, texts_of

SETTINGS: dict[str, object] = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}
COUNTS = [
    "found",
    "added",
    "updated",
    "deleted",
    "renamed",
    "unchanged",
    "chunks",
    "to_embed",
    "tokens",
    "dead",
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """A place with some documents that were never ingested."""
    with DocumentPlace(tmp_path / "place", settings=SETTINGS) as made:
        made.put_all(
            {
                "a.md": sections("a1", "a2", "a3"),
                "b.md": sections("b1", "b2"),
                "c.txt": "Words of a short text.",
                "d.txt": "Words of another short text.",
                "e.txt": "Words of a third short text.",
                "dead.pdf": "this is no PDF",
            }
        )
        yield made


def planned(place: DocumentPlace, *options: str, **settings: object) -> dict[str, Any]:
    """The one record of `documents --plan --json`."""
    [record] = headrace(place, "documents", "--plan", "--json", *options, **settings).records
    assert list(record) == COUNTS
    return record


def everything(place: DocumentPlace) -> dict[str, bytes | None]:
    """Every file and folder of the place, byte for byte."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(place.root.rglob("*"))}


def kept_promise(place: DocumentPlace, plan: dict[str, Any]) -> dict[str, int]:
    """Run, and compare with the plan; return what the run did."""
    [run] = place.once().records
    same = [name for name in COUNTS if name not in {"to_embed", "tokens"}]
    assert {name: run[name] for name in same} == {name: plan[name] for name in same}
    assert run["embedded"] == plan["to_embed"]
    return dict(run)


def test_a_plan_before_the_first_run(place: DocumentPlace) -> None:
    """Everything would be added; tokens are those of the chunks; no store, folder, recovery or lock is made."""
    before = everything(place)
    plan = planned(place)
    assert everything(place) == before
    assert {name: plan[name] for name in ("found", "added", "dead", "chunks", "to_embed")} == {
        "found": 6,
        "added": 5,
        "dead": 1,
        "chunks": 8,
        "to_embed": 8,
    }
    kept_promise(place, plan)
    texts = [text for uri in place.held().documents for text in place.held().texts(uri)]
    assert plan["tokens"] == sum(StubEmbedder().count_tokens(texts))


def test_a_plan_after_changes(place: DocumentPlace) -> None:
    """Added, edited, renamed, removed, touched: each is told as the run then does it, and only new texts embedded."""
    place.ingest()
    place.put("new.txt", "Nobody has read this")
    place.put("a.md", sections("a1", "changed", "a3"))
    (place.docs / "c.txt").rename(place.docs / "moved.txt")
    (place.docs / "d.txt").unlink()
    place.put("e.txt", "Words of a third short text.")
    before = everything(place)
    plan = planned(place)
    assert everything(place) == before
    assert plan == {
        "found": 6,
        "added": 1,
        "updated": 1,
        "deleted": 1,
        "renamed": 1,
        "unchanged": 3,
        "chunks": 5,
        "to_embed": 2,
        "tokens": plan["tokens"],
        "dead": 0,
    }
    kept_promise(place, plan)
    assert planned(place) | {"found": 0, "unchanged": 0} == dict.fromkeys(COUNTS, 0)


def test_repeated_texts_count_once(place: DocumentPlace) -> None:
    """A text in many documents, more than are looked at together, is embedded once; what the index has, not at all."""
    place.ingest()
    again = prose("again", 20)
    place.put_all({f"copies/{i:03}.txt": again for i in range(70)})
    place.put("copies/old.txt", "Words of a short text.")
    plan = planned(place)
    assert (plan["added"], plan["chunks"], plan["to_embed"]) == (71, 71, 1)
    assert plan["tokens"] == sum(StubEmbedder().count_tokens([again]))
    kept_promise(place, plan)


def test_other_settings_are_planned(place: DocumentPlace) -> None:
    """Another size of chunks and another model: what would be embedded is told, and no server is called for it."""
    place.ingest()
    assert planned(place, CHUNK_SIZE=200)["updated"] == 5
    with serving() as (server, settings):
        plan = planned(place, **settings)
        assert (plan["updated"], plan["chunks"], plan["to_embed"]) == (5, 8, 8)
        assert texts_of(server) == []


def test_a_mass_loss_is_refused_as_in_a_run(place: DocumentPlace) -> None:
    """More than half of the documents gone: exit code 2 with the counts, unless --allow-mass-delete plans it."""
    place.ingest()
    for name in ("a.md", "b.md", "c.txt", "d.txt"):
        (place.docs / name).unlink()
    done = headrace(place, "documents", "--plan", "--json")
    assert (done.code, done.out) == (2, b"")
    assert "has lost 4 of its 6 documents" in done.err
    assert planned(place, "--allow-mass-delete")["deleted"] == 4


def test_a_source_that_is_away(place: DocumentPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is told for what can be listed, and exit code 1 says that it is not all."""
    place.ingest()

    def away(self: FileSource) -> Iterator[Found]:
        raise UnavailableError(f"`{self.name}` is not mounted")

    monkeypatch.setattr(FileSource, "list", away)
    done = headrace(place, "documents", "--plan", "--json")
    assert (done.code, b'"found":0' in done.out, "is not mounted" in done.err) == (1, True, True)


def test_people_see_the_first_documents(place: DocumentPlace) -> None:
    """For people: the first twenty documents with what becomes of them, how many there are, and the counts."""
    place.put_all({f"many/{i:02}.txt": f"text {i}" for i in range(30)})
    text = headrace(place, "documents", "--plan", COLUMNS=200).text
    assert sum(line.startswith("added") and "file://" in line for line in text.splitlines()) == 19
    assert "20 of 36 documents; nothing was changed" in text
    assert "texts that have no vector yet" in text
    place.ingest()
    text = headrace(place, "documents", "--plan").text
    assert "file://" not in text
    assert "unchanged" in text
