"""Metadata in memory: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock

from operators.documents import doc_id
from stores.metadata.records import (
    Change,
    ChunkRecord,
    DatasetVersion,
    Delete,
    Document,
    Known,
    Rename,
    Run,
    Space,
    SpaceState,
    StoredChunk,
    TextHit,
    Touch,
    Upsert,
)
from stores.metadata.words import (
    ChunkRow,
    check_limit,
    chunk_rows,
    json_text,
    query_words,
    uri_pattern,
    uri_regex,
    valid,
)

_K1, _B = 1.2, 0.75
"""The usual constants of BM25."""


@dataclass(slots=True)
class _Held:
    """A document's state in a space."""

    memo_key: str
    rows: list[ChunkRow]


@dataclass(slots=True)
class _SpaceState:
    state: SpaceState = "building"
    held: dict[str, _Held] = field(default_factory=dict)


class MemoryMetadata:
    """`MetadataStore` that lives as long as the object; "durable" means no more than that."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._documents: dict[str, Document] = {}
        self._spaces: dict[str, _SpaceState] = {}
        self._runs: dict[str, Run] = {}
        self._versions: list[DatasetVersion] = []
        self._positions: dict[tuple[str, str], Mapping[str, object]] = {}
        self._lock = RLock()
        self._closed = False

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes; see `Ledger.apply`."""
        with self._lock:
            self._check_open()
            for change in changes:
                self._check(change)
            for change in changes:
                self._change(change)

    def ledger(self, source: str | None = None) -> Iterator[Known]:
        """Yield what is known of every document; see `Ledger.ledger`."""
        with self._lock:
            self._check_open()
            known = sorted((d.known for d in self._documents.values()), key=lambda line: line.uri)
        yield from (line for line in known if source in (None, line.source))

    def document(self, doc_id: str) -> Document | None:
        """Return the document; see `Ledger.document`."""
        with self._lock:
            self._check_open()
            return self._documents.get(doc_id)

    def incomplete(self, space: str, limit: int = 1000) -> Sequence[str]:
        """Return the uris that the space lacks; see `Ledger.incomplete`."""
        check_limit(limit)
        with self._lock:
            held = self._space(space).held
            return sorted(
                document.uri
                for name, document in self._documents.items()
                if document.state == "ready" and (name not in held or held[name].memo_key != document.memo_key)
            )[:limit]

    def counts(self) -> Mapping[str, int]:
        """Return the number of documents by state; see `Ledger.counts`."""
        with self._lock:
            self._check_open()
            return {"ready": 0, "dead": 0} | Counter(d.state for d in self._documents.values())

    def chunks_of(self, doc_id: str, space: str) -> Sequence[StoredChunk]:
        """Return the document's chunks; see `Chunks.chunks_of`."""
        with self._lock:
            held = self._space(space).held.get(doc_id)
            return [
                StoredChunk(row.key, row.ordinal, row.offset, row.length, row.page, row.text_hash)
                for row in sorted(held.rows if held else [], key=lambda row: row.ordinal)
            ]

    def find_by_text_hash(self, space: str, text_hashes: Sequence[str]) -> Mapping[str, int]:
        """Return keys of chunks with these texts; see `Chunks.find_by_text_hash`."""
        with self._lock:
            wanted = set(text_hashes)
            found: dict[str, int] = {}
            for _, row in self._rows(space):
                if row.text_hash in wanted:
                    found[row.text_hash] = min(row.key, found.get(row.text_hash, row.key))
            return found

    def chunks(self, space: str, keys: Sequence[int]) -> Mapping[int, ChunkRecord]:
        """Return the chunks with these keys; see `Chunks.chunks`."""
        with self._lock:
            wanted = set(map(int, keys))
            return {row.key: _record(d, row) for d, row in self._rows(space) if row.key in wanted}

    def keys(self, space: str, *, after: int | None = None, limit: int = 10_000) -> Sequence[int]:
        """Return one page of keys; see `Chunks.keys`."""
        check_limit(limit)
        with self._lock:
            return sorted(row.key for _, row in self._rows(space) if after is None or row.key > after)[:limit]

    def search_text(self, space: str, query: str, *, limit: int, uri_glob: str | None = None) -> Sequence[TextHit]:
        """Return the best chunks by BM25 over the space; see `Chunks.search_text`."""
        check_limit(limit)
        with self._lock:
            rows = [(d.uri, row.key, Counter(_tokens(f"{row.heading} {row.text}"))) for d, row in self._rows(space)]
        wanted = dict.fromkeys(token for word in query_words(query) for token in _tokens(word))
        takes = uri_regex(uri_pattern("*" if uri_glob is None else uri_glob)).fullmatch
        scores = _bm25(list(wanted), [counts for _, _, counts in rows])
        hits = [TextHit(key, score) for (uri, key, _), score in zip(rows, scores, strict=True) if score and takes(uri)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.key))[:limit]

    def add_space(self, space: str) -> None:
        """Make sure that the space is there; see `Spaces.add_space`."""
        with self._lock:
            active = self.active_space()
            kept = self._spaces.setdefault(space, _SpaceState())
            if active is None:
                kept.state = "active"
            elif kept.state == "retired":
                kept.state = "building"

    def spaces(self) -> Sequence[Space]:
        """Return all spaces; see `Spaces.spaces`."""
        with self._lock:
            self._check_open()
            return [
                Space(name, kept.state, len(kept.held), sum(len(held.rows) for held in kept.held.values()))
                for name, kept in sorted(self._spaces.items())
            ]

    def active_space(self) -> str | None:
        """Return the space that search answers from; see `Spaces.active_space`."""
        with self._lock:
            self._check_open()
            return next((name for name, kept in self._spaces.items() if kept.state == "active"), None)

    def activate(self, space: str) -> bool:
        """Answer searches from this space if it is complete; see `Spaces.activate`."""
        with self._lock:
            wanted = self._space(space)
            if wanted.state == "active":
                return True
            if self.incomplete(space, 1):
                return False
            for kept in self._spaces.values():
                if kept.state == "active":
                    kept.state = "retired"
            wanted.state = "active"
            return True

    def drop_space(self, space: str) -> None:
        """Forget the space; see `Spaces.drop_space`."""
        with self._lock:
            if self.active_space() == space:
                raise ValueError(f"space `{space}` is active: searches are answered from it")
            self._spaces.pop(space, None)

    def start_run(self, run: str, *, started_us: int, shape: str) -> None:
        """Note that a run has begun; see `Runs.start_run`."""
        with self._lock:
            self._check_open()
            self._runs.setdefault(run, Run(run, started_us, shape))

    def end_run(self, run: str, *, ended_us: int, counts: Mapping[str, int]) -> None:
        """Note how the run ended; see `Runs.end_run`."""
        with self._lock:
            self._check_open()
            if run in self._runs:
                self._runs[run] = replace(self._runs[run], ended_us=ended_us, counts=dict(counts))

    def runs(self, limit: int = 100) -> Sequence[Run]:
        """Return the latest runs; see `Runs.runs`."""
        check_limit(limit)
        with self._lock:
            self._check_open()
            return sorted(self._runs.values(), key=lambda run: (run.started_us, run.run), reverse=True)[:limit]

    def add_version(self, version: DatasetVersion) -> DatasetVersion:
        """Keep a dataset version; see `Runs.add_version`."""
        with self._lock:
            newest = next(iter(self.versions(version.name)[-1:]), None)
            kept = version.behind(newest)
            if kept != newest:
                self._versions.append(kept)
            return kept

    def versions(self, name: str | None = None) -> Sequence[DatasetVersion]:
        """Return dataset versions; see `Runs.versions`."""
        with self._lock:
            self._check_open()
            found = [version for version in self._versions if name in (None, version.name)]
            return sorted(found, key=lambda version: (version.name, version.version))

    def positions(self, topic: str) -> Mapping[str, Mapping[str, object]]:
        """Return how far the topic has been read; see `Positions.positions`."""
        with self._lock:
            self._check_open()
            return {part: kept for (of, part), kept in sorted(self._positions.items()) if of == topic}

    def note_positions(self, topic: str, positions: Mapping[str, Mapping[str, object]]) -> None:
        """Note how far the topic has been read; see `Positions.note_positions`."""
        with self._lock:
            self._check_open()
            self._positions |= {(topic, part): json.loads(json_text(kept)) for part, kept in positions.items()}

    def check(self) -> Sequence[str]:
        """Return no damage: nothing can happen to it; see `Upkeep.check`."""
        with self._lock:
            self._check_open()
            return []

    def text_is_whole(self) -> bool:
        """True, since searches read the chunks themselves; see `Upkeep.text_is_whole`."""
        with self._lock:
            self._check_open()
            return True

    def mend_text(self) -> None:
        """Do nothing; see `Upkeep.mend_text`."""
        with self._lock:
            self._check_open()

    def scrub(self) -> None:
        """Do nothing; see `Upkeep.scrub`."""
        with self._lock:
            self._check_open()

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        self._documents.clear()
        self._spaces.clear()

    def _check(self, change: Change) -> None:
        """Raise what `_change` would raise, so that nothing is half done."""
        match change:
            case Upsert(document, space, _):
                self._space(space)
                _storable(document)
            case Rename(_, new):
                self._check(new)

    def _change(self, change: Change) -> None:
        match change:
            case Upsert(document, space, _):
                held = self._space(space).held
                self._documents[document.doc_id] = _storable(document)
                held[document.doc_id] = _Held(document.memo_key, chunk_rows(change))
            case Touch(uri, source, fingerprint):
                name = doc_id(uri)
                if name in self._documents:
                    kept = self._documents[name]
                    self._documents[name] = replace(kept, source=valid(source), fingerprint=fingerprint)
            case Delete(uri):
                self._documents.pop(doc_id(uri), None)
                for kept_space in self._spaces.values():
                    kept_space.held.pop(doc_id(uri), None)
            case Rename(old_uri, new):
                self._change(Delete(old_uri))
                self._change(new)

    def _rows(self, space: str) -> Iterator[tuple[Document, ChunkRow]]:
        for name, held in self._space(space).held.items():
            for row in held.rows:
                yield self._documents[name], row

    def _space(self, space: str) -> _SpaceState:
        self._check_open()
        if space not in self._spaces:
            raise ValueError(f"space `{space}` was never added")
        return self._spaces[space]

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the metadata are closed")


