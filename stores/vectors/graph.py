"""The usearch index that is a shard's base: an HNSW graph in one file, looked at by mmap.

Its vectors are handed over as they are stored, so usearch converts nothing. A file is only ever added
to while it is in memory: usearch crashes when a mapped one is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from operators.errors import CorruptStoreError, FatalError
from stores.offline.disk import fsync
from stores.vectors.elements import Stored, decode, encode
from stores.vectors.port import Element, best, scores_of
from stores.vectors.shard_folder import Base, digest_of
from stores.vectors.shard_log import LogFormat

if TYPE_CHECKING:
    from usearch.index import Index

CONNECTIVITY = 16
EXPANSION_ADD = 128
EXPANSION_SEARCH = 64
"""Links of a node, and nodes weighed when adding and searching: recall 0.997 at 100,000 × 384 in float16."""

_CANDIDATES: dict[Element, int] = {"f32": 2, "f16": 2, "i8": 4}
"""Candidates for each hit asked for: usearch compares coded queries, the best of these are compared as they are."""

_SCAN_ROWS = 8192


class Graph:
    """A base, looked at by mmap; never changes. Not for several threads at once."""

    def __init__(self, path: Path, base: Base, log_format: LogFormat) -> None:
        """Map the file. Raises FileNotFoundError, and CorruptStoreError if it is another or cut short."""
        if path.stat().st_size != base.size_bytes:
            raise CorruptStoreError(f"`{path}` has not the {base.size_bytes} bytes it was written with; restore it")
        self._format = log_format
        self._index = new_index(log_format)
        try:
            self._index.view(path)
        except Exception as exc:  # usearch raises RuntimeError, ValueError or bare exceptions for bad files
            path.stat()  # for a file that is gone by now it raises what the caller waits for
            raise CorruptStoreError(f"`{path}` is no usearch index ({exc}); restore the store or remove it") from exc
        if len(self._index) != base.rows:
            raise CorruptStoreError(f"`{path}` holds {len(self._index)} vectors in the place of {base.rows}")
        self._keys: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        """Vectors, with those that the logs have taken out since."""
        return len(self._index)

    def close(self) -> None:
        """Let go of the map."""
        self._index.reset()  # type: ignore[no-untyped-call]  # usearch leaves it without types

    def keys(self) -> NDArray[np.uint64]:
        """All keys: uint64 (n,), in no order."""
        if self._keys is None:
            self._keys = np.asarray(self._index.keys, np.uint64)
        return self._keys

    def contains(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the keys are here: bool (n,)."""
        return np.asarray(self._index.contains(keys), np.bool_)

    def get(self, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Vectors of keys that are all here: float32 (n, dim)."""
        return decode(stored_rows(self._index, keys, self._format))

    def nearest(
        self, query: NDArray[np.float64], limit: int, hidden: set[int]
    ) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """About the `limit` best of the keys that are not hidden, fewer if the graph leads to no more.

        Return keys, uint64 (n,), and their scores, float64 (n,), in no order.
        """
        coded = encode(query[np.newaxis].astype(np.float32), self._format.element)[0]
        count = limit * _CANDIDATES[self._format.element]
        while True:
            matches = np.asarray(self._index.search(coded, min(count, len(self)), threads=1).keys, np.uint64)
            seen = matches if not hidden else _without(matches, hidden)
            if seen.size >= limit or matches.size < count:
                return seen, scores_of(query, self.get(seen))
            count *= 2

    def scan(
        self, query: NDArray[np.float64], limit: int, hidden: set[int]
    ) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """As `nearest`, by comparing with every vector: exact."""
        keys, scores = np.empty(0, np.uint64), np.empty(0)
        for start in range(0, len(self), _SCAN_ROWS):
            block = self.keys()[start : start + _SCAN_ROWS]
            block = block if not hidden else _without(block, hidden)
            keys = np.concatenate([keys, block])
            scores = np.concatenate([scores, scores_of(query, self.get(block))])
            top = best(keys, scores, limit)
            keys, scores = keys[top], scores[top]
        return keys, scores


def new_index(log_format: LogFormat) -> Index:
    """An empty index."""
    from usearch.index import Index

    return Index(
        ndim=log_format.dim,
        metric="cos",
        dtype=log_format.element,
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )


def load_index(path: Path, base: Base, log_format: LogFormat) -> Index:
    """Read a base into memory, to change it. Raises CorruptStoreError unless every byte is as it was written."""
    if digest_of(path) != base.blake2b:
        raise CorruptStoreError(f"`{path}` is not as it was written; restore the store from a copy, or remove it")
    index = new_index(log_format)
    index.load(path)
    return index


def save_index(index: Index, path: Path, removed: int) -> Base:
    """Write a base and make it durable, but for its name. Raises FatalError if that fails."""
    try:
        index.save(path)
    except Exception as exc:  # usearch gives the text of an error, not its number
        raise FatalError(f"writing `{path}` failed ({exc}); is the disk full? What was committed is safe") from exc
    fsync(path)
    return Base(path.name, len(index), removed, path.stat().st_size, digest_of(path))


def stored_rows(index: Index, keys: NDArray[np.uint64], log_format: LogFormat) -> Stored:
    """Rows of keys that are all in the index, as they are stored: (n, dim)."""
    if keys.size == 0:
        return encode(np.empty((0, log_format.dim), np.float32), log_format.element)
    rows: Stored = np.concatenate(cast("tuple[Stored, ...]", index.get(keys)))
    return rows.reshape(keys.size, log_format.dim)


def _without(keys: NDArray[np.uint64], hidden: set[int]) -> NDArray[np.uint64]:
    return keys[np.fromiter((key not in hidden for key in keys.tolist()), np.bool_, keys.size)]
