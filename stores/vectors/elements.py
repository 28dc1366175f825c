"""How vectors are stored: float32, float16, or eight bits a number.

Encoding what was decoded gives the same bytes again, so a vector that is copied from one key to another
does not decay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stores.vectors.port import Element

Stored = NDArray[Any]
"""Rows as they are stored: (n, dim) of float32, float16 or int8."""

DTYPES: dict[Element, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "i8": np.dtype("i1"),
}
_I8_LARGEST = 127


def encode(vectors: NDArray[np.float32], element: Element) -> Stored:
    """Store rows. vectors: float32 (n, dim), finite, none of them zero."""
    if element == "i8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
        stored: Stored = np.rint(vectors * (_I8_LARGEST / largest)).astype(np.int8)
        return stored
    return vectors.astype(DTYPES[element])


def decode(stored: Stored) -> NDArray[np.float32]:
    """The vectors of stored rows: float32 (n, dim), of length 1 as far as they are precise."""
    vectors = stored.astype(np.float32)
    if stored.dtype == np.int8:
        lengths = np.sqrt(np.einsum("ij,ij->i", stored, stored, dtype=np.float64))
        vectors /= lengths[:, np.newaxis].astype(np.float32)
    return vectors
