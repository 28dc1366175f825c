"""The signals of an Arrow IPC stream: its columns as they are, and which of its rows are good.

Columns: `entity_id` (text, dictionary-encoded or not), `event_time` (a timestamp with zone, or an integer of 64 bits:
epoch milliseconds), `sequence` (an integer), if wanted `source` and `trace_id`; the payload is a struct `payload`, or
else every other column. What a row means is what it would mean as a JSON message: a row that these columns do not show
to be good is written as one, and `operators.signal_rules` says what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.arrow_sizes import WRITTEN_SHARE_MAX, check_written
from operators.arrow_stream import is_flat, is_text, read_stream, short
from operators.compiled import kernel
from operators.errors import DecodeError, SchemaError
from operators.feature_sets import FeatureSets
from operators.hashes import murmur3
from operators.rfc3339 import TIME_US_END
from operators.signal_rules import ENTITY_BYTES_MAX, EVENT_BYTES_MAX, Reason
from operators.simd import PAD, copy_vector

SIGNAL_COLUMNS = ("entity_id", "event_time", "sequence", "source", "trace_id")

_EXACT_MAX = 1 << 53
_NAME_MAX = 64
_INTEGERS: dict[int, type[np.generic]] = {
    pa.from_numpy_dtype(kind).id: kind
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
}
_FLOATS: dict[int, type[np.generic]] = {
    pa.from_numpy_dtype(kind).id: kind for kind in (np.float16, np.float32, np.float64)
}
_WORDS = frozenset({pa.int64().id, pa.uint64().id})
_UNITS = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}
"""Of a timestamp: microseconds are its value times the one and by the other, rounded down."""


class Texts(NamedTuple):
    """Texts that rows refer to: uint8 with PAD bytes to spare, int64 (n + 1,), and uint64 (n,), their hashes."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    def sizes(self) -> NDArray[np.int64]:
        """How long each is."""
        return self.offsets[1:] - self.offsets[:-1]


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """One message's rows, one array a column, all of length n; what stands in those that are not good means nothing.

    entity: int64 (n,), which of the texts. event_time: int64, microseconds. sequence: int64. sets: uint64, see
    SignalBatch. values: a field each, float64 with NaN for null, or None if all are. good: bool (n,). entity_bytes: of
    all rows together, at most.
    """

    batch: pa.RecordBatch
    texts: Texts
    entity: NDArray[np.int64]
    event_time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    sets: NDArray[np.uint64]
    values: tuple[NDArray[np.float64] | None, ...]
    good: NDArray[np.bool_]
    entity_bytes: int


def read_rows(message: bytes, declared: FeatureSets, row_bytes_max: int | None = EVENT_BYTES_MAX) -> ArrowRows:
    """Read the rows of a stream with the payload fields of these sets. row_bytes_max: of a row as JSON; None for any.

    Raises DecodeError for a stream that is damaged or whose rows are too large, SchemaError naming a column that is
    missing or of the wrong kind: then no row can be used.
    """
    batch = read_stream(message)
    if batch.num_rows == 0:
        raise DecodeError(Reason.EMPTY, "the message is an Arrow IPC stream without rows")
    check_written(batch, len(message), row_bytes_max)
    columns = _named(batch.schema.names, batch.columns, "the message")
    good = np.ones(batch.num_rows, np.bool_)
    texts, entity = _entities(_required(columns, "entity_id", Reason.ENTITY_ID), good)
    event_time = _times(_required(columns, "event_time", Reason.EVENT_TIME), good)
    sequence = _integers(_required(columns, "sequence", Reason.SEQUENCE), "sequence", Reason.SEQUENCE, good)
    _check_text(columns, "trace_id", Reason.TRACE_ID)
    payload = _payload(columns, good)
    values = tuple(_floats(name, payload[name], good) if name in payload else None for name in declared.fields)
    sets = _masks(columns, declared, batch.num_rows)
    spent = _entity_bytes(texts, entity[good], WRITTEN_SHARE_MAX * len(message))
    return ArrowRows(batch, texts, entity, event_time, sequence, sets, values, good, spent)


def _entity_bytes(texts: Texts, entity: NDArray[np.int64], most: int) -> int:
    """Bytes of these entities, or a bound of them that is no more than `most`. Raises DecodeError if they are more."""
    sizes = texts.sizes()
    bound = int(sizes.max()) * len(entity)
    if bound <= most:
        return bound
    spent = int(sizes[entity].sum())
    if spent > most:
        raise DecodeError(Reason.TOO_LARGE, f"the rows have {spent} bytes of `entity_id`; at most {most} are taken")
    return spent


