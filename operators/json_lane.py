"""The fast lane of the decoder: plain signals straight from JSON bytes into columns, compiled.

The lane takes a message or flags it; it never rejects. What it takes is valid JSON of the expected shape whose
values it reads exactly. What it flags may still be good: an escape in a string, an envelope with base64, a number
of more than 19 digits, a key that stands there twice. `operators.signal_rules` judges those.

A message is walked from value to value. The bytes between two values (keys, punctuation, blanks) are the same in
most messages of a partition, so they are kept as the *trail* of the last message and compared 32 at a time; a
step that matches tells the next value's slot without reading a key. Where a message leaves the trail, its keys are read
one by one and the trail is laid anew from there.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from operators.compiled import kernel, piece
from operators.floats import FAILED, parse_float, parse_integer
from operators.hashes import murmur3
from operators.json_values import hash_bytes, same_bytes, scan_string, skip_scalar, skip_space, skip_value
from operators.lane_tables import (
    CONTENT_TYPE,
    DATA,
    DONE,
    ENCODED,
    ENTITY,
    FIELD,
    PAYLOAD,
    SCALAR,
    SEQUENCE,
    SOURCE,
    SPECVERSION,
    TIME,
    TRACE,
    UNKNOWN,
    slot_of,
)
from operators.rfc3339 import TIME_US_END, parse_rfc3339
from operators.signal_rules import ENTITY_BYTES_MAX
from operators.simd import PAD, copy_vector, load_word

_START = 0
_BEHIND, _INSIDE, _WRAPPED, _REST = 1, 2, 4, 8
"""Where the walk stands, as bits: behind a member (else before the brace), inside the payload, within the `data` of an
envelope, in the rest of an envelope behind its `data`."""

_PROBES_MAX = 64
_NULL = np.uint64(int.from_bytes(b"null", "little"))
_VERSION = np.uint64(int.from_bytes(b'"1.0"', "little"))
_VERSION_BYTES = 5
_JSON_TYPE = np.frombuffer(b'"application/json"'.ljust(PAD), np.uint8)
_JSON_TYPE_BYTES = 18


@piece
def _read_key(data, at, end, state, keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place of the value, slot, state) of the member whose key begins at `at`."""
    state |= _BEHIND
    close = scan_string(data, at, end)
    if close == FAILED:
        return FAILED, DONE, state
    slot = slot_of(data, at + 1, close - at - 1, state & _INSIDE != 0, keys)
    if (state & _WRAPPED and SPECVERSION <= slot <= ENCODED) or (state & _REST and slot < SPECVERSION):
        slot = UNKNOWN
    at = skip_space(data, close + 1, end)
    if data[at] != ord(":"):
        return FAILED, slot, state
    at = skip_space(data, at + 1, end)
    return (at if at < end else FAILED), slot, state


@kernel
def advance(data, at, end, state, keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place, slot, state) of the next value, from `at` behind the last one; the place is FAILED if JSON ends there.

    Slot DONE: the message is whole, and the place is its end.
    """
    at = skip_space(data, at, end)
    if at >= end:
        return FAILED, DONE, state
    mark = data[at]
    at = skip_space(data, at + 1, end)
    if not state & _BEHIND:
        if mark != ord("{"):
            return FAILED, DONE, state
        mark = data[at]
        if mark != ord("}"):
            return _read_key(data, at, end, state, keys)
        at = skip_space(data, at + 1, end)
    while mark == ord("}"):
        if state & _INSIDE:
            state ^= _INSIDE
        elif state & _WRAPPED:
            state ^= _WRAPPED | _REST
        else:
            return (at if at == end else FAILED), DONE, state
        mark = data[at]
        at = skip_space(data, at + 1, end)
    if mark != ord(","):
        return FAILED, DONE, state
    return _read_key(data, at, end, state, keys)


@piece
def _opened(slot, state):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """State behind a value: before the brace of the payload or of an envelope's data, else as it was."""
    if slot == PAYLOAD:
        return (state & _WRAPPED) | _INSIDE
    return _WRAPPED if slot == DATA else state


