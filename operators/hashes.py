"""MurmurHash3 x64 128 and the digest made of it: compiled, seedless, the same on every machine.

Source of the formula: Austin Appleby, MurmurHash3 (public domain), `MurmurHash3_x64_128`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)


@njit(inline="always")
def _rotl(x, r):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    return (x << uint64(r)) | (x >> uint64(64 - r))


@njit(inline="always")
def _fmix(k):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    k ^= k >> uint64(33)
    k *= uint64(0xFF51AFD7ED558CCD)
    k ^= k >> uint64(33)
    k *= uint64(0xC4CEB9FE1A85EC53)
    k ^= k >> uint64(33)
    return k


@njit(inline="always")
def _finish(h1, h2, length):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    h1 ^= uint64(length)
    h2 ^= uint64(length)
    h1 += h2
    h2 += h1
    h1 = _fmix(h1)
    h2 = _fmix(h2)
    h1 += h2
    h2 += h1
    return h1, h2


@njit(inline="always")
def word_at(data, at, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Little-endian word of `count` (0 to 8) bytes."""
    word = uint64(0)
    for i in range(count):
        word |= uint64(data[at + i]) << uint64(8 * i)
    return word


@njit(cache=True, nogil=True)
def murmur3(data, start, length):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Return the two uint64 halves of the hash of data[start:start + length] (uint8), seed 0."""
    h1 = uint64(0)
    h2 = uint64(0)
    blocks = length // 16
    for b in range(blocks):
        k1 = word_at(data, start + 16 * b, 8)
        k2 = word_at(data, start + 16 * b + 8, 8)
        h1 ^= _rotl(k1 * _C1, 31) * _C2
        h1 = (_rotl(h1, 27) + h2) * uint64(5) + uint64(0x52DCE729)
        h2 ^= _rotl(k2 * _C2, 33) * _C1
        h2 = (_rotl(h2, 31) + h1) * uint64(5) + uint64(0x38495AB5)
    tail = start + 16 * blocks
    rest = length - 16 * blocks
    if rest > 8:
        h2 ^= _rotl(word_at(data, tail + 8, rest - 8) * _C2, 33) * _C1
    if rest > 0:
        h1 ^= _rotl(word_at(data, tail, min(rest, 8)) * _C1, 31) * _C2
    return _finish(h1, h2, length)


@njit(cache=True, nogil=True)
def murmur3_words(words, length):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """`murmur3` of the first `length` bytes of little-endian words (uint64); bytes past them must be 0."""
    h1 = uint64(0)
    h2 = uint64(0)
    blocks = length // 16
    for b in range(blocks):
        h1 ^= _rotl(words[2 * b] * _C1, 31) * _C2
        h1 = (_rotl(h1, 27) + h2) * uint64(5) + uint64(0x52DCE729)
        h2 ^= _rotl(words[2 * b + 1] * _C2, 33) * _C1
        h2 = (_rotl(h2, 31) + h1) * uint64(5) + uint64(0x38495AB5)
    rest = length - 16 * blocks
    if rest > 8:
        h2 ^= _rotl(words[2 * blocks + 1] * _C2, 33) * _C1
    if rest > 0:
        h1 ^= _rotl(words[2 * blocks] * _C1, 31) * _C2
    return _finish(h1, h2, length)


def murmur3_bytes(data: bytes) -> bytes:
    """Return the 16 bytes of the hash, low half first, as reference implementations print them."""
    low, high = murmur3(np.frombuffer(data, np.uint8), 0, len(data))
    return int(low).to_bytes(8, "little") + int(high).to_bytes(8, "little")


def digest(hashes: NDArray[np.uint8]) -> int:
    """Sum of row hashes modulo 2^128: the same for any order, and digests of parts add up.

    hashes: uint8 (n, 16), little-endian. Empty input gives 0.
    """
    words = np.ascontiguousarray(hashes).view("<u4").reshape(len(hashes), 4)
    parts = words.sum(axis=0, dtype=np.uint64)
    return sum(int(part) << (32 * i) for i, part in enumerate(parts)) % (1 << 128)
