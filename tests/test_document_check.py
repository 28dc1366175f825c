from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from dataflows.sources.files import FileSource
from operators.documents import Found
from operators.errors import UnavailableError
from stores.offline.disk import locked
from stores.vectors import open_vectors
from tests.commands import Done, headrace
from tests.document_damage import (
    DAMAGES,
    DOCUMENTS,
    HALF,
    SETTINGS,
    Damage,
    Planted,
    Told,
    a_damaged_log,
    a_document_edited,
    a_lost_ledger,
    a_lost_tail,
    a_vector_less,
    a_vector_more,
    another_text,
    words_without_text,
)
from tests.documents_place import STUB, prose, sections, serving, texts_of


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Planted]:
    """A place where every document was indexed, one of them in vain."""
    with Planted(tmp_path / "place", settings=SETTINGS) as made:
        made.put_all(DOCUMENTS)
        assert made.ingest() == {"added": 4, "chunks": 7, "embedded": 7, "dead": 1}
        yield made


def lines(done: Done) -> list[dict[str, Any]]:
    """The JSON objects on stdout, whatever the exit code."""
    return [orjson.loads(line) for line in done.out.splitlines()]


def told(place: Planted, done: Done) -> Told:
    """The differences that were named, with the names of their documents."""
    return {(line["difference"], place.name_of(line["uri"])) for line in lines(done)[:-1]}


