"""Digests of what a store holds, by reading its rows: the slow and sure way, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.digests import Digest, digest_rows, identities
from operators.errors import ConfigError, RetryableError
from operators.feature_sets import FeatureSets
from operators.rows import hash_table
from stores.offline.port import EVERYTHING, OfflineStore, PartitionKey, Selection

Hashes = Callable[[PartitionKey, pa.Table], NDArray[np.uint8]]
"""Gives the content hashes, uint8 (n, 16), of a partition's rows."""


@dataclass(frozen=True, slots=True)
class _Newest:
    """The rows of a partition that were revised. ids: fixed_size_binary(16); revision: int32, the newest of each."""

    ids: pa.FixedSizeBinaryArray
    revision: NDArray[np.int32]


def recomputed(sets: FeatureSets) -> Hashes:
    """Hashes computed anew from the values, so that a changed bit of any value shows.

    Raises ConfigError for a partition whose feature set, version or window is not declared in `sets`.
    """
    declared = {(s.name, s.version, w.folder): (s, w) for s in sets.sets for w in s.windows}

    def hashes(key: PartitionKey, rows: pa.Table) -> NDArray[np.uint8]:
        found = declared.get((key.feature_set, key.version, key.window))
        if found is None:
            what = f"`{key.feature_set}` version {key.version} with window `{key.window}`"
            raise ConfigError(f"feature set {what} has rows and is not declared; declare it, or select others")
        return hash_table(_inexact(rows), *found)

    return hashes


def digest_of(
    store: OfflineStore, selection: Selection = EVERYTHING, *, hashes: Hashes | None = None
) -> dict[PartitionKey, Digest]:
    """Return the digest of each selected partition that has rows: of the newest revisions that are not retracted.

    hashes: None takes the content hashes as they are stored; see `recomputed`. Memory: a table of the scan, and 20
    bytes for each revised row of one partition. Raises RetryableError if revisions were published meanwhile, and
    what `scan` raises.
    """
    revised: dict[PartitionKey, int] = {}
    for key, rows in store.scan(selection, columns=["revision"]):
        revised[key] = revised.get(key, 0) + int(np.count_nonzero(rows["revision"].to_numpy()))
    return {key: _digest(store, key, hashes, has_revisions=revised[key] > 0) for key in revised}


def _digest(store: OfflineStore, key: PartitionKey, hashes: Hashes | None, *, has_revisions: bool) -> Digest:
    one = Selection(key.feature_set, key.version, key.window, key.date, key.date)
    newest = _newest(store, one) if has_revisions else None
    columns = ["entity_id", "event_time", "revision", "content_hash", "retracted"] if hashes is None else None
    total = Digest()
    for _, rows in store.scan(one, columns=columns):
        content = None if hashes is None else hashes(key, rows)
        total += digest_rows(rows, hashes=content, counted=_counted(rows, newest, key))
    return total


def _newest(store: OfflineStore, one: Selection) -> _Newest:
    ids, revisions = [np.empty((0, 16), np.uint8)], [np.empty(0, np.int32)]
    for _, rows in store.scan(one, columns=["entity_id", "event_time", "revision"]):
        later = rows.filter(pc.greater(rows["revision"], 0))
        ids.append(identities(later))
        revisions.append(later["revision"].to_numpy())
    found, revision = np.concatenate(ids), np.concatenate(revisions)
    words = found.view("<u8").reshape(-1, 2)
    order = np.lexsort((revision, words[:, 0], words[:, 1]))
    last = np.append((np.diff(words[order], axis=0) != 0).any(axis=1), True)
    pick = order[last[-len(order) :]] if len(order) else order
    return _Newest(_binary(found[pick]), revision[pick])


def _counted(rows: pa.Table, newest: _Newest | None, key: PartitionKey) -> NDArray[np.bool_]:
    """Which rows are the newest of theirs and not retracted."""
    alive: NDArray[np.bool_] = ~rows["retracted"].to_numpy()
    revision = rows["revision"].to_numpy()
    if newest is None or len(newest.ids) == 0:
        places, latest = None, np.zeros(rows.num_rows, np.int32)
    else:
        places = pc.fill_null(pc.index_in(_binary(identities(rows)), value_set=newest.ids), -1).to_numpy()
        latest = np.where(places < 0, 0, newest.revision[places])
    if (revision > latest).any():
        raise RetryableError(f"revisions of {key} were published while its digest was made; try again")
    counted: NDArray[np.bool_] = alive & (revision == latest)
    return counted


def _inexact(rows: pa.Table) -> pa.Table:
    """The rows with counts as float64: one that a fault has made too large for that is wrong, not unreadable."""
    for index, field in enumerate(rows.schema):
        if field.type == pa.int64():
            rows = rows.set_column(index, field.name, rows[field.name].cast(pa.float64(), safe=False))
    return rows


def _binary(ids: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))]
    )
