"""Feature rows as CloudEvents 1.0 in structured JSON, a message a row."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from operators.messages import STRUCTURED, Message

if TYPE_CHECKING:
    from operators.feature_sets import FeatureSet, WindowSpec

SOURCE = "/headrace/signals"
TYPE = "headrace.features_emitted"

_DAY_US = 86_400_000_000
_ESCAPED_MAX = 6
"""Bytes that one of a text may become in JSON."""

_ENTITY_TIMES = 3
_FIXED_BYTES = 4 * 27 + 3 * 20 + 2 * 34 + 4 + 5
"""Times, integers, hashes and words of a row."""

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_NULL, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))
_QUOTE, _BACKSLASH, _COMMA, _POINT = (ord(c) for c in '"\\,.')


@njit(cache=True, nogil=True)
def _put(out, at, text):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for i in range(text.shape[0]):
        out[at + i] = text[i]
    return at + text.shape[0]


@njit(cache=True, nogil=True)
def _put_escaped(out, at, text):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for byte in text:
        if byte < 0x20:  # control characters
            out[at : at + 4] = (0x5C, 0x75, 0x30, 0x30)  # \u00
            out[at + 4] = _HEX[byte >> 4]
            out[at + 5] = _HEX[byte & 15]
            at += 6
            continue
        if byte in (_QUOTE, _BACKSLASH):
            out[at] = _BACKSLASH
            at += 1
        out[at] = byte
        at += 1
    return at


@njit(cache=True, nogil=True)
def _put_digits(out, at, number, count):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for i in range(count - 1, -1, -1):
        out[at + i] = 48 + number % 10
        number //= 10
    return at + count


@njit(cache=True, nogil=True)
def _put_integer(out, at, number):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    if number < 0:
        out[at] = 45
        at, number = at + 1, -number
    digits = 1
    rest = number // 10
    while rest > 0:
        digits += 1
        rest //= 10
    return _put_digits(out, at, number, digits)


@njit(cache=True, nogil=True)
def _put_time(out, at, us):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """RFC 3339 in UTC with microseconds; days to dates as in Hinnant's civil_from_days."""
    day = us // _DAY_US
    us -= day * _DAY_US
    z = day + 719_468
    era = z // 146_097
    doe = z - era * 146_097
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9  # its year begins in March
    at = _put_digits(out, at, yoe + era * 400 + (month <= 2), 4)  # as above
    for number, mark in ((month, 45), (doy - (153 * mp + 2) // 5 + 1, 45), (us // 3_600_000_000, 84)):
        out[at] = mark
        at = _put_digits(out, at + 1, number, 2)
    for number in (us // 60_000_000 % 60, us // 1_000_000 % 60):
        out[at] = 58
        at = _put_digits(out, at + 1, number, 2)
    out[at] = 46
    at = _put_digits(out, at + 1, us % 1_000_000, 6)
    out[at] = 90
    return at + 1


@njit(cache=True, nogil=True)
def _put_values(out, at, names, name_ends, counts, values, read):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """One line of a JSON matrix, each value with its name before it, a count without its fraction."""
    begin = 0
    for c in range(counts.shape[0]):
        at = _put(out, at, names[begin : name_ends[c]])
        begin = name_ends[c]
        is_whole = counts[c]
        cut = False
        while values[read] != _COMMA and values[read] != 93:  # ]
            cut = cut or (is_whole and values[read] == _POINT)
            if not cut:
                out[at] = values[read]
                at += 1
            read += 1
        read += 1
    return at, read + 2  # past ,[


@njit(cache=True, nogil=True)
def _put_hex(out, at, data):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for byte in data:
        out[at] = _HEX[byte >> 4]
        out[at + 1] = _HEX[byte & 15]
        at += 2
    return at


@njit(cache=True, nogil=True)
def _put_more(out, at, p, more, i):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """What revisions have, each with its quotes, or null."""
    if p == 13:  # a place in _parts
        return _put(out, at, _TRUE if more.retracted[i] else _FALSE)
    if not (more.replaces[i] if p == 11 else more.caused[i]):  # as above
        return _put(out, at, _NULL)
    out[at] = _QUOTE
    if p == 11:  # as above
        at = _put_hex(out, at + 1, more.supersedes[i])
    else:
        at = _put_escaped(out, at + 1, more.causes[more.cause_ends[i] : more.cause_ends[i + 1]])
    out[at] = _QUOTE
    return at + 1


@njit(cache=True, nogil=True)
def _lay_events(parts, part_ends, entities, entity_ends, numbers, hashes, more, names, name_ends, counts, values, out):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write all events end to end; return where each ends.

    numbers: window start, event time, revision, created at, known at.
    """
    ends = np.empty(numbers.shape[1], np.int64)
    at = 0
    read = 2  # past [[
    for i in range(numbers.shape[1]):
        entity = entities[entity_ends[i] : entity_ends[i + 1]]
        for p in range(part_ends.shape[0] - 1):
            at = _put(out, at, parts[part_ends[p] : part_ends[p + 1]])
            if p in (0, 4, 5):
                at = _put_escaped(out, at, entity)
            elif p == 1:
                at = _put_integer(out, at, numbers[1, i])
            elif p in (2, 8):
                at = _put_integer(out, at, numbers[2, i])
            elif p in (3, 10):  # a place in _parts
                at = _put_time(out, at, numbers[3 if p == 3 else 4, i])
            elif p in (6, 7):
                at = _put_time(out, at, numbers[p - 6, i])
            elif p == 9:  # as above
                at = _put_hex(out, at, hashes[i])
            elif p in (11, 12, 13):
                at = _put_more(out, at, p, more, i)
            elif p == 14:  # as above
                at, read = _put_values(out, at, names, name_ends, counts, values, read)
        ends[i] = at
    return ends


class _More(NamedTuple):
    """What revisions have, a line a row; text as in SignalBatch."""

    supersedes: NDArray[np.uint8]
    replaces: NDArray[np.bool_]
    causes: NDArray[np.uint8]
    cause_ends: NDArray[np.int64]
    caused: NDArray[np.bool_]
    retracted: NDArray[np.bool_]


def feature_events(table: pa.Table, declared: FeatureSet, spec: WindowSpec) -> list[Message]:
    """Return a message for each row of a table of `feature_row_schema(declared)`, keyed by its entity.

    The id is a function of (feature set, version, window, entity, event_time, revision); `time` is created_at; the data
    are the row's columns, null where undefined.
    """
    n = len(table)
    if n == 0:
        return []
    entities, entity_ends = _texts(table.column("entity_id"))
    numbers = np.empty((5, n), np.int64)
    for line, name in zip(numbers, ("window_start", "event_time", "revision", "created_at", "known_at"), strict=True):
        line[:] = table.column(name).cast(pa.int64()).to_numpy()
    hashes, more, values = _hashes(table.column("content_hash")), _more(table), _values(table, declared)
    parts, part_ends = _joined(_parts(declared, spec))
    names, name_ends = _joined([b"," + orjson.dumps(c) + b":" for c in declared.columns])
    size = n * (len(parts) + len(names) + _FIXED_BYTES) + len(values)
    size += _ESCAPED_MAX * (_ENTITY_TIMES * int(entity_ends[-1] - entity_ends[0]) + len(more.causes))
    out = np.empty(size, np.uint8)
    counts = np.array([c.endswith("__count") for c in declared.columns])
    laid = (parts, part_ends, entities, entity_ends, numbers, hashes, more, names, name_ends[1:], counts, values, out)
    ends = _lay_events(*laid)
    whole = out[: ends[-1]].tobytes()
    keys = entities.tobytes()
    spans = zip(pairwise([0, *ends.tolist()]), pairwise(entity_ends.tolist()), strict=True)
    return [Message(whole[a:b], keys[c:d], STRUCTURED) for (a, b), (c, d) in spans]


def _more(table: pa.Table) -> _More:
    supersedes, cause = table.column("supersedes"), table.column("cause")
    causes, cause_ends = _texts(cause)
    return _More(
        _hashes(supersedes),
        supersedes.is_valid().to_numpy(),
        causes,
        cause_ends,
        cause.is_valid().to_numpy(),
        table.column("retracted").to_numpy(),
    )


def _texts(column: pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 bytes, and int64 (n + 1,), where each text begins and the last one ends; null is empty."""
    texts = column.combine_chunks().cast(pa.large_string())
    texts = texts if isinstance(texts, pa.Array) else texts.combine_chunks()
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(texts.buffers()[2] or b"", np.uint8), ends


def _hashes(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Hashes, uint8 (n, 16); zeros for null."""
    if column.null_count == len(column):
        data = bytes(16 * len(column))
    else:
        data = b"".join(value or bytes(16) for value in column.to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, 16)


def _values(table: pa.Table, declared: FeatureSet) -> NDArray[np.uint8]:
    """The value columns as a matrix in JSON, a list a row; floats in as many digits as they need."""
    matrix = np.empty((len(table), len(declared.columns)))
    for index, name in enumerate(declared.columns):
        matrix[:, index] = table.column(name).cast(pa.float64()).to_numpy()
    return np.frombuffer(orjson.dumps(matrix, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)


def _parts(declared: FeatureSet, spec: WindowSpec) -> list[bytes]:
    """What stands between the things that change from row to row."""

    def inside(text: str) -> str:
        return orjson.dumps(text).decode()[1:-1]

    name, window = inside(declared.name), inside(spec.text)
    texts = (
        f'{{"specversion":"1.0","id":"{name}/v{declared.version}/{window}/',
        "/",
        "/",
        f'","source":"{SOURCE}","type":"{TYPE}","datacontenttype":"application/json","time":"',
        '","subject":"',
        '","data":{"entity_id":"',
        '","window_start":"',
        '","event_time":"',
        f'","window":"{window}","feature_set":"{name}","version":{declared.version},"revision":',
        ',"content_hash":"',
        '","known_at":"',
        '","supersedes":',
        ',"cause":',
        ',"retracted":',
        "",
        "}}",
    )
    return [text.encode() for text in texts]


def _joined(texts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The texts end to end, and where each begins and the last one ends."""
    ends = np.cumsum([0, *(len(text) for text in texts)])
    return np.frombuffer(b"".join(texts), np.uint8), ends.astype(np.int64)
