"""Entities of a shard: bytes of an entity_id ↔ a dense index, looked up a column at a time."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_EMPTY = -1


@njit(cache=True, nogil=True)
def _find_or_add(slots, hashes, offsets, data, known, batch_hash, batch_offsets, batch_data):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Index of each batch entity; unknown ones are appended. The arrays have room for all."""
    mask = slots.shape[0] - 1
    index = np.empty(batch_hash.shape[0], np.int32)
    for i in range(batch_hash.shape[0]):
        h = batch_hash[i]
        start = batch_offsets[i]
        length = batch_offsets[i + 1] - start
        slot = np.int64(h & np.uint64(mask))
        while True:
            found = slots[slot]
            if found == _EMPTY:
                slots[slot] = known
                hashes[known] = h
                base = offsets[known]
                for b in range(length):
                    data[base + b] = batch_data[start + b]
                offsets[known + 1] = base + length
                index[i] = known
                known += 1
                break
            if hashes[found] == h and offsets[found + 1] - offsets[found] == length:
                base = offsets[found]
                equal = True
                for b in range(length):
                    if data[base + b] != batch_data[start + b]:
                        equal = False
                        break
                if equal:
                    index[i] = found
                    break
            slot = (slot + 1) & mask
    return index, known


@njit(cache=True, nogil=True)
def _rehash(slots, hashes, known):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    mask = slots.shape[0] - 1
    for e in range(known):
        slot = np.int64(hashes[e] & np.uint64(mask))
        while slots[slot] != _EMPTY:
            slot = (slot + 1) & mask
        slots[slot] = e


@njit(cache=True, nogil=True)
def gather_bytes(data, offsets, index):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Return (data, offsets) of the byte strings `index` (int64 (n,)) of a (data, offsets) column."""
    out_offsets = np.empty(index.shape[0] + 1, np.int64)
    out_offsets[0] = 0
    for i in range(index.shape[0]):
        out_offsets[i + 1] = out_offsets[i] + offsets[index[i] + 1] - offsets[index[i]]
    out = np.empty(out_offsets[-1], np.uint8)
    for i in range(index.shape[0]):
        base = offsets[index[i]]
        at = out_offsets[i]
        for b in range(out_offsets[i + 1] - at):
            out[at + b] = data[base + b]
    return out, out_offsets


def _room(array: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """The array, or a copy with at least twice the room."""
    if len(array) >= size:
        return array
    grown = np.empty(max(size, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown


class Entities:
    """A growing set of entity ids; an id's index is its order of arrival and never changes.

    Ids are compared by all their bytes: two ids whose hashes are equal stay two.
    """

    def __init__(
        self,
        data: NDArray[np.uint8] | None = None,
        offsets: NDArray[np.int64] | None = None,
        hashes: NDArray[np.uint64] | None = None,
    ) -> None:
        """Start empty, or from the three arrays of `columns`."""
        self.count = 0 if hashes is None else len(hashes)
        self._data = np.empty(1024, np.uint8) if data is None else data.copy()
        self._offsets = np.zeros(65, np.int64) if offsets is None else offsets.copy()
        self._hashes = np.empty(64, np.uint64) if hashes is None else hashes.copy()
        self._slots = np.empty(0, np.int64)
        self._reserve(64, 0)

    def index(
        self, hashes: NDArray[np.uint64], offsets: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> NDArray[np.int32]:
        """Return int32 (n,): the index of each id of the column, adding those not seen before."""
        self._reserve(len(hashes), int(offsets[-1] - offsets[0]) if len(hashes) else 0)
        found, known = _find_or_add(
            self._slots, self._hashes, self._offsets, self._data, self.count, hashes, offsets, data
        )
        self.count = int(known)
        result: NDArray[np.int32] = found
        return result

    def gather(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the column (data, offsets) of the ids at `index`."""
        data, offsets = gather_bytes(self._data, self._offsets, index)
        return data, offsets

    def columns(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]:
        """The whole state, in order of arrival: (data, offsets, hashes)."""
        offsets = self._offsets[: self.count + 1]
        return self._data[: offsets[-1]], offsets, self._hashes[: self.count]

    def _reserve(self, entities: int, size_bytes: int) -> None:
        """Make room for that many more ids; the table stays at most half full."""
        want = self.count + entities
        self._data = _room(self._data, int(self._offsets[self.count]) + size_bytes)  # type: ignore[assignment]  # dtype is kept
        self._offsets = _room(self._offsets, want + 1)  # type: ignore[assignment]  # dtype is kept
        self._hashes = _room(self._hashes, want)  # type: ignore[assignment]  # dtype is kept
        if len(self._slots) < 2 * want:
            self._slots = np.full(1 << (2 * want).bit_length(), _EMPTY, np.int64)
            _rehash(self._slots, self._hashes, self.count)
