"""Which rows has another lineage published already: an index of one partition's foreign rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stores.offline.port import PartitionKey, Withheld

COLUMNS = ("entity_id", "event_time", "revision", "content_hash")
"""What is read of foreign rows."""

CACHE_BYTES = 256 << 20
"""Indexes of the partitions used last are kept up to this size; the current one always."""


class ForeignRows:
    """The published rows of one partition that other lineages wrote, ready to be asked."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        """Index the tables, which hold at least COLUMNS."""
        table = pa.concat_tables([t.select(COLUMNS) for t in tables]).sort_by("event_time")
        self._table = table
        self._times = _micros(table)
        self._keys = _keys(table)

    @property
    def nbytes(self) -> int:
        """Memory it takes, about."""
        return int(self._table.nbytes + self._times.nbytes + self._keys.nbytes)

    def grown(self, tables: Iterable[pa.Table]) -> ForeignRows:
        """Return an index of these rows and the others."""
        return ForeignRows([self._table, *tables])

    def withhold(self, rows: pa.Table) -> tuple[pa.Table, Withheld]:
        """Return the rows that are not published, in their order, and the count of those that are."""
        if rows.num_rows == 0 or self._table.num_rows == 0:
            return rows, Withheld()
        times = _micros(rows)
        first = int(np.searchsorted(self._times, times.min(), "left"))
        last = int(np.searchsorted(self._times, times.max(), "right"))
        known = self._table.slice(first, last - first)
        places = pc.index_in(_keys(rows), value_set=self._keys.slice(first, last - first))
        found = pc.is_valid(places)
        published = known["content_hash"].combine_chunks().take(pc.drop_null(places))
        offered = rows["content_hash"].combine_chunks().filter(found)
        repeated = pc.sum(pc.equal(published, offered)).as_py() or 0
        kept = rows.filter(pc.invert(found))
        return kept, Withheld(repeated, rows.num_rows - kept.num_rows - repeated)


class ForeignRowsCache:
    """Reads each foreign file once, as long as its partition is in use. Several threads may share it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: OrderedDict[PartitionKey, tuple[frozenset[str], ForeignRows]] = OrderedDict()
        self._lock = Lock()

    def rows(self, key: PartitionKey, names: frozenset[str], read: Callable[[str], pa.Table]) -> ForeignRows:
        """Return the index over exactly these files, at least one; `read` gives COLUMNS of one."""
        with self._lock:
            seen, index = self._known.pop(key, (frozenset(), None))
            if index is None or not seen <= names:
                index = ForeignRows([read(name) for name in sorted(names)])
            elif seen < names:
                index = index.grown([read(name) for name in sorted(names - seen)])
            self._known[key] = (names, index)
            while len(self._known) > 1 and sum(i.nbytes for _, i in self._known.values()) > CACHE_BYTES:
                self._known.popitem(last=False)
            return index


def _micros(table: pa.Table) -> NDArray[np.int64]:
    times: NDArray[np.int64] = table["event_time"].combine_chunks().view(pa.int64()).to_numpy()
    return times


def _keys(table: pa.Table) -> pa.LargeBinaryArray:
    """Entity, then 12 bytes of event_time and revision: equal if and only if the row is the same."""
    tail = np.empty((table.num_rows, 12), np.uint8)
    tail[:, :8] = _micros(table).reshape(-1, 1).view(np.uint8)
    tail[:, 8:] = table["revision"].combine_chunks().to_numpy().astype("<i4").reshape(-1, 1).view(np.uint8)
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(12), len(tail), [None, pa.py_buffer(tail)])
    entities = table["entity_id"].combine_chunks().cast(pa.large_string()).cast(pa.large_binary())
    return pc.binary_join_element_wise(entities, fixed.cast(pa.large_binary()), pa.scalar(b"", pa.large_binary()))
