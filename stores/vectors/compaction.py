"""Make the base of a shard anew from the old one and the logs that are complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from operators.errors import CorruptStoreError
from stores.vectors.elements import Stored
from stores.vectors.graph import load_index, new_index, save_index, stored_rows
from stores.vectors.shard_folder import Base, Manifest, ShardFolder, sequence_of
from stores.vectors.shard_log import LogFormat, LogReader, Record

if TYPE_CHECKING:
    from usearch.index import Index


@dataclass(frozen=True, slots=True)
class Compaction:
    """When a shard is compacted: once its logs hold rows_min rows and that share of its base's rows."""

    rows_min: int = 2048
    share: float = 0.1

    def rows(self, base_rows: int) -> int:
        """Rows in the logs from which on a base of so many rows is made anew."""
        return max(self.rows_min, round(self.share * base_rows))


def make_base(
    folder: ShardFolder, manifest: Manifest, log_format: LogFormat, sequence: int, *, anew: bool = False
) -> Base | None:
    """Write the base that holds everything before that sequence number, which is all that the manifest names.

    anew: without taking over the old graph, in which the numbers of removed vectors stand still. None where no vector
    is left: usearch searches no empty index. A function of those files alone; it counts only once a manifest names it.
    Raises CorruptStoreError if a file is damaged or the result does not add up.
    """
    touched, keys, rows = _net(folder, manifest.logs, log_format, sequence)
    index, removed = _index_without(folder, manifest.base, log_format, touched, anew=anew)
    kept = len(index)
    if keys.size:
        # One thread: the graph then depends on nothing but the order of the rows.
        index.add(keys, rows, threads=1)
    if len(index) != kept + keys.size:
        raise CorruptStoreError(f"compacting `{folder.path}` did not give the same vectors; nothing is changed")
    if len(index) == 0:
        return None
    return save_index(index, folder.path / folder.base(sequence - 1), removed)


def _index_without(
    folder: ShardFolder, base: Base | None, log_format: LogFormat, touched: NDArray[np.uint64], *, anew: bool
) -> tuple[Index, int]:
    """The old base without the touched keys, in memory, and how many were taken out since it was built anew."""
    if base is None:
        return new_index(log_format), 0
    old = load_index(folder.path / base.name, base, log_format)
    gone = touched[np.asarray(old.contains(touched), np.bool_)]
    removed = base.removed + gone.size
    if removed <= base.rows and not anew:
        if gone.size:
            old.remove(gone, threads=1)
        return old, removed
    # Links around what was removed are poorer than those of a new graph.
    fresh = new_index(log_format)
    keys = np.asarray(old.keys, np.uint64)
    keys = np.setdiff1d(keys, gone)
    if keys.size:
        fresh.add(keys, stored_rows(old, keys, log_format), threads=1)
    return fresh, 0


def _net(
    folder: ShardFolder, logs: Iterable[str], log_format: LogFormat, sequence: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], Stored]:
    """What the logs come to: keys they touch, rising, and the keys and stored rows that are live, as put last."""
    records = check_logs(folder, logs, log_format)
    if not records or records[-1].sequence != sequence - 1:
        raise CorruptStoreError(f"the logs in `{folder.path}` lack commits; restore the store from a copy")
    last: dict[int, tuple[int, int] | None] = {}
    for number, record in enumerate(records):
        last.update(dict.fromkeys(record.deleted.tolist()))
        for row, key in enumerate(record.keys.tolist()):
            last.pop(key, None)
            last[key] = (number, row)
    live = {key: place for key, place in last.items() if place is not None}
    rows = [records[number].rows[row] for number, row in live.values()]
    touched = np.sort(np.fromiter(last, np.uint64, len(last)))
    return touched, np.fromiter(live, np.uint64, len(live)), np.stack(rows) if rows else records[0].rows[:0]


def check_logs(folder: ShardFolder, logs: Iterable[str], log_format: LogFormat) -> list[Record]:
    """All commits of these logs in order. Raises CorruptStoreError if one is damaged or lacking."""
    records: list[Record] = []
    for name in logs:
        sequence = records[-1].sequence + 1 if records else sequence_of(name)
        log = LogReader(folder.path / name, log_format, sequence)
        try:
            records += log.read()
        finally:
            log.close()
    return records
