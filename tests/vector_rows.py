"""Vectors for tests: a function of their key and version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stores.vectors import open_vectors
from stores.vectors.port import Element, VectorReader, VectorStore, VectorWriter

DIM = 16
SPACE = "test-16"

Versions = Mapping[int, int]
"""The version of each key that is there."""


def row(key: int, version: int = 0) -> NDArray[np.float32]:
    """The vector of a key: float32 (DIM,), of length 1, unlike that of any other key and version."""
    numbers = np.random.default_rng([key, version]).standard_normal(DIM)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def rows(versions: Versions) -> NDArray[np.float32]:
    """The vectors of keys: float32 (n, DIM)."""
    return np.array([row(*pair) for pair in versions.items()], np.float32).reshape(-1, DIM)


def keys(numbers: Iterable[int]) -> NDArray[np.uint64]:
    """Keys as the port takes them."""
    return np.array(list(numbers), np.uint64)


def put(writer: VectorWriter, versions: Versions) -> None:
    """Put the keys' vectors and commit."""
    writer.put(keys(versions), rows(versions))
    writer.commit()


def local_store(folder: Path, *, shards: int = 1, compact_rows: int = 2048, element: Element = "f32") -> VectorStore:
    """A usearch store in the folder."""
    return open_vectors(f"usearch:///{folder}", SPACE, DIM, shards=shards, element=element, compact_rows=compact_rows)


def holds(reader: VectorReader, versions: Versions, *, tolerance: float = 1e-6) -> bool:
    """Whether the reader sees exactly these keys with exactly these versions."""
    if reader.keys().tolist() != sorted(versions) or reader.count() != len(versions):
        return False
    found_rows, found = reader.get(keys(versions))
    return bool(found.all()) and bool(np.allclose(found_rows, rows(versions), atol=tolerance))
