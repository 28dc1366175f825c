"""Feature rows: their content hash, and the Arrow table that stores and readers see."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from operators.entities import gather_bytes
from operators.feature_sets import STATISTICS, FeatureSet, WindowSpec
from operators.hashes import murmur3_bytes, murmur3_words, word_at
from operators.records import TIMESTAMP, RowBlock, feature_row_schema
from operators.revisions import column, join_revisions, revision_columns, slice_revisions, take_revisions
from operators.window_loops import ROW_END, ROW_SPEC, ROW_START

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DAY_US = 86_400_000_000
_TABLE_ROWS = 1 << 17
_NULL_BITS = np.uint64(0x7FF8000000000000)


@njit(cache=True, nogil=True)
def _hash_rows(headers, data, offsets, place, values, columns, hashes):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write the content hash of row i to hashes[i]."""
    width = columns.shape[0]
    longest = 0
    for i in range(place.shape[0]):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words = np.empty(4 + width + (longest + 7) // 8, np.uint64)
    bits = values.view(np.uint64)
    for i in range(place.shape[0]):
        begin = offsets[i]
        length = offsets[i + 1] - begin
        words[0] = headers[place[i, ROW_SPEC], 0]
        words[1] = headers[place[i, ROW_SPEC], 1]
        words[2] = np.uint64(place[i, ROW_START])
        words[3] = np.uint64(place[i, ROW_END])
        for c in range(width):
            x = values[i, columns[c]]
            words[4 + c] = bits[i, columns[c]] if x == x else _NULL_BITS  # noqa: PLR0124  # NaN, the null of these columns
        for w in range((length + 7) // 8):
            words[4 + width + w] = word_at(data, begin + 8 * w, min(8, length - 8 * w))
        hashes[i, 0], hashes[i, 1] = murmur3_words(words, 32 + 8 * width + length)


@njit(cache=True, nogil=True)
def _lay_rows(headers, data, offsets, place, values, columns, counts, to, names, ends, times, hashes, out, valid):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write row i to line `to[i]` of names, times, hashes, columns and validity bits, in one pass.

    Without headers the hashes are known already and are left alone.
    """
    width = columns.shape[0]
    longest = 0
    for i in range(place.shape[0]):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words = np.empty(4 + width + (longest + 7) // 8, np.uint64)
    bits = values.view(np.uint64)
    whole = out.view(np.int64)
    hashed = headers.shape[0] > 0
    for i in range(place.shape[0]):
        row = to[i]
        begin = offsets[i]
        length = offsets[i + 1] - begin
        if hashed:
            words[0] = headers[place[i, ROW_SPEC], 0]
            words[1] = headers[place[i, ROW_SPEC], 1]
        words[2] = np.uint64(place[i, ROW_START])
        words[3] = np.uint64(place[i, ROW_END])
        times[0, row] = place[i, ROW_START]
        times[1, row] = place[i, ROW_END]
        for c in range(width):
            x = values[i, columns[c]]
            if x == x:  # noqa: PLR0124  # NaN, the null of these columns
                words[4 + c] = bits[i, columns[c]]
                valid[c, row >> 3] |= np.uint8(1 << (row & 7))
            else:
                words[4 + c] = _NULL_BITS
            if counts[c]:
                whole[c, row] = np.int64(x)
            else:
                out[c, row] = x
        at = ends[row]
        for b in range(length):
            names[at + b] = data[begin + b]
        if hashed:
            for w in range((length + 7) // 8):
                words[4 + width + w] = word_at(data, begin + 8 * w, min(8, length - 8 * w))
            hashes[row, 0], hashes[row, 1] = murmur3_words(words, 32 + 8 * width + length)


@njit(cache=True, nogil=True)
def _in_groups(group, groups):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Where each row goes so that its group stands together, rows as they came; and where each group starts."""
    start = np.zeros(groups + 1, np.int64)
    for i in range(group.shape[0]):
        start[group[i] + 1] += 1
    for g in range(groups):
        start[g + 1] += start[g]
    fill = start.copy()
    to = np.empty(group.shape[0], np.int64)
    for i in range(group.shape[0]):
        to[i] = fill[group[i]]
        fill[group[i]] += 1
    return to, start


@njit(cache=True, nogil=True)
def _closed(place, specs):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    found = np.zeros((specs, 2), np.int64)
    for i in range(place.shape[0]):
        line = found[place[i, ROW_SPEC]]
        line[1] = place[i, ROW_END] if line[0] == 0 else max(line[1], place[i, ROW_END])
        line[0] += 1
    return found


def hash_header(feature_set: FeatureSet, spec: WindowSpec) -> bytes:
    """Return the 16 bytes that stand for (feature set, version, window, column names) in a row's hash."""
    words = (feature_set.name, str(feature_set.version), spec.folder, *feature_set.columns)
    return murmur3_bytes("\0".join(words).encode())


class _Lines(NamedTuple):
    """Rows as the columns of a table, n in all.

    names: uint8, and ends: int32 (n + 1,), Arrow's offsets into it. times: int64 (2, n), start and end.
    hashes: uint64 (n, 2). values: float64 (columns, n), those of counts int64. valid: uint8
    (columns, n / 8 rounded up), bit i of a line is set if value i is not null (LSB first).
    """

    names: NDArray[np.uint8]
    ends: NDArray[np.int32]
    times: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    values: NDArray[np.float64]
    valid: NDArray[np.uint8]


def _lay(blocks: Sequence[RowBlock], declared: FeatureSet, to: NDArray[np.int64]) -> _Lines:
    """Lay the rows of a set out as columns, row i of all blocks together in line `to[i]`.

    The content hash is MurmurHash3 x64 128 over: hash_header, window_start and event_time as int64, each
    value as float64 (counts too), all little-endian, then the bytes of entity_id; a null is the quiet NaN
    0x7ff8000000000000. Revision and created_at are not part of it: a correction that changes nothing has
    the same hash.
    """
    n = len(to)
    sizes = np.empty(n, np.int64)
    sizes[to] = np.concatenate([np.diff(b.entity_offsets) for b in blocks])
    ends = np.zeros(n + 1, np.int32)
    np.cumsum(sizes, out=ends[1:])
    columns, counts = _chosen(declared)
    width = len(columns)
    headers = _headers(declared)
    lines = _Lines(
        np.empty(ends[-1], np.uint8),
        ends,
        np.empty((2, n), np.int64),
        np.empty((n, 2), np.uint64),
        np.empty((width, n)),
        np.zeros((width, (n + 7) // 8), np.uint8),
    )
    done = 0
    for b in blocks:
        part = to[done : done + len(b)]
        if b.hashes is not None:
            lines.hashes[part] = b.hashes
        asked = headers if b.hashes is None else headers[:0]
        _lay_rows(asked, b.entity_data, b.entity_offsets, b.place, b.values, columns, counts, part, *lines)
        done += len(b)
    return lines


def _headers(declared: FeatureSet) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hash_header(declared, w) for w in declared.windows), "<u8").reshape(-1, 2)


def _chosen(declared: FeatureSet) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which of a row's values are columns of the set, and which of these are counts."""
    chosen = [STATISTICS.index(s) for s in declared.statistics]
    columns = [f * len(STATISTICS) + s for f in range(len(declared.fields)) for s in chosen]
    return np.array(columns, np.int64), np.array([c.endswith("__count") for c in declared.columns])


def hash_table(table: pa.Table, declared: FeatureSet, spec: WindowSpec) -> NDArray[np.uint8]:
    """Return the content hashes of stored rows, computed anew from their columns, uint8 (n, 16)."""
    n = len(table)
    names = table.column("entity_id").combine_chunks().cast(pa.large_string())
    names = names if isinstance(names, pa.Array) else names.combine_chunks()
    offsets = np.frombuffer(names.buffers()[1] or bytes(8), np.int64)[names.offset : names.offset + n + 1]
    data = np.frombuffer(names.buffers()[2] or b"", np.uint8)
    place = np.zeros((n, 4), np.int64)
    place[:, ROW_SPEC] = declared.windows.index(spec)
    place[:, ROW_START], place[:, ROW_END] = (
        table.column(c).cast(pa.int64()).to_numpy() for c in ("window_start", "event_time")
    )
    values = np.full((n, len(declared.fields) * len(STATISTICS)), np.nan)
    for name, place_of in zip(declared.columns, _chosen(declared)[0], strict=True):
        values[:, place_of] = table.column(name).cast(pa.float64()).to_numpy()
    block = RowBlock(0, data, offsets, place, values)
    return _hash_bytes(_lay([block], declared, np.arange(n)).hashes)


def _hash_bytes(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return hashes.astype("<u8", copy=False).view(np.uint8).reshape(len(hashes), 16)


def to_tables(blocks: Sequence[RowBlock], declared: FeatureSet) -> Iterator[tuple[int, str, pa.Table]]:
    """Yield the rows of one set's blocks as (index of the window spec, UTC date of event_time, table).

    The tables have `feature_row_schema(declared)`; rows of one spec and date stand as they came. Of many
    rows a spec and date come more than once.
    """
    for some in _batches(blocks):
        place = np.concatenate([b.place for b in some])
        day = place[:, ROW_END] // _DAY_US
        days = day[:1] if day.min() == day.max() else np.unique(day)
        group = place[:, ROW_SPEC] * len(days) + np.searchsorted(days, day)
        to, start = _in_groups(group, len(declared.windows) * len(days))
        table = _table(some, declared, to)
        for index, (begin, end) in enumerate(pairwise(start.tolist())):
            if begin < end:
                spec, at = divmod(index, len(days))
                yield spec, str(np.datetime64(int(days[at]), "D")), table.slice(begin, end - begin)


def _batches(blocks: Sequence[RowBlock]) -> Iterator[list[RowBlock]]:
    """Cut the blocks so that a batch becomes a table whose names fit Arrow's 32-bit offsets."""
    batch: list[RowBlock] = []
    rows = 0
    for block in blocks:
        for begin in range(0, len(block), _TABLE_ROWS):
            part = block if len(block) <= _TABLE_ROWS else _slice(block, begin, begin + _TABLE_ROWS)
            if rows + len(part) > _TABLE_ROWS:
                yield batch
                batch, rows = [], 0
            batch.append(part)
            rows += len(part)
    if batch:
        yield batch


def _slice(block: RowBlock, begin: int, end: int) -> RowBlock:
    offsets = block.entity_offsets[begin : end + 1]
    revisions = None if block.revisions is None else slice_revisions(block.revisions, begin, end)
    place, values = block.place[begin:end], block.values[begin:end]
    hashes = None if block.hashes is None else block.hashes[begin:end]
    return RowBlock(block.set_index, block.entity_data, offsets, place, values, revisions, hashes)


def _table(blocks: Sequence[RowBlock], declared: FeatureSet, to: NDArray[np.int64]) -> pa.Table:
    lines = _lay(blocks, declared, to)
    n = len(to)
    start, end = (column(TIMESTAMP, t) for t in lines.times)
    revision, *restated = revision_columns(blocks, to, lines.times[1])
    columns: list[pa.Array] = [
        pa.StringArray.from_buffers(n, pa.py_buffer(lines.ends), pa.py_buffer(lines.names)),
        start,
        end,
        pa.repeat(declared.name, n),
        pa.repeat(pa.scalar(declared.version, pa.int32()), n),
        revision,
        *restated,
        column(pa.binary(16), lines.hashes),
    ]
    for name, values, bitmap in zip(declared.columns, lines.values, lines.valid, strict=True):
        counted = name.endswith("__count")
        columns.append(column(pa.int64(), values) if counted else column(pa.float64(), values, bitmap))
    return pa.Table.from_arrays(columns, schema=feature_row_schema(declared))


def content_hashes(block: RowBlock, declared: FeatureSet) -> NDArray[np.uint64]:
    """Return the content hash of each row, uint64 (n, 2); see `_lay`."""
    if block.hashes is not None:
        return block.hashes
    hashes = np.empty((len(block), 2), np.uint64)
    columns, _ = _chosen(declared)
    _hash_rows(_headers(declared), block.entity_data, block.entity_offsets, block.place, block.values, columns, hashes)
    return hashes


def closed_by_spec(block: RowBlock, declared: FeatureSet) -> NDArray[np.int64]:
    """Return int64 (specs, 2): how many rows each window spec of the set has, and their newest event_time."""
    found: NDArray[np.int64] = _closed(block.place, len(declared.windows))
    return found


def join(blocks: Sequence[RowBlock]) -> RowBlock:
    """Return the blocks of one set, at least one, as one."""
    if len(blocks) == 1:
        return blocks[0]
    data = [b.entity_data[b.entity_offsets[0] : b.entity_offsets[-1]] for b in blocks]
    offsets = np.concatenate([np.zeros(1, np.int64), *(np.diff(b.entity_offsets) for b in blocks)])
    place, values = (np.concatenate(c) for c in zip(*((b.place, b.values) for b in blocks), strict=True))
    revisions = join_revisions(blocks)
    return RowBlock(blocks[0].set_index, np.concatenate(data), np.cumsum(offsets), place, values, revisions)


def newest(blocks: Sequence[RowBlock]) -> RowBlock:
    """Keep, of the blocks of one set, the newest row of each window spec and entity.

    That is the one with the highest event_time, then revision, of those that are not retracted.
    """
    rows = join(blocks)
    names = pa.LargeStringArray.from_buffers(
        len(rows), pa.py_buffer(rows.entity_offsets), pa.py_buffer(rows.entity_data)
    )
    entity = names.dictionary_encode().indices.to_numpy()
    spec = rows.place[:, ROW_SPEC]
    revised = rows.revisions
    keys = (rows.place[:, ROW_END], spec, entity)
    order = np.lexsort(keys if revised is None else (revised.revision, *keys))
    if revised is not None:
        order = order[~revised.retracted[order]]
    last = np.append((np.diff(entity[order]) != 0) | (np.diff(spec[order]) != 0), True)[: len(order)]
    return take_rows(rows, np.sort(order[last]))


def take_rows(rows: RowBlock, pick: NDArray[np.int64]) -> RowBlock:
    """Return the rows `pick` (int64 (m,)) of a block, as a block of its own arrays."""
    data, offsets = gather_bytes(rows.entity_data, rows.entity_offsets, pick)
    revisions = None if rows.revisions is None else take_revisions(rows.revisions, pick)
    return RowBlock(rows.set_index, data, offsets, rows.place[pick], rows.values[pick], revisions)
