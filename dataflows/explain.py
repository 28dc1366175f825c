"""Why a row is so: its revisions, the events that made it and those that did not count, and the row computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflows.commands import time_text
from dataflows.entity_events import LogPlan, archived_events, is_archived, logged_events
from dataflows.recompute import Feed, Options, recompute
from operators.errors import ConfigError
from operators.feature_sets import FeatureSets
from operators.records import RawChunk
from operators.rows import to_tables
from stores.offline.port import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from operators.feature_sets import FeatureSet, WindowSpec
    from operators.records import RowBlock
    from stores.archive.port import Archive
    from stores.offline.port import OfflineStore


@dataclass(frozen=True, slots=True)
class Place:
    """One window of one feature set."""

    declared: FeatureSet
    window: WindowSpec

    @property
    def text(self) -> str:
        """For sentences."""
        return f"`{self.declared.name}` version {self.declared.version}, window {self.window.text}"

    def selection(self, first: str | None = None) -> Selection:
        """Its rows in the store, from that date on."""
        return Selection(self.declared.name, self.declared.version, self.window.folder, first)


class Row(NamedTuple):
    """A row by its name: where, whose, and the end of its window in microseconds."""

    place: Place
    entity: str
    end: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A row with all that is behind it.

    revisions: `feature_row_schema` columns, oldest first. events, refused: those of its window, in the order in which
    they count. earlier: events before the window that weigh in ewma, ewm_std and zscore. computed: the row computed
    anew, without revision, or None if there is none. source: where the events came from.
    """

    row: Row
    revisions: tuple[dict[str, object], ...]
    events: tuple[dict[str, object], ...]
    refused: tuple[dict[str, object], ...]
    earlier: int
    computed: dict[str, object] | None
    source: str
    bound_us: int

    @property
    def stored(self) -> dict[str, object]:
        """The newest revision."""
        return self.revisions[-1]

    @property
    def start_us(self) -> int:
        """Start of the window."""
        return micros(self.stored["window_start"])

    @property
    def equal(self) -> bool:
        """Whether the row computed anew is the stored one, hash and every value; a retracted one must not come out."""
        if self.stored["retracted"] or self.computed is None:
            return bool(self.stored["retracted"]) and self.computed is None
        return self.stored["content_hash"] == self.computed["content_hash"] and not self.different

    @property
    def different(self) -> dict[str, list[object]]:
        """Columns whose value differs → [stored, computed]."""
        if self.computed is None:
            return {}
        pairs = {c: [self.stored[c], self.computed[c]] for c in self.row.place.declared.columns}
        return {c: pair for c, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}  # so that -0.0 is not 0.0


@dataclass(slots=True)
class _Computed:
    """All rows of one entity and one window, computed anew."""

    rows: pa.Table
    ends: NDArray[np.int64]

    def at(self, end: int) -> dict[str, object] | None:
        found = np.flatnonzero(self.ends == end)
        return self.rows.slice(int(found[0]), 1).to_pylist()[0] if len(found) else None


