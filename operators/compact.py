"""Events in as few bytes as they need: what is kept for long, read one event at a time.

Each column is a distance from its smallest number, in whole bytes. Values that are decimals of few digits, as JSON
has them, are whole numbers times a power of ten, wherever that gives back the same bits; others stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from operators.order import Pending, room
from operators.simd import leading_zeros, load_word, store_word

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIME, _SEQUENCE, _PARTITION, _OFFSET, _SETS, _VALUES = range(6)
_LOW, _WIDTH, _DIGITS = range(3)

_WORD_BYTES = 8
_RAW = -1
_DIGITS_MAX = 9
_WHOLE_MAX = 2.0**51
_ROUNDER = 1.5 * 2.0**52
"""Added and taken away again it leaves the nearest whole number."""

_POWERS = 10.0 ** np.arange(_DIGITS_MAX + 1)
_NULL_BITS = np.array([np.nan]).view(np.uint64)[0]


class Compact(NamedTuple):
    """Events as `compacted` makes them of `Pending`.

    entity: int32 (n,). cells: uint8 (n * stride + 8,), the other columns of an event side by side, one event after
    the other; the last 8 bytes mean nothing, so that any cell can be read as a word. layout: int64 (5 + fields, 3),
    for each column of the cells the number that 0 stands for, the bytes of a cell, and of values the decimal digits,
    or -1 where a cell has the bits of the value; of decimals 0 stands for null and 1 for the number.
    """

    entity: NDArray[np.int32]
    cells: NDArray[np.uint8]
    layout: NDArray[np.int64]

    @property
    def stride(self) -> int:
        """Bytes of one event's cells."""
        return int(self.layout[:, _WIDTH].sum())

    def rows(self) -> NDArray[np.uint8]:
        """The cells as uint8 (n, stride), a view."""
        count = len(self.entity)
        return self.cells[: count * self.stride].reshape(count, self.stride)


def compacted(events: Pending) -> Compact:
    """Return events, at least one, in few bytes; `Compact` events are these to the bit."""
    values = np.ascontiguousarray(events.values)
    cells, layout = _compacted(events, values.view(np.uint64))
    return Compact(events.entity.copy(), cells, layout)


def of_rows(entity: NDArray[np.int32], rows: NDArray[np.uint8], layout: NDArray[np.int64]) -> Compact:
    """Return the events of which `Compact.rows` gave the rows."""
    return Compact(entity, np.append(rows.reshape(-1), np.zeros(_WORD_BYTES, np.uint8)), layout)


def gathered(pieces: Sequence[Compact], small: NDArray[np.int32], fields: int) -> Pending:
    """Return the events of the entities that have a number in `small` (int32 (entities,), -1 for none).

    Their entity is that number.
    """
    counts = [int(_count(e.entity, small)) for e in pieces]
    out = room(sum(counts), fields)
    at = 0
    for events, count in zip(pieces, counts, strict=True):
        if count:
            at = _gather(events, small, out, out.values.view(np.uint64), at)
    return out


@njit(inline="always")
def _bytes_of(word):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    return (71 - leading_zeros(word)) >> 3


@njit
def _measure(column, line):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    low = column[0]
    high = column[0]
    for x in column:
        low = min(low, x)
        high = max(high, x)
    line[_LOW] = np.int64(low)
    line[_WIDTH] = _bytes_of(np.uint64(high) - np.uint64(low))


@njit(error_model="numpy")
def _as_decimals(values, bits, f, digits, codes):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write values times 10 to the digits to codes; return whether that gives back their bits, and least and most."""
    power = _POWERS[digits]
    low = np.int64(1) << 62
    high = -low
    for i in range(values.shape[0]):
        x = values[i, f]
        scaled = (x * power + _ROUNDER) - _ROUNDER
        if abs(scaled) < _WHOLE_MAX:
            whole = np.int64(scaled)
            if np.float64(whole) / power != x or (whole == 0 and bits[i, f] != 0):
                return False, low, high
            codes[i, f] = np.uint64(whole)
            low = min(low, whole)
            high = max(high, whole)
        elif bits[i, f] != _NULL_BITS:
            return False, low, high
    return True, low, high


@njit
def _measure_values(values, bits, f, codes, line):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write the cells of a column of values to codes."""
    for digits in range(_DIGITS_MAX + 1):
        fits, low, high = _as_decimals(values, bits, f, digits, codes)
        if not fits:
            continue
        line[_DIGITS] = digits
        line[_LOW] = low - 1
        line[_WIDTH] = _bytes_of(np.uint64(max(high - low, -1) + 1))
        base = np.uint64(low - 1)
        for i in range(values.shape[0]):
            codes[i, f] = np.uint64(0) if bits[i, f] == _NULL_BITS else codes[i, f] - base
        return
    line[_DIGITS] = _RAW
    line[_WIDTH] = _WORD_BYTES
    for i in range(values.shape[0]):
        codes[i, f] = bits[i, f]


