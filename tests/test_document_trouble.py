"""The document path among bad documents, bad sources and bad servers: what is refused, what is kept, what is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.embedders.stub import StubEmbedder
from tests.commands import headrace
from tests.documents_place import (
    ONCE,
    SERVED,
    SERVED_DIM,
    STUB,
    DocumentPlace,
    prose,
    sections,
    served_by,
    serving,
)
from tests.embedding_servers import Answer, refusal, scripted, vectors
from tests.hostile_pdfs import HOSTILE, honest, no_text

SMALL = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}
QUICK = {"retry_after_ms": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """Empty stores and no document."""
    with DocumentPlace(tmp_path / "place", settings=dict(SMALL)) as made:
        yield made


def reasons(place: DocumentPlace) -> dict[str, str]:
    """The reason of every dead letter by the name of its document."""
    return {
        os.path.relpath(head.partition.removeprefix("file://"), place.docs): head.reason for head in place.letters()
    }


def test_hostile_pdfs_among_good_documents(place: DocumentPlace) -> None:
    """Each becomes a letter with its reason, or what text it has; all others are indexed; no second run tries again."""
    bad = {f"{name}.pdf": make() for name, make in HOSTILE.items() if name not in {"bomb", "doubling_forms"}}
    good = place.put_all({**{f"{i}.md": sections(i) for i in range(5)}, "z.pdf": honest(["An honest page"])})
    place.put_all(bad)
    first = place.ingest()
    assert first["dead"] == len(place.letters()) == len(reasons(place))
    assert first["dead"] + first["added"] == len(bad) + len(good)
    assert (
        reasons(place).items()
        >= {
            "encrypted.pdf": "encrypted",
            "many_pages.pdf": "too_many_pages",
            "no_text.pdf": "no_text",
        }.items()
    )
    held = place.held()
    assert all(held.texts(uri) for uri in good)
    assert {place.uri(name) for name in reasons(place)} == {u for u, d in held.documents.items() if d.state == "dead"}
    assert place.ingest() == {"unchanged": len(bad) + len(good)}
    place.put("no_text.pdf", honest(["Text at last"]))
    assert place.ingest() == {"updated": 1, "unchanged": len(bad) + len(good) - 1, "chunks": 1, "embedded": 1}


def test_a_document_that_dies_and_comes_to_life_again(place: DocumentPlace) -> None:
    """While it is dead nothing of it is found; what replaces it is."""
    uri = place.put("a.pdf", honest(["The first version"]))
    place.put("b.md", sections(1))
    place.ingest()
    place.put("a.pdf", no_text())
    assert place.ingest() == {"unchanged": 1, "dead": 1}
    held = place.held()
    assert (held.documents[uri].state, held.texts(uri)) == ("dead", [])
    place.put("a.pdf", honest(["The third version"]))
    assert place.ingest() == {"updated": 1, "unchanged": 1, "chunks": 1, "embedded": 1}
    held = place.held()
    assert (held.documents[uri].state, held.texts(uri)) == ("ready", ["The third version"])


def test_a_dead_document_that_is_touched_is_tried_again(place: DocumentPlace) -> None:
    """Another fingerprint is enough, though the bytes are the same: what failed may have been the reader."""
    path = place.docs / "a.pdf"
    place.put("a.pdf", no_text())
    assert place.ingest() == {"dead": 1}
    os.utime(path, ns=(1, 1))
    assert place.ingest() == {"dead": 1}
    assert place.ingest() == {"unchanged": 1}
    assert len(place.letters()) == 2


def test_bytes_that_are_no_text_and_files_without_any(place: DocumentPlace) -> None:
    """Zero bytes are dead, other encodings are read, blank files have no chunks, and all of it is done once."""
    place.put_all(
        {
            "zero.txt": b"\0\1\2\0",
            "latin.txt": "Grüße aus Köln, schöne Straßen und größere Häuser überall".encode("latin-1"),
            "utf16.txt": "Grüße aus Köln".encode("utf-16"),
            "empty.md": b"",
            "blank.txt": b" \n\n\t\n",
        }
    )
    assert place.ingest() == {"added": 4, "chunks": 2, "embedded": 2, "dead": 1}
    held = place.held()
    assert reasons(place) == {"zero.txt": "not_text"}
    assert "Köln" in held.texts(place.uri("latin.txt"))[0]
    assert held.texts(place.uri("utf16.txt")) == ["Grüße aus Köln"]
    with place.metadata() as metadata:
        assert metadata.incomplete(STUB) == []
    assert place.ingest() == {"unchanged": 5}


def test_a_document_that_is_too_large_until_the_limit_is_raised(place: DocumentPlace) -> None:
    """It is dead unread; with another DOCUMENT_BYTES_MAX it is tried again, though it has not changed."""
    place.put("a.txt", prose(1, 200))
    place.put("b.txt", "short")
    assert place.ingest(DOCUMENT_BYTES_MAX=100) == {"added": 1, "chunks": 1, "embedded": 1, "dead": 1}
    assert reasons(place) == {"a.txt": "too_large"}
    assert place.ingest(DOCUMENT_BYTES_MAX=100) == {"unchanged": 2}
    assert place.ingest()["updated"] == 1
    assert len(place.held().texts(place.uri("a.txt"))) > 1


def test_a_document_that_may_not_be_read_until_it_may(place: DocumentPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dead; once its permissions are right it is read, though its fingerprint is what it was."""
    place.put_all({"a.txt": "secret", "b.txt": "open"})
    real = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("a.txt"):  # what `chmod 0` does to anybody but root
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr("dataflows.sources.files.os.open", refusing)
        assert place.ingest() == {"added": 1, "chunks": 1, "embedded": 1, "dead": 1}
    assert reasons(place) == {"a.txt": "unreadable"}
    assert place.ingest() == {"updated": 1, "unchanged": 1, "chunks": 1, "embedded": 1}


