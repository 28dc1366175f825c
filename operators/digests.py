"""Digests of feature rows: one number for the rows of a partition, the same in any order and any cut.

A digest is the number of rows and, modulo 2^128, the sum of one 128-bit number a row, which is MurmurHash3 over the
row's content hash, the hash of its entity_id and its event_time. Sums commute, so files and workers merge by adding,
and a row that was superseded is taken out by subtracting.

Why each hash is mixed before it is added: xor, the other order-free sum, loses a row that is there twice, and hashes
that are related (one changed bit, two rows with their contents exchanged) can cancel in a plain sum of content hashes.
As the sum of a hash that behaves like chance over the whole row, it is AdHash (Bellare and Micciancio, "A New Paradigm
for Collision-Free Hashing: Incrementality at Reduced Cost", EUROCRYPT 1997), the MSet-Add-Hash of Clarke, Devadas,
van Dijk, Gassend and Suh ("Incremental Multiset Hash Functions and Their Application to Memory Integrity Checking",
ASIACRYPT 2003). Murmur has no key: this finds faults (the chance that one goes unseen is 2^-128), not forgers.

Which rows count: of each (entity_id, event_time) the newest revision, unless it is retracted. A later revision names
the hash it supersedes, so the sum over all rows, less what they supersede, is the sum over the newest: `change` gives
that for a piece of a partition, and pieces add up whichever of them holds which revision. Its one limit: a window
that was retracted and came back (only a conflict that changes an event's `source` can do that) leaves a remainder;
`Change.revised` says whether there are revisions at all, and `stores.offline.digests` resolves them by number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
from numba import njit, uint64
from numpy.typing import NDArray

from operators.errors import CorruptStoreError
from operators.hashes import murmur3, murmur3_words

DIGEST_KEY = b"headrace.digest"
"""Of the metadata of a Parquet file of rows, where its `Change` is kept."""

_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True)
class Digest:
    """Number of rows and the sum of their mixed hashes, 0 <= total < 2^128. Of no rows: both 0."""

    rows: int = 0
    total: int = 0

    def __add__(self, other: Digest) -> Digest:
        """The digest of both."""
        return Digest(self.rows + other.rows, (self.total + other.total) % _MODULUS)

    def __sub__(self, other: Digest) -> Digest:
        """The digest without those rows."""
        return Digest(self.rows - other.rows, (self.total - other.total) % _MODULUS)

    @property
    def text(self) -> str:
        """The sum as 32 hexadecimal digits."""
        return f"{self.total:032x}"


@dataclass(frozen=True, slots=True)
class Change:
    """What a piece of a partition adds to its digest.

    digest: of its rows less those that they supersede; its rows may be below 0. revised: how many of its rows are
    later revisions; without any in all pieces the sum is exact under every circumstance.
    """

    digest: Digest = Digest()
    revised: int = 0

    def __add__(self, other: Change) -> Change:
        """What both pieces add."""
        return Change(self.digest + other.digest, self.revised + other.revised)

    def encoded(self) -> bytes:
        """The form kept in the metadata of a file, under DIGEST_KEY."""
        return orjson.dumps({"rows": self.digest.rows, "digest": self.digest.text, "revised": self.revised})


def parse_change(encoded: bytes) -> Change:
    """Parse what `Change.encoded` gave. Raises CorruptStoreError for anything else."""
    try:
        found = orjson.loads(encoded)
        rows, text, revised = int(found["rows"]), str(found["digest"]), int(found["revised"])
        change = Change(Digest(rows, int(text, 16)), revised)
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptStoreError(f"`{encoded[:80]!r}` is no digest of feature rows; restore the file") from exc
    if change.digest.text != text:
        raise CorruptStoreError(f"`{text[:80]}` is no digest of feature rows; restore the file")
    return change


@njit(cache=True, nogil=True)
def _sum(data, offsets, times, hashes, sign):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(rows, low, high) of the sum of mixed hashes; sign is 1 to add a row, -1 to take it out, 0 to pass over it."""
    words = np.empty(5, np.uint64)
    low = uint64(0)
    high = uint64(0)
    rows = 0
    for i in range(times.shape[0]):
        if sign[i] == 0:
            continue
        words[0] = hashes[i, 0]
        words[1] = hashes[i, 1]
        words[2], words[3] = murmur3(data, offsets[i], offsets[i + 1] - offsets[i])
        words[4] = np.uint64(times[i])
        one, two = murmur3_words(words, 40)
        rows += sign[i]
        if sign[i] > 0:
            low += one
            high += two + uint64(low < one)
        else:
            high -= two + uint64(low < one)
            low -= one
    return rows, low, high


