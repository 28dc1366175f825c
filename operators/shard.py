"""Shards: which one an entity belongs to, what they are called, and a batch cut into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, uint64

from operators.records import NO_WATERMARK, SignalBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARDS_MAX = 1024


@njit(cache=True, nogil=True)
def _cut(batch_hash, late, shards):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Stable order of the events that are not late by shard, and where each shard starts."""
    shard = np.empty(batch_hash.shape[0], np.int64)
    start = np.zeros(shards + 1, np.int64)
    for i in range(batch_hash.shape[0]):
        shard[i] = -1
        if not late[i]:
            shard[i] = np.int64(((batch_hash[i] >> uint64(32)) * uint64(shards)) >> uint64(32))
            start[shard[i] + 1] += 1
    for s in range(shards):
        start[s + 1] += start[s]
    fill = start.copy()
    order = np.empty(start[shards], np.int64)
    for i in range(batch_hash.shape[0]):
        if shard[i] >= 0:
            order[fill[shard[i]]] = i
            fill[shard[i]] += 1
    return order, start


@njit(cache=True, nogil=True)
def _gather(order, data, offsets, hashes, times, sequences, positions, sets, values):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    n = order.shape[0]
    fields = values.shape[1]
    out_offsets = np.empty(n + 1, np.int64)
    out_offsets[0] = 0
    for i in range(n):
        out_offsets[i + 1] = out_offsets[i] + offsets[order[i] + 1] - offsets[order[i]]
    out_data = np.empty(out_offsets[n], np.uint8)
    out_hashes = np.empty(n, np.uint64)
    out_times = np.empty(n, np.int64)
    out_sequences = np.empty(n, np.int64)
    out_positions = np.empty(n, np.int64)
    out_sets = np.empty(n, np.uint64)
    out_values = np.empty((n, fields))
    for i in range(n):
        j = order[i]
        base = offsets[j]
        at = out_offsets[i]
        for b in range(out_offsets[i + 1] - at):
            out_data[at + b] = data[base + b]
        out_hashes[i] = hashes[j]
        out_times[i] = times[j]
        out_sequences[i] = sequences[j]
        out_positions[i] = positions[j]
        out_sets[i] = sets[j]
        for f in range(fields):
            out_values[i, f] = values[j, f]
    return out_data, out_offsets, out_hashes, out_times, out_sequences, out_positions, out_sets, out_values


def shard_of(entity_hash: int, shards: int) -> int:
    """Shard of an entity: the top 32 bits of its hash, scaled to `shards`; the same everywhere."""
    return ((entity_hash >> 32) * shards) >> 32


def take(batch: SignalBatch, order: NDArray[np.int64]) -> SignalBatch:
    """Return the events `order` (int64 (m,)) of the batch, as a batch of its own arrays."""
    columns = _gather(
        order,
        batch.entity_data,
        batch.entity_offsets,
        batch.entity_hash,
        batch.event_time,
        batch.sequence,
        batch.offset,
        batch.sets,
        batch.values,
    )
    return SignalBatch(batch.partition, *columns)


def split(batch: SignalBatch, late: NDArray[np.bool_], shards: int) -> list[SignalBatch]:
    """Cut the events that are not late into one batch a shard, each in the order of the log."""
    order, start = _cut(batch.entity_hash, late, shards)
    whole = take(batch, order)
    return [slice_batch(whole, int(start[s]), int(start[s + 1])) for s in range(shards)]


def split_due(
    batch: SignalBatch, due: NDArray[np.int64], shards: int
) -> list[tuple[SignalBatch, NDArray[np.int64]] | None]:
    """Cut the events that have a due time into (events, int64 due) a shard, None for none, in the order of the log."""
    order, start = _cut(batch.entity_hash, due == NO_WATERMARK, shards)
    if len(order) == 0:
        return [None] * shards
    whole, times = take(batch, order), due[order]
    bounds = [(int(start[s]), int(start[s + 1])) for s in range(shards)]
    return [(slice_batch(whole, a, b), times[a:b]) if a < b else None for a, b in bounds]


def slice_batch(batch: SignalBatch, start: int, stop: int) -> SignalBatch:
    """Return events start to stop (exclusive) as a view."""
    return SignalBatch(
        batch.partition,
        batch.entity_data,
        batch.entity_offsets[start : stop + 1],
        batch.entity_hash[start:stop],
        batch.event_time[start:stop],
        batch.sequence[start:stop],
        batch.offset[start:stop],
        batch.sets[start:stop],
        batch.values[start:stop],
    )


def shard_keys(shards: int) -> tuple[str, ...]:
    """Names of the shards, chosen so that Bytewax spreads them evenly.

    Bytewax sends a key to worker `SipHash-1-3(key + 0xff) mod workers`. Name i is the first `i.k`
    whose hash leaves the rest i by `shards`: every number of workers that divides the number of
    shards then gets the same share.
    """
    return tuple(_key(i, shards) for i in range(shards))


def _key(index: int, shards: int) -> str:
    suffix = 0
    while siphash13(f"{index}.{suffix}".encode() + b"\xff") % shards != index:
        suffix += 1
    return f"{index}.{suffix}"


_MASK = (1 << 64) - 1


def siphash13(data: bytes) -> int:
    """SipHash-1-3 with a zero key, as Rust's DefaultHasher (Aumasson and Bernstein, 2012)."""
    v = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        _sip_round(v)
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        _sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _sip_round(v: list[int]) -> None:
    def left(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & _MASK

    v[0] = (v[0] + v[1]) & _MASK
    v[1] = left(v[1], 13) ^ v[0]
    v[0] = left(v[0], 32)
    v[2] = (v[2] + v[3]) & _MASK
    v[3] = left(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & _MASK
    v[3] = left(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & _MASK
    v[1] = left(v[1], 17) ^ v[2]
    v[2] = left(v[2], 32)