@piece
def _follow(data, at, end, step, trail):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place of the next value if the bytes before it are those of the trail, else FAILED."""
    if step >= trail.laid[0] or at + trail.size[step] > end:
        return FAILED
    if not same_bytes(data, at, data, trail.begin[step], trail.size[step]):
        return FAILED
    return at + trail.size[step]


@piece
def _mark(seen, slot, message):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Note that the message has a value for the slot; those of an envelope before its data are not the signal's."""
    seen[slot] = message
    if slot == DATA:
        seen[SOURCE] = -1
        seen[TRACE] = -1


@piece
def _leave(trail, step, message):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """State behind the steps that were followed; marks their slots."""
    for i in range(step):
        _mark(trail.seen, trail.slot[i], message)
    return _opened(trail.slot[step - 1], trail.state[step - 1]) if step > 0 else _START


@piece
def _is_plain(seen, slot, message):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """False for a key that stands there twice, for data that comes too late, and at the end if a key is missing."""
    if slot == DONE:
        whole = seen[ENTITY] == seen[TIME] == seen[SEQUENCE] == seen[PAYLOAD] == message
        return whole and (seen[DATA] == message) == (seen[SPECVERSION] == message)
    if UNKNOWN <= slot <= SCALAR:
        return True
    first = seen[slot] != message
    if slot == DATA:
        first = first and max(seen[ENTITY], seen[TIME], seen[SEQUENCE], seen[PAYLOAD]) != message
    _mark(seen, slot, message)
    return first


@piece
def _lay(trail, step, begin, end, slot, state):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Make the way from `begin` to a value at `end` the last step of the trail, if the trail has room."""
    if step < len(trail.size):
        trail.begin[step] = begin
        trail.size[step] = end - begin
        trail.slot[step] = slot
        trail.state[step] = state
        trail.laid[0] = step + 1


@piece
def _read_text(data, at, end, slot, text):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Read entity, source or trace; null only for the latter two."""
    if slot != ENTITY and load_word(data, at) & uint64(0xFFFFFFFF) == _NULL:
        text[slot, 1] = -1
        return at + 4
    close = scan_string(data, at, end)
    size = close - at - 1
    text[slot, 0] = at + 1
    text[slot, 1] = size
    bad = close == FAILED or (slot == ENTITY and not 0 < size <= ENTITY_BYTES_MAX)
    return FAILED if bad else close + 1


@piece
def _read_time(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place behind, microseconds) of an RFC 3339 string or of epoch milliseconds."""
    if data[at] == ord('"'):
        at, time_us = parse_rfc3339(data, at + 1)
        return (at + 1 if at != FAILED and data[at] == ord('"') else FAILED), time_us
    at, time_ms = parse_integer(data, at)
    return (at if 0 <= time_ms < TIME_US_END // 1000 else FAILED), time_ms * 1000


@piece
def _read_field(data, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place behind, value) of a number or null."""
    if load_word(data, at) & uint64(0xFFFFFFFF) == _NULL:
        return at + 4, np.nan
    return parse_float(data, at)


@piece
def _read_envelope(data, at, slot, text):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place behind a member of an envelope if it is as expected."""
    if slot == SPECVERSION and load_word(data, at) & uint64((1 << 8 * _VERSION_BYTES) - 1) == _VERSION:
        return at + _VERSION_BYTES
    if slot == CONTENT_TYPE and same_bytes(data, at, _JSON_TYPE, 0, _JSON_TYPE_BYTES):
        return at + _JSON_TYPE_BYTES
    if slot == DATA and data[at] == ord("{"):
        text[SOURCE, 1] = -1
        return at
    return FAILED


@piece
def _read_value(data, at, end, slot, message, columns):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Put the value at `at` into its column; the place behind it, or FAILED."""
    if slot >= FIELD:
        at, columns.values[message, slot - FIELD] = _read_field(data, at)
    elif slot <= TRACE:
        at = _read_text(data, at, end, slot, columns.text)
    elif slot == TIME:
        at, columns.event_time[message] = _read_time(data, at)
    elif slot == SEQUENCE:
        at, columns.sequence[message] = parse_integer(data, at)
    elif slot == PAYLOAD:
        at = at if data[at] == ord("{") else FAILED
    elif slot == SCALAR:
        at = skip_scalar(data, at, end)
    elif slot == UNKNOWN:
        at = skip_value(data, at, end)
    else:
        at = _read_envelope(data, at, slot, columns.text)
    return at


