"""Arrays ↔ versioned bytes: what a snapshot holds, so that no live object is ever pickled.

Layout: 8 bytes magic and version, 8 bytes length of the header, the header (JSON: meta, and name,
dtype and shape of each array), then the arrays, little-endian, C order, end to end.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from operators.errors import ResumeError

_MAGIC = b"HDRC\x00\x00\x00\x01"


def pack(meta: dict[str, object], arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """Return meta (JSON-able) and arrays as one byte string; a copy, so later changes do not show."""
    table = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    header = orjson.dumps({"meta": meta, "arrays": table})
    parts = [_MAGIC, len(header).to_bytes(8, "little"), header]
    return b"".join([*parts, *(np.ascontiguousarray(array).data for array in arrays.values() if array.size)])


def unpack_meta(data: bytes) -> dict[str, object]:
    """Return only the meta that `pack` was given. Raises as `unpack` does."""
    return cast("dict[str, object]", _header(data)[0]["meta"])


def unpack(data: bytes) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
    """Return what `pack` was given; the arrays are fresh and writable.

    Raises ResumeError if the bytes are of another program or another version.
    """
    header, start = _header(data)
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, dtype, shape in header["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
        start += arrays[name].nbytes
    return header["meta"], arrays


def narrowed(column: NDArray[np.generic]) -> tuple[NDArray[np.generic], int]:
    """Return integers as their distance from the smallest one, in as few bytes as that needs, and the smallest one.

    Of floats and of several columns nothing changes.
    """
    if column.dtype.kind not in "iu" or column.ndim != 1 or len(column) == 0:
        return column, 0
    low = column.min()
    wide = column.astype(np.int64 if column.dtype.kind == "i" else np.uint64, copy=False).view(np.uint64)
    apart = wide - np.array([low]).astype(wide.dtype if column.dtype.kind == "u" else np.int64).view(np.uint64)
    return apart.astype(np.min_scalar_type(int(apart.max()))), int(low)


def widened(column: NDArray[np.generic], low: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Return the integers that `narrowed` was given, of that type."""
    if dtype.kind not in "iu" or column.ndim != 1:
        return column.astype(dtype, copy=False)
    wide = np.int64 if dtype.kind == "i" else np.uint64
    base = np.array([low], wide).view(np.uint64)
    return (column.astype(np.uint64) + base).view(wide).astype(dtype)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    if data[:8] != _MAGIC:
        raise ResumeError("a snapshot was written by another version of Headrace; resume with that version")
    start = 16 + int.from_bytes(data[8:16], "little")
    return orjson.loads(data[16:start]), start
