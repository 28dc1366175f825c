"""`verify documents`: source, ledger, chunks, full text and vectors are held against each other.

A look changes nothing and reads everything: every document is made into chunks anew, though none is embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from dataflows.document_wiring import DocumentParts, open_parts, vectors_url
from dataflows.engine import STOP
from dataflows.preparing import Prepared, Preparer
from dataflows.sources.discovery import Item, Work, plan
from dataflows.sources.topic import reading_order
from operators.document_tasks import Task
from operators.documents import Chunk, chunk_keys, doc_id, memo_key
from operators.errors import RetryableError
from stores.metadata.memory import MemoryMetadata
from stores.metadata.records import ChunkRecord, Known, StoredChunk, Upsert
from stores.patience import Patience
from stores.vectors import list_spaces
from stores.vectors.port import UNIT_TOLERANCE

if TYPE_CHECKING:
    from dataflows.config import Settings
    from operators.documents import Found

_READERS = 8
_PAGE = 8192
_LENGTH_TOLERANCE = 2 * UNIT_TOLERANCE
"""A vector may be put that is UNIT_TOLERANCE too long or short, and storing it adds less than that."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something is not as something else says. word: short and stable. key: of a vector, where one is meant."""

    word: str
    detail: str
    uri: str | None = None
    key: int | None = None

    @property
    def place(self) -> tuple[str, str | None, int | None]:
        """What tells two looks that they saw the same."""
        return self.word, self.uri, self.key

    def record(self) -> dict[str, object]:
        """As printed."""
        return {"difference": self.word, "uri": self.uri, "key": self.key, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at everything found. checked: documents that are listed or known.

    listed: uris. out_of_reach: documents whose source cannot be listed or is named no more.
    """

    differences: tuple[Difference, ...]
    checked: int
    listed: frozenset[str]
    out_of_reach: int

    def record(self) -> dict[str, object]:
        """The summary, as printed."""
        return {"equal": not self.differences, "checked": self.checked, "differences": len(self.differences)}


def look_at_documents(settings: Settings, advanced: Callable[[int, int], None] = lambda _done, _of: None) -> Look:
    """Find every difference; documents by uri first, then vectors by key, then whole stores. Changes nothing.

    advanced: hears (documents looked at, of so many). Raises what opening the ports raises, and CorruptStoreError for
    a metadata store that cannot be read at all.
    """
    with open_parts(settings, make=False) as parts:
        listings, away = _listings(parts)
        ledger = list(parts.metadata.ledger())
        work = plan(listings, ledger, parts.stages.shape, allow_mass_delete=True)
        listed = _listed(listings)
        check = _DocumentCheck(parts, listed, work, settings.document_bytes_max)
        differences = [Difference("missing", "listed, and not in the ledger", i.found.uri) for i in work.added]
        with ThreadPoolExecutor(_READERS, "verify") as pool:
            ledger.sort(key=lambda known: reading_order(known.source, known.uri, known.fingerprint))
            for done, found in enumerate(pool.map(check.differences_of, ledger), start=1):
                differences += found
                advanced(done, len(ledger))
        differences.sort(key=lambda difference: difference.uri or "")
        differences += _of_vectors(parts, has_space=check.has_space)
        differences += _of_stores(settings, parts, away)
    known = {known.uri for known in ledger}
    return Look(
        differences=tuple(differences),
        checked=len(known | listed.keys()),
        listed=frozenset(listed),
        out_of_reach=len(known - listed.keys() - {known.uri for known in work.deleted}),
    )


class _DocumentCheck:
    """Looks at documents of the ledger, one after another; threads share it."""

    def __init__(self, parts: DocumentParts, listed: Mapping[str, Item], work: Work, limit_bytes: int) -> None:
        metadata = parts.metadata
        self._metadata = metadata
        self._space = parts.embedder.space
        self._shape = parts.stages.shape
        self._listed = listed
        self._gone = {known.uri for known in work.deleted}
        self.has_space = any(space.name == self._space for space in metadata.spaces())
        most = max(1, sum(metadata.counts().values()))
        self._incomplete = frozenset(metadata.incomplete(self._space, most)) if self.has_space else frozenset()
        self._preparer = Preparer(
            sources={source.name: source for source in parts.sources},
            stages=parts.stages,
            metadata=MemoryMetadata(),  # knows nothing, so that everything is made anew
            patience=Patience(tries_max=3, sleep=STOP.wait),
            run="",
            limit_bytes=limit_bytes,
        )

    def differences_of(self, known: Known) -> list[Difference]:
        """All that is wrong with the document."""
        item = self._listed.get(known.uri)
        found: list[Difference] = []
        made: tuple[Chunk, ...] | None = None
        if known.uri in self._gone:
            found.append(Difference("gone", "in the ledger, and no longer listed", known.uri))
        if item is not None:
            said, made = self._against_source(known, item)
            found += said
            if item.source != known.source:
                found.append(Difference("source", f"listed by `{item.source}`, not by `{known.source}`", known.uri))
        if not self.has_space:
            return found
        if known.uri in self._incomplete and not any(d.word == "shape" for d in found):
            found.append(Difference("incomplete", f"its latest state is not in the space `{self._space}`", known.uri))
            made = None
        return found + self._of_chunks(known, made)

    def _against_source(self, known: Known, item: Item) -> tuple[list[Difference], tuple[Chunk, ...] | None]:
        """What the source says otherwise, and the chunks that its content gives, where they must be those kept."""
        same = known.fingerprint == item.found.fingerprint
        current = known.memo_key == memo_key(known.content_hash, self._shape)
        shape = [] if current else [Difference("shape", self._other_shape(known), known.uri)]
        unread = (
            known.state == "dead" and not known.content_hash and item.found.size_bytes <= self._preparer.limit_bytes
        )
        if known.state == "dead" and same and not unread:
            return shape, None
        made = self._preparer.prepare(_task(item))
        if not isinstance(made.change, Upsert):
            return shape + (_unread(made) if known.state == "ready" else []), None
        digest = made.change.document.content_hash
        if digest != known.content_hash:
            return [_other_content(made, same=same and not unread)], None
        if made.letter is not None:
            return shape + (_unread(made) if known.state == "ready" else []), None
        return shape, made.change.chunks if current and known.state == "ready" else None

    def _other_shape(self, known: Known) -> str:
        document = self._metadata.document(doc_id(known.uri))
        made_as = "" if document is None else document.shape
        return f"made under the shape `{made_as}`; the settings say `{self._shape}`"

    def _of_chunks(self, known: Known, made: tuple[Chunk, ...] | None) -> list[Difference]:
        """What is wrong with the chunks that are kept. made: what they should be; None if that is not known."""
        name = doc_id(known.uri)
        stored = self._metadata.chunks_of(name, self._space)
        records = self._metadata.chunks(self._space, [chunk.key for chunk in stored])
        found = [Difference(word, said, known.uri, key) for word, said, key in _flaws(name, stored, records)]
        if known.state == "dead" and stored:
            found.append(Difference("chunks", f"dead, and has {len(stored)} chunks", known.uri))
        if made is not None and not found and [_place(c, records[c.key]) for c in stored] != [_made(c) for c in made]:
            said = f"has {len(stored)} chunks that are not the {len(made)} that its content gives"
            found.append(Difference("chunks", said, known.uri))
        return found


def _flaws(
    name: str, stored: Sequence[StoredChunk], records: Mapping[int, ChunkRecord]
) -> Iterator[tuple[str, str, int | None]]:
    """Word, sentence and key of whatever a document's chunks cannot be, whatever its content is."""
    ordinals = [chunk.ordinal for chunk in stored]
    if ordinals != list(range(len(stored))):
        yield "chunk_order", f"its chunks are numbered {_short(ordinals)}", None
    keys = chunk_keys(name, [chunk.text_hash for chunk in stored])
    for chunk, key in zip(stored, keys, strict=True):
        where = f"chunk {chunk.ordinal}"
        if chunk.key != key:
            yield "chunk_key", f"{where}: its document and its text name it {key}", chunk.key
        record = records.get(chunk.key)
        if record is None:
            yield "chunk_text", f"{where} has no text", chunk.key
            continue
        if Chunk(0, 0, record.text).text_hash != chunk.text_hash:
            yield "chunk_hash", f"{where}: its hash is not that of its text", chunk.key
        if len(record.text) != chunk.length:
            said = f"{where}: {chunk.length} characters are said, its text has {len(record.text)}"
            yield "chunk_length", said, chunk.key


def _of_vectors(parts: DocumentParts, *, has_space: bool) -> Iterator[Difference]:
    """Damaged vectors; else keys that only one side has, and vectors whose length is not 1."""
    damages = parts.vectors.check()
    for damage in damages:
        yield Difference("vector_damage", damage)
    if damages:
        return
    named = _keys(parts) if has_space else np.empty(0, np.uint64)
    with closing(parts.vectors.read()) as reader:
        held = reader.keys()
        for page in _pages(np.setdiff1d(named, held, assume_unique=True)):
            records = parts.metadata.chunks(parts.vectors.space, page.tolist())
            for key in page.tolist():
                uri = records[key].uri if key in records else None
                yield Difference("vector_missing", "a chunk without a vector", uri, key)
        for key in np.setdiff1d(held, named, assume_unique=True).tolist():
            yield Difference("vector_orphan", "a vector without a chunk", None, key)
        for page in _pages(np.intersect1d(held, named, assume_unique=True)):
            rows, there = reader.get(page)
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
            for at in np.flatnonzero(there & ~(np.abs(lengths - 1.0) <= _LENGTH_TOLERANCE)).tolist():
                key = int(page[at])
                record = parts.metadata.chunks(parts.vectors.space, [key]).get(key)
                uri = None if record is None else record.uri
                yield Difference("vector_length", f"a vector of length {lengths[at]:.6g}, not 1", uri, key)


def _of_stores(settings: Settings, parts: DocumentParts, away: Mapping[str, str]) -> Iterator[Difference]:
    """What concerns no single document: sources that are away, spaces, the full text, the metadata file."""
    for name, why in sorted(away.items()):
        yield Difference("source_away", f"`{name}` could not be listed, so nothing of it was compared: {why}")
    metadata = parts.metadata
    spaces = {space.name: space for space in metadata.spaces()}
    active = metadata.active_space()
    if active not in (None, parts.embedder.space):
        said = f"searches are answered from `{active}`, not from `{parts.embedder.space}`, which the settings name"
        yield Difference("space", said)
    for space in spaces.values():
        if space.name == parts.embedder.space:
            continue
        if space.state == "retired":
            yield Difference("leftover", f"the space `{space.name}` is retired, and not removed yet")
        elif active == parts.embedder.space:
            yield Difference("leftover", f"the space `{space.name}` was begun and given up; the next run removes it")
    for name in sorted(set(list_spaces(vectors_url(settings))) - spaces.keys() - {parts.embedder.space}):
        folder = folder_of(settings, name)
        yield Difference("leftover", f"no document knows of the vectors in `{folder}`; remove it unless others use it")
    for damage in metadata.check():
        yield Difference("metadata_damage", f"{damage}; restore it from a copy, or move it away and ingest again")
    if not metadata.text_is_whole():
        yield Difference("text_index", "the full text is not that of the chunks")


def _listings(parts: DocumentParts) -> tuple[dict[str, list[Found]], dict[str, str]]:
    """What every source lists, and why one could not be listed to its end."""
    listings: dict[str, list[Found]] = {}
    away: dict[str, str] = {}
    for source in parts.sources:
        try:
            listings[source.name] = list(source.list())
        except RetryableError as error:
            away[source.name] = str(error)
    return listings, away


def _listed(listings: Mapping[str, Iterable[Found]]) -> dict[str, Item]:
    """By uri, what is listed and by whom, as `plan` sees it."""
    work = plan(listings, (), "")
    return {item.found.uri: item for item in work.added}


def _task(item: Item) -> Task:
    return Task(0, "updated", item.found.uri, item.source, item.found.fingerprint, item.found.size_bytes)


def _unread(made: Prepared) -> list[Difference]:
    """A document that is gone since it was listed is none."""
    return [] if made.letter is None else [Difference("unreadable", made.letter.detail, made.task.uri)]


def _other_content(made: Prepared, *, same: bool) -> Difference:
    if made.letter is not None and made.letter.stage == "fetch":
        return Difference("unreadable", made.letter.detail, made.task.uri)
    if same:
        return Difference("altered", "its content is another, though its fingerprint is the same", made.task.uri)
    return Difference("changed", "its content has changed", made.task.uri)


def _place(chunk: StoredChunk, record: ChunkRecord) -> tuple[object, ...]:
    return chunk.ordinal, chunk.offset, chunk.length, chunk.page, chunk.text_hash, record.heading


def _made(chunk: Chunk) -> tuple[object, ...]:
    return chunk.ordinal, chunk.offset, chunk.length, chunk.page, chunk.text_hash, chunk.heading


def _short(ordinals: Sequence[int]) -> str:
    shown = ", ".join(map(str, ordinals[:10]))
    return shown if len(ordinals) <= 10 else f"{shown}, …"


def _keys(parts: DocumentParts) -> NDArray[np.uint64]:
    """All keys that the metadata name, rising."""
    space, parts_found, after = parts.vectors.space, [np.empty(0, np.uint64)], None
    while page := parts.metadata.keys(space, after=after, limit=_PAGE):
        parts_found.append(np.array(page, np.uint64))
        after = page[-1]
    return np.concatenate(parts_found)


def _pages(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    for start in range(0, len(keys), _PAGE):
        yield keys[start : start + _PAGE]


def folder_of(settings: Settings, space: str | None) -> str:
    """Where the vectors of a space are; None: those of all."""
    folder = settings.vectorstore_path
    return str(folder if space is None else folder / quote(space, safe=""))
