"""The fast lane of the decoder: plain signals straight from JSON bytes into columns, compiled.

The lane takes a message or flags it; it never rejects. What it takes is valid JSON of the expected shape whose
values it reads exactly. What it flags may still be good: an escape in a string, an envelope, a number
of more than 19 digits, a key that stands there twice. The plain lane judges those.

A message is walked from value to value. The bytes between two values (keys, punctuation, blanks) are the same in
most messages of a partition, so they are kept as the *trail* of the last message and compared 32 at a time; a
step that matches tells the next value's slot without reading a key. Where a message leaves the trail, its keys are read
one by one and the trail is laid anew from there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from operators.floats import FAILED, parse_float, parse_integer
from operators.hashes import murmur3
from operators.json_values import hash_bytes, same_bytes, scan_string, skip_space, skip_value, valid_utf8
from operators.rfc3339 import TIME_US_END, parse_rfc3339
from operators.simd import PAD, copy_vector, load_word

ENTITY_BYTES_MAX = 1024

ENTITY, SOURCE, TRACE, TIME, SEQUENCE, PAYLOAD, SPECVERSION = range(7)
TOP_KEYS = ("entity_id", "source", "trace_id", "event_time", "sequence", "payload", "specversion")
"""Keys of a signal in the order of their slots; behind them come UNKNOWN, SCALAR, and the declared fields."""

UNKNOWN, SCALAR, FIELD, DONE = 7, 8, 9, -1

_START, _TOP, _OPENED, _PAYLOAD = range(4)
_NAME_BYTES = 64
_PROBES_MAX = 64
_NULL = np.uint64(int.from_bytes(b"null", "little"))


class Keys(NamedTuple):
    """Hash table of the known keys, open addressing.

    names: uint8, key s from s * 64 on, zero behind it. sizes: int64 (slots,), bytes of each, -1 for none.
    buckets: int64, a power of two of them, at least half empty (-1).
    """

    names: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    buckets: NDArray[np.int64]


class Trail(NamedTuple):
    """Way through the last message: int64 (steps,) each, of which the first count[0] are laid.

    begin, size: the bytes before the step's value, as a place in the chunk. slot: what the value is.
    state: where the walk stands at the value. seen: int64 (slots,), the last message that used the slot.
    """

    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    slot: NDArray[np.int64]
    state: NDArray[np.int64]
    seen: NDArray[np.int64]
    count: NDArray[np.int64]


class Sources(NamedTuple):
    """Distinct sources of a chunk by first mention: int64 (n,) place and size, and a hash table of their numbers."""

    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    buckets: NDArray[np.int32]
    count: NDArray[np.int64]


class Columns(NamedTuple):
    """What the lane writes, row by message; rows of flagged messages hold nothing of use and no entity bytes.

    entity_data: uint8 with PAD bytes to spare. source: int32, number of the source, -1 for none.
    text: int64 (3, 2), place and size of the current message's entity, source and trace, -1 for null.
    """

    entity_data: NDArray[np.uint8]
    entity_offsets: NDArray[np.int64]
    entity_hash: NDArray[np.uint64]
    event_time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    values: NDArray[np.float64]
    source: NDArray[np.int32]
    text: NDArray[np.int64]


@njit(cache=True, nogil=True)
def fill_buckets(keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Put every key with a size into the buckets, which are empty."""
    for slot in range(len(keys.sizes)):
        size = keys.sizes[slot]
        if size >= 0:
            at = _bucket(keys, keys.names, slot * _NAME_BYTES, size, slot >= FIELD)
            while keys.buckets[at] >= 0:
                at = (at + 1) & (len(keys.buckets) - 1)
            keys.buckets[at] = slot


def lay_keys(fields: tuple[str, ...]) -> Keys:
    """Build the table of the keys of a signal and of these payload fields."""
    names = [*TOP_KEYS, "", "", *fields]
    table = Keys(
        np.zeros(len(names) * _NAME_BYTES + PAD, np.uint8),
        np.array([len(name) or -1 for name in names], np.int64),
        np.full(1 << (2 * len(names)).bit_length(), -1, np.int64),
    )
    for slot, name in enumerate(names):
        table.names[slot * _NAME_BYTES : slot * _NAME_BYTES + len(name)] = np.frombuffer(name.encode(), np.uint8)
    fill_buckets(table)
    return table


