"""What a vector store promises: vectors by key, changed by whole commits, found by nearness.

One store holds the vectors of one space (the id of the embedder that made them), spread over shards.
A document's chunks all live in the shard that `shard_of` names for it, so a commit, which belongs to
one shard, changes a document at once. A shard has one writer; any number of readers look at all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Element = Literal["f32", "f16", "i8"]
"""How a number of a vector is stored. i8: scaled by the largest of its row, so that all 255 steps are used."""

KEY_MAX = (1 << 64) - 2
"""The largest key; the one above it marks free places in usearch."""

DIM_MAX = 1 << 14
"""The longest vector that a store takes."""

SHARDS_MAX = 1024
"""The most shards that a store is spread over."""

UNIT_TOLERANCE = 0.01
"""How far from 1 the length of a vector may be that is put; i8 leaves the length of a row uncertain by less."""

SCORE_DECIMALS = 6
"""Scores are rounded so that equal vectors score equal, whatever order a processor sums in."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A vector that was found. score: cosine with the query, from -1 to 1, rounded to 6 decimals."""

    key: int
    score: float


class VectorWriter(Protocol):
    """The one writer of one shard. Not for use by several threads at once.

    All methods but `close` raise ValueError once it is closed, and FatalError if an earlier commit or
    compaction failed: then close it and open a new one, which finds exactly what was committed.
    """

    def put(self, keys: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        """Store or replace vectors by key, with the next commit.

        keys: uint64 (n,). vectors: float32 (n, dim), finite, rows of length 1. Both are copied. The last of
        equal keys wins, and the last of put and delete. Empty input is a no-op. Vectors that `get` returned
        are kept to the bit. Raises ValueError for another shape, a length that is not 1, or a key above KEY_MAX.
        """
        ...

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove vectors by key, uint64 (n,), with the next commit. Unknown keys and empty input are no-ops."""
        ...

    def commit(self) -> None:
        """Make everything since the last commit durable and visible: all of it or, after a crash, none.

        Without changes it is a no-op. Raises FatalError if the disk is full or fails: whether the commit
        counts is then known when the shard is next opened, and repeating it changes nothing.
        """
        ...

    def erase(self, keys: NDArray[np.uint64]) -> None:
        """Remove vectors by key as `delete` and `commit` do, and leave no number of any that was ever removed.

        Safe to repeat. Costs what making the index of the shard anew costs. Raises as `commit` does.
        """
        ...

    def close(self) -> None:
        """Let another writer have the shard; what was not committed is dropped. Safe to repeat.

        Raises FatalError or CorruptStoreError, once all is let go, if a compaction failed and no other call told.
        """
        ...


class VectorReader(Protocol):
    """A view of all shards: each as one of its commits left it when the view was last refreshed.

    Several threads may share it. Methods raise ValueError once it is closed.
    """

    def refresh(self) -> None:
        """Move on to the newest commits; cheap when there are none. Raises CorruptStoreError for damaged files."""
        ...

    def get(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return vectors, float32 (n, dim), and which were found, bool (n,); rows that were not are zero.

        Vectors come back as precise as the store keeps them. Keys may repeat; empty input gives empty arrays.
        """
        ...

    def search(
        self, query: NDArray[np.float32], limit: int, *, exact: bool = False, among: NDArray[np.uint64] | None = None
    ) -> list[Hit]:
        """Return the `limit` vectors nearest to the query by cosine, score falling, then key rising.

        query: float32 (dim,), finite, not all zero, of any length. limit: at least 1; fewer hits are all there are.
        exact: compare with every vector; otherwise neighbours may be missed, but scores are the same.
        among: compare exactly, and only with the vectors of these keys (of a filter, say).
        Raises ValueError for a query or limit that is none.
        """
        ...

    def keys(self) -> NDArray[np.uint64]:
        """Return all keys, rising: uint64 (count,)."""
        ...

    def count(self) -> int:
        """Return how many vectors there are."""
        ...

    def close(self) -> None:
        """Let go of files and memory. Safe to repeat."""
        ...


class VectorStore(Protocol):
    """The vectors of one space. space: the embedder's id. dim: numbers of a vector. shards: how many, from 0."""

    space: str
    dim: int
    shards: int

    def write(self, shard: int) -> VectorWriter:
        """Become the writer of a shard. Raises ConfigError while another is, ValueError for a shard there is not."""
        ...

    def read(self) -> VectorReader:
        """Look at all shards; a store in which nothing was written yet is empty."""
        ...

    def check(self) -> list[str]:
        """Read everything and return a sentence for each damage; none means whole. Writers and readers may go on."""
        ...


def shard_of(doc_id: str, shards: int) -> int:
    """The shard of a document. doc_id: hexadecimal digits that are spread evenly, as operators.documents makes them."""
    return int(doc_id[:16], 16) % shards


def recall(reader: VectorReader, queries: NDArray[np.float32], limit: int = 10) -> float:
    """The share of the exact nearest that a quick search finds, averaged over queries: float32 (n, dim).

    A hit that scores as well as the last exact one counts as right. An empty store has recall 1.
    """
    found = total = 0
    for query in queries:
        exact = reader.search(query, limit, exact=True)
        quick = reader.search(query, limit)
        total += len(exact)
        found += sum(1 for hit in quick if hit.score >= exact[-1].score)
    return found / total if total else 1.0


def checked_keys(keys: NDArray[np.uint64] | Sequence[int]) -> NDArray[np.uint64]:
    """The keys as uint64 (n,). Raises ValueError for another kind, shape or a key above KEY_MAX."""
    array = np.asarray(keys)
    if array.size == 0:
        array = array.astype(np.uint64)
    if array.ndim != 1 or array.dtype != np.uint64:
        raise ValueError(f"keys must be uint64 in one dimension, not {array.dtype} in {array.ndim}")
    if array.size and int(array.max()) > KEY_MAX:
        raise ValueError(f"key {int(array.max())} is above {KEY_MAX}")
    return array


def checked_vectors(keys: NDArray[np.uint64], vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """The vectors as float32 (len(keys), dim). Raises ValueError unless all are finite and of length 1."""
    array = np.asarray(vectors, np.float32)
    if array.shape != (keys.size, dim):
        raise ValueError(f"vectors have the shape {array.shape}, {keys.size} keys need {(keys.size, dim)}")
    lengths = np.sqrt(np.einsum("ij,ij->i", array, array, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(lengths - 1.0) <= UNIT_TOLERANCE))
    if wrong.size:
        raise ValueError(f"the vector of key {keys[wrong[0]]} has the length {lengths[wrong[0]]:.6g}, not 1")
    return array


def checked_query(query: NDArray[np.float32], limit: int, dim: int) -> NDArray[np.float64]:
    """The query as float64 (dim,) of length 1. Raises ValueError if it points nowhere, and for a limit below 1."""
    if limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")
    array = np.asarray(query, np.float64)
    if array.shape != (dim,):
        raise ValueError(f"the query has the shape {array.shape}, vectors here have {(dim,)}")
    largest = float(np.abs(array).max(initial=0.0))
    if not 0.0 < largest < np.inf:
        raise ValueError("the query is zero or not finite, so nothing is near it")
    array = array / largest
    unit: NDArray[np.float64] = array / np.sqrt(array @ array)
    return unit


def scores_of(query: NDArray[np.float64], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores of vectors, float32 (n, dim), for a query of length 1: float64 (n,), rounded."""
    rows = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    # Row by row: a product with the matrix wakes threads that wait for each other when the cores are busy.
    scores: NDArray[np.float64] = np.vecdot(rows, query) / lengths
    return np.round(scores, SCORE_DECIMALS) + 0.0  # makes -0.0 a plain 0.0


def best(keys: NDArray[np.uint64], scores: NDArray[np.float64], limit: int) -> NDArray[np.intp]:
    """Positions of the `limit` best, score falling, then key rising."""
    return np.lexsort((keys, -scores))[:limit]