@dataclass(slots=True)
class Explainer:
    """Explains rows of one history; what it has read it keeps, so many rows cost little more than few."""

    offline: OfflineStore
    archive: Archive
    log: LogPlan
    _events: dict[str, pa.Table] = field(default_factory=dict)
    _computed: dict[tuple[FeatureSet, str], dict[int, _Computed]] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)

    def find(self, place: Place, entity: str, time: int) -> Row:
        """The row whose window ends at that time, else the one that ends first of those that contain it.

        Raises ConfigError with the nearest one if there is none.
        """
        rows = _of_entity(self.offline, place, entity, ["window_start", "event_time"])
        ends = np.unique(_times(rows, "event_time"))
        if time in ends:
            return Row(place, entity, time)
        starts, all_ends = _times(rows, "window_start"), _times(rows, "event_time")
        within = all_ends[(starts <= time) & (time < all_ends)]
        if len(within):
            return Row(place, entity, int(within.min()))
        if len(ends) == 0:
            raise ConfigError(
                f"`{entity}` has no row of {place.text}; is the entity_id right, and has a run closed a window of it?"
                " `headrace features ENTITY` shows what is served"
            )
        near = int(ends[np.argmin(np.abs(ends - time))])
        raise ConfigError(
            f"`{entity}` has no row of {place.text} at {utc_text(time)}; the nearest window ends at"
            f" {utc_text(near)}: --at {utc_text(near)}"
        )

    def explain(self, rows: Sequence[Row]) -> Iterator[Explanation]:
        """Explain rows that exist, each; those of one entity beside each other cost least.

        First by what the archive has; a row that comes out otherwise, or that the archive knows nothing of, by the
        whole log: the archive may lack what was read last, or what was read while it was off.
        """
        wanted = {row.entity for row in rows}
        archived = is_archived(self.archive)
        if archived:
            fresh = wanted - self._events.keys()
            self._events |= archived_events(self.archive, fresh) if fresh else {}
        stored = _Stored(self.offline, rows)
        told = {row: self._explained(row, stored, "archive") for row in rows} if archived else {}
        again = {row.entity for row in rows if row not in told or not told[row].equal} - self._whole
        if again:
            self._events |= logged_events(self.log, self.archive, again)
            self._whole |= again
            self._computed = {key: some for key, some in self._computed.items() if key[1] not in again}
        for row in rows:
            source = ("archive, then bus" if archived else "bus") if row.entity in self._whole else "archive"
            yield self._explained(row, stored, source) if row.entity in self._whole else told[row]

    def _explained(self, row: Row, stored: _Stored, source: str) -> Explanation:
        revisions = stored.revisions(row)
        events = self._events[row.entity]
        start = micros(revisions[-1]["window_start"])
        computed = self._compute(row.place.declared, row.entity).get(row.place.declared.windows.index(row.place.window))
        times = _times(events, "event_time")
        accepted = pc.not_equal(events["verdict"], "late").to_numpy()
        used, refused = _within(row, events.filter(pa.array((times >= start) & (times < row.end))))
        return Explanation(
            row,
            revisions,
            used,
            refused,
            int(np.count_nonzero(accepted & (times < start))),
            None if computed is None else computed.at(row.end),
            source,
            self.log.bound_us,
        )

    def _compute(self, declared: FeatureSet, entity: str) -> dict[int, _Computed]:
        """All rows of an entity, by the number of their window, as a batch gives them in which nothing is late."""
        known = self._computed.get((declared, entity))
        if known is not None:
            return known
        events = self._events[entity]
        events = events.filter(pc.not_equal(events["verdict"], "late"))
        rows = _Rows()
        options = Options(shards=1, bound_us=self.log.bound_us, event_bytes_max=self.log.event_bytes_max, threads=1)
        sets = FeatureSets((declared,))
        feeds = [Feed(chunk.partition, lambda chunk=chunk: _Given(chunk)) for chunk in _chunks(events)]  # type: ignore[misc]  # bound now
        if feeds:
            recompute(sets, feeds, options, rows)
        tables: dict[int, list[pa.Table]] = {}
        for spec, _, table in to_tables(rows.blocks, declared) if rows.blocks else ():
            tables.setdefault(spec, []).append(table)
        out = {}
        for spec, some in tables.items():
            joined = pa.concat_tables(some)
            out[spec] = _Computed(joined, _times(joined, "event_time"))
        self._computed[declared, entity] = out
        return out


class _Stored:
    """The revisions of some rows, read once."""

    def __init__(self, offline: OfflineStore, rows: Iterable[Row]) -> None:
        self._found: dict[Row, list[dict[str, object]]] = {row: [] for row in rows}
        by_place: dict[Place, list[Row]] = {}
        for row in self._found:
            by_place.setdefault(row.place, []).append(row)
        for place, mine in by_place.items():
            names = pa.array(sorted({r.entity for r in mine}), pa.string())
            ends = pa.array(sorted({r.end for r in mine}), pa.int64())
            dates = [
                str(np.datetime64(end, "us").astype("datetime64[D]")) for end in (ends[0].as_py(), ends[-1].as_py())
            ]
            some = Selection(place.declared.name, place.declared.version, place.window.folder, *dates)
            for _, table in offline.scan(some):
                entity = pc.is_in(table["entity_id"].cast(pa.string()), value_set=names)
                taken = table.filter(pc.and_(entity, pc.is_in(table["event_time"].cast(pa.int64()), value_set=ends)))
                for record, end in zip(taken.to_pylist(), _times(taken, "event_time").tolist(), strict=True):
                    row = Row(place, str(record["entity_id"]), end)
                    if row in self._found:
                        self._found[row].append(record)

    def revisions(self, row: Row) -> tuple[dict[str, object], ...]:
        """Oldest first. Raises ConfigError if there are none."""
        found = sorted(self._found[row], key=lambda record: int(str(record["revision"])))
        if not found:
            raise ConfigError(f"`{row.entity}` has no row of {row.place.text} that ends at {utc_text(row.end)}")
        return tuple(found)


class _Rows:
    """A sink that keeps all rows."""

    def __init__(self) -> None:
        self.blocks: list[RowBlock] = []

    def begin(self) -> None:
        self.blocks = []

    def take(self, shard: int, blocks: list[RowBlock]) -> None:
        del shard
        self.blocks += blocks


