"""Vectors in memory, compared one by one: what unit tests use, and what other adapters are held against."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray

from operators.errors import ConfigError
from stores.vectors.port import Hit, best, checked_keys, checked_query, checked_vectors, scores_of

Rows = dict[int, NDArray[np.float32]]


class MemoryVectorStore:
    """`VectorStore` that lives as long as the object. Each commit copies the dictionary of its shard."""

    def __init__(self, space: str, dim: int, *, shards: int) -> None:
        """Hold nothing yet."""
        self.space = space
        self.dim = dim
        self.shards = shards
        self.committed: list[Rows] = [{} for _ in range(shards)]
        self.lock = Lock()
        self.taken: set[int] = set()

    def write(self, shard: int) -> MemoryVectorWriter:
        """Become the writer of a shard."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is not one of {self.shards}")
        with self.lock:
            if shard in self.taken:
                raise ConfigError(f"shard {shard} of `{self.space}` has a writer; close that one first")
            self.taken.add(shard)
        return MemoryVectorWriter(self, shard)

    def read(self) -> MemoryVectorReader:
        """Look at what is committed."""
        return MemoryVectorReader(self)

    def check(self) -> list[str]:
        """Memory has no damage to tell of."""
        return []


class MemoryVectorWriter:
    """`VectorWriter` of one shard of a MemoryVectorStore."""

    def __init__(self, store: MemoryVectorStore, shard: int) -> None:
        """Start from what is committed."""
        self._store = store
        self._shard = shard
        self._rows: Rows | None = dict(store.committed[shard])

    def put(self, keys: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        """Store or replace vectors by key, with the next commit."""
        rows = self._open()
        keys = checked_keys(keys)
        rows.update(zip(keys.tolist(), checked_vectors(keys, vectors, self._store.dim).copy(), strict=True))

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove vectors by key, with the next commit."""
        rows = self._open()
        for key in checked_keys(keys).tolist():
            rows.pop(key, None)

    def commit(self) -> None:
        """Make everything since the last commit visible."""
        self._store.committed[self._shard] = dict(self._open())

    def erase(self, keys: NDArray[np.uint64]) -> None:
        """Remove vectors by key, at once."""
        self.delete(keys)
        self.commit()

    def close(self) -> None:
        """Let another writer have the shard."""
        if self._rows is not None:
            self._rows = None
            self._store.taken.discard(self._shard)

    def _open(self) -> Rows:
        if self._rows is None:
            raise ValueError("the writer is closed")
        return self._rows


class MemoryVectorReader:
    """`VectorReader` of a MemoryVectorStore; every search is exact."""

    def __init__(self, store: MemoryVectorStore) -> None:
        """Look at what is committed now."""
        self._store = store
        self._rows: Rows | None = {}
        self.refresh()

    def refresh(self) -> None:
        """Move on to the newest commits."""
        self._open()
        self._rows = {key: row for shard in self._store.committed for key, row in shard.items()}

    def get(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return vectors and which were found."""
        rows = self._open()
        keys = checked_keys(keys)
        found = np.fromiter((key in rows for key in keys.tolist()), np.bool_, keys.size)
        vectors = np.zeros((keys.size, self._store.dim), np.float32)
        for place in np.flatnonzero(found):
            vectors[place] = rows[int(keys[place])]
        return vectors, found

    def search(
        self, query: NDArray[np.float32], limit: int, *, exact: bool = False, among: NDArray[np.uint64] | None = None
    ) -> list[Hit]:
        """Return the nearest vectors."""
        del exact  # there is no other way here
        unit = checked_query(query, limit, self._store.dim)
        keys = self.keys() if among is None else np.unique(checked_keys(among))
        vectors, found = self.get(keys)
        keys, scores = keys[found], scores_of(unit, vectors[found])
        return [Hit(int(keys[place]), float(scores[place])) for place in best(keys, scores, limit)]

    def keys(self) -> NDArray[np.uint64]:
        """Return all keys, rising."""
        return np.array(sorted(self._open()), np.uint64)

    def count(self) -> int:
        """Return how many vectors there are."""
        return len(self._open())

    def close(self) -> None:
        """Let go of the view."""
        self._rows = None

    def _open(self) -> Rows:
        if self._rows is None:
            raise ValueError("the reader is closed")
        return self._rows