@piece
def _read_message(data, message, spans, keys, trail, columns):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whether the lane takes the message; its values are then in the row of its number."""
    at = spans[message, 0]
    end = at + spans[message, 1]
    if end < at or end + PAD > len(data):
        return False
    step = 0
    state = _START
    following = True
    while True:
        begin = at
        if following:
            at = _follow(data, begin, end, step, trail)
            if at == FAILED:
                following = False
                state = _leave(trail, step, message)
        if following:
            slot = trail.slot[step]
        else:
            at, slot, state = advance(data, begin, end, state, keys)
            if at == FAILED or not _is_plain(trail.seen, slot, message):
                return False
            _lay(trail, step, begin, at, slot, state)
        if slot == DONE:
            return at == end
        at = _read_value(data, at, end, slot, message, columns)
        if at == FAILED:
            return False
        state = _opened(slot, state)
        step += 1


@piece
def _number_source(data, begin, size, last, sources):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Number of a source by first mention, `last` tried first; FAILED if its bucket is crowded."""
    if last >= 0 and sources.size[last] == size and same_bytes(data, begin, data, sources.begin[last], size):
        return last
    bucket = int64(hash_bytes(data, begin, size, uint64(0)))
    for probe in range(_PROBES_MAX):
        at = (bucket + probe) & (len(sources.buckets) - 1)
        number = int64(sources.buckets[at])
        if number < 0:
            number = sources.found[0]
            sources.begin[number] = begin
            sources.size[number] = size
            sources.buckets[at] = number
            sources.found[0] = number + 1
            return number
        if sources.size[number] == size and same_bytes(data, begin, data, sources.begin[number], size):
            return number
    return FAILED


@piece
def _append_entity(data, message, used, columns):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Copy the current entity behind the `used` bytes and hash it; the bytes then used."""
    begin, size = columns.text[ENTITY]
    for i in range(0, size, 32):
        copy_vector(columns.entity_data, used + i, data, begin + i)
    columns.entity_hash[message] = murmur3(columns.entity_data, used, size)[0]
    return used + size


@kernel
def hash_entities(columns, rows):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Hash the entities of these rows, int64."""
    for row in rows:
        begin = columns.entity_offsets[row]
        size = columns.entity_offsets[row + 1] - begin
        columns.entity_hash[row] = murmur3(columns.entity_data, begin, size)[0]


@kernel
def read_messages(data, spans, keys, trail, sources, columns):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Read the messages of a chunk into columns and the list of flagged ones; how many are flagged.

    data: uint8, read-only. spans: int64 (n, 2), place and size; a size below 0 flags the message unread.
    The last message of the data is flagged unless PAD bytes stand behind it.
    """
    count = 0
    used = 0
    last = -1
    for message in range(len(spans)):
        columns.source[message] = -1
        columns.text[SOURCE, 1] = -1
        columns.values[message, :] = np.nan
        good = _read_message(data, message, spans, keys, trail, columns)
        if good and columns.text[SOURCE, 1] >= 0 and len(sources.buckets) > 0:
            last = _number_source(data, columns.text[SOURCE, 0], columns.text[SOURCE, 1], last, sources)
            columns.source[message] = last
            good = last != FAILED
        if good:
            used = _append_entity(data, message, used, columns)
        else:
            columns.flagged[count] = message
            count += 1
        columns.entity_offsets[message + 1] = used
    return count
