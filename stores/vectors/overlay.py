"""What the logs of a shard change about its base: vectors that are new, and keys of the base that no longer count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stores.vectors.elements import decode
from stores.vectors.port import scores_of
from stores.vectors.shard_log import Record

_ROWS_FIRST = 256
_DOUBT = 1e-5
"""More than float32 sums of unit vectors are off; candidates so near to the last are compared in float64."""


class Overlay:
    """Live vectors of a shard's logs in one matrix, compared one by one."""

    def __init__(self, dim: int) -> None:
        """Change nothing yet."""
        self.touched: set[int] = set()
        """Keys that the logs put or deleted: their rows in the base do not count."""
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._keys = np.zeros(_ROWS_FIRST, np.uint64)
        self._rows = np.zeros((_ROWS_FIRST, dim), np.float32)
        self._scale = np.zeros(_ROWS_FIRST, np.float32)
        """1 / length of each row; 0 where no row lives."""

    def __len__(self) -> int:
        """Live vectors."""
        return len(self._places)

    def apply(self, record: Record) -> None:
        """Do what a commit did."""
        self.touched.update(record.deleted.tolist())
        self.touched.update(record.keys.tolist())
        for key in record.deleted.tolist():
            place = self._places.pop(key, None)
            if place is not None:
                self._scale[place] = 0.0
                self._free.append(place)
        places = [self._place(key) for key in record.keys.tolist()]
        if places:
            rows = decode(record.rows)
            self._keys[places] = record.keys
            self._rows[places] = rows
            self._scale[places] = 1.0 / np.sqrt(np.einsum("ij,ij->i", rows, rows))

    def keys(self) -> NDArray[np.uint64]:
        """Keys of the live vectors: uint64 (n,), in no order."""
        return self._keys[self._scale > 0.0]

    def get(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors of those keys that live here, and which these are: float32 (sum of which, dim), bool (n,)."""
        places = np.fromiter((self._places.get(key, -1) for key in keys.tolist()), np.intp, keys.size)
        here = places >= 0
        return self._rows[places[here]], here

    def nearest(self, query: NDArray[np.float64], limit: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """At least the `limit` best, and all that score as well as the last of them: uint64 (n,), float64 (n,)."""
        if not self._places:
            return np.empty(0, np.uint64), np.empty(0)
        rough = np.vecdot(self._rows[: self._used], query.astype(np.float32)) * self._scale[: self._used]
        rough[self._scale[: self._used] == 0.0] = -np.inf
        bar = np.partition(rough, -limit)[-limit] if limit < rough.size else -np.inf
        chosen = np.flatnonzero((rough >= bar - _DOUBT) & np.isfinite(rough))
        return self._keys[chosen], scores_of(query, self._rows[chosen])

    def _place(self, key: int) -> int:
        place = self._places.get(key)
        if place is None:
            if self._free:
                place = self._free.pop()
            else:
                place, self._used = self._used, self._used + 1
                self._grow()
            self._places[key] = place
        return place

    def _grow(self) -> None:
        if self._used <= self._scale.size:
            return
        self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)])
        self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._scale = np.concatenate([self._scale, np.zeros_like(self._scale)])
