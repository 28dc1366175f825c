"""Which row is the newest: within a batch, and against what was written before."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def coalesce(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Keep of each entity the row with the highest (event_time, created_at), sorted by entity_id.

    Of rows that are equal in both the last one stays. Columns are kept as they are.
    """
    entities = rows.column("entity_id").dictionary_encode()
    rank = np.empty(len(entities.dictionary), np.int64)
    rank[pc.sort_indices(entities.dictionary).to_numpy()] = np.arange(len(rank))
    codes = rank[entities.indices.to_numpy()]
    order = np.lexsort((microseconds(rows, "created_at"), microseconds(rows, "event_time"), codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True) if len(order) else np.zeros(0, bool)
    return rows.take(pa.array(order[last]))


def microseconds(rows: pa.RecordBatch, column: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The times of a column without nulls as int64 microseconds since the epoch, (n,)."""
    times = rows.column(column).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return np.asarray(times.to_numpy(), np.int64)


class NewestWritten:
    """Remembers of each (view, entity) the newest time written; about 150 bytes each."""

    def __init__(self) -> None:
        """Start with nothing remembered."""
        self._times_us: dict[str, dict[str, int]] = {}

    def unknown(self, view: str, entities: Iterable[str]) -> list[str]:
        """Those of the entities of which nothing is remembered, in the same order."""
        times_us = self._times_us.get(view, {})
        return [entity for entity in entities if entity not in times_us]

    def is_newer(self, view: str, entity: str, time_us: int) -> bool:
        """Whether a row of this time, in microseconds, is newer than the newest written; the entity is remembered."""
        return time_us > self._times_us[view][entity]

    def remember(self, view: str, entity: str, time_us: int) -> None:
        """Take note that the newest row written is of this time."""
        times_us = self._times_us.setdefault(view, {})
        times_us.pop(entity, None)
        times_us[entity] = time_us

    def forget(self, view: str, entities_max: int) -> None:
        """Forget the entities written least recently, until entities_max are left of the view."""
        times_us = self._times_us.get(view, {})
        for entity in list(islice(times_us, max(0, len(times_us) - entities_max))):
            del times_us[entity]

    def drop(self, entity: str) -> None:
        """Remember nothing of the entity in any view."""
        for times_us in self._times_us.values():
            times_us.pop(entity, None)
