"""Feature rows: their content hash, and the Arrow table that stores and readers see."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from operators.feature_sets import FeatureSet, WindowSpec
from operators.hashes import murmur3, murmur3_bytes
from operators.records import TIMESTAMP, RowBlock, feature_row_schema

_DAY_US = 86_400_000_000
_NULL_BITS = np.uint64(0x7FF8000000000000)


@njit(inline="always")
def _put(buffer, at, word):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for b in range(8):
        buffer[at + b] = np.uint8((word >> np.uint64(8 * b)) & np.uint64(0xFF))


@njit(cache=True, nogil=True)
def _hash_rows(header, data, offsets, start, end, values, bits):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    out = np.empty((start.shape[0], 2), np.uint64)
    columns = values.shape[1]
    longest = 0
    for i in range(start.shape[0]):
        longest = max(longest, offsets[i + 1] - offsets[i])
    buffer = np.empty(16 + longest + 16 + 8 * columns, np.uint8)
    buffer[:16] = header
    for i in range(start.shape[0]):
        at = 16
        for b in range(offsets[i], offsets[i + 1]):
            buffer[at] = data[b]
            at += 1
        _put(buffer, at, np.uint64(start[i]))
        _put(buffer, at + 8, np.uint64(end[i]))
        at += 16
        for c in range(columns):
            null = values[i, c] != values[i, c]  # noqa: PLR0124  # NaN, the null of these columns
            _put(buffer, at, _NULL_BITS if null else bits[i, c])
            at += 8
        out[i, 0], out[i, 1] = murmur3(buffer, 0, at)
    return out


def hash_header(feature_set: FeatureSet, spec: WindowSpec) -> bytes:
    """Return the 16 bytes that stand for (feature set, version, window, column names) in a row's hash."""
    words = (feature_set.name, str(feature_set.version), spec.folder, *feature_set.columns)
    return murmur3_bytes("\0".join(words).encode())


def hash_rows(
    header: bytes,
    entity: tuple[NDArray[np.uint8], NDArray[np.int64]],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    values: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Return the content hash of each row, uint8 (n, 16).

    MurmurHash3 x64 128 over: hash_header, entity_id, window_start and event_time as int64, then each
    value as float64 (counts too), all little-endian; a null is the quiet NaN 0x7ff8000000000000.
    Revision and created_at are not part of it: a correction that changes nothing has the same hash.
    values: float64 (n, columns), C order.
    """
    words = _hash_rows(np.frombuffer(header, np.uint8), *entity, start, end, values, values.view(np.uint64))
    result: NDArray[np.uint8] = words.astype("<u8", copy=False).view(np.uint8).reshape(len(start), 16)
    return result


def hash_table(table: pa.Table, feature_set: FeatureSet, spec: WindowSpec) -> NDArray[np.uint8]:
    """Return the content hashes of stored rows, computed anew from their columns, uint8 (n, 16)."""
    names = table.column("entity_id").combine_chunks().cast(pa.large_string())
    names = names if isinstance(names, pa.Array) else names.combine_chunks()
    offsets = np.frombuffer(names.buffers()[1], np.int64)[names.offset : names.offset + len(names) + 1]
    data = np.frombuffer(names.buffers()[2] or b"", np.uint8)
    columns = [table.column(c).cast(pa.float64()).to_numpy() for c in feature_set.columns]
    values = np.ascontiguousarray(np.stack(columns, axis=1)) if len(table) else np.empty((0, len(columns)))
    start, end = (table.column(c).cast(pa.int64()).to_numpy() for c in ("window_start", "event_time"))
    return hash_rows(hash_header(feature_set, spec), (data, offsets), start, end, values)


def to_table(block: RowBlock, feature_set: FeatureSet) -> pa.Table:
    """Return the block as a table of `feature_row_schema(feature_set)`, revision 0, rows as they came."""
    n = len(block)
    offsets = (block.entity_offsets - block.entity_offsets[0]).astype(np.int32)
    data = block.entity_data[block.entity_offsets[0] : block.entity_offsets[-1]]
    time = pa.array(block.event_time).view(TIMESTAMP)
    columns: list[pa.Array] = [
        pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))),
        pa.array(block.window_start).view(TIMESTAMP),
        time,
        pa.repeat(feature_set.name, n),
        pa.repeat(pa.scalar(feature_set.version, pa.int32()), n),
        pa.repeat(pa.scalar(0, pa.int32()), n),
        time,
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n, [None, pa.py_buffer(block.content_hash)]),
    ]
    by_column = np.ascontiguousarray(block.values.T)
    for name, column in zip(feature_set.columns, by_column, strict=True):
        if name.endswith("__count"):
            columns.append(pa.array(column.astype(np.int64)))
        else:
            columns.append(pa.array(column, from_pandas=True))
    return pa.Table.from_arrays(columns, schema=feature_row_schema(feature_set))


def by_date(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """Cut a table of feature rows by the UTC date of event_time, `YYYY-MM-DD`, dates rising."""
    day = table.column("event_time").cast(pa.int64()).to_numpy() // _DAY_US
    days = np.unique(day)
    if len(days) == 1:
        return [(_date(days[0]), table)]
    return [(_date(d), table.filter(pa.array(day == d))) for d in days]


def _date(day: np.int64) -> str:
    return str(np.datetime64(int(day), "D"))