@njit(cache=True, nogil=True)
def _sum_buckets(data, offsets, times, hashes, sign, group, totals):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Add to totals[group, bucket of the entity] (rows, low, high); sign as in `_sum`."""
    words = np.empty(5, np.uint64)
    for i in range(times.shape[0]):
        if sign[i] == 0:
            continue
        words[0] = hashes[i, 0]
        words[1] = hashes[i, 1]
        words[2], words[3] = murmur3(data, offsets[i], offsets[i + 1] - offsets[i])
        words[4] = np.uint64(times[i])
        one, two = murmur3_words(words, 40)
        line = totals[group[i], np.int64(words[2] & uint64(totals.shape[1] - 1))]
        if sign[i] > 0:
            line[0] += uint64(1)
            line[1] += one
            line[2] += two + uint64(line[1] < one)
        else:
            line[0] -= uint64(1)
            line[2] -= two + uint64(line[1] < one)
            line[1] -= one


@njit(cache=True, nogil=True)
def _buckets_of(data, offsets, buckets, out):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    for i in range(out.shape[0]):
        low, _ = murmur3(data, offsets[i], offsets[i + 1] - offsets[i])
        out[i] = np.int64(low & uint64(buckets - 1))


@njit(cache=True, nogil=True)
def _identify(data, offsets, times, out):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    words = np.empty(3, np.uint64)
    for i in range(times.shape[0]):
        words[0], words[1] = murmur3(data, offsets[i], offsets[i + 1] - offsets[i])
        words[2] = np.uint64(times[i])
        out[i, 0], out[i, 1] = murmur3_words(words, 24)


def change(rows: pa.Table) -> Change:
    """Return what these rows of a partition, of any revisions, add to its digest.

    rows: columns entity_id, event_time, revision, content_hash, supersedes and retracted.
    """
    revised = int(np.count_nonzero(_ints(rows, "revision")))
    if revised == 0:
        return Change(digest_rows(rows), 0)
    replaces = rows["supersedes"].is_valid().to_numpy()
    gone = digest_rows(rows, hashes=_hashes(rows, "supersedes"), counted=replaces)
    return Change(digest_rows(rows, counted=~rows["retracted"].to_numpy()) - gone, revised)


def digest_rows(
    rows: pa.Table, *, hashes: NDArray[np.uint8] | None = None, counted: NDArray[np.bool_] | None = None
) -> Digest:
    """Return the digest of these rows, each as it stands.

    rows: columns entity_id and event_time, and content_hash unless `hashes`, uint8 (n, 16), is given in its place.
    counted: bool (n,), which of the rows; None for all.
    """
    content = _hashes(rows, "content_hash") if hashes is None else hashes
    words = _words(content)
    sign = np.ones(rows.num_rows, np.int8) if counted is None else counted.astype(np.int8)
    count, low, high = _sum(*_names(rows), _ints(rows, "event_time"), words, sign)
    return Digest(int(count), int(low) | int(high) << 64)


BUCKETS = 64
"""Into so many parts, by entity, digests are cut that are to lead to a row that differs."""


def no_buckets(groups: int) -> NDArray[np.uint64]:
    """Digests of no rows by group and bucket, uint64 (groups, BUCKETS, 3): rows, then both halves of the sum."""
    return np.zeros((groups, BUCKETS, 3), np.uint64)


def add_change(totals: NDArray[np.uint64], rows: pa.Table) -> None:
    """Add what rows of one partition, of any revisions, change in its digest, as `change` says, to totals[0].

    Modulo 2^64 and 2^128: a bucket may fall below 0 rows for a while.
    """
    names, times, group = _names(rows), _ints(rows, "event_time"), np.zeros(rows.num_rows, np.int64)
    replaces = rows["supersedes"].is_valid().to_numpy()
    alive = (~rows["retracted"].to_numpy()).astype(np.int8)
    _sum_buckets(*names, times, _words(_hashes(rows, "content_hash")), alive, group, totals)
    if replaces.any():
        _sum_buckets(*names, times, _words(_hashes(rows, "supersedes")), -replaces.astype(np.int8), group, totals)


def add_rows(
    totals: NDArray[np.uint64],
    names: tuple[NDArray[np.uint8], NDArray[np.int64]],
    times: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    group: NDArray[np.int64],
) -> None:
    """Add final rows to totals[group].

    names: UTF-8 bytes and int64 (n + 1,), of the entities. times, group: int64 (n,). hashes: uint64 (n, 2).
    """
    _sum_buckets(*names, times, hashes, np.ones(len(times), np.int8), group, totals)


def buckets_of(names: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return int64 (n,): the bucket of each entity."""
    out = np.empty(len(names[1]) - 1, np.int64)
    _buckets_of(*names, BUCKETS, out)
    return out


def entity_names(rows: pa.Table) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The column entity_id as UTF-8 bytes and int64 (n + 1,)."""
    return _names(rows)


def identities(rows: pa.Table) -> NDArray[np.uint8]:
    """Return uint8 (n, 16): a hash of (entity_id, event_time), which is what all revisions of a row have in common."""
    out = np.empty((rows.num_rows, 2), np.uint64)
    _identify(*_names(rows), _ints(rows, "event_time"), out)
    return out.astype("<u8", copy=False).view(np.uint8).reshape(-1, 16)


def _words(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(hashes).view("<u8").reshape(-1, 2)


def _names(rows: pa.Table) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    names = rows["entity_id"].cast(pa.large_string()).combine_chunks()
    offsets = np.frombuffer(names.buffers()[1] or bytes(8), np.int64)[names.offset :][: rows.num_rows + 1]
    return np.frombuffer(names.buffers()[2] or b"", np.uint8), offsets


def _ints(rows: pa.Table, column: str) -> NDArray[np.int64]:
    return rows[column].cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]  # pyarrow carries no types


def _hashes(rows: pa.Table, column: str) -> NDArray[np.uint8]:
    """The hashes, uint8 (n, 16); what stands where one is null means nothing."""
    hashes = rows[column].combine_chunks()
    data = np.frombuffer(hashes.buffers()[1] or b"", np.uint8)
    return data[16 * hashes.offset :][: 16 * len(hashes)].reshape(-1, 16)