def _storable(document: Document) -> Document:
    return replace(
        document,
        source=valid(document.source),
        media_type=valid(document.media_type),
        title=valid(document.title),
        metadata=json.loads(json_text(document.metadata)),
    )


def _record(document: Document, row: ChunkRow) -> ChunkRecord:
    return ChunkRecord(
        row.key,
        tuple(json.loads(row.heading)),
        document.doc_id,
        document.uri,
        document.title,
        row.ordinal,
        row.offset,
        row.length,
        row.page,
        row.text,
    )


def _tokens(text: str) -> list[str]:
    """Words without case and accents."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))
    return "".join(c if c.isalnum() else " " for c in bare).split()


def _bm25(words: Sequence[str], texts: Sequence[Counter[str]]) -> list[float]:
    """The score of each text; 0 where no word is in it. Every word counts a little, however common it is."""
    lengths = [sum(counts.values()) for counts in texts]
    mean = sum(lengths) / len(texts) if texts else 0.0
    scores = [0.0] * len(texts)
    for word in words:
        having = sum(word in counts for counts in texts)
        weight = max(math.log((len(texts) - having + 0.5) / (having + 0.5)), 1e-6)
        for at, counts in enumerate(texts):
            if word in counts:
                damped = counts[word] + _K1 * (1 - _B + _B * lengths[at] / mean)
                scores[at] += weight * counts[word] * (_K1 + 1) / damped
    return scores
