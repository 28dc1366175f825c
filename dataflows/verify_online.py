"""Values that are served against the newest rows of the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dataflows.verify_rows import Difference
from dataflows.wiring import features_of
from operators.digests import BUCKETS, buckets_of, entity_names
from operators.rows import newest, to_tables
from stores.features.port import View
from stores.offline.port import PartitionKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor
    from datetime import datetime

    from numpy.typing import NDArray

    from dataflows.config import Settings
    from dataflows.run_state import RunState
    from operators.feature_sets import FeatureSet, FeatureSets, WindowSpec
    from stores.features.port import Features, OnlineRow

ENTITIES_MAX = 20_000
"""Of a view with more entities a part is compared, the same one each time."""

_SECOND_US = 1_000_000
_DAY_US = 86_400_000_000

Of = tuple["FeatureSet", "WindowSpec"]
"""A window of a feature set."""


class OnlineLook:
    """Gathers the newest rows of the history while it is read, then compares them with what is served.

    Windows may be looked at in several threads, each in one.
    """

    def __init__(self, settings: Settings, sets: FeatureSets, state: RunState, threads: ThreadPoolExecutor) -> None:
        """state: what it says is on its way to the online store is not compared. threads: have the store opened."""
        self._on = settings.online_store != "none"
        self._newest: dict[Of, pa.Table] = {}
        self._buckets: dict[Of, int] = {}
        self._on_the_way = _entities(state) if self._on else {}
        self._features = threads.submit(features_of, settings, sets)

    def check(self) -> None:
        """Raise what opening the store has met."""
        self._features.result()

    def close(self) -> None:
        """Close the store, if it was opened; the threads have ended."""
        if self._features.cancelled() or self._features.exception() is not None:
            return
        if (features := self._features.result()) is not None:
            features.close()

    def note(self, of: Of, rows: pa.Table) -> None:
        """Take rows of the history of one window."""
        if not self._on or rows.num_rows == 0:
            return
        buckets = self._buckets.setdefault(of, BUCKETS)
        mine = _newest(_of_buckets(rows, buckets))
        if of in self._newest:
            mine = _newest(pa.concat_tables([self._newest[of], mine]))
        while buckets > 1 and mine.num_rows > 2 * ENTITIES_MAX:
            buckets //= 2
            mine = _of_buckets(mine, buckets)
        self._newest[of], self._buckets[of] = mine, buckets

    def differences(self, of: Of) -> tuple[list[Difference], int]:
        """What differs in a window, and how many rows were compared."""
        features = self._features.result()
        if features is None or of not in self._newest:
            return [], 0
        found: list[Difference] = []
        compared = 0
        on_the_way = self._on_the_way.get((of[0].name, of[0].version, of[1].folder), frozenset())
        for difference in self._compare(features, View(*of), self._newest[of], on_the_way):
            if difference is None:
                compared += 1
            else:
                found.append(difference)
        return found, compared

    def _compare(
        self, features: Features, view: View, rows: pa.Table, on_the_way: frozenset[str]
    ) -> Iterator[Difference | None]:
        """Yield a None for each entity that is compared, and what differs."""
        alike = ~rows["retracted"].to_numpy()
        if alike.any():
            alike[alike] = ~features.unlike(view, rows.filter(pa.array(alike)).combine_chunks().to_batches()[0])
        yield from [None] * int(alike.sum())
        others = rows.filter(pa.array(~alike)).to_pylist()
        served = [row for row in others if row["entity_id"] not in on_the_way]
        gone = {(r["entity_id"], _us(r["event_time"])) for r in served if r["retracted"]}
        alive = [r for r in served if not r["retracted"]]
        there = features.read(view, [r["entity_id"] for r in alive])
        for row, online in zip(alive, there, strict=True):
            yield None
            if online is None or (row["entity_id"], online.event_time_us) not in gone:
                yield from _differ(view, row, online)


def _differ(view: View, row: dict[str, Any], online: OnlineRow | None) -> Iterator[Difference]:
    time_us, entity = _us(row["event_time"]), str(row["entity_id"])
    key = PartitionKey(
        view.feature_set.name, view.feature_set.version, view.window.folder, str(np.datetime64(time_us // _DAY_US, "D"))
    )
    if online is None:
        yield Difference("not online", key, entity, time_us, detail="the newest row of the entity is not served")
        return
    if online.event_time_us not in (time_us, time_us // _SECOND_US * _SECOND_US):
        older = online.event_time_us < time_us
        word = "stale" if older else "not in the history"
        yield Difference(
            word,
            key,
            entity,
            time_us,
            "event_time",
            _text(online.event_time_us),
            _text(time_us),
            "a row of another time is served; stored: what is served, recomputed: what the history says",
        )
        return
    for name in view.columns:
        if row[name] != online.values[name]:
            yield Difference(
                "online value",
                key,
                entity,
                time_us,
                name,
                online.values[name],
                row[name],
                "stored: what is served, recomputed: what the history says",
            )


def _newest(rows: pa.Table) -> pa.Table:
    """Of each entity the newest row that is not retracted and the newest one that is."""
    ids = rows["entity_id"].combine_chunks().dictionary_encode()
    code = ids.indices.to_numpy() * 2 + rows["retracted"].to_numpy()
    revision = rows["revision"].to_numpy()
    time = rows["event_time"].cast(pa.int64()).to_numpy()
    order = np.lexsort((revision, time, code))
    last = np.append(np.diff(code[order]) != 0, True)
    return rows.take(pa.array(order[last]))


def _of_buckets(rows: pa.Table, buckets: int) -> pa.Table:
    if buckets == BUCKETS:
        return rows
    mask: NDArray[np.bool_] = buckets_of(entity_names(rows)) < buckets
    return rows.filter(pa.array(mask))


def _entities(state: RunState) -> dict[tuple[str, int, str], frozenset[str]]:
    """Entities of which a row is on its way, by set, version and window."""
    out: dict[tuple[str, int, str], set[str]] = {}
    for index, declared in enumerate(() if state.sets is None else state.sets.sets):
        mine = [b for b in state.serving if b.set_index == index]
        for spec, _, table in to_tables([newest(mine)] if mine else [], declared):
            place = (declared.name, declared.version, declared.windows[spec].folder)
            out.setdefault(place, set()).update(table["entity_id"].to_pylist())
    return {place: frozenset(names) for place, names in out.items()}


def _us(time: datetime) -> int:
    """Microseconds since the epoch."""
    return int(np.datetime64(time.replace(tzinfo=None), "us").astype(np.int64))


def _text(time_us: int) -> str:
    return f"{np.datetime64(time_us, 'us')}+00:00"
