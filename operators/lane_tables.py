"""What the fast lane knows and writes: slots of the keys, the trail of the last message, sources, columns.

These are plain arrays in named tuples, so that compiled code takes them. Functions named lay_… make them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int64, uint64
from numpy.typing import NDArray

from operators.compiled import kernel, piece
from operators.json_values import hash_bytes, same_bytes
from operators.signal_rules import ENTITY_BYTES_MAX
from operators.simd import PAD

ENTITY, SOURCE, TRACE, TIME, SEQUENCE, PAYLOAD, SPECVERSION, CONTENT_TYPE, DATA, ENCODED = range(10)
"""Slots of the keys of a signal, then, from SPECVERSION on, of its envelope."""

UNKNOWN, SCALAR, FIELD, DONE = 10, 11, 12, -1
"""An unknown member, an undeclared field of the payload, the first declared one, the end of the message."""

_KEYS = (
    *("entity_id", "source", "trace_id", "event_time", "sequence", "payload"),
    *("specversion", "datacontenttype", "data", "data_base64"),
)

_NAME_BYTES = 64


class Keys(NamedTuple):
    """Hash table of the known keys, open addressing.

    names: uint8, key s from s * 64 on, zero behind it. sizes: int64 (slots,), bytes of each, -1 for none.
    buckets: int64, a power of two of them, at least half empty (-1).
    """

    names: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    buckets: NDArray[np.int64]


class Trail(NamedTuple):
    """Way through the last message: int64 (steps,) each, of which the first laid[0] count.

    begin, size: the bytes before the step's value, as a place in the chunk. slot: what the value is.
    state: where the walk stands at the value. seen: int64 (slots,), the last message that used the slot.
    """

    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    slot: NDArray[np.int64]
    state: NDArray[np.int64]
    seen: NDArray[np.int64]
    laid: NDArray[np.int64]


class Sources(NamedTuple):
    """Distinct sources of a chunk by first mention: int64 (n,) place and size, and a hash table of their numbers."""

    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    buckets: NDArray[np.int32]
    found: NDArray[np.int64]


class Columns(NamedTuple):
    """What the lane writes, row by message; rows of flagged messages hold nothing of use and no entity bytes.

    entity_data: uint8 with PAD bytes to spare. source: int32, number of the source, -1 for none.
    text: int64 (3, 2), place and size of the current message's entity, source and trace, -1 for null.
    flagged: int64 (n,), numbers of the messages that the lane does not take.
    """

    entity_data: NDArray[np.uint8]
    entity_offsets: NDArray[np.int64]
    entity_hash: NDArray[np.uint64]
    event_time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    values: NDArray[np.float64]
    source: NDArray[np.int32]
    text: NDArray[np.int64]
    flagged: NDArray[np.int64]


@kernel
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
    """Build the table of the keys of a signal, its envelope and these payload fields."""
    names = [*_KEYS, "", "", *fields]
    table = Keys(
        np.zeros(len(names) * _NAME_BYTES + PAD, np.uint8),
        np.array([len(name) or -1 for name in names], np.int64),
        np.full(1 << (2 * len(names)).bit_length(), -1, np.int64),
    )
    for slot, name in enumerate(names):
        table.names[slot * _NAME_BYTES : slot * _NAME_BYTES + len(name)] = np.frombuffer(name.encode(), np.uint8)
    fill_buckets(table)
    return table


def lay_trail(keys: Keys) -> Trail:
    """Make an empty trail, long enough for a message with all keys and some unknown ones."""
    steps = len(keys.sizes) + _NAME_BYTES
    return Trail(
        begin=np.empty(steps, np.int64),
        size=np.empty(steps, np.int64),
        slot=np.empty(steps, np.int64),
        state=np.empty(steps, np.int64),
        seen=np.full(len(keys.sizes), -1, np.int64),
        laid=np.zeros(1, np.int64),
    )


def lay_sources(messages: int) -> Sources:
    """Make an empty table for the sources of so many messages; with room for none, sources are not told apart."""
    buckets = np.full(1 << (2 * messages).bit_length() if messages else 0, -1, np.int32)
    return Sources(np.empty(messages, np.int64), np.empty(messages, np.int64), buckets, np.zeros(1, np.int64))


def lay_columns(messages: int, fields: int, message_bytes: int) -> Columns:
    """Make columns for so many messages of so many bytes together."""
    return Columns(
        entity_data=np.empty(min(message_bytes, messages * ENTITY_BYTES_MAX) + PAD, np.uint8),
        entity_offsets=np.zeros(messages + 1, np.int64),
        entity_hash=np.empty(messages, np.uint64),
        event_time=np.empty(messages, np.int64),
        sequence=np.empty(messages, np.int64),
        values=np.empty((messages, fields), np.float64),
        source=np.empty(messages, np.int32),
        text=np.zeros((3, 2), np.int64),
        flagged=np.empty(messages, np.int64),
    )


@piece
def _bucket(keys, data, at, size, inside):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    return int64(hash_bytes(data, at, size, uint64(inside))) & (len(keys.buckets) - 1)


@piece
def slot_of(data, at, size, inside, keys):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Slot of the key data[at:at + size], a field of the payload if `inside`, else a member around it."""
    if 0 < size < _NAME_BYTES:
        bucket = _bucket(keys, data, at, size, inside)
        while keys.buckets[bucket] >= 0:
            slot = keys.buckets[bucket]
            known = keys.sizes[slot] == size and (slot >= FIELD) == inside
            if known and same_bytes(data, at, keys.names, slot * _NAME_BYTES, size):
                return slot
            bucket = (bucket + 1) & (len(keys.buckets) - 1)
    return SCALAR if inside else UNKNOWN
