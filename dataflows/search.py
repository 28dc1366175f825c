"""Search: the chunks that answer a question best, by meaning and by words, from the space that is active."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dataflows.embedders import open_embedder
from dataflows.embedders.openai import OpenAIServer
from operators.documents import doc_id
from operators.embedders.local import LocalEmbedder
from operators.embedders.port import Embedder
from operators.embedders.stub import StubEmbedder
from operators.errors import ConfigError
from stores.metadata.port import MetadataStore
from stores.metadata.records import ChunkRecord
from stores.metadata.words import check_limit, query_words, uri_pattern, uri_regex
from stores.vectors.port import SCORE_DECIMALS, VectorReader

_CANDIDATES = 100
"""Chunks that vectors and full text name each; the best of their union are the answer."""

_WORDS_WEIGHT = 0.3
"""Share of the full text in a score, chosen on python3.11-doc, where 0.2 to 0.4 made little difference."""

_OVERFETCH = 8
"""How many times more vectors are asked for when too few of those found may be shown."""

_REPEATS = 3
"""How often a search that met chunks which are there no longer is made again: a commit may have come in between."""

_STUB = re.compile(r"stub-([1-9]\d{0,4})")
_OPENAI = re.compile(r"openai-(.+)-([1-9]\d{0,4})", re.DOTALL)
_SHORTENED = "text-embedding-3"
"""Models whose names begin so give as many numbers as they are asked for."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk that was found, with its document.

    score: 0.7 × the cosine of chunk and query + 0.3 × the chunk's BM25 as a share of the best in this answer (0 where
    it has no word of the query); at most 1, rounded to 6 decimals. page: from 1; None for a document without pages.
    offset, length: characters of the normalised text. heading: the Markdown headings above it, outermost first.
    """

    score: float
    doc_id: str
    uri: str
    title: str
    page: int | None
    offset: int
    length: int
    heading: tuple[str, ...]
    text: str


def search(
    metadata: MetadataStore,
    reader: VectorReader,
    embedder: Embedder,
    query: str,
    *,
    limit: int = 10,
    uri_glob: str | None = None,
) -> list[SearchHit]:
    """Return up to `limit` chunks of the active space, best score first, ties by uri, then offset.

    Vectors and full text together, since they find more than either alone: the figures are in
    tests/benchmarks/RESULTS.md. A chunk counts whose document the metadata know at this moment; one without a
    vector is found by its words. The reader is moved on to the newest commits.

    reader: of the active space. embedder: that of the active space (`open_for_search`). uri_glob: as in
    `Chunks.search_text`, for the whole uri; `*` crosses slashes. An empty store answers nothing and embeds nothing.
    Raises ConfigError for a query without a word and for an embedder of another space, ValueError for a
    limit below 1, and what embedder and stores raise.
    """
    check_limit(limit)
    check_query(query)
    space = metadata.active_space()
    if space is None:
        return []
    if embedder.space != space:
        raise ConfigError(f"searches are answered from the space `{space}`, not from `{embedder.space}`: embed in that")
    reader.refresh()
    if not reader.count() and not any(held.chunks for held in metadata.spaces() if held.name == space):
        return []
    vector = embedder.embed([query])[0]
    chunks = _Chunks(metadata, space, uri_glob)
    hits, whole = _found(metadata, reader, chunks, vector, query, limit)
    for _ in range(_REPEATS):  # a document that changed in between is in neither of two looks
        if whole:
            break
        hits, whole = _found(metadata, reader, chunks, vector, query, limit)
    return hits


def check_query(query: str) -> None:
    """Raise ConfigError for a query without a word."""
    if not query_words(query):
        raise ConfigError(f"the query `{query}` holds no word; write letters or digits to search for")


def open_for_search(space: str, kind: str, *, server: OpenAIServer | None, threads: int) -> Embedder:
    """Open the embedder that made a space, though the settings may name another by now, whose space is still built.

    kind: what EMBEDDINGS says, for messages. server: that of the settings; its URL and key are used for any
    model, which it must have. threads: as for `open_embedder`. Raises ConfigError, naming the model, if it cannot
    be had; what is found missing only when it is used is raised by `embed`.
    """
    if space == LocalEmbedder.space:
        return open_embedder("local", threads=threads)
    if stub := _STUB.fullmatch(space):
        return StubEmbedder(int(stub[1]))
    if openai := _OPENAI.fullmatch(space):
        model, dim = openai[1], int(openai[2])
        if server is None:
            raise ConfigError(
                f"searches are answered from the space `{space}` until that of EMBEDDINGS `{kind}` is complete, which"
                f" needs the model `{model}`; give the base URL and the key of a server that has it"
            )
        return open_embedder("openai", server=_server_of(server, model, dim))
    raise ConfigError(
        f"searches are answered from the space `{space}`, whose model is not one that this version has;"
        f" index all documents with EMBEDDINGS `{kind}`, then search again"
    )


def _found(
    metadata: MetadataStore, reader: VectorReader, chunks: _Chunks, vector: NDArray[np.float32], query: str, limit: int
) -> tuple[list[SearchHit], bool]:
    """The hits, all as the metadata stood at one moment, and whether every chunk met on the way stood in them then."""
    depth = max(limit, _CANDIDATES)
    found = metadata.search_text(chunks.space, query, limit=depth, uri_glob=chunks.uri_glob)
    by_words = {hit.key: hit.score for hit in found}
    reader.refresh()  # only now: vectors are written before metadata, so those of the chunks above are there
    cosines, known = _nearest(reader, chunks, vector, depth=depth, enough=limit)
    unseen = [key for key in by_words if key not in cosines]
    cosines |= _cosines(reader, vector, unseen)
    keys = [*cosines, *(key for key in by_words if key not in cosines)]
    records = chunks.records(keys)
    hits = [_hit(score, records[key]) for key, score in _scores(cosines, by_words).items() if key in records]
    best = sorted(hits, key=lambda hit: (-hit.score, hit.uri, hit.offset))[:limit]
    return best, known and len(records) == len(keys)


class _Chunks:
    """The chunks of a space that may be shown: those the metadata know and whose uri the glob takes."""

    def __init__(self, metadata: MetadataStore, space: str, uri_glob: str | None) -> None:
        self.space = space
        self.uri_glob = uri_glob
        self._metadata = metadata
        self._takes: Callable[[str], object] = uri_regex(uri_pattern("*" if uri_glob is None else uri_glob)).fullmatch

    def records(self, keys: Sequence[int]) -> dict[int, ChunkRecord]:
        """Those of the chunks with these keys that may be shown."""
        found = self._metadata.chunks(self.space, keys)
        return {key: record for key, record in found.items() if self._takes(record.uri)}

    def keys(self) -> NDArray[np.uint64]:
        """The keys of all, uint64 (n,)."""
        names = [doc_id(known.uri) for known in self._metadata.ledger() if self._takes(known.uri)]
        return np.array([c.key for name in names for c in self._metadata.chunks_of(name, self.space)], np.uint64)


def _nearest(
    reader: VectorReader, chunks: _Chunks, vector: NDArray[np.float32], *, depth: int, enough: int
) -> tuple[dict[int, float], bool]:
    """Cosines by key of the chunks nearest to the query, and whether the metadata knew every vector that was met.

    They do but between two commits. `enough` chunks or more are given, unless they are all: first of the `depth`
    nearest vectors, then of more. Where a filter takes few of these, too, its chunks are compared one by one instead.
    """
    asked, among = depth, None
    while True:
        near = reader.search(vector, asked, among=among)
        records = chunks.records([hit.key for hit in near])
        if len(records) >= enough or len(near) < asked or among is not None:
            whole = chunks.uri_glob is not None or len(records) == len(near)
            return {hit.key: hit.score for hit in near if hit.key in records}, whole
        if chunks.uri_glob is not None and asked > depth:
            asked, among = depth, chunks.keys()
        else:
            asked *= _OVERFETCH


def _cosines(reader: VectorReader, vector: NDArray[np.float32], keys: Sequence[int]) -> dict[int, float]:
    if not keys:
        return {}
    hits = reader.search(vector, len(keys), among=np.array(keys, np.uint64))
    return {hit.key: hit.score for hit in hits}


def _scores(cosines: Mapping[int, float], by_words: Mapping[int, float]) -> dict[int, float]:
    """The scores of all chunks that are in either; see SearchHit."""
    best = max(by_words.values(), default=0.0) or 1.0
    return {
        key: round(
            (1 - _WORDS_WEIGHT) * cosines.get(key, 0.0) + _WORDS_WEIGHT * by_words.get(key, 0.0) / best, SCORE_DECIMALS
        )
        for key in cosines.keys() | by_words.keys()
    }


def _hit(score: float, found: ChunkRecord) -> SearchHit:
    return SearchHit(
        score=score,
        doc_id=found.doc_id,
        uri=found.uri,
        title=found.title,
        page=found.page,
        offset=found.offset,
        length=found.length,
        heading=found.heading,
        text=found.text,
    )


def _server_of(server: OpenAIServer, model: str, dim: int) -> OpenAIServer:
    """The server, asked for this model and this many numbers."""
    if (model, dim) == (server.model, server.dim):
        return server
    shorten = model.startswith(_SHORTENED) or (model == server.model and server.shorten)
    return replace(server, model=model, dim=dim, shorten=shorten)
