"""Feature rows: their content hash, and the Arrow table that stores and readers see."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from operators.feature_sets import FeatureSet, WindowSpec
from operators.hashes import murmur3_bytes, murmur3_words, word_at
from operators.records import TIMESTAMP, RowBlock, feature_row_schema

_DAY_US = 86_400_000_000
_NULL_BITS = np.uint64(0x7FF8000000000000)


@njit(cache=True, nogil=True)
def _finish_rows(header, data, offsets, start, end, values, pick, columns):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Turn rows `pick` of a row-wise table into hashes, columns and their validity bits, in one pass."""
    n = pick.shape[0]
    width = columns.shape[0]
    hashes = np.empty((n, 2), np.uint64)
    out = np.empty((width, n))
    valid = np.zeros((width, (n + 7) // 8), np.uint8)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words = np.empty(4 + width + (longest + 7) // 8, np.uint64)
    bits = values.view(np.uint64)
    words[0] = header[0]
    words[1] = header[1]
    for i in range(n):
        row = pick[i]
        words[2] = np.uint64(start[i])
        words[3] = np.uint64(end[i])
        for c in range(width):
            x = values[row, columns[c]]
            out[c, i] = x
            if x == x:  # noqa: PLR0124  # NaN, the null of these columns
                words[4 + c] = bits[row, columns[c]]
                valid[c, i >> 3] |= np.uint8(1 << (i & 7))
            else:
                words[4 + c] = _NULL_BITS
        length = offsets[i + 1] - offsets[i]
        for w in range((length + 7) // 8):
            words[4 + width + w] = word_at(data, offsets[i] + 8 * w, min(8, length - 8 * w))
        hashes[i, 0], hashes[i, 1] = murmur3_words(words, 32 + 8 * width + length)
    return hashes, out, valid


def hash_header(feature_set: FeatureSet, spec: WindowSpec) -> bytes:
    """Return the 16 bytes that stand for (feature set, version, window, column names) in a row's hash."""
    words = (feature_set.name, str(feature_set.version), spec.folder, *feature_set.columns)
    return murmur3_bytes("\0".join(words).encode())


def finish_rows(
    header: bytes,
    entity: tuple[NDArray[np.uint8], NDArray[np.int64]],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    values: NDArray[np.float64],
    pick: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.uint8]]:
    """Return content hashes uint8 (n, 16), columns float64 (columns, n) and validity bits of n rows.

    The hash is MurmurHash3 x64 128 over: hash_header, window_start and event_time as int64, each value as
    float64 (counts too), all little-endian, then the bytes of entity_id; a null is the quiet NaN
    0x7ff8000000000000. Revision and created_at are not part of it: a correction that changes nothing has
    the same hash.
    values: float64 (any, any), C order; row i is values[pick[i], columns]. The rest: see RowBlock.
    """
    words = np.frombuffer(header, "<u8")
    hashes, out, valid = _finish_rows(words, *entity, start, end, values, pick, columns)
    return hashes.astype("<u8", copy=False).view(np.uint8).reshape(len(start), 16), out, valid


def hash_table(table: pa.Table, feature_set: FeatureSet, spec: WindowSpec) -> NDArray[np.uint8]:
    """Return the content hashes of stored rows, computed anew from their columns, uint8 (n, 16)."""
    names = table.column("entity_id").combine_chunks().cast(pa.large_string())
    names = names if isinstance(names, pa.Array) else names.combine_chunks()
    offsets = np.frombuffer(names.buffers()[1], np.int64)[names.offset : names.offset + len(names) + 1]
    data = np.frombuffer(names.buffers()[2] or b"", np.uint8)
    columns = [table.column(c).cast(pa.float64()).to_numpy() for c in feature_set.columns]
    values = np.ascontiguousarray(np.stack(columns, axis=1)) if len(table) else np.empty((0, len(columns)))
    start, end = (table.column(c).cast(pa.int64()).to_numpy() for c in ("window_start", "event_time"))
    every = (np.arange(len(table)), np.arange(len(columns)))
    return finish_rows(hash_header(feature_set, spec), (data, offsets), start, end, values, *every)[0]


def to_table(block: RowBlock, feature_set: FeatureSet) -> pa.Table:
    """Return the block as a table of `feature_row_schema(feature_set)`, revision 0, rows as they came."""
    n = len(block)
    offsets = (block.entity_offsets - block.entity_offsets[0]).astype(np.int32)
    data = block.entity_data[block.entity_offsets[0] : block.entity_offsets[-1]]
    time = _column(TIMESTAMP, block.event_time)
    columns: list[pa.Array] = [
        pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))),
        _column(TIMESTAMP, block.window_start),
        time,
        pa.repeat(feature_set.name, n),
        pa.repeat(pa.scalar(feature_set.version, pa.int32()), n),
        pa.repeat(pa.scalar(0, pa.int32()), n),
        time,
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n, [None, pa.py_buffer(block.content_hash)]),
    ]
    for name, column, bitmap in zip(feature_set.columns, block.values, block.valid, strict=True):
        if name.endswith("__count"):
            columns.append(_column(pa.int64(), column.astype(np.int64)))
        else:
            columns.append(_column(pa.float64(), column, bitmap))
    return pa.Table.from_arrays(columns, schema=feature_row_schema(feature_set))


def _column(kind: pa.DataType, values: NDArray[np.generic], valid: NDArray[np.uint8] | None = None) -> pa.Array:
    """An Arrow column over the arrays, nothing copied. pa.array would do too, but imports pandas first."""
    bitmap = None if valid is None else pa.py_buffer(valid)
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)])


def by_date(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """Cut a table of feature rows by the UTC date of event_time, `YYYY-MM-DD`, dates rising."""
    if len(table) == 0:
        return []
    day = table.column("event_time").cast(pa.int64()).to_numpy() // _DAY_US
    if day.min() == day.max():
        return [(_date(day[0]), table)]
    days = np.unique(day)
    return [(_date(d), table.take(_column(pa.int64(), np.flatnonzero(day == d)))) for d in days]


def _date(day: np.int64) -> str:
    return str(np.datetime64(int(day), "D"))
