"""The document path on real stores: what an edit, a rename, a removal or another setting leaves, and what it costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dataflows.sources.files import FileSource
from operators.documents import Chunk, chunk_keys, doc_id
from stores.deadletters import open_dead_letters
from stores.index_writer import IndexChange, IndexWriter
from stores.metadata import open_metadata
from stores.metadata.records import Document, Upsert
from stores.vectors import list_spaces, open_vectors
from stores.vectors.port import shard_of
from tests.crash.test_kills import KILLED
from tests.documents_place import SERVED, STUB, DocumentPlace, prose, sections, serving, texts_of
from tests.hostile_pdfs import honest

SMALL = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}
"""A chunk a section of `tests.documents_place.sections`."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """Empty stores and no document."""
    with DocumentPlace(tmp_path / "place", settings=dict(SMALL)) as made:
        yield made


def test_two_files_with_equal_text_one_is_removed_and_the_other_stays(place: DocumentPlace) -> None:
    """Each has its own chunks and vectors, of which the shared text was embedded once."""
    gone, kept = place.put_all({"a.md": sections(1, 2), "b.md": sections(1, 2)})
    assert place.ingest() == {"added": 2, "chunks": 4, "embedded": 2}
    before = place.held()
    (place.docs / "a.md").unlink()
    assert place.ingest() == {"deleted": 1, "unchanged": 1}
    after = place.held()
    assert after.keys(kept) == before.keys(kept) == set(after.vectors)
    assert gone not in after.documents


def test_one_of_three_chunks_is_removed_and_goes_from_the_index(place: DocumentPlace) -> None:
    """Its vector and its words are gone; the other two keep their keys, and nothing is embedded."""
    uri = place.put("a.md", sections(1, 2, 3))
    assert place.ingest() == {"added": 1, "chunks": 3, "embedded": 3}
    before = place.held()
    place.put("a.md", sections(1, 3))
    assert place.ingest() == {"updated": 1, "chunks": 2}
    after = place.held()
    assert set(after.vectors) < set(before.vectors)
    assert len(after.texts(uri)) == 2
    with place.metadata() as metadata:
        assert metadata.search_text(STUB, "text2", limit=9) == []
        assert len(metadata.search_text(STUB, "text3", limit=9)) == 1


def test_a_document_larger_than_a_batch_is_neither_deleted_nor_embedded_again(place: DocumentPlace) -> None:
    """Hundreds of chunks, two a call: all are kept, a second run does nothing, and an edit costs its chunk."""
    parts = list(range(300))
    uri = place.put("large.md", sections(*parts))
    assert place.ingest(MAX_EMBED_BATCH=2) == {"added": 1, "chunks": 300, "embedded": 300}
    before = place.held()
    assert place.ingest(MAX_EMBED_BATCH=2) == {"unchanged": 1}
    place.put("large.md", sections(*parts[:150], "new", *parts[151:]))
    assert place.ingest(MAX_EMBED_BATCH=2) == {"updated": 1, "chunks": 300, "embedded": 1}
    after = place.held()
    assert len(after.keys(uri) - before.keys(uri)) == 1
    assert all(after.vectors[key] == before.vectors[key] for key in after.keys(uri) & before.keys(uri))


def test_a_document_of_several_parts_keeps_all_of_them(place: DocumentPlace) -> None:
    """Every page of a PDF and every section of a Markdown file can be found, each with its place."""
    pages = [[prose(i, 8), *(prose(f"{i}-{line}", 8) for line in range(8))] for i in range(1, 8)]
    pdf = place.put("a.pdf", honest(*pages))
    md = place.put("b.md", sections(*range(20, 27)))
    place.ingest()
    held = place.held()
    assert {row.page for row in held.rows.values() if row.uri == pdf} == set(range(1, 8))
    for uri, names in ((pdf, range(1, 8)), (md, range(20, 27))):
        text = " ".join(held.texts(uri))
        assert all(f"text{name} " in text for name in names)


def test_a_shorter_version_loses_its_tail(place: DocumentPlace) -> None:
    """What stood behind the new end is found no more, neither by vectors nor by words."""
    uri = place.put("a.md", sections(*range(9)))
    place.ingest()
    place.put("a.md", sections(0, 1))
    assert place.ingest() == {"updated": 1, "chunks": 2}
    assert [text.split()[2] for text in place.held().texts(uri)] == ["0", "1"]
    place.put("a.md", "")
    assert place.ingest() == {"updated": 1}
    assert place.held().rows == {}


def test_a_text_twice_in_a_document_is_two_chunks_of_one_vector(place: DocumentPlace) -> None:
    """Both are kept, one call embeds them, and one that goes leaves the other."""
    uri = place.put("a.md", sections(1) + sections(2) + sections(1))
    assert place.ingest() == {"added": 1, "chunks": 3, "embedded": 2}
    assert len(set(place.held().texts(uri))) == 2
    place.put("a.md", sections(1) + sections(2))
    assert place.ingest() == {"updated": 1, "chunks": 2}
    assert len(place.held().texts(uri)) == 2


def test_other_sizes_of_chunks_embed_only_the_chunks_that_are_new(place: DocumentPlace) -> None:
    """All documents are cut anew; where a chunk is as it was its vector is, too, and nothing old is left."""
    with serving() as (server, settings):
        place.settings |= settings
        uri = place.put("a.md", sections(*range(5)) + f"# Long\n\n{prose('long', 60)}\n")
        place.put("b.txt", prose("b", 20))
        first = place.ingest()
        before, asked = place.held(SERVED), texts_of(server)
        second = place.ingest(CHUNK_SIZE=250)
        after = place.held(SERVED)
        old = {row.text for row in before.rows.values()}
        fresh = [row.text for row in after.rows.values() if row.text not in old]
        assert (first["added"], second["updated"]) == (2, 2)
        assert sorted(texts_of(server)[len(asked) :]) == sorted(fresh)
        assert 0 < len(fresh) < len(before.rows)
        assert before.keys(uri) & after.keys(uri)


def test_another_model_answers_only_once_its_space_is_complete(place: DocumentPlace) -> None:
    """Killed half-way through the new space, searches are answered from the old one, whole; then it is replaced."""
    names = [f"{i:03}.md" for i in range(80)]
    place.put_all({name: sections(name) for name in names})
    place.ingest()
    before = place.held()
    with serving() as (server, settings):
        killed = place.faulty("stores.metadata.sqlite:SqliteMetadata.apply:before:2", **settings)
        assert killed.wait() == KILLED, killed.errors
        with place.metadata() as metadata:
            assert metadata.active_space() == STUB
            assert 0 < next(s.documents for s in metadata.spaces() if s.name == SERVED) < len(names)
        half = place.held()
        assert (half.rows, half.vectors) == (before.rows, before.vectors)
        asked = len(texts_of(server))
        done = place.ingest(**settings)
        assert len(texts_of(server)) == len(names)
        assert done["embedded"] == len(names) - asked
        after = place.held(SERVED)
        assert sorted(row.text for row in after.rows.values()) == sorted(row.text for row in before.rows.values())
        with place.metadata() as metadata:
            assert [(s.name, s.state) for s in metadata.spaces()] == [(SERVED, "active")]
        assert list_spaces(f"usearch:///{place.vectors_folder}") == [SERVED]


def test_a_rename_while_another_space_is_built_can_still_be_found(place: DocumentPlace) -> None:
    """Until the new space is complete the old one answers for a document that has another name, too."""
    place.put_all({f"{i:03}.md": sections(i) for i in range(80)})
    place.ingest()
    (place.docs / "000.md").rename(place.docs / "000-moved.md")
    with serving() as (_, settings):
        assert place.faulty("stores.metadata.sqlite:SqliteMetadata.apply:before:2", **settings).wait() == KILLED
    with place.metadata() as metadata:
        assert metadata.active_space() == STUB
        assert len(metadata.search_text(STUB, "text0", limit=9)) == 1


def test_another_model_takes_the_chunks_as_they_are(place: DocumentPlace) -> None:
    """No PDF is read again where only the model is another: the run needs no reader of PDFs."""
    uri = place.put("a.pdf", honest(["One page of text"], title="A title"))
    place.ingest()
    before = place.held()
    with serving() as (_, settings), pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataflows.extraction._Worker", None)  # whoever starts one fails
        assert place.ingest(**settings) == {"updated": 1, "chunks": 1, "embedded": 1}
    after = place.held(SERVED)
    assert after.texts(uri) == before.texts(uri)
    assert after.documents[uri].title == before.documents[uri].title == "A title"


def test_back_to_the_old_model_before_the_new_one_was_complete(place: DocumentPlace) -> None:
    """Nothing that the old space holds is embedded again, and what was removed meanwhile is in it no more."""
    place.put_all({f"{i:03}.md": sections(i) for i in range(70)})
    place.ingest()
    (place.docs / "003.md").unlink()
    place.put("004.md", sections("four"))
    with serving() as (_, settings):
        assert place.faulty("stores.metadata.sqlite:SqliteMetadata.apply:before:2", **settings).wait() == KILLED
    assert place.ingest()["embedded"] == 1
    with place.metadata() as metadata:
        assert metadata.active_space() == STUB
    assert len(place.held().rows) == 69


def test_what_another_model_removed_is_not_left_in_the_vectors_of_the_first(place: DocumentPlace) -> None:
    """A document that went while the other space was built, by runs that ended well, leaves no vector behind."""
    folders = {"INGEST_SOURCES": f"{place.docs / 'a'},{place.docs / 'b'}"}
    place.put_all({f"{folder}/{i}.md": sections(f"{folder}{i}") for folder in "ab" for i in range(5)})
    place.ingest(**folders)
    (place.docs / "a" / "0.md").unlink()
    with serving() as (_, settings):
        done = place.ingest(**{**settings, "INGEST_SOURCES": place.docs / "a"})
        assert done == {"updated": 4, "deleted": 1, "chunks": 4, "embedded": 4}
    with place.metadata() as metadata:
        assert metadata.active_space() == STUB
    assert "embedded" not in place.ingest(**folders)
    assert len(place.held().rows) == 9


def test_vectors_that_are_older_than_the_metadata(place: DocumentPlace) -> None:
    """After the loss of the metadata all documents are found again with the vectors that they have, and no more."""
    place.put_all({f"{i}.md": sections(i) for i in range(6)})
    place.ingest()
    for path in place.root.glob("metadata.db*"):
        path.unlink()
    (place.docs / "0.md").unlink()
    assert place.ingest() == {"added": 5, "chunks": 5}
    assert len(place.held().rows) == 5


def test_tracking_data_is_smaller_than_the_vectors(place: DocumentPlace) -> None:
    """Ledger, chunks and full text of small chunks take less room than their vectors, and so do snapshots."""
    place.put_all({f"{i:03}.md": sections(*range(10 * i, 10 * i + 10), words=22) for i in range(100)})
    assert place.ingest()["chunks"] == 1000
    vectors = sum(path.stat().st_size for path in place.vectors_folder.rglob("*") if path.is_file())
    recovery = sum(path.stat().st_size for path in place.recovery.rglob("*") if path.is_file())
    texts = sum(len(row.text) for row in place.held().rows.values())
    with place.metadata():
        database = (place.root / "metadata.db").stat().st_size
    assert database - texts < vectors
    assert recovery < vectors  # a few large pages, however little they hold


def test_a_reader_during_commits_sees_the_old_or_the_new_version(tmp_path: Path) -> None:
    """Of the vectors that are found at any moment the metadata name those of one version of a document, and no mix."""
    url = f"sqlite:///{tmp_path / 'metadata.db'}"
    store = open_vectors(f"usearch:///{tmp_path / 'vectors'}", STUB, 8)
    chunks, versions = 12, 40
    mixed: list[set[str]] = []
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        with closing(open_metadata(url)) as metadata, closing(store.read()) as reader:
            while not done.is_set():
                reader.refresh()
                hits = reader.search(np.ones(8, np.float32), 3 * chunks)
                texts = {row.text for row in metadata.chunks(STUB, [hit.key for hit in hits]).values()}
                found = {text.partition(" ")[0] for text in texts}
                seen.update(found)
                if len(found) > 1 or (found and len(texts) != chunks):
                    mixed.append(texts)

    with closing(open_metadata(url)) as metadata, closing(open_dead_letters("memory:")) as letters:
        metadata.add_space(STUB)
        writer = IndexWriter(store, metadata, letters)
        thread = threading.Thread(target=read)
        thread.start()
        try:
            for version in range(versions):
                texts = [f"v{version} part {i}" for i in range(chunks)]
                writer.write([_change(texts)])
        finally:
            done.set()
            thread.join()
            writer.close()
    assert mixed == []
    assert len(seen) > 1


def _change(texts: list[str]) -> IndexChange:
    document = Document("memory:one", "s", "f", "c", "m", "shape", "text/plain", 1, "run")
    made = tuple(Chunk(i, 10 * i, text) for i, text in enumerate(texts))
    keys = np.array(chunk_keys(document.doc_id, [chunk.text_hash for chunk in made]), np.uint64)
    rows = np.eye(8, dtype=np.float32)[np.arange(len(texts)) % 8]
    return IndexChange(Upsert(document, STUB, made), None, keys, rows)


def test_a_rename_embeds_nothing_wherever_its_vectors_must_go(place: DocumentPlace) -> None:
    """Many documents move to other names, so to other shards: the chunks move along and the old names are gone."""
    names = [f"{i:02}.md" for i in range(24)]
    place.put_all({f"old/{name}": sections(name) for name in names})
    place.put("stays.md", sections("stays"))
    place.ingest()
    before = place.held()
    (place.docs / "old").rename(place.docs / "new")
    assert place.ingest() == {"renamed": 24, "unchanged": 1, "chunks": 24}
    after = place.held()
    for name in names:
        old, new = place.uri(f"old/{name}"), place.uri(f"new/{name}")
        assert old not in after.documents
        assert after.texts(new) == before.texts(old)
        [was], [now] = before.keys(old), after.keys(new)
        assert after.vectors[now] == before.vectors[was]
    moved = [[shard_of(doc_id(place.uri(f"{folder}/{name}")), 4) for folder in ("old", "new")] for name in names]
    assert any(was != now for was, now in moved)


def test_files_that_step_into_each_others_places(place: DocumentPlace) -> None:
    """After a rotation as of logs, and after two files have changed places, all is as if it had always been so."""
    place.put_all({f"{i:03}.md": sections(i) for i in range(60)})
    place.ingest()
    for i in reversed(range(60)):
        (place.docs / f"{i:03}.md").rename(place.docs / f"{i + 1:03}.md")
    place.put("000.md", sections("new"))
    for old, new in (("020", "x"), ("030", "020"), ("x", "030")):
        (place.docs / f"{old}.md").rename(place.docs / f"{new}.md")
    done = place.ingest()
    assert (done["added"], done["updated"]) == (1, 60)
    with place.twin("fresh") as twin:
        twin.ingest()
        assert twin.held() == place.held()


def test_a_document_that_moves_and_changes_embeds_what_changed(place: DocumentPlace) -> None:
    """Another name and another section: the other sections are found by their text, whichever name sorts first."""
    parts = list(range(12))
    for old in ("a", "z"):
        place.put_all({f"{old}{i:02}.md": sections(*(f"{old}{i}-{part}" for part in parts)) for i in range(20)})
    place.put_all({f"stays{i}.md": sections(f"stays{i}") for i in range(50)})
    place.ingest()
    for old, new in (("a", "y"), ("z", "b")):
        for i in range(20):
            (place.docs / f"{old}{i:02}.md").unlink()
            texts = (f"{old}{i}-{part}" for part in parts)
            place.put(f"{new}{i:02}.md", sections(*texts, f"{new}{i}"))
    assert place.ingest() == {"added": 40, "deleted": 40, "unchanged": 50, "chunks": 520, "embedded": 40}


def test_sources_that_overlap(place: DocumentPlace) -> None:
    """What two sources list is one document; it stays, and costs nothing, when one of them is named no more."""
    place.put_all({"sub/a.md": sections(1), "b.md": sections(2)})
    both = {"INGEST_SOURCES": f"{place.docs},{place.docs / 'sub'},{place.docs / 'sub' / 'a.md'}"}
    assert place.ingest(**both) == {"added": 2, "chunks": 2, "embedded": 2}
    assert place.ingest(**both) == {"unchanged": 2}
    sub = {"INGEST_SOURCES": place.docs / "sub"}
    assert place.ingest(**sub) == {"unchanged": 1}
    assert place.ingest(**sub) == {"unchanged": 1}
    (place.docs / "sub" / "a.md").rename(place.docs / "a.md")
    both["INGEST_SOURCES"] = f"{place.docs},{place.docs / 'sub'}"
    assert place.ingest(**both) == {"renamed": 1, "unchanged": 1, "chunks": 1}
    assert len(place.held().rows) == 2


def test_an_edit_of_one_of_many_costs_one(place: DocumentPlace) -> None:
    """One file is read, one chunk is embedded, and the others are not written."""
    place.put_all({f"{i:03}.md": sections(*range(3 * i, 3 * i + 3)) for i in range(60)})
    place.ingest()
    before = place.held()
    with pytest.MonkeyPatch.context() as patch:
        reads: list[str] = []
        real = FileSource.read

        def read(source: FileSource, uri: str, limit_bytes: int) -> bytes:
            reads.append(uri)
            return real(source, uri, limit_bytes)

        patch.setattr(FileSource, "read", read)
        assert place.ingest() == {"unchanged": 60}
        assert reads == []
        edited = place.put("007.md", sections(21, "new", 23))
        assert place.ingest() == {"updated": 1, "unchanged": 59, "chunks": 3, "embedded": 1}
        assert reads == [edited]
    after = place.held()
    assert {u: d for u, d in after.documents.items() if u != edited} == {
        u: d for u, d in before.documents.items() if u != edited
    }


def test_the_same_corpus_twice_gives_the_same_stores(place: DocumentPlace) -> None:
    """Rows and vectors are a function of the documents: no order, number of workers or earlier life shows in them."""
    place.put_all({f"{i:03}.md": sections(i, i % 7, f"tail {i}") for i in range(40)})
    place.put("a.pdf", honest(["One page of text"], title="A title"))
    place.put("bad.txt", b"\0\0\0")
    place.put("empty.txt", b"")
    place.ingest()
    first = place.held()
    for name, workers in (("again", 1), ("threads", 3)):
        with place.twin(name) as twin:
            twin.ingest(STREAM_CONCURRENCY=workers)
            assert twin.held() == first
    for i in range(40):
        (place.docs / f"{i:03}.md").rename(place.docs / f"x{i}.md")
    place.ingest()
    place.put_all({f"{i:03}.md": sections(i, i % 7) for i in range(20)})
    place.ingest(STREAM_CONCURRENCY=3)
    with place.twin("last") as twin:
        twin.ingest()
        assert twin.held() == place.held()