def test_a_file_that_vanishes_while_it_waits(place: DocumentPlace) -> None:
    """It leaves no letter and no line; what it was before goes with the next look."""
    names = {f"{i}.md": sections(i) for i in range(4)}
    place.put_all(names)
    place.ingest()
    edited, fresh = place.put("1.md", sections("edited")), place.put("new.md", sections("new"))
    paths = {edited: place.docs / "1.md", fresh: place.docs / "new.md"}
    with pytest.MonkeyPatch.context() as patch:
        from dataflows.sources.files import FileSource

        real = FileSource.read

        def read(source: FileSource, uri: str, limit_bytes: int) -> bytes:
            paths[uri].unlink()
            return real(source, uri, limit_bytes)

        patch.setattr(FileSource, "read", read)
        assert place.ingest() == {"unchanged": 3}
    assert place.letters() == []
    assert fresh not in place.held().documents
    assert place.ingest() == {"deleted": 1, "unchanged": 3}
    assert edited not in place.held().documents


def test_names_that_are_hard_to_write(place: DocumentPlace) -> None:
    """Bytes that are no UTF-8, blanks, percent signs and line ends in names are names as any other."""
    names = [b"\xff\xfe.md", "naïve ü 😀.md".encode(), b"100%25.md", b"two\nlines.md", b"a,b?c#d.md", b"-x'\";.md"]
    for number, name in enumerate(names):
        (place.docs / os.fsdecode(name)).write_text(sections(number))
    assert place.ingest() == {"added": 6, "chunks": 6, "embedded": 6}
    assert place.ingest() == {"unchanged": 6}
    (place.docs / os.fsdecode(names[0])).rename(place.docs / "plain.md")
    assert place.ingest() == {"renamed": 1, "unchanged": 5, "chunks": 1}


