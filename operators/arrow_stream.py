"""Arrow IPC streams, as bytes from anybody: framed, read and validated, or refused.

A stream is read without copies, so its rows take no more memory than its bytes do. That is why compressed ones are
refused: what they unpack to is only their own word, and the bus compresses what it carries anyway.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from operators.errors import DecodeError
from operators.signal_rules import Reason

MAGIC = b"\xff\xff\xff\xff"
"""How a stream begins; no JSON can begin so."""

_NAME_MAX = 64
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_TROUBLE = (pa.ArrowException, ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError, struct.error)
"""What is raised, by the library and here, for bytes that cannot be read."""

_TEXT = frozenset({pa.string().id, pa.large_string().id, pa.string_view().id})
_BYTES = frozenset({pa.binary().id, pa.large_binary().id, pa.binary_view().id, pa.binary(1).id})
_VIEWS = frozenset({pa.string_view().id, pa.binary_view().id})
_DECIMALS = frozenset(kind(5).id for kind in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256))
_TIMES = frozenset(
    {
        *(pa.date32().id, pa.date64().id, pa.time32("s").id, pa.time64("us").id, pa.timestamp("s").id),
        *(pa.duration("s").id, pa.month_day_nano_interval().id),
    }
)
_FLOATS = frozenset({pa.float16().id, pa.float32().id, pa.float64().id})
_INTEGERS = frozenset(kind().id for kind in (pa.int8, pa.int16, pa.int32, pa.int64)) | frozenset(
    kind().id for kind in (pa.uint8, pa.uint16, pa.uint32, pa.uint64)
)
_FLAT = _TEXT | _BYTES | _DECIMALS | _TIMES | _FLOATS | _INTEGERS | {pa.null().id, pa.bool_().id}
_DICTIONARY_TYPE, _STRUCT_TYPE = pa.dictionary(pa.int8(), pa.string()).id, pa.struct([]).id

_FRAME, _PLACE, _BACK, _SHORT, _LENGTH = (struct.Struct(form).unpack_from for form in ("<4si", "<I", "<i", "<H", "<q"))
"""Readers of (data, at); a place beyond the end raises struct.error."""

_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


def read_stream(message: bytes) -> pa.RecordBatch:
    """The rows of a whole stream as one batch, valid in every value; of one batch nothing is copied.

    Raises DecodeError if the bytes are damaged, cut off, compressed or followed by others, and for columns that are
    nested deeper than a struct.
    """
    try:
        _check_frames(memoryview(message))
        with pa.ipc.open_stream(pa.py_buffer(message), options=_OPTIONS) as reader:
            _check_kinds(reader.schema)
            batches = list(reader)
            for batch in batches:
                batch.validate(full=True)
            if len(batches) == 1:
                return batches[0]
            whole = pa.Table.from_batches(batches, reader.schema).combine_chunks().to_batches()
            return whole[0] if whole else pa.RecordBatch.from_pylist([], reader.schema)
    except _TROUBLE as error:
        raise DecodeError(Reason.NOT_ARROW, "the message is no whole, valid Arrow IPC stream") from error


def short(kind: pa.DataType) -> str:
    """The name of a type, to be shown."""
    text = str(kind)
    return text if len(text) <= _NAME_MAX else f"{text[:_NAME_MAX]}…"


def is_flat(kind: pa.DataType) -> bool:
    """Whether a value of the type is one number, text or time."""
    return kind.id in _FLAT or (kind.id == _DICTIONARY_TYPE and kind.value_type.id in _FLAT)


def is_text(kind: pa.DataType) -> bool:
    """Whether it is one of Arrow's types of text."""
    return kind.id in _TEXT


def is_bytes(kind: pa.DataType) -> bool:
    """Whether it is one of Arrow's types of bytes that are no text."""
    return kind.id in _BYTES


def is_view(kind: pa.DataType) -> bool:
    """Whether values of the type are places in a text or bytes that they may share."""
    return kind.id in _VIEWS


def _check_kinds(schema: pa.Schema) -> None:
    """Only what is understood is read at all. Raises DecodeError, or ValueError for a name that is no text."""
    for field in schema:
        name, kind = field.name, field.type
        parts = [(inner.name, inner.type) for inner in kind] if kind.id == _STRUCT_TYPE else [(name, kind)]
        if not all(is_flat(part) for _, part in parts):
            told = f"column `{name[:_NAME_MAX]}` is {short(kind)}; such columns are not read"
            raise DecodeError(Reason.NOT_ARROW, told)
        for _, part in parts:
            getattr(getattr(part, "value_type", part), "tz", None)  # the zone of a time is a name too


def _check_frames(message: memoryview) -> None:
    """Walk from frame to frame. Raises DecodeError for a compressed one, ValueError for all else."""
    at = 0
    while at < len(message):
        mark, size = _FRAME(message, at)
        at += 8
        if mark != MAGIC or not 0 <= size <= len(message) - at:
            raise ValueError("no frame")
        if size == 0:
            break
        body, is_compressed = _look(message[at : at + size])
        if is_compressed:
            told = "its body is compressed; only plain ones are read: let the client compress, as by compression.type"
            raise DecodeError(Reason.NOT_ARROW, f"the message is an Arrow IPC stream, but {told}")
        at += size
        if not 0 <= body <= len(message) - at:
            raise ValueError("a body beyond the end")
        at += body
    if at != len(message):
        raise ValueError("bytes behind the end of the stream")


def _look(frame: memoryview) -> tuple[int, bool]:
    """(bytes of the body, whether it is compressed) as a frame's metadata say, a flatbuffer `Message`."""
    root = _PLACE(frame, 0)[0]
    kind, header, length = (_field(frame, root, number) for number in (1, 2, 3))
    found = frame[kind] if kind else 0
    if found not in {_SCHEMA, _DICTIONARY, _BATCH} or not header:
        raise ValueError("another kind of frame")
    table = header + _PLACE(frame, header)[0]
    if found == _DICTIONARY:
        inner = _field(frame, table, 1)
        table = inner + _PLACE(frame, inner)[0]
    is_compressed = found != _SCHEMA and _field(frame, table, 3) != 0
    return (_LENGTH(frame, length)[0] if length else 0), is_compressed


def _field(frame: memoryview, table: int, number: int) -> int:
    """Place of a field of a flatbuffer's table, 0 if the table leaves it out."""
    names = table - _BACK(frame, table)[0]
    if names < 0:
        raise ValueError("a place before the beginning")
    slot = 4 + 2 * number
    if slot + 2 > _SHORT(frame, names)[0]:
        return 0
    offset: int = _SHORT(frame, names + slot)[0]
    return table + offset if offset else 0