@njit(inline="always")
def _bucket(keys, data, at, size, inside):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    return int64(hash_bytes(data, at, size, uint64(inside))) & (len(keys.buckets) - 1)


@njit(inline="always")
def _slot_of(data, at, size, inside, keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    if 0 < size < _NAME_BYTES:
        bucket = _bucket(keys, data, at, size, inside)
        while keys.buckets[bucket] >= 0:
            slot = keys.buckets[bucket]
            known = keys.sizes[slot] == size and (slot >= FIELD) == inside
            if known and same_bytes(data, at, keys.names, slot * _NAME_BYTES, size):
                return slot
            bucket = (bucket + 1) & (len(keys.buckets) - 1)
    return SCALAR if inside else UNKNOWN


@njit(inline="always")
def _read_key(data, at, end, inside, keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place of the value, slot, state) of the member whose key begins at `at`."""
    state = _PAYLOAD if inside else _TOP
    close = scan_string(data, at, end)
    if close == FAILED:
        return FAILED, DONE, state
    slot = _slot_of(data, at + 1, close - at - 1, inside, keys)
    at = skip_space(data, close + 1, end)
    if data[at] != ord(":"):
        return FAILED, slot, state
    at = skip_space(data, at + 1, end)
    return (at if at < end else FAILED), slot, state


@njit(cache=True, nogil=True)
def advance(data, at, end, state, keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(place, slot, state) of the next value, from `at` behind the last one; the place is FAILED if JSON ends there.

    Slot DONE: the message is whole, and the place is its end.
    """
    inside = state >= _OPENED
    at = skip_space(data, at, end)
    if at >= end:
        return FAILED, DONE, state
    mark = data[at]
    at = skip_space(data, at + 1, end)
    if state == _START or state == _OPENED:
        if mark != ord("{"):
            return FAILED, DONE, state
        if data[at] != ord("}"):
            return _read_key(data, at, end, inside, keys)
        mark = data[at]
        at = skip_space(data, at + 1, end)
    if inside and mark == ord("}"):
        inside = False
        mark = data[at]
        at = skip_space(data, at + 1, end)
    if mark == ord("}") and at == end:
        return at, DONE, _TOP
    if mark != ord(","):
        return FAILED, DONE, state
    return _read_key(data, at, end, inside, keys)


@njit(inline="always")
def _follow(data, at, end, step, trail):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Place of the next value if the bytes before it are those of the trail, else FAILED."""
    if step >= trail.count[0] or at + trail.size[step] > end:
        return FAILED
    if not same_bytes(data, at, data, trail.begin[step], trail.size[step]):
        return FAILED
    return at + trail.size[step]


@njit(inline="always")
def _leave(trail, step, message):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """State behind the steps that were followed; marks their slots as seen by the message."""
    for i in range(step):
        trail.seen[trail.slot[i]] = message
    if step == 0:
        return _START
    return _OPENED if trail.slot[step - 1] == PAYLOAD else trail.state[step - 1]


@njit(inline="always")
def _lay(trail, step, begin, size, slot, state, message):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Add a step to the trail; False if the message is not plain: a key twice or missing, or an envelope."""
    seen = trail.seen
    if slot == DONE:
        if not (seen[ENTITY] == seen[TIME] == seen[SEQUENCE] == seen[PAYLOAD] == message):
            return False
    elif slot != UNKNOWN and slot != SCALAR:
        if seen[slot] == message or slot == SPECVERSION:
            return False
        seen[slot] = message
    if step < len(trail.size):
        trail.begin[step] = begin
        trail.size[step] = size
        trail.slot[step] = slot
        trail.state[step] = state
        trail.count[0] = step + 1
    return True
