"""Rows computed anew and rows of the history: digests of the ones, and where they differ, which row differs in what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from operators.digests import BUCKETS, add_rows, buckets_of, entity_names, no_buckets
from operators.rows import content_hashes, hash_table, take_rows, to_tables
from operators.window_loops import ROW_END, ROW_SPEC
from stores.offline.port import PartitionKey, Selection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from operators.feature_sets import FeatureSet, FeatureSets, WindowSpec
    from operators.records import RowBlock
    from stores.offline.port import OfflineStore

_DAY_US = 86_400_000_000
_FIXED = ("window_start",)
"""What else a row says, besides its statistics, that can be wrong."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in a partition is not as the events say. word: short and stable.

    stored, recomputed: of the field, None where there is no such row or no value.
    """

    word: str
    key: PartitionKey
    entity_id: str | None = None
    event_time_us: int | None = None
    field: str | None = None
    stored: object = None
    recomputed: object = None
    detail: str = ""

    @property
    def place(self) -> tuple[object, ...]:
        """What tells two looks that they saw the same."""
        return self.word, self.key, self.entity_id, self.event_time_us, self.field

    @property
    def order(self) -> tuple[object, ...]:
        """Differences sort by partition, then time and entity."""
        return self.key, self.event_time_us or 0, self.entity_id or "", self.word, self.field or ""

    def record(self) -> dict[str, object]:
        """As printed; floats also in hex, since two that differ may look alike."""
        return {
            "difference": self.word,
            "feature_set": self.key.feature_set,
            "version": self.key.version,
            "window": self.key.window,
            "date": self.key.date,
            "entity_id": self.entity_id,
            "event_time": None if self.event_time_us is None else _time_text(self.event_time_us),
            "field": self.field,
            "stored": self.stored,
            "recomputed": self.recomputed,
            "stored_hex": _hex(self.stored),
            "recomputed_hex": _hex(self.recomputed),
            "detail": self.detail,
        }


class _Expected:
    """What sinks of rows computed anew have in common: which rows of a shard count, and for which partition."""

    def __init__(self, sets: FeatureSets, cuts: tuple[int, ...]) -> None:
        self.sets = sets
        self._cuts = cuts

    def kept(self, shard: int, block: RowBlock) -> RowBlock:
        """Rows of windows that are closed."""
        ends = block.place[:, ROW_END]
        if len(ends) == 0 or int(ends.max()) <= self._cuts[shard]:
            return block
        return take_rows(block, np.flatnonzero(ends <= self._cuts[shard]))

    def keys(self, block: RowBlock) -> tuple[list[PartitionKey], NDArray[np.int64]]:
        """The partitions of the rows, and of each row which one it is, int64 (n,)."""
        declared = self.sets.sets[block.set_index]
        specs = len(declared.windows)
        groups, number = np.unique(
            block.place[:, ROW_END] // _DAY_US * specs + block.place[:, ROW_SPEC], return_inverse=True
        )
        names = [
            PartitionKey(declared.name, declared.version, declared.windows[g % specs].folder, _date(g // specs))
            for g in groups.tolist()
        ]
        return names, number.astype(np.int64)


class Totals(_Expected):
    """A sink that keeps digests only."""

    def __init__(self, sets: FeatureSets, cuts: tuple[int, ...], selection: Selection) -> None:
        """cuts: of each shard, up to which end windows count. selection: of partitions."""
        super().__init__(sets, cuts)
        self._selection = selection
        self.begin()

    def begin(self) -> None:
        """See `recompute.Sink`."""
        self._sums: list[dict[PartitionKey, NDArray[np.uint64]]] = [{} for _ in self._cuts]
        self._open = [0] * len(self._cuts)

    def take(self, shard: int, blocks: list[RowBlock]) -> None:
        """See `recompute.Sink`."""
        mine = self._sums[shard]
        for whole in blocks:
            block = self.kept(shard, whole)
            self._open[shard] += len(whole) - len(block)
            if len(block) == 0:
                continue
            keys, group = self.keys(block)
            totals = no_buckets(len(keys))
            hashes = content_hashes(block, self.sets.sets[block.set_index])
            names = block.entity_data, block.entity_offsets
            add_rows(totals, names, block.place[:, ROW_END], hashes, group)
            for key, more in zip(keys, totals, strict=True):
                mine[key] = _sum(mine[key], more) if key in mine else more

    def sums(self) -> dict[PartitionKey, NDArray[np.uint64]]:
        """Digest of each selected partition by bucket, uint64 (BUCKETS, 3)."""
        out: dict[PartitionKey, NDArray[np.uint64]] = {}
        for mine in self._sums:
            for key, more in mine.items():
                if self._selection.takes(key):
                    out[key] = _sum(out[key], more) if key in out else more
        return out

    @property
    def rows(self) -> int:
        """Rows of the selected partitions."""
        return sum(int(total[:, 0].sum()) for total in self.sums().values())

    @property
    def open_rows(self) -> int:
        """Rows of windows that are still open, of all partitions."""
        return sum(self._open)


class ExpectedRows(_Expected):
    """A sink that keeps the rows of some parts."""

    def __init__(self, sets: FeatureSets, cuts: tuple[int, ...], parts: frozenset[tuple[PartitionKey, int]]) -> None:
        """parts: partitions and buckets of entities."""
        super().__init__(sets, cuts)
        self._buckets: dict[PartitionKey, NDArray[np.bool_]] = {}
        for key, bucket in parts:
            self._buckets.setdefault(key, np.zeros(BUCKETS, np.bool_))[bucket] = True
        self.begin()

    def begin(self) -> None:
        """See `recompute.Sink`."""
        self._blocks: list[RowBlock] = []

    def take(self, shard: int, blocks: list[RowBlock]) -> None:
        """See `recompute.Sink`."""
        nothing = np.zeros(BUCKETS, np.bool_)
        for whole in blocks:
            block = self.kept(shard, whole)
            if len(block) == 0:
                continue
            keys, group = self.keys(block)
            wanted = np.array([self._buckets.get(key, nothing) for key in keys])
            pick = np.flatnonzero(wanted[group, buckets_of((block.entity_data, block.entity_offsets))])
            if len(pick):
                self._blocks.append(take_rows(block, pick))

    def tables(self) -> dict[PartitionKey, list[pa.Table]]:
        """The rows by partition, as they would be stored."""
        out: dict[PartitionKey, list[pa.Table]] = {}
        for index, declared in enumerate(self.sets.sets):
            for spec, date, table in to_tables([b for b in self._blocks if b.set_index == index], declared):
                key = PartitionKey(declared.name, declared.version, declared.windows[spec].folder, date)
                out.setdefault(key, []).append(table)
        return out


def differences_in(
    store: OfflineStore,
    sets: FeatureSets,
    expected: ExpectedRows,
    parts: frozenset[tuple[PartitionKey, int]],
    waiting: Mapping[PartitionKey, pa.Table],
    cut: int | None,
) -> Iterator[Difference]:
    """Yield what differs in these parts, row by row. waiting: rows that count as stored. cut: see `before_cut`."""
    of = {(s.name, s.version, w.folder): (s, w) for s in sets.sets for w in s.windows}
    tables = expected.tables()
    for key in sorted({key for key, _ in parts}):
        wanted = np.zeros(BUCKETS, np.bool_)
        wanted[[bucket for other, bucket in parts if other == key]] = True
        declared, spec = of[key.feature_set, key.version, key.window]
        there: dict[_Place, list[_Row]] = {}
        one = Selection(key.feature_set, key.version, key.window, key.date, key.date)
        stored = [before_cut(rows, cut) for _, rows in store.scan(one)] + [waiting[k] for k in (key,) if k in waiting]
        for rows in stored:
            mine = rows.filter(pa.array(wanted[buckets_of(entity_names(rows))]))
            for place, row in _rows(mine, declared, spec):
                there.setdefault(place, []).append(row)
        computed = {place: row for table in tables.get(key, []) for place, row in _rows(table, declared, spec)}
        for place in sorted({*there, *computed}):
            yield from _compare(key, place, there.get(place, []), computed.get(place), declared)


_Place = tuple[int, str]
_Row = dict[str, Any]


def _rows(table: pa.Table, declared: FeatureSet, spec: WindowSpec) -> Iterator[tuple[_Place, _Row]]:
    """Rows by event_time and entity; `true_hash` is that of their values."""
    hashes = hash_table(exact(table), declared, spec)
    times = table["event_time"].cast(pa.int64()).to_pylist()
    for row, time, content in zip(table.to_pylist(), times, hashes, strict=True):
        yield (time, row["entity_id"]), {**row, "true_hash": content.tobytes()}


def _compare(
    key: PartitionKey, place: _Place, stored: list[_Row], computed: _Row | None, declared: FeatureSet
) -> Iterator[Difference]:
    time, entity = place
    by_revision: dict[int, list[_Row]] = {}
    for row in stored:
        by_revision.setdefault(row["revision"], []).append(row)
    for revision, rows in sorted(by_revision.items()):
        if len(rows) > 1:
            detail = f"revision {revision} is there {len(rows)} times"
            yield Difference("doubled", key, entity, time, detail=detail)
    newest = by_revision[max(by_revision)][0] if by_revision else None
    for row in stored:
        if row is not newest and row["true_hash"] != row["content_hash"] and row["revision"] != max(by_revision):
            yield _wrong_hash(key, place, row)
    if newest is not None and newest["retracted"]:
        newest = None
    if newest is None and computed is not None:
        yield Difference("missing", key, entity, time, detail="the events make a row that the history lacks")
    elif newest is not None and computed is None:
        yield Difference("extra", key, entity, time, detail="the history has a row that no event makes")
    elif newest is not None and computed is not None:
        found = [name for name in (*_FIXED, *declared.columns) if not _same(newest[name], computed[name])]
        for name in found:
            yield Difference("value", key, entity, time, name, _plain(newest[name]), _plain(computed[name]))
        if not found and newest["true_hash"] != newest["content_hash"]:
            yield _wrong_hash(key, place, newest)


def _wrong_hash(key: PartitionKey, place: _Place, row: _Row) -> Difference:
    time, entity = place
    detail = f"of revision {row['revision']}: the hash is not that of the row's values"
    return Difference(
        "hash", key, entity, time, "content_hash", row["content_hash"].hex(), row["true_hash"].hex(), detail
    )


def _same(one: object, other: object) -> bool:
    """Equal to the bit; nulls are equal."""
    if isinstance(one, float) and isinstance(other, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    return one == other


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _hex(value: object) -> str | None:
    return value.hex() if isinstance(value, float) else None


def before_cut(rows: pa.Table, cut: int | None) -> pa.Table:
    """The rows whose event_time lies not behind `cut`; None: all."""
    if cut is None:
        return rows
    return rows.filter(pa.array(rows["event_time"].cast(pa.int64()).to_numpy() <= cut))


def wrong_buckets(rows: pa.Table, hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """In which buckets, bool (BUCKETS,), a row's content_hash is not the one in `hashes`, uint8 (n, 16)."""
    out = np.zeros(BUCKETS, np.bool_)
    column = rows["content_hash"].combine_chunks()
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)[16 * column.offset :][: 16 * len(column)]
    wrong = np.flatnonzero((data.reshape(-1, 16).view(np.uint64) != hashes.view(np.uint64)).any(axis=1))
    if len(wrong):
        out[buckets_of(entity_names(rows))[wrong]] = True
    return out


def exact(rows: pa.Table) -> pa.Table:
    """The rows with counts as float64: one that a fault has made too large for that is wrong, not unreadable."""
    for index, column in enumerate(rows.schema):
        if column.type == pa.int64():
            rows = rows.set_column(index, column.name, rows[column.name].cast(pa.float64(), safe=False))
    return rows


def _sum(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Both digests as one, uint64 (BUCKETS, 3)."""
    out = one + other
    out[:, 2] += (out[:, 1] < one[:, 1]).astype(np.uint64)
    return out


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))


def _time_text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000).isoformat()
