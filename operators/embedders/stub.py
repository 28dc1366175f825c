"""Vectors from the letters and words of a text alone: no model, the same bits on every machine.

Words and runs of three letters are hashed to places of the vector, with a sign each, and weighed by how
often they occur. Texts that share words or parts of words are near, whatever they mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from operators.embedders.port import Vectors, check_texts, unit_rows

_WORD = re.compile(r"\w+")
_SHORT = 3
"""Words of so few letters are mostly grammar."""

_WORD_WEIGHT = 4
_SPREAD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
"""Odd constants with well-spread bits (of splitmix64 and xxHash)."""


class StubEmbedder:
    """`Embedder` for tests and for trying things out. Nothing is cut."""

    tokens_max = None

    def __init__(self, dim: int = 384) -> None:
        """Choose how many numbers a vector has."""
        self.dim = dim
        self.space = f"stub-{dim}"
        self._closed = False

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Hash each text into a vector."""
        if self._closed:
            raise ValueError("the embedder is closed")
        check_texts(texts)
        rows = np.zeros((len(texts), self.dim))
        for row, text in enumerate(texts):
            rows[row] = _features(text, self.dim)
        return unit_rows(rows)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words."""
        return [len(_WORD.findall(text)) for text in texts]

    def close(self) -> None:
        """Embed no more."""
        self._closed = True


def _features(text: str, dim: int) -> NDArray[np.float64]:
    """Sums of signed whole weights, exact whatever their order: float64 (dim,), not all zero."""
    words = _WORD.findall(text.casefold())
    hashes = np.fromiter((crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words))
    weights = np.fromiter((1 if len(word) <= _SHORT else _WORD_WEIGHT for word in words), np.float64, len(words))
    letters = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    runs = letters[:-2] * _SPREAD[0] + letters[1:-1] * _SPREAD[1] + letters[2:] * _SPREAD[2]
    features = np.concatenate([hashes * _SPREAD[0] + _SPREAD[2], runs])
    weights = np.concatenate([weights, np.ones(runs.size)])
    features ^= features >> np.uint64(29)
    features *= _SPREAD[1]
    features ^= features >> np.uint64(32)
    _, first, counts = np.unique(features, return_index=True, return_counts=True)
    features, weights = features[first], weights[first]
    weights *= np.rint(8 * (1 + np.log2(counts)))  # the tenth time a word occurs says less than the first
    signs = np.where(features >> np.uint64(63), 1.0, -1.0)
    places = (features % np.uint64(dim)).astype(np.intp)
    row = np.bincount(places, weights * signs, dim).astype(np.float64)
    if not row.any():
        row[crc32(text.encode("utf-8", "surrogatepass")) % dim] = 1.0
    return row