@njit
def _lay(times, sequences, partitions, offsets, sets, codes, layout, cells):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write the cells, each as a word, of which those behind it write the rest again; return where they end."""
    width = layout[:, _WIDTH].copy()
    low = layout[:, _LOW].copy().view(np.uint64)
    time_width, sequence_width, partition_width = width[_TIME], width[_SEQUENCE], width[_PARTITION]
    offset_width, sets_width = width[_OFFSET], width[_SETS]
    time_low, sequence_low, partition_low = low[_TIME], low[_SEQUENCE], low[_PARTITION]
    offset_low, sets_low = low[_OFFSET], low[_SETS]
    at = 0
    for i in range(codes.shape[0]):
        store_word(cells, at, np.uint64(times[i]) - time_low)
        at += time_width
        store_word(cells, at, np.uint64(sequences[i]) - sequence_low)
        at += sequence_width
        store_word(cells, at, np.uint64(partitions[i]) - partition_low)
        at += partition_width
        store_word(cells, at, np.uint64(offsets[i]) - offset_low)
        at += offset_width
        store_word(cells, at, sets[i] - sets_low)
        at += sets_width
        for f in range(codes.shape[1]):
            store_word(cells, at, codes[i, f])
            at += width[_VALUES + f]
    return at


@njit(cache=True, nogil=True)
def _compacted(e, bits):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    count, fields = bits.shape
    layout = np.zeros((_VALUES + fields, 3), np.int64)
    codes = np.empty((count, fields), np.uint64)
    _measure(e.event_time, layout[_TIME])
    _measure(e.sequence, layout[_SEQUENCE])
    _measure(e.partition, layout[_PARTITION])
    _measure(e.offset, layout[_OFFSET])
    _measure(e.sets, layout[_SETS])
    for f in range(fields):
        _measure_values(e.values, bits, f, codes, layout[_VALUES + f])
    cells = np.empty(count * layout[:, _WIDTH].sum() + _WORD_BYTES, np.uint8)
    at = _lay(e.event_time, e.sequence, e.partition, e.offset, e.sets, codes, layout, cells)
    store_word(cells, at, np.uint64(0))
    return cells, layout


@njit(cache=True, nogil=True)
def _count(entity, small):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    found = 0
    for i in range(entity.shape[0]):
        found += small[entity[i]] >= 0
    return found


@njit(cache=True, nogil=True)
def _gather(e, small, out, out_bits, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    cells = e.cells
    columns = e.layout.shape[0]
    low = e.layout[:, _LOW].copy().view(np.uint64)
    start = np.zeros(columns + 1, np.int64)
    mask = np.zeros(columns, np.uint64)
    for c in range(columns):
        width = e.layout[c, _WIDTH]
        start[c + 1] = start[c] + width
        for _ in range(width):
            mask[c] = (mask[c] << np.uint64(8)) | np.uint64(255)
    for i in range(e.entity.shape[0]):
        number = small[e.entity[i]]
        if number < 0:
            continue
        row = i * start[columns]
        out.entity[at] = number
        out.event_time[at] = np.int64((load_word(cells, row + start[_TIME]) & mask[_TIME]) + low[_TIME])
        out.sequence[at] = np.int64((load_word(cells, row + start[_SEQUENCE]) & mask[_SEQUENCE]) + low[_SEQUENCE])
        out.partition[at] = np.int32((load_word(cells, row + start[_PARTITION]) & mask[_PARTITION]) + low[_PARTITION])
        out.offset[at] = np.int64((load_word(cells, row + start[_OFFSET]) & mask[_OFFSET]) + low[_OFFSET])
        out.sets[at] = (load_word(cells, row + start[_SETS]) & mask[_SETS]) + low[_SETS]
        for c in range(_VALUES, columns):
            f = c - _VALUES
            code = load_word(cells, row + start[c]) & mask[c]
            digits = e.layout[c, _DIGITS]
            if digits == _RAW:
                out_bits[at, f] = code
            elif code == np.uint64(0):
                out_bits[at, f] = _NULL_BITS
            else:
                out.values[at, f] = np.float64(np.int64(code + low[c])) / _POWERS[digits]
        at += 1
    return at
