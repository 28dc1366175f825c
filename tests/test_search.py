"""Search over both kinds of stores, with the embedder that needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from dataflows.embedders.openai import OpenAIServer
from dataflows.search import SearchHit, open_for_search, search
from operators.documents import Chunk, chunk_keys, doc_id
from operators.embedders.port import Embedder
from operators.embedders.stub import StubEmbedder
from operators.errors import ConfigError
from stores.metadata import open_metadata
from stores.metadata.records import Delete, Document, Upsert
from stores.vectors import open_vectors
from stores.vectors.port import VectorReader, shard_of
from tests.embedding_servers import need

GAP = 10
"""Characters between the chunks of a document here."""

FISH = ("Salmon and trout swim up the cold river.", "The heron waits for a fish.", "Nets are mended in winter.")
TRAINS = ("The night train leaves at nine.", "A locomotive pulls forty wagons.")


class Stores:
    """Both stores with one embedder's space; documents are put as the flow puts them."""

    def __init__(self, metadata_url: str, vectors_url: str, embedder: Embedder | None = None) -> None:
        self.embedder = embedder or StubEmbedder()
        self.metadata = open_metadata(metadata_url)
        self.vectors = open_vectors(vectors_url, self.embedder.space, self.embedder.dim, shards=2, element="f32")
        self.metadata.add_space(self.embedder.space)
        self.reader: VectorReader = self.vectors.read()

    def put(self, uri: str, *texts: str, pages: bool = False, known: bool = True, found: bool = True) -> list[int]:
        """Put a document with chunks of these texts; `known` in the metadata, `found` in the vectors. Keys."""
        starts = np.cumsum([0, *(len(text) + GAP for text in texts)]).tolist()
        chunks = tuple(
            Chunk(at, starts[at], text, at + 1 if pages else None, ("Top", f"Part {at}"))
            for at, text in enumerate(texts)
        )
        document = Document(uri, "test", "1", "c", "m", "s", "text/plain", 1, "run", title=f"About {uri}")
        keys = list(chunk_keys(document.doc_id, [chunk.text_hash for chunk in chunks]))
        if found:
            writer = self.vectors.write(shard_of(document.doc_id, self.vectors.shards))
            writer.put(np.array(keys, np.uint64), self.embedder.embed(texts))
            writer.commit()
            writer.close()
        if known:
            self.metadata.apply([Upsert(document, self.embedder.space, chunks)])
        return keys

    def search(self, query: str, *, limit: int = 10, uri_glob: str | None = None) -> list[SearchHit]:
        """Ask these stores."""
        return search(self.metadata, self.reader, self.embedder, query, limit=limit, uri_glob=uri_glob)

    def close(self) -> None:
        """Let go of everything."""
        self.reader.close()
        self.metadata.close()


