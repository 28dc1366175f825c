"""The one writer of documents: dead letters, then vectors, then metadata, then what is gone. It knows of no engine.

New vectors are durable before the metadata names them, and old ones go only after it no longer does: whoever asks
the metadata which of the found vectors count sees a document as it was or as it is. A crash in between leaves
vectors that no document names; they are found again by the text they stand for, or swept away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from operators.document_tasks import DOCUMENT_STAGES
from operators.documents import doc_id
from stores.deadletters.port import LetterFilter
from stores.metadata.records import Change, Delete, Rename, Touch, Upsert
from stores.vectors.port import shard_of

if TYPE_CHECKING:
    from operators.records import DeadLetter
    from stores.deadletters.port import DeadLetters
    from stores.metadata.port import MetadataStore
    from stores.vectors.port import VectorStore

_PAGE = 50_000
_LETTERS = 1000


@dataclass(frozen=True, slots=True)
class IndexChange:
    """A change of one document; change is None if there is only a letter.

    keys: uint64 (n,) of the chunks that it shall have, and vectors, float32 (n, dim), of all of them.
    """

    change: Change | None
    letter: DeadLetter | None
    keys: NDArray[np.uint64]
    vectors: NDArray[np.float32]


class Announcer(Protocol):
    """Tells others, before it is remembered: what a crash cuts short is told again, with the same id."""

    def refused(self, letters: Sequence[DeadLetter]) -> None:
        """These documents are refused; the letters are not kept yet."""
        ...

    def changing(self, changes: Sequence[IndexChange]) -> None:
        """These changes are about to be seen by whoever searches; their vectors are there."""
        ...


class IndexWriter:
    """Writes documents' changes; everything may be repeated without effect."""

    def __init__(
        self,
        vectors: VectorStore,
        metadata: MetadataStore,
        dead_letters: DeadLetters,
        announcer: Announcer | None = None,
    ) -> None:
        """Become the writer of every shard. Raises ConfigError while another is, with none held."""
        self._vectors = vectors
        self._metadata = metadata
        self._dead_letters = dead_letters
        self._announcer = announcer
        with ExitStack() as opened:
            self._writers = [opened.enter_context(closing(vectors.write(shard))) for shard in range(vectors.shards)]
            self._reader = opened.enter_context(closing(vectors.read()))
            self._opened = opened.pop_all()

    def write(self, changes: Sequence[IndexChange]) -> None:
        """Make the changes, in order, and let them be found when it returns; those gone may be durable later."""
        part: list[IndexChange] = []
        names: set[str] = set()
        for change in changes:  # a document's next change is compared with what the one before has left
            touched = _documents(change.change)
            if not names.isdisjoint(touched):
                self._write(part)
                part, names = [], set()
            part.append(change)
            names.update(touched)
        self._write(part)

    def sweep(self) -> int:
        """Remove the vectors that no document names, which a crash may have left; return how many there were."""
        reader = self._vectors.read()
        try:
            held = reader.keys()
            named: list[int] = []
            while page := self._metadata.keys(self._vectors.space, after=named[-1] if named else None, limit=_PAGE):
                named += page
            lost = np.setdiff1d(held, np.array(named, np.uint64), assume_unique=True)
            for writer in self._writers:  # a key does not tell its shard, and to remove an unknown one does nothing
                writer.delete(lost)
                writer.commit()
            return len(lost)
        finally:
            reader.close()

    def snapshot(self) -> bytes:
        """Make durable what is gone; there is nothing to resume, the stores are the state."""
        for writer in self._writers:
            writer.commit()
        return b""

    def close(self) -> None:
        """Make durable what is gone and let another writer have the shards."""
        with self._opened:
            self.snapshot()

    def _write(self, changes: Sequence[IndexChange]) -> None:
        self._keep_letters([c.letter for c in changes if c.letter is not None])
        gone: list[tuple[int, NDArray[np.uint64]]] = []
        touched: set[int] = set()
        self._reader.refresh()
        for change in changes:
            for document, wanted in _wanted(change):
                shard = shard_of(document, self._vectors.shards)
                had = self._keys_of(document)
                # A key that is named and has a vector keeps it; one that was to go may still have one until then.
                fresh = ~(np.isin(wanted, had) & self._reader.get(wanted)[1])
                if fresh.any():
                    self._writers[shard].put(wanted[fresh], change.vectors[fresh])
                    touched.add(shard)
                gone.append((shard, np.setdiff1d(had, wanted)))
        for shard in sorted(touched):
            self._writers[shard].commit()
        if self._announcer is not None:
            self._announcer.changing(changes)
        self._metadata.apply([c.change for c in changes if c.change is not None])
        for shard, keys in gone:
            self._writers[shard].delete(keys)
        self._forget_letters([c for c in changes if c.change is not None and c.letter is None])

    def _keep_letters(self, letters: list[DeadLetter]) -> None:
        if self._announcer is not None:
            new = [letter for letter in letters if self._dead_letters.get(letter.letter_id) is None]
            if new:
                self._announcer.refused(new)
        self._dead_letters.put(letters)

    def _forget_letters(self, changes: Sequence[IndexChange]) -> None:
        """A document that is good again, or gone, is refused no longer."""
        if not self._dead_letters.count():
            return
        for uri in sorted({uri for change in changes for uri in _documents(change.change)}):
            heads = self._dead_letters.list(LetterFilter(partition=uri), limit=_LETTERS)
            self._dead_letters.drop([head.letter_id for head in heads if head.stage in DOCUMENT_STAGES])

    def _keys_of(self, document: str) -> NDArray[np.uint64]:
        return np.array([c.key for c in self._metadata.chunks_of(document, self._vectors.space)], np.uint64)


def _wanted(change: IndexChange) -> list[tuple[str, NDArray[np.uint64]]]:
    """For each document whose chunks change, the keys that it shall have."""
    nothing = np.empty(0, np.uint64)
    match change.change:
        case Upsert(document=document):
            return [(document.doc_id, change.keys)]
        case Rename(old_uri=old, new=Upsert(document=document)):
            return [(document.doc_id, change.keys), (doc_id(old), nothing)]
        case Delete(uri=uri):
            return [(doc_id(uri), nothing)]
        case _:
            return []


def _documents(change: Change | None) -> tuple[str, ...]:
    match change:
        case Upsert(document=document):
            return (document.uri,)
        case Rename(old_uri=old, new=Upsert(document=document)):
            return document.uri, old
        case Delete(uri=uri) | Touch(uri=uri):
            return (uri,)
        case _:
            return ()