class _Given:
    """Messages that are at hand."""

    def __init__(self, chunk: RawChunk) -> None:
        self._chunk = chunk
        self._at = 0

    def poll(self, events_max: int) -> RawChunk | None:
        some = slice(self._at, self._at + events_max)
        chunk = self._chunk
        self._at += events_max
        part = RawChunk(chunk.partition, chunk.data, chunk.starts[some], chunk.lengths[some], chunk.offsets[some])
        return part if len(part.offsets) else None

    def close(self) -> None:
        """Nothing is open."""


def _chunks(events: pa.Table) -> list[RawChunk]:
    """The messages, as one chunk a partition in the order of its log."""
    events = events.sort_by([("partition", "ascending"), ("offset", "ascending")])
    names = events["partition"].to_pylist()
    values = events["value"].to_pylist()
    offsets = events["offset"].to_numpy()
    out = []
    edges = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    for begin, end in pairwise([*edges, len(names)]):
        lengths = np.array([len(v) for v in values[begin:end]], np.int64)
        data = np.frombuffer(b"".join(values[begin:end]), np.uint8)
        out.append(RawChunk(names[begin], data, np.cumsum(lengths) - lengths, lengths, offsets[begin:end]))
    return out


def _within(row: Row, events: pa.Table) -> tuple[tuple[dict[str, object], ...], tuple[dict[str, object], ...]]:
    """The events of the row's window that were used, and those that were not, each with its values of the set."""
    from operators.decode import Decoder

    declared = row.place.declared
    told: dict[tuple[str, int], list[int]] = {}  # those of one message in the order of their rows
    for i, at in enumerate(zip(events["partition"].to_pylist(), events["offset"].to_pylist(), strict=True)):
        told.setdefault(at, []).append(i)
    words = events.select(["verdict", "reason", "known_at"]).to_pylist()
    found = []
    for chunk in _chunks(events):
        decoded = Decoder(FeatureSets((declared,))).decode(chunk)
        batch = decoded.batch
        first = np.searchsorted(chunk.offsets, chunk.offsets)
        for i in np.flatnonzero(batch.sets & np.uint64(1)).tolist():
            index = int(decoded.index[i])
            said = words[told[chunk.partition, int(batch.offset[i])][index - int(first[index])]]
            place = (chunk.partition, int(batch.offset[i]))
            values = {
                f: None if np.isnan(v) else float(v) for f, v in zip(declared.fields, batch.values[i], strict=True)
            }
            found.append((int(batch.event_time[i]), int(batch.sequence[i]), *place, values, said))
    found.sort(key=lambda e: e[:4])
    counting = [e for e in found if e[5]["verdict"] != "late"]
    winners = {e[:2]: e for e in counting}
    used: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    for event in found:
        time, sequence, partition, offset, values, said = event
        winner = winners.get((time, sequence))
        verdict, reason = str(said["verdict"]), said["reason"]
        if verdict != "late" and winner is not event:
            assert winner is not None  # it is one of those that count
            verdict = said["verdict"] if said["verdict"] != "used" else _repeat(values, winner[4])
            reason = f"same key as {winner[2]}@{winner[3]}"
        elif verdict != "late":
            verdict = "used"
        record = {
            "partition": partition,
            "offset": offset,
            "event_time": utc_text(time),
            "sequence": sequence,
            "verdict": verdict,
            "reason": reason,
            "known_at": None if said["known_at"] is None else utc_text(micros(said["known_at"])),
            "values": values,
        }
        (used if verdict == "used" else refused).append(record)
    return tuple(used), tuple(refused)


def _repeat(values: object, winner: object) -> str:
    return "duplicate" if values == winner else "conflict"


def _of_entity(offline: OfflineStore, place: Place, entity: str, columns: list[str]) -> pa.Table:
    """These columns of all revisions of the entity's rows."""
    found = []
    for _, table in offline.scan(place.selection(), columns=["entity_id", *columns]):
        found.append(table.filter(pc.equal(table["entity_id"].cast(pa.string()), entity)).select(columns))
    if not found:
        return pa.table({c: pa.array([], pa.timestamp("us", tz="UTC")) for c in columns})
    return pa.concat_tables(found)


def _times(table: pa.Table, column: str) -> NDArray[np.int64]:
    times: NDArray[np.int64] = table[column].cast(pa.int64()).to_numpy()
    return times


def micros(value: object) -> int:
    """Microseconds of a time as Arrow gives it."""
    return int(pa.scalar(value, pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py())


def utc_text(time_us: int) -> str:
    """RFC 3339, with `Z`."""
    return time_text(time_us).replace("+00:00", "Z")