def test_a_listing_that_fails_half_way_deletes_nothing(place: DocumentPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other source lists is done, the run ends with 1 and says which source is away; the next one mends."""
    place.put_all(
        {f"{folder}/{sub}/{i}.md": sections(f"{folder}{sub}{i}") for folder in "ab" for sub in "xy" for i in "12"}
    )
    folders = {"INGEST_SOURCES": f"{place.docs / 'a'},{place.docs / 'b'}"}
    place.ingest(**folders)
    before = place.held()
    for name in ("a/x/1.md", "b/x/1.md"):
        (place.docs / name).unlink()
    place.put_all({"a/x/new.md": sections("new a"), "b/x/new.md": sections("new b")})
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("docs/a/y"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr("dataflows.sources.files.os.scandir", failing)
        done = place.once(**folders)
    assert done.code == 1
    assert "docs/a" in done.err.splitlines()[-1]
    assert "its documents stay as they are" in done.err.splitlines()[-1]
    half = place.held()
    assert set(before.documents) - set(half.documents) == {place.uri("b/x/1.md")}
    assert set(half.documents) - set(before.documents) == {place.uri("b/x/new.md")}
    assert place.ingest(**folders) == {"added": 1, "deleted": 1, "unchanged": 7, "chunks": 1, "embedded": 1}


@pytest.mark.parametrize("left", [0, 3])
def test_a_mass_delete_needs_to_be_allowed(place: DocumentPlace, left: int) -> None:
    """A source that is suddenly empty, or has lost more than half, ends the run with 2 and nothing changed."""
    place.put_all({f"{i}.md": sections(i) for i in range(7)})
    place.ingest()
    before = place.held()
    for i in range(left, 7):
        (place.docs / f"{i}.md").unlink()
    place.put("new.md", sections("new"))
    refused = place.once()
    assert (refused.code, refused.out) == (2, b"")
    assert f"has lost {7 - left} of its 7 documents" in refused.err.splitlines()[-1]
    assert "--allow-mass-delete" in refused.err.splitlines()[-1]
    assert place.held() == before
    allowed = place.ingest("--allow-mass-delete")
    assert (allowed["added"], allowed["deleted"]) == (1, 7 - left)
    assert len(place.held().rows) == left + 1


def test_nothing_personal_is_kept_anywhere(place: DocumentPlace) -> None:
    """With PII_REDACTION=regex no store, snapshot, letter or log holds what was planted, wherever."""
    planted = [
        "jane.roe@example.com",
        "4111 1111 1111 1111",
        "DE89 3704 0044 0532 0130 00",
        "10.20.30.40",
        "bob@mail.example",
    ]
    place.put("a.md", f"---\ntitle: of {planted[0]}\nby: {planted[4]}\n---\n# From {planted[0]}\n\nPay {planted[1]}.\n")
    place.put("b.txt", "\n\n".join(f"{prose(i, 30)} {text}" for i, text in enumerate(planted)))
    place.put("c.pdf", honest([f"Ask {planted[0]}", f"or {planted[3]}"], title=f"To {planted[4]}"))
    place.put("bad.md", f"---\n{planted[0]}: [\n---\nbroken {planted[4]} \ud83d".encode("utf-8", "surrogatepass"))
    place.put("dead.txt", f"{planted[0]} \0 {planted[2]}")
    with serving(refuse="text99") as (_, settings):
        place.put("refused.txt", f"{prose(99, 20)} {planted[0]}")
        done = place.once(PII_REDACTION="regex", LOG_LEVEL="debug", **settings)
        assert done.code == 0, done.err
    assert set(reasons(place)) == {"dead.txt", "refused.txt"}
    listed = headrace(place, "dlq", "list", "--json")
    shown = [headrace(place, "dlq", "show", letter["id"]) for letter in listed.records]
    kept = {
        path: path.read_bytes() for path in place.root.rglob("*") if path.is_file() and place.docs not in path.parents
    }
    assert place.root / "metadata.db" in kept
    kept |= {Path(f"output-{i}"): each.err.encode() + each.out for i, each in enumerate([done, listed, *shown])}
    for text in planted:
        for form in (text, text.replace(" ", "")):
            assert [path for path, data in kept.items() if form.encode() in data] == [], form


def test_nothing_personal_is_left_once_redaction_is_switched_on(place: DocumentPlace) -> None:
    """What was stored before goes from the files, and not only from the answers."""
    place.put("a.txt", f"{prose(1)} DE89370400440532013000 uniqueperson@mail.example")
    place.ingest()
    place.ingest(PII_REDACTION="regex")
    with place.metadata():
        kept = b"".join(path.read_bytes() for path in place.root.glob("metadata.db*"))
    assert b"uniqueperson@mail.example" not in kept
    assert b"uniqueperson" not in kept
    assert b"de89370400440532013000" not in kept


def test_a_server_that_is_busy_and_fails_for_a_while(place: DocumentPlace) -> None:
    """It is asked again, after the time that it asks for, and in the end everything is embedded."""
    embedder = StubEmbedder(SERVED_DIM)
    answers = iter([refusal(429, "slow down", **QUICK), refusal(500, "oops"), refusal(503, "later", **QUICK)])

    def script(request: dict[str, Any]) -> Answer:
        return next(answers, None) or vectors(embedder.embed(request["input"]).tolist())

    place.put_all({f"{i}.md": sections(i) for i in range(5)})
    with scripted(script) as server:
        assert place.ingest(**served_by(server)) == {"added": 5, "chunks": 5, "embedded": 5}
        # Documents come to the embedder in one batch or in more; each text is asked for until it is answered once.
        assert sum(len(request["input"]) for request in server.requests[3:]) == 5
    assert len(place.held(SERVED).rows) == 5


def test_a_server_that_refuses_one_text(place: DocumentPlace) -> None:
    """Only the document with that text is dead; the others of the same call are indexed, and it is not tried again."""
    place.put_all({f"{i}.md": sections(i, f"more{i}") for i in range(6)})
    with serving(refuse="text3 ") as (server, settings):
        assert place.ingest(**settings) == {"added": 5, "chunks": 10, "embedded": 10, "dead": 1}
        assert reasons(place) == {"3.md": "embedding_refused"}
        asked = len(server.requests)
        assert place.ingest(**settings) == {"unchanged": 6}
        assert len(server.requests) == asked
    assert len(place.held(SERVED).rows) == 10


def test_a_server_that_stays_away(place: DocumentPlace) -> None:
    """The run ends with 1 and one sentence; what was indexed stays, and the next run does the rest."""
    place.put_all({f"{i}.md": sections(i) for i in range(3)})
    with serving() as (_, settings):
        place.ingest(**settings)
    before = place.held(SERVED)
    place.put("0.md", sections("edited"))
    place.put("new.md", sections("new"))
    with scripted(lambda _: refusal(503, "closed for good", **QUICK)) as server:
        away = place.headrace("documents", "--once", "--json", **served_by(server))
        assert away.wait() == 1
        assert len(server.requests) == 10
    assert "closed for good" in away.errors.splitlines()[-1]
    assert "Traceback" not in away.errors
    assert place.held(SERVED) == before
    assert place.letters() == []
    with serving() as (_, settings):
        done = place.ingest(**settings)
    assert done == {"added": 1, "updated": 1, "unchanged": 2, "chunks": 2, "embedded": 2}


def test_a_server_with_vectors_of_another_size(place: DocumentPlace) -> None:
    """The run ends with 2 and names both sizes, before anything is written; with the right one all is done."""
    place.put("0.md", sections(0))
    with serving() as (_, settings):
        wrong = place.headrace(*ONCE, **{**settings, "EMBEDDING_DIM": SERVED_DIM + 1})
        assert wrong.wait() == 2
        assert f"vectors of {SERVED_DIM} numbers" in wrong.errors.splitlines()[-1]
        assert place.ingest(**settings) == {"added": 1, "chunks": 1, "embedded": 1}
    with place.metadata() as metadata:
        assert [(space.name, space.state) for space in metadata.spaces()] == [(SERVED, "active")]