def everything(place: Planted) -> dict[str, bytes]:
    """Every file of the place, byte for byte."""
    return {str(path): path.read_bytes() for path in sorted(place.root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_difference_is_named_and_mended(place: Planted, damage: Damage) -> None:
    """Exactly what was planted is named, by the look alone and by --repair, after which nothing differs any more."""
    planted = damage(place)
    done = place.verify()
    assert done.code == 1
    assert told(place, done) == planted
    assert lines(done)[-1]["equal"] is False
    assert lines(done)[-1]["differences"] == len(lines(done)) - 1
    mended = place.verify("--repair")
    assert mended.code == 0, mended.out
    assert told(place, mended) == planted
    assert all(line["mended"] for line in lines(mended)[:-1])
    documents = len(list(place.docs.iterdir()))
    [summary] = place.verify().records
    assert summary == {"equal": True, "checked": documents, "differences": 0}
    assert lines(mended)[-1] == summary | {"mended": len(lines(done)) - 1}
    assert sorted(place.held().documents) == sorted(place.uri(path.name) for path in place.docs.iterdir())


def test_a_look_changes_nothing(place: Planted) -> None:
    """No byte of documents, stores, letters or recovery folder is another after it, whatever it has found."""
    before = everything(place)
    [summary] = place.verify().records
    assert summary == {"equal": True, "checked": 5, "differences": 0}
    assert everything(place) == before
    a_document_edited(place)
    a_vector_less(place)
    words_without_text(place)
    before = everything(place)
    assert place.verify().code == 1
    assert everything(place) == before


def test_a_look_at_nothing_makes_nothing(tmp_path: Path) -> None:
    """Without any store every document is missing, and neither file nor folder is made; --repair then ingests."""
    with Planted(tmp_path / "place", settings=SETTINGS) as place:
        place.put_all(DOCUMENTS)
        before = sorted(place.root.rglob("*"))
        done = place.verify()
        assert done.code == 1
        assert told(place, done) == {("missing", name) for name in DOCUMENTS}
        assert sorted(place.root.rglob("*")) == before
        assert place.verify("--repair").code == 0
        assert len(place.letters()) == 1


def test_a_touched_file_is_no_difference(place: Planted) -> None:
    """Another time with the same content is none, of documents that are ready and of dead ones."""
    for name in DOCUMENTS:
        os.utime(place.docs / name, (1, 1))
    assert place.verify().code == 0


def test_other_settings_are_another_shape(place: Planted) -> None:
    """Every document made under other settings is named, and --repair makes them under these."""
    done = place.verify(CHUNK_SIZE=200)
    assert told(place, done) == {("shape", name) for name in DOCUMENTS}
    assert place.verify("--repair", CHUNK_SIZE=200).code == 0
    assert place.verify().code == 1


def test_another_source_lists_them(place: Planted) -> None:
    """Documents that the ledger knows from another source are named, and nothing is made anew."""
    settings = {"INGEST_SOURCES": f"{place.docs}/*"}
    done = place.verify(**settings)
    assert told(place, done) == {("source", name) for name in DOCUMENTS}
    assert place.verify("--repair", **settings).code == 0
    assert place.ingest(**settings) == {"unchanged": 5}


def test_what_cannot_be_read_is_not_mended(place: Planted) -> None:
    """A document that is kept and can no longer be read stays as it is; the exit code says so."""
    for _ in range(2):
        done = place.verify("--repair", DOCUMENT_BYTES_MAX=100)
        assert (done.code, told(place, done)) == (1, {("unreadable", name) for name in ("a.md", "b.md", "d.md")})
        assert not any(line["mended"] for line in lines(done)[:-1])
    assert place.verify().code == 0


def test_what_was_refused_and_can_be_read_by_now(place: Planted) -> None:
    """A document that was too large to be read is dead and no difference, until the limit lets it in."""
    place.put("large.txt", prose("large"))
    assert place.ingest(DOCUMENT_BYTES_MAX=300)["dead"] == 1
    assert ("changed", "large.txt") not in told(place, place.verify(DOCUMENT_BYTES_MAX=300))
    done = place.verify("--repair")
    assert (done.code, told(place, done)) == (0, {("changed", "large.txt")})


def test_a_source_that_is_away(place: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be listed cannot be called equal; its documents are not called gone, and stay."""

    def away(self: FileSource) -> Iterator[Found]:
        raise UnavailableError(f"`{self.name}` is not mounted")

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "list", away)
        for options in ((), ("--repair",)):
            done = place.verify(*options)
            assert (done.code, told(place, done)) == (1, {("source_away", None)})
        a_damaged_log(place)
        before = everything(place)
        done = place.verify("--repair")
        assert (done.code, "the sources of 5 documents" in done.err) == (1, True)
        assert everything(place) == before
    assert place.verify("--repair").code == 0


def test_a_mass_loss_is_mended_only_if_it_is_meant(place: Planted) -> None:
    """Most documents gone: all are named, --repair refuses and changes nothing until it is allowed."""
    for name in ("a.md", "b.md", "c.txt"):
        (place.docs / name).unlink()
    a_vector_more(place)
    before = everything(place)
    done = place.verify("--repair")
    assert (done.code, done.out, "--allow-mass-delete" in done.err) == (2, b"", True)
    assert everything(place) == before
    done = place.verify("--repair", "--allow-mass-delete")
    assert (done.code, {line["difference"] for line in lines(done)[:-1]}) == (0, {"gone", "vector_orphan"})


def test_a_folder_that_was_renamed_is_no_loss(place: Planted) -> None:
    """All documents under other names are gone and missing, and --repair moves them; nothing needs to be allowed."""
    for path in list(place.docs.iterdir()):
        path.rename(path.with_name(f"new {path.name}"))
    done = place.verify("--repair")
    assert (done.code, len(lines(done)) - 1) == (0, 2 * len(DOCUMENTS))
    with place.metadata() as metadata:
        assert metadata.runs(1)[0].counts["embedded"] == 0


def test_to_forget_is_no_loss(place: Planted) -> None:
    """Damaged documents stay in the ledger until they are made anew, so that a few that are gone are not most of it."""
    (place.docs / "b.md").unlink()
    (place.docs / "d.md").unlink()
    place.sql('UPDATE chunks SET "offset" = "offset" + 1')
    done = place.verify("--repair")
    assert (done.code, done.err.count("lost")) == (0, 0)


def test_another_model_is_another_space(place: Planted) -> None:
    """With another embedder every document is of another shape and searches are answered from the old space."""
    with serving() as (server, settings):
        done = place.verify(**settings)
        assert told(place, done) == {*(("shape", name) for name in DOCUMENTS), ("space", None)}
        assert texts_of(server) == []
        assert place.verify("--repair", **settings).code == 0
        assert len(texts_of(server)) == 7
        assert not (place.vectors_folder / STUB).exists()


def test_vectors_that_nobody_knows_of(place: Planted) -> None:
    """A folder of vectors that the metadata do not know is named with its path, and left for a person to remove."""
    with closing(open_vectors(f"usearch:///{place.vectors_folder}", "foreign-8", 8).write(0)):
        pass
    done = place.verify("--repair")
    assert (done.code, told(place, done)) == (1, {("leftover", None)})
    assert str(place.vectors_folder / "foreign-8") in lines(done)[0]["detail"]
    shutil.rmtree(place.vectors_folder / "foreign-8")
    assert place.verify().code == 0


@pytest.mark.parametrize(
    ("damage", "embedded"),
    [(another_text, 0), (a_lost_tail, 0), (a_lost_ledger, 0), (a_vector_less, 1), (a_damaged_log, 7)],
)
def test_to_mend_embeds_only_what_has_no_vector(place: Planted, damage: Damage, embedded: int) -> None:
    """Vectors that are there are used again; only the texts whose vectors are lost are embedded."""
    damage(place)
    assert place.verify("--repair").code == 0
    with place.metadata() as metadata:
        assert metadata.runs(1)[0].counts["embedded"] == embedded


def test_rows_that_belong_to_nothing(place: Planted) -> None:
    """What another program has torn apart in the metadata is told with what to do, and is nothing that a run mends."""
    key = place.key("a.md", 2) - HALF
    with closing(sqlite3.connect(place.root / "metadata.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM chunks WHERE key = ?", [key])  # without foreign keys: its text stays
    done = place.verify("--repair")
    assert (done.code, told(place, done)) == (
        1,
        {("chunks", "a.md"), ("vector_orphan", None), ("metadata_damage", None)},
    )
    assert [line["mended"] for line in lines(done)[:-1]] == [True, True, False]
    assert "1 rows of `chunk_texts` belong to no row of `chunks`; restore it" in lines(done)[2]["detail"]


def test_a_repair_beside_a_run_is_refused(place: Planted) -> None:
    """While a run holds the recovery folder, --repair ends with exit code 2 and has changed nothing."""
    a_vector_less(place)
    with locked(place.recovery / "documents" / "headrace.lock"):
        done = place.verify("--repair")
    assert (done.code, done.out) == (2, b"")
    assert told(place, place.verify()) == {("vector_missing", "b.md")}


def test_people_read_a_table(place: Planted) -> None:
    """For people: a line a difference with its document, what was mended, and counts with their meaning."""
    a_document_edited(place)
    done = headrace(place, "verify", "documents", COLUMNS=200)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "changed" in done.text
    assert place.uri("c.txt") in done.text
    assert "--repair" in done.err
    done = headrace(place, "verify", "documents", "--repair", COLUMNS=200)
    assert done.code == 0
    assert "mended" in done.text


def test_a_log_of_many_documents_is_whole(tmp_path: Path) -> None:
    """Copies, equal paragraphs within a document, empty documents and odd names differ in nothing."""
    with Planted(tmp_path / "place", settings=SETTINGS) as place:
        twice = prose("x", 30)
        place.put_all(
            {
                "one.txt": f"{twice}\n\n{twice}\n\n{twice}",
                "copy of one.txt": f"{twice}\n\n{twice}\n\n{twice}",
                "empty.txt": "",
                "ключ [1]*?.md": sections(*range(20)),
                "deep/er/é.txt": "naïve café 😀",
            }
        )
        place.ingest()
        assert place.verify().code == 0
        place.put("one.txt", f"{twice}\n\nother words\n\n{twice}")
        place.ingest()
        assert place.verify().code == 0