@kernel
def place_entities(texts, entity, rows, data, offsets, hashes, at, used):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Put the entities of these rows from place `at` on, their bytes behind the `used`; the bytes used then.

    data: uint8 with PAD bytes to spare; offsets, hashes: see SignalBatch.
    """
    for i in range(len(rows)):
        text = entity[rows[i]]
        begin = texts.offsets[text]
        size = texts.offsets[text + 1] - begin
        for b in range(0, size, 32):
            copy_vector(data, used + b, texts.data, begin + b)
        used += size
        offsets[at + i + 1] = used
        hashes[at + i] = texts.hashes[text]
    return used


@kernel
def _hash_texts(texts):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for i in range(len(texts.hashes)):
        texts.hashes[i] = murmur3(texts.data, texts.offsets[i], texts.offsets[i + 1] - texts.offsets[i])[0]


def _named(names: list[str], columns: list[pa.Array], what: str) -> dict[str, pa.Array]:
    named = dict(zip(names, columns, strict=True))
    if len(named) < len(names):
        raise SchemaError(Reason.NOT_ARROW, f"{what} has two columns of one name")
    return named


def _required(columns: dict[str, pa.Array], name: str, reason: Reason) -> pa.Array:
    if name not in columns:
        raise SchemaError(reason, f"column `{name}` is missing")
    return columns[name]


def _wrong(name: str, kind: pa.DataType, reason: Reason, expected: str) -> SchemaError:
    return SchemaError(reason, f"column `{name[:_NAME_MAX]}` is {short(kind)}; {expected} is expected")


def _numbers(column: pa.Array, kind: type[np.generic]) -> NDArray[Any]:
    """The values of a column of fixed width as they stand in its buffer, those of nulls too."""
    if len(column) == 0:
        return np.empty(0, kind)
    raw = np.frombuffer(column.buffers()[1], kind, len(column), column.offset * np.dtype(kind).itemsize)
    return raw if raw.flags.aligned else raw.copy()


def _valid(column: pa.Array) -> NDArray[np.bool_] | None:
    """Which values are not null; None if all."""
    if column.null_count == 0:
        return None
    valid: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _whole_numbers(column: pa.Array) -> NDArray[Any]:
    return _numbers(column, _INTEGERS[column.type.id])


def _integers(column: pa.Array, name: str, reason: Reason, good: NDArray[np.bool_]) -> NDArray[np.int64]:
    if column.type.id not in _INTEGERS:
        raise _wrong(name, column.type, reason, "an integer")
    raw = _whole_numbers(column)
    valid = _valid(column)
    if valid is not None:
        np.logical_and(good, valid, out=good)
    if raw.dtype == np.uint64:
        np.logical_and(good, raw < 1 << 63, out=good)
    return raw.astype(np.int64, copy=False)


def _times(column: pa.Array, good: NDArray[np.bool_]) -> NDArray[np.int64]:
    kind = column.type
    expected = "a timestamp with zone, or an integer of 64 bits, epoch milliseconds,"
    if kind.id in _WORDS:  # no narrower ones: rows would take far more memory than the message
        raw = _integers(column, "event_time", Reason.EVENT_TIME, good)
        times, by = 1000, 1
    elif pa.types.is_timestamp(kind) and kind.tz:
        raw = _integers(column.view(pa.int64()), "event_time", Reason.EVENT_TIME, good)
        times, by = _UNITS[kind.unit]
    else:
        raise _wrong("event_time", kind, Reason.EVENT_TIME, expected)
    inside = (raw >= 0) & (raw < TIME_US_END // times if by == 1 else raw // by < TIME_US_END)
    np.logical_and(good, inside, out=good)
    if not inside.all():
        raw = np.where(inside, raw, 0)
    if times == by:
        return raw
    return raw * times if by == 1 else raw // by


def _plain_texts(column: pa.Array) -> pa.Array:
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def _entities(column: pa.Array, good: NDArray[np.bool_]) -> tuple[Texts, NDArray[np.int64]]:
    kind = column.type
    if pa.types.is_dictionary(kind) and is_text(kind.value_type):
        texts, sizes = _texts(_plain_texts(column.dictionary))
        entity = _whole_numbers(column.indices).astype(np.int64)
        valid = _valid(column.indices)
    elif is_text(kind):
        texts, sizes = _texts(_plain_texts(column))
        entity, valid = np.arange(len(column)), None
    else:
        raise _wrong("entity_id", kind, Reason.ENTITY_ID, "text")
    usable = (sizes > 0) & (sizes <= ENTITY_BYTES_MAX)
    if valid is not None:
        np.logical_and(good, valid, out=good)
        entity[~valid] = 0
    if not usable.all():
        np.logical_and(good, usable[entity], out=good)
    return texts, entity


def _texts(column: pa.Array) -> tuple[Texts, NDArray[np.int64]]:
    """The texts of a column, and the size of each, 0 for null."""
    count = len(column)
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    if count == 0:  # stands in for the one that nulls have
        return Texts(np.zeros(PAD, np.uint8), np.zeros(2, np.int64), np.zeros(1, np.uint64)), np.zeros(1, np.int64)
    _, places, buffer = column.buffers()
    offsets = np.frombuffer(places, width, count + 1, column.offset * np.dtype(width).itemsize).astype(np.int64)
    begin, end = int(offsets[0]), int(offsets[-1])
    data = np.empty(end - begin + PAD, np.uint8)
    if end > begin:
        data[: end - begin] = np.frombuffer(buffer, np.uint8, end - begin, begin)
    texts = Texts(data, offsets - begin, np.empty(count, np.uint64))
    _hash_texts(texts)
    sizes = texts.sizes()
    valid = _valid(column)
    return texts, (sizes if valid is None else np.where(valid, sizes, 0))


def _payload(columns: dict[str, pa.Array], good: NDArray[np.bool_]) -> dict[str, pa.Array]:
    struct = columns.get("payload")
    if struct is None:
        payload = {name: column for name, column in columns.items() if name not in SIGNAL_COLUMNS}
    elif pa.types.is_struct(struct.type):
        names = [field.name for field in struct.type]
        payload = _named(names, [struct.field(i) for i in range(len(names))], "`payload`")
        valid = _valid(struct)
        if valid is not None:
            np.logical_and(good, valid, out=good)
    else:
        raise _wrong("payload", struct.type, Reason.PAYLOAD, "a struct of numbers")
    for name, column in payload.items():
        if not is_flat(column.type):
            raise _wrong(name, column.type, Reason.PAYLOAD, "a column of numbers")
    return payload


def _floats(name: str, column: pa.Array, good: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    kind = column.type
    valid = _valid(column)
    if pa.types.is_null(kind):
        return None
    if kind.id in _FLOATS:
        raw = _numbers(column, _FLOATS[kind.id])
    elif kind.id in _INTEGERS:
        raw = _whole_numbers(column)
        if raw.dtype.itemsize == 8:
            exact = (raw <= _EXACT_MAX) & (raw >= -_EXACT_MAX if raw.dtype == np.int64 else np.True_)
            np.logical_and(good, exact if valid is None else exact | ~valid, out=good)
    else:
        raise _wrong(name, kind, Reason.FIELD, "a number")
    values = raw.astype(np.float64, copy=False)
    if valid is not None:
        values = np.where(valid, values, np.nan)
    finite = np.isfinite(values)
    if not finite.all():
        nan = np.isnan(values)
        np.logical_and(good, finite | nan, out=good)
        values = np.where(nan, np.nan, values)
    return values


def _check_text(columns: dict[str, pa.Array], name: str, reason: Reason) -> pa.Array | None:
    """The column, if there is one with anything in it. Raises SchemaError unless it is text."""
    column = columns.get(name)
    if column is None or pa.types.is_null(column.type):
        return None
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind):
        raise _wrong(name, column.type, reason, "text")
    return column


def _masks(columns: dict[str, pa.Array], declared: FeatureSets, count: int) -> NDArray[np.uint64]:
    column = _check_text(columns, "source", Reason.SOURCE)
    if column is None or not any(each.sources for each in declared.sets):
        return np.full(count, declared.mask(None), np.uint64)
    encoded = column if pa.types.is_dictionary(column.type) else _plain_texts(column).dictionary_encode()
    masks = np.array([declared.mask(source) for source in [*encoded.dictionary.to_pylist(), None]], np.uint64)
    number = _whole_numbers(encoded.indices).astype(np.int64)
    valid = _valid(encoded.indices)
    if valid is not None:
        number[~valid] = -1
    return masks[number]
