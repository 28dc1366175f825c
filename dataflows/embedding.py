"""Every chunk gets its vector: the one that it has, that of the same text elsewhere, or a new one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataflows.preparing import Prepared, letter_of
from operators.documents import Chunk, chunk_keys
from operators.embedders.port import embed_each
from operators.errors import RetryableError
from stores.metadata.records import Rename, Upsert

if TYPE_CHECKING:
    from collections.abc import Callable

    from operators.embedders.port import Embedder, Vectors
    from operators.errors import SkippableError
    from stores.metadata.port import Chunks
    from stores.patience import Patience
    from stores.vectors.port import VectorReader


_RECENT_MAX = 8192
"""Vectors that are remembered until they are in the index for certain."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What shall be written of one document, with a vector for each of its chunks.

    keys: uint64 (n,). vectors: float32 (n, dim). made: how many of them were computed for it.
    """

    prepared: Prepared
    keys: NDArray[np.uint64]
    vectors: Vectors
    made: int = 0


class Embedding:
    """Gives vectors to the chunks of many documents at a time. Workers share it, one after the other.

    Content-addressed: a text that the space holds, in whatever document, is not embedded again, so that a rename,
    a copy, another cut of the chunks or a crash before the acknowledgement cost nothing. Neither is one that was
    embedded lately and is still on its way into the space.
    """

    def __init__(  # noqa: PLR0913  # what it is made of, each once
        self,
        embedder: Embedder,
        reader: VectorReader,
        metadata: Chunks,
        *,
        batch_max: int,
        patience: Patience,
        stop: threading.Event,
        now_us: Callable[[], int],
    ) -> None:
        """batch_max: texts of one call of the embedder. stop: once set, nothing more is embedded."""
        self._embedder = embedder
        self._reader = reader
        self._metadata = metadata
        self._batch_max = batch_max
        self._patience = patience
        self._stop = stop
        self._now_us = now_us
        self._recent: dict[str, NDArray[np.float32]] = {}
        self._turn = threading.Lock()

    def embed(self, batch: Sequence[Prepared]) -> tuple[list[Embedded], RetryableError | None]:
        """The documents with their vectors, in order, and why some that need a new vector are left out, if they are.

        Left out without a reason once `stop` is set; with one if the embedder stays away longer than the patience
        lasts. A document with a chunk that the embedder refuses becomes a dead letter.
        """
        with self._turn:
            return self._embed(batch)

    def _embed(self, batch: Sequence[Prepared]) -> tuple[list[Embedded], RetryableError | None]:
        texts = {chunk.text_hash: chunk.text for prepared in batch for chunk in chunks_in(prepared)}
        known = self.kept(batch, texts)
        fresh = [name for name in texts if name not in known]
        refused, away = self._make(fresh, texts, known)
        out, unclaimed = [], set(fresh)
        for prepared in batch:
            names = [chunk.text_hash for chunk in chunks_in(prepared)]
            bad = next((refused[name] for name in names if name in refused), None)
            if bad is not None:
                out.append(self._refused(prepared, bad))
            elif all(name in known for name in names):
                made = unclaimed.intersection(names)
                unclaimed -= made
                vectors = np.stack([known[name] for name in names]) if names else self._none
                keys = np.array(chunk_keys(prepared.task.doc_id, names), np.uint64)
                out.append(Embedded(prepared, keys, vectors, len(made)))
        return out, away

    def kept(self, batch: Sequence[Prepared], texts: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
        """By text hash, the vectors that the space holds: under the document's own keys, else under those of others.

        batch: the documents that the texts, by their hash, are of.
        """
        known: dict[str, NDArray[np.float32]] = {}
        if not texts:
            return known
        self._reader.refresh()
        names = [[chunk.text_hash for chunk in chunks_in(prepared)] for prepared in batch]
        keys = [key for own, p in zip(names, batch, strict=True) for key in chunk_keys(p.task.doc_id, own)]
        self._take(keys, [name for own in names for name in own], known)
        elsewhere = self._metadata.find_by_text_hash(
            self._embedder.space, [name for name in texts if name not in known]
        )
        self._take(list(elsewhere.values()), list(elsewhere), known)
        known.update({name: self._recent[name] for name in texts if name not in known and name in self._recent})
        return known

    @property
    def _none(self) -> Vectors:
        return np.empty((0, self._embedder.dim), np.float32)

    def _take(self, keys: list[int], names: list[str], known: dict[str, NDArray[np.float32]]) -> None:
        vectors, found = self._reader.get(np.array(keys, np.uint64))
        for place in np.flatnonzero(found).tolist():
            known.setdefault(names[place], vectors[place])

    def _make(
        self, fresh: Sequence[str], texts: Mapping[str, str], known: dict[str, NDArray[np.float32]]
    ) -> tuple[dict[str, SkippableError], RetryableError | None]:
        """Embed the fresh texts into `known`; return those that were refused, and why it ended before the last."""
        refused: dict[str, SkippableError] = {}
        for start in range(0, len(fresh), self._batch_max):
            part = fresh[start : start + self._batch_max]
            wanted = [texts[name] for name in part]
            if self._stop.is_set():
                break
            try:
                vectors, errors = self._patience.call(lambda wanted=wanted: embed_each(self._embedder, wanted))  # type: ignore[misc]  # mypy cannot type a default of a lambda
            except RetryableError as error:
                return refused, None if self._stop.is_set() else error
            for place, name in enumerate(part):
                if place in errors:
                    refused[name] = errors[place]
                else:
                    known[name] = self._recent[name] = vectors[place]
        while len(self._recent) > _RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        return refused, None

    def _refused(self, prepared: Prepared, error: SkippableError) -> Embedded:
        """The document without chunks, dead."""
        task, change = prepared.task, prepared.change
        letter = letter_of(task, "embed", error.reason, str(error), self._now_us())
        upsert = change.new if isinstance(change, Rename) else change
        assert isinstance(upsert, Upsert)
        dead = replace(upsert, document=replace(upsert.document, state="dead"), chunks=())
        changed = replace(change, new=dead) if isinstance(change, Rename) else dead
        return Embedded(replace(prepared, change=changed, letter=letter), np.empty(0, np.uint64), self._none)


def chunks_in(prepared: Prepared) -> tuple[Chunk, ...]:
    """The chunks that the document shall have; none if the change is not about chunks."""
    match prepared.change:
        case Upsert(chunks=chunks) | Rename(new=Upsert(chunks=chunks)):
            return chunks
        case _:
            return ()