@pytest.fixture(params=["memory", "disk"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Empty stores in memory, and in SQLite and usearch."""
    disk = (f"sqlite:///{tmp_path}/metadata.db", f"usearch:///{tmp_path}/vectors")
    opened = Stores(*(("memory:", "memory:") if request.param == "memory" else disk))
    yield opened
    opened.close()


def test_the_best_comes_first(stores: Stores) -> None:
    """What shares the query's words stands before what does not, by the score that the docstring promises."""
    keys = stores.put("file:///fish.md", *FISH) + stores.put("file:///trains.md", *TRAINS)
    query = "Trout in a cold river"
    hits = stores.search(query)
    assert hits[0].text == FISH[0]
    assert sorted(hit.text for hit in hits) == sorted(FISH + TRAINS)
    space = stores.embedder.space
    by_words = {hit.key: hit.score for hit in stores.metadata.search_text(space, query, limit=9)}
    assert 0 < len(by_words) < len(keys)
    vectors = stores.embedder.embed([query, *FISH, *TRAINS])
    expected = {
        text: 0.7 * float(vector @ vectors[0]) + 0.3 * by_words.get(key, 0) / max(by_words.values())
        for text, vector, key in zip(FISH + TRAINS, vectors[1:], keys, strict=True)
    }
    assert {hit.text: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_hit_tells_its_place(stores: Stores) -> None:
    """Document, title, page, offset, length and headings are those of the chunk, with pages or without."""
    stores.put("file:///a/fish.pdf", *FISH, pages=True)
    stores.put("file:///b.md", *TRAINS)
    hit = stores.search("heron waits", limit=1)[0]
    offset = len(FISH[0]) + GAP
    assert (hit.offset, hit.length, hit.page, hit.heading) == (offset, len(FISH[1]), 2, ("Top", "Part 1"))
    assert (hit.uri, hit.doc_id) == ("file:///a/fish.pdf", doc_id("file:///a/fish.pdf"))
    assert (hit.title, hit.text) == ("About file:///a/fish.pdf", FISH[1])
    assert stores.search("locomotive", limit=1)[0].page is None


def test_a_filter_takes_whole_uris(stores: Stores) -> None:
    """`*` crosses slashes, the glob must fit from end to end, and what no document fits finds nothing."""
    for uri in ("file:///a/b/fish.md", "file:///a/fish.txt", "file:///c/fish.md"):
        stores.put(uri, *FISH)

    def found(glob: str) -> list[str]:
        return sorted({hit.uri for hit in stores.search("salmon", uri_glob=glob)})

    assert found("file:///a/*") == ["file:///a/b/fish.md", "file:///a/fish.txt"]
    assert found("*.md") == ["file:///a/b/fish.md", "file:///c/fish.md"]
    assert found("file:///[!a]/*") == ["file:///c/fish.md"]
    assert found("fish.md") == found("*.MD") == []


def test_a_filter_loses_no_hit(stores: Stores) -> None:
    """A document that the filter takes is found behind any number of better ones that it does not take."""
    stores.put("file:///near.md", *(f"salmon {number}" for number in range(1_000)))
    stores.put("file:///far.md", *TRAINS)
    hits = stores.search("salmon", limit=5, uri_glob="*far*")
    assert sorted(hit.text for hit in hits) == sorted(TRAINS)


def test_vectors_ahead_of_the_metadata_are_left_out(stores: Stores) -> None:
    """Between a document's two commits its chunks do not show, and those behind them make up the number."""
    stores.put("file:///coming.md", *(f"salmon {number}" for number in range(150)), known=False)
    stores.put("file:///there.md", *TRAINS, *FISH)
    hits = stores.search("salmon", limit=4)
    assert {hit.uri for hit in hits} == {"file:///there.md"}
    assert (len(hits), hits[0].text) == (4, FISH[0])


def test_a_chunk_without_a_vector_is_found_by_its_words(stores: Stores) -> None:
    """Its score is then that of the words alone."""
    stores.put("file:///fish.md", *FISH, found=False)
    assert [(hit.text, hit.score) for hit in stores.search("heron")] == [(FISH[1], 0.3)]


def test_a_deleted_document_does_not_show(stores: Stores) -> None:
    """Whatever is left of its vectors."""
    stores.put("file:///fish.md", *FISH)
    stores.put("file:///trains.md", *TRAINS)
    stores.metadata.apply([Delete("file:///fish.md")])
    assert {hit.uri for hit in stores.search("salmon and trout")} == {"file:///trains.md"}


def test_equals_stand_by_uri_and_offset(stores: Stores) -> None:
    """Equal texts score equal, in one document and in several, and are all there."""
    for uri in ("file:///c", "file:///a", "file:///b"):
        stores.put(uri, FISH[0], FISH[0])
    hits = stores.search("salmon trout")
    second = len(FISH[0]) + GAP
    assert [(hit.uri[-1], hit.offset) for hit in hits] == [(name, offset) for name in "abc" for offset in (0, second)]
    assert len({hit.score for hit in hits}) == 1


def test_an_empty_store_answers_nothing(stores: Stores) -> None:
    """Without a space, and with one that holds nothing; no model is even loaded."""
    stores.embedder.close()
    assert stores.search("salmon") == stores.search("salmon", uri_glob="*") == []
    none = open_metadata("memory:")
    assert search(none, stores.reader, stores.embedder, "salmon") == []
    none.close()


def test_more_than_there_is_gives_all(stores: Stores) -> None:
    """A limit beyond the store is no error, one below 1 is."""
    stores.put("file:///fish.md", *FISH)
    assert len(stores.search("salmon", limit=5_000)) == len(FISH)
    with pytest.raises(ValueError, match="at least 1"):
        stores.search("salmon", limit=0)


@pytest.mark.parametrize("query", ["", "  \n", "?! --", "\ud800"])
def test_a_query_without_words_is_refused(stores: Stores, query: str) -> None:
    """The message says what to write instead."""
    with pytest.raises(ConfigError, match="holds no word"):
        stores.search(query)


def test_the_old_space_answers_until_the_new_one_is_complete(stores: Stores) -> None:
    """While another model's space is built, its chunks neither show nor disturb; then the old model is refused."""
    stores.put("file:///fish.md", *FISH)
    stores.put("file:///trains.md", *TRAINS)
    before = stores.search("night train")
    new = StubEmbedder(64)
    stores.metadata.add_space(new.space)
    document = stores.metadata.document(doc_id("file:///fish.md"))
    assert document is not None
    stores.metadata.apply([Upsert(document, new.space, (Chunk(0, 0, "The night train."),))])
    assert [hit.text for hit in stores.search("night train")] == [hit.text for hit in before]
    opened = open_for_search(str(stores.metadata.active_space()), "local", server=None, threads=1)
    assert search(stores.metadata, stores.reader, opened, "night train")[0].text == TRAINS[0]
    with pytest.raises(ConfigError, match="`stub-384`, not from `stub-64`"):
        search(stores.metadata, stores.reader, new, "night train")
    stores.metadata.apply([Delete("file:///trains.md")])
    assert stores.metadata.activate(new.space)
    with pytest.raises(ConfigError, match="`stub-64`, not from `stub-384`"):
        stores.search("night train")


WORDS = st.lists(st.sampled_from(["eel", "river", "net", "train", "fog", "night"]), min_size=1, max_size=4)


@settings(max_examples=20)
@given(
    texts=st.lists(WORDS.map(" ".join), min_size=1, max_size=12),
    query=WORDS.map(" ".join),
    limit=st.integers(1, 14),
)
def test_fewer_are_the_first_of_more(texts: list[str], query: str, limit: int) -> None:
    """A smaller limit cuts the answer and changes nothing else; a filter that takes everything changes nothing."""
    stores = Stores("memory:", "memory:")
    for number, text in enumerate(texts):
        stores.put(f"file:///{number % 3}/{number}", text)
    everything = stores.search(query, limit=100)
    assert len(everything) == len(texts)
    assert stores.search(query, limit=limit) == stores.search(query, limit=limit, uri_glob="*") == everything[:limit]
    some = {hit.uri for hit in stores.search(query, limit=100, uri_glob="*/1/*")}
    assert some == {hit.uri for hit in everything if "/1/" in hit.uri}


@pytest.mark.parametrize("space", ["stub-384", "stub-64", "local-minilm-l6-int8-384"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_space_tells_its_embedder(space: str, threads: int) -> None:
    """Whatever EMBEDDINGS says by now; the model is not loaded yet."""
    opened = open_for_search(space, "openai", server=None, threads=threads)
    assert opened.space == space
    opened.close()


@pytest.mark.parametrize(
    ("space", "shorten"),
    [("m-1-8", False), ("text-embedding-3-large-256", True), ("org/model:tag-1024", False), ("mine-16", True)],
)
def test_a_space_of_a_server_is_asked_of_that_of_the_settings(space: str, shorten: bool) -> None:  # noqa: FBT001
    """With their URL and key, but the space's own model and dimension."""
    need("httpx")
    server = OpenAIServer(model="mine", base_url="http://localhost:1/v1", key=SecretStr("k"), dim=8, shorten=True)
    opened = open_for_search(f"openai-{space}", "openai", server=server, threads=1)
    asked = opened._server  # type: ignore[attr-defined]  # no public way to see what would be sent
    assert opened.space == f"openai-{space}"
    assert (asked.base_url, asked.key, asked.shorten) == (server.base_url, server.key, shorten)
    opened.close()


def test_a_model_that_cannot_be_had_is_named() -> None:
    """A server's model without a server, and a space of which nothing here knows the model."""
    with pytest.raises(ConfigError, match="`text-embedding-3-small`"):
        open_for_search("openai-text-embedding-3-small-1536", "local", server=None, threads=1)
    for space in ("local-other-384", "stub-0", "stub-x", "openai-8", ""):
        with pytest.raises(ConfigError, match=f"space `{space}`"):
            open_for_search(space, "local", server=None, threads=1)
