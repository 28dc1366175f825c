"""How many bytes the rows of an Arrow IPC stream have as JSON messages: no small message may become a flood of them.

A stream can hold a text once for all of its rows, and the name of a column is held once anyway; a row that is written
out as a message of its own has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from operators.arrow_stream import is_bytes, is_text, is_view
from operators.errors import DecodeError
from operators.signal_rules import Reason

WRITTEN_SHARE_MAX = 16
"""Bytes that the rows may have together for each byte of the message, which may hold them once only."""

_ROW_FREE = 256
"""Bytes of a row that are not counted against the share: any signal has as many, however small its columns are."""

_CELL_FREE = 64
"""The same of a number or time in a column where each has bytes of its own: its name and its digits."""

_FRAME = 96
_PUNCTUATION = 2
_NULL = 4
"""As many as the quotes of a text need, and more."""

_FLOAT = 25
_LONGEST = 128
"""A decimal number, a time or an interval, whatever they hold."""

_BYTE = 5
_BYTE_QUOTES = 5
r"""Bytes are shown as Python does: `b'\x00'`, in JSON with each `\` twice."""

_GROWTH = 6
_ESCAPES = np.zeros(256, np.uint8)
_ESCAPES[:32] = _GROWTH - 1
_ESCAPES[[ord('"'), ord("\\")]] = 1

_WITHOUT_BYTES = frozenset({pa.null().id, pa.bool_().id})


def check_written(batch: pa.RecordBatch, message_bytes: int, row_bytes_max: int | None) -> None:
    """Raise DecodeError if the rows could have far more bytes as JSON than the message, or one more than the most.

    Texts are looked into only where it matters how many characters JSON must escape. row_bytes_max: None for any size.
    """
    written = _Written(batch.num_rows)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        written.add(name, column)
    rows = batch.num_rows
    share = WRITTEN_SHARE_MAX * message_bytes + rows * written.free
    if rows * written.fixed + int(written.sizes.sum()) <= share:  # else views may refer to far more than can be read
        worst = written.fixed + _GROWTH * written.sizes
        if int(worst.sum()) <= share and (row_bytes_max is None or int(worst.max()) <= row_bytes_max):
            return
        for column in written.texts:
            written.sizes += _per_row(column, _escapes)
    whole = written.fixed + written.sizes
    if int(whole.sum()) > share:
        told = f"the rows have {int(whole.sum())} bytes when each is a message of its own; at most {share} are taken"
        raise DecodeError(Reason.TOO_LARGE, told)
    if row_bytes_max is not None and int(whole.max()) > row_bytes_max:
        row = int(whole.argmax())
        told = (
            f"row {row} has {int(whole[row])} bytes when it is a message of its own; at most {row_bytes_max} are taken"
        )
        raise DecodeError(Reason.TOO_LARGE, told)


@dataclass(slots=True)
class _Written:
    """Bytes of rows as JSON, at most: `fixed` of each, of which `free` are not counted, and `sizes` of its texts."""

    rows: int
    fixed: int = _FRAME
    free: int = _ROW_FREE
    sizes: NDArray[np.int64] = field(init=False)
    texts: list[pa.Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = np.zeros(self.rows, np.int64)

    def add(self, name: str, column: pa.Array) -> None:
        """Count a column, or those of a struct."""
        kind = column.type
        if pa.types.is_struct(kind):
            for i, inner in enumerate(kind):
                self.add(inner.name, column.field(i))
            return
        self.fixed += len(orjson.dumps(name)) + _PUNCTUATION
        held = kind.value_type if pa.types.is_dictionary(kind) else kind
        if is_text(held):
            self.fixed += _NULL
            self.sizes += _per_row(column, _lengths)
            self.texts.append(column)
        elif is_bytes(held):
            self.fixed += _BYTE_QUOTES
            self.sizes += _BYTE * _per_row(column, _lengths)
        else:
            self.fixed += _value(kind, held)
            self.free += 0 if held is not kind or kind.id in _WITHOUT_BYTES else _CELL_FREE


def _value(kind: pa.DataType, held: pa.DataType) -> int:
    """The longest that a value of fixed width can become."""
    if pa.types.is_null(held) or pa.types.is_boolean(held):
        return _NULL + 1
    if pa.types.is_integer(held):
        return len(str(-1 << held.bit_width))
    if pa.types.is_floating(held):
        return _FLOAT
    return max(_LONGEST, len(orjson.dumps(str(kind))))  # the name of the type stands for what cannot be said


def _per_row(column: pa.Array, measure: Callable[[pa.Array], NDArray[np.int64]]) -> NDArray[np.int64]:
    """What is measured of each row's value, 0 for null."""
    if not pa.types.is_dictionary(column.type):
        return measure(column)
    places = column.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    found = measure(column.dictionary)
    if len(found) == 0:
        return np.zeros(len(column), np.int64)
    sizes: NDArray[np.int64] = found[places]
    if column.indices.null_count:
        sizes[column.indices.is_null().to_numpy(zero_copy_only=False)] = 0
    return sizes


def _lengths(texts: pa.Array) -> NDArray[np.int64]:
    """Bytes of each text, 0 for null; of views nothing is copied, for many may refer to the same long text."""
    if len(texts) == 0:
        return np.zeros(0, np.int64)
    if pa.types.is_fixed_size_binary(texts.type):
        return np.full(len(texts), texts.type.byte_width, np.int64)
    if not is_view(texts.type):
        from pyarrow import compute  # 30 ms, which a start without such a column does not need

        lengths = compute.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
        return np.asarray(lengths, np.int64)
    views = np.frombuffer(texts.buffers()[1], np.int32, 4 * len(texts), 16 * texts.offset)
    sizes = views[::4].astype(np.int64)
    if texts.null_count:
        sizes[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return sizes


def _escapes(texts: pa.Array) -> NDArray[np.int64]:
    """Bytes that JSON needs for each text beyond its own, 0 for null."""
    if len(texts) == 0:
        return np.zeros(0, np.int64)
    plain = texts.cast(pa.large_string())
    _, places, buffer = plain.buffers()
    offsets = np.frombuffer(places, np.int64, len(plain) + 1, 8 * plain.offset)
    begin, end = int(offsets[0]), int(offsets[-1])
    if begin == end:
        return np.zeros(len(plain), np.int64)
    grown = np.zeros(end - begin + 1, np.int64)
    np.cumsum(_ESCAPES[np.frombuffer(buffer, np.uint8, end - begin, begin)], out=grown[1:])
    extra: NDArray[np.int64] = np.diff(grown[offsets - begin])
    if plain.null_count:
        extra[plain.is_null().to_numpy(zero_copy_only=False)] = 0
    return extra
