"""Messages of many signals: their rows among the signals of a chunk, and each row as a message of its own.

A row that leaves the path, because it is refused or late, goes as the JSON message that says the same, with the place
it had: member `arrow` holds the offset of its message and its number in that, from 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from operators import signal_rules
from operators.arrow_rows import SIGNAL_COLUMNS, ArrowRows, place_entities, read_rows
from operators.arrow_stream import MAGIC, read_stream
from operators.errors import SchemaError, SkippableError
from operators.feature_sets import FeatureSets
from operators.records import Decoded, RawChunk, Reject, SignalBatch
from operators.rfc3339 import TIME_US_END
from operators.signal_rules import Reason
from operators.simd import PAD

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WORD_END = 1 << 63
_MICROSECONDS = {"s": 1_000_000, "ms": 1000, "us": 1}


def is_stream(message: bytes) -> bool:
    """Whether the message is an Arrow IPC stream, or wants to be one: its first bytes tell."""
    return message.startswith(MAGIC)


def row_message(batch: pa.RecordBatch, offset: int, row: int) -> bytes:
    """The signal in a row as a message of its own; offset: where the message with the row stands in the log.

    What no JSON can say is a text, which no rule takes for what it was; NaN is null.
    """
    members: dict[str, object] = {}
    payload: dict[str, object] = {}
    struct: object = ...
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name == "event_time" and pa.types.is_timestamp(column.type):
            members[name] = _time(column, row)
        elif name == "payload" and pa.types.is_struct(column.type):
            fields = {f.name: _sendable(column.field(i), row) for i, f in enumerate(column.type)}
            struct = fields if column[row].is_valid else None
        else:
            (members if name in SIGNAL_COLUMNS else payload)[name] = _sendable(column, row)
    members["payload"] = payload if struct is ... else struct
    return orjson.dumps({**members, "arrow": {"offset": offset, "row": row}}, default=str)


def refused_rows(rows: ArrowRows, index: int, offset: int, fields: tuple[str, ...]) -> list[Reject]:
    """Say of each row that is not good what is wrong with it. index, offset: of its message."""
    rejects = []
    for row in np.flatnonzero(~rows.good).tolist():
        original = row_message(rows.batch, offset, row)
        document = None
        try:
            document = signal_rules.open_document(original, bytes_max=len(original))
            signal_rules.check(document, fields)
            raise SchemaError(Reason.NOT_ARROW, "the row has values that its columns should not hold")
        except SkippableError as error:
            trace_id = document.trace_id if document is not None else None
            rejects.append(Reject(index, offset, error.reason, str(error), original, trace_id, row))
    return rejects


def with_rows(decoded: Decoded, opened: Sequence[tuple[int, ArrowRows]], chunk: RawChunk) -> Decoded:
    """Put the good rows of messages, each with its index in the chunk, among the signals, in the order of the log."""
    room = _Room(decoded, opened)
    for index, rows in opened:
        room.copy(decoded, int(np.searchsorted(decoded.index, index)))
        room.place(rows, index, int(chunk.offsets[index]))
    room.copy(decoded, len(decoded.batch))
    return room.decoded(chunk.partition, decoded.rejects)


def originals(chunk: RawChunk, decoded: Decoded, which: NDArray[np.int64]) -> tuple[bytes, ...]:
    """These signals of the chunk as messages, a row as one of its own."""
    indices = decoded.index[which].tolist()
    if decoded.rows is None:
        return tuple(chunk.message(index) for index in indices)
    batches: dict[int, pa.RecordBatch] = {}
    found = []
    for index, row in zip(indices, decoded.rows[which].tolist(), strict=True):
        message = chunk.message(index) if row < 0 or index not in batches else b""
        if row >= 0 and index not in batches:
            batches[index] = read_stream(message)
        found.append(message if row < 0 else row_message(batches[index], int(chunk.offsets[index]), row))
    return tuple(found)


def find_rows(
    message: bytes, declared: FeatureSets, offset: int, wanted: Iterable[tuple[str, int, int]]
) -> list[tuple[int, bytes]]:
    """Find signals of a message again, by (entity_id, event_time, sequence): of each its row and itself as a message.

    What is wanted several times is found in as many rows, the first ones. Raises LookupError if one is not there.
    """
    rows = read_rows(message, declared, row_bytes_max=None)  # it was read once
    places: dict[tuple[bytes, int, int], list[int]] = defaultdict(list)
    columns = (rows.entity.tolist(), rows.event_time.tolist(), rows.sequence.tolist())
    for row in np.flatnonzero(rows.good)[::-1].tolist():
        text, event_time, sequence = (column[row] for column in columns)
        begin, end = rows.texts.offsets[text : text + 2]
        places[rows.texts.data[begin:end].tobytes(), event_time, sequence].append(row)
    found = [places[entity.encode(), event_time, sequence].pop() for entity, event_time, sequence in wanted]
    return [(row, row_message(rows.batch, offset, row)) for row in found]


def without_name(message: bytes, entity_id: str) -> bytes | None:
    """The message without the rows of the entity, see `without_rows`; None if it has none, or cannot be read."""
    try:
        batch = read_stream(message)
        column = batch.column("entity_id")
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        names = plain.cast(pa.large_string()).to_pylist()
    except (SkippableError, KeyError, pa.ArrowException):
        return None
    rows = [row for row, name in enumerate(names) if name == entity_id]
    return without_rows(message, rows) if rows else None


def without_rows(message: bytes, rows: Sequence[int]) -> bytes:
    """The message with nothing but nulls in these rows, so that the others keep their places."""
    batch = read_stream(message)
    places = np.arange(len(batch))
    gone = np.isin(places, rows)
    kept = pa.array(places, mask=gone)
    plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    found = pa.RecordBatch.from_arrays([column.take(kept) for column in plain], names=batch.schema.names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_batch(found)
    return bytes(sink.getvalue())


class _Room:
    """Columns for all signals of a chunk, filled from the front."""

    def __init__(self, decoded: Decoded, opened: Sequence[tuple[int, ArrowRows]]) -> None:
        self._keep = {index: np.flatnonzero(rows.good) for index, rows in opened}
        batch = decoded.batch
        count = len(batch) + sum(map(len, self._keep.values()))
        size = len(batch.entity_data) + sum(rows.entity_bytes for _, rows in opened)
        self._data = np.empty(size + PAD, np.uint8)
        self._offsets = np.zeros(count + 1, np.int64)
        self._hash = np.empty(count, np.uint64)
        self._sets = np.empty(count, np.uint64)
        self._values = np.empty((count, batch.values.shape[1]))
        self._time, self._sequence, self._offset, self._index, self._rows = np.empty((5, count), np.int64)
        self._at = self._used = self._done = 0

    def copy(self, decoded: Decoded, upto: int) -> None:
        """Take the signals of plain messages up to that one."""
        part = slice(self._done, upto)
        to = slice(self._at, self._at + upto - self._done)
        if part.start == upto:
            return
        batch = decoded.batch
        begin, end = int(batch.entity_offsets[part.start]), int(batch.entity_offsets[upto])
        self._data[self._used : self._used + end - begin] = batch.entity_data[begin:end]
        self._offsets[to.start + 1 : to.stop + 1] = batch.entity_offsets[part.start + 1 : upto + 1] - begin + self._used
        self._hash[to] = batch.entity_hash[part]
        self._time[to] = batch.event_time[part]
        self._sequence[to] = batch.sequence[part]
        self._sets[to] = batch.sets[part]
        self._values[to] = batch.values[part]
        self._offset[to] = batch.offset[part]
        self._index[to] = decoded.index[part]
        self._rows[to] = -1
        self._at, self._used, self._done = to.stop, self._used + end - begin, upto

    def place(self, rows: ArrowRows, index: int, offset: int) -> None:
        """Take the good rows of a message."""
        keep = self._keep[index]
        to = slice(self._at, self._at + len(keep))
        pick = slice(None) if len(keep) == len(rows.good) else keep
        entities = (self._data, self._offsets, self._hash, self._at, self._used)
        self._used = int(place_entities(rows.texts, rows.entity, keep, *entities))
        self._time[to] = rows.event_time[pick]
        self._sequence[to] = rows.sequence[pick]
        self._sets[to] = rows.sets[pick]
        for place, values in enumerate(rows.values):
            self._values[to, place] = np.nan if values is None else values[pick]
        self._offset[to] = offset
        self._index[to] = index
        self._rows[to] = keep
        self._at = to.stop

    def decoded(self, partition: str, rejects: tuple[Reject, ...]) -> Decoded:
        """All of it."""
        columns = (self._data[: self._used], self._offsets, self._hash, self._time, self._sequence)
        batch = SignalBatch(partition, *columns, self._offset, self._sets, self._values)
        return Decoded(batch, self._index, rejects, self._rows)


def _time(column: pa.Array, row: int) -> object:
    """A timestamp as RFC 3339 if the rules know its year, else as a number or a text that they refuse."""
    value = column[row].value
    if value is None:
        return None
    unit = column.type.unit
    micros = value // 1000 if unit == "ns" else value * _MICROSECONDS[unit]
    if 0 <= micros < TIME_US_END:
        return (_EPOCH + timedelta(microseconds=micros)).isoformat()
    return micros // 1000 if abs(micros) < _WORD_END else str(micros)


def _sendable(column: pa.Array, row: int) -> object:
    scalar = column[row]
    try:
        value: object = scalar.as_py()
    except (ArithmeticError, LookupError, ValueError):  # a time beyond Python's years, or in a zone that nobody knows
        return str(scalar.type)
    return str(value) if isinstance(value, float) and math.isinf(value) else value
