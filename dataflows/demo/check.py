"""Holds what the runs wrote against each other and against the story; whatever differs is an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataflows.commands import letters
from dataflows.config import Settings
from dataflows.demo.picture import ANOMALY
from dataflows.late_commands import late_events
from dataflows.wiring import offline_of
from operators.errors import HeadraceError
from operators.hashes import digest
from operators.rows import hash_table
from stores.features import View, views_of
from stores.offline.port import Selection

History = Mapping[View, pa.Table]
"""Rows of every view, sorted by (entity_id, event_time)."""

_OF_ONE_ENTITY_MAX = 4


@dataclass(frozen=True, slots=True)
class Proof:
    """Rows of one view, and the digest that live and batch share: hex, 32 digits."""

    view: View
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A value far from what was usual before it. event_time_us: when its window ended, so when it was known."""

    view: View
    entity_id: str
    event_time_us: int
    field: str
    last: float
    zscore: float


def read_history(settings: Settings) -> History:
    """Read every row of the feature history."""
    history: dict[View, pa.Table] = {}
    with closing(offline_of(settings)) as store:
        for view in views_of(settings.feature_sets()):
            declared = view.feature_set
            which = Selection(feature_set=declared.name, version=declared.version, window=view.window.folder)
            tables = [table for _, table in store.scan(which)]
            if not tables:
                raise HeadraceError(f"no row of the window {view.window.text} of `{declared.name}` was written")
            order = [("entity_id", "ascending"), ("event_time", "ascending")]
            history[view] = pa.concat_tables(tables).sort_by(order).combine_chunks()
    return history


def check_counts(run: str, found: Mapping[str, object], expected: Mapping[str, int]) -> None:
    """Raise HeadraceError unless the run's summary is what the story holds."""
    wrong = [f"{name} {found[name]} and not {count}" for name, count in expected.items() if found[name] != count]
    if wrong:
        raise HeadraceError(f"the {run} run does not agree with the demo's story: it counts {', '.join(wrong)}")


def check_set_aside(settings: Settings, expected: Mapping[str, int]) -> None:
    """Raise HeadraceError unless each late and each broken event can be found where it was put."""
    found = {"late": late_events(settings, limit=0)[1], "dead": letters(settings, limit=1, reason=None)[1]}
    check_counts("live", found, {name: expected[name] for name in found})


def prove_equal(live: History, batch: History) -> list[Proof]:
    """Compare the digests of every view, from hashes that are computed anew from the rows' own values.

    Raises HeadraceError naming a view whose rows differ, or do not carry the hash of their values.
    """
    proofs = []
    for view, table in live.items():
        ours, theirs = (_digest(view, rows) for rows in (table, batch[view]))
        if ours != theirs:
            raise HeadraceError(f"live and batch differ in `{view.name}`: digest {ours:032x} and {theirs:032x}")
        proofs.append(Proof(view, table.num_rows, f"{ours:032x}"))
    return proofs


def _digest(view: View, table: pa.Table) -> int:
    hashes = hash_table(table, view.feature_set, view.window)
    if hashes.tobytes() != b"".join(table["content_hash"].to_pylist()):
        raise HeadraceError(f"a row of `{view.name}` does not carry the hash of its values")
    return digest(hashes)


def strongest(history: History) -> list[Anomaly]:
    """The strongest anomalies of each entity in tumbling windows, by size of the z-score.

    Of the fields of one window only the one that stands out most.
    """
    best: dict[tuple[View, str, int], Anomaly] = {}
    for view, table in history.items():
        if view.window.session or view.window.panes > 1:
            continue
        for field in view.feature_set.fields:
            for anomaly in _anomalies(view, table, field):
                window = (view, anomaly.entity_id, anomaly.event_time_us)
                if window not in best or abs(anomaly.zscore) > abs(best[window].zscore):
                    best[window] = anomaly
    order = sorted(best.values(), key=lambda a: (-abs(a.zscore), a.event_time_us, a.entity_id))
    seen: Counter[str] = Counter()
    kept = []
    for anomaly in order:
        seen[anomaly.entity_id] += 1
        if seen[anomaly.entity_id] <= _OF_ONE_ENTITY_MAX:
            kept.append(anomaly)
    return kept


def _anomalies(view: View, table: pa.Table, field: str) -> list[Anomaly]:
    zscore = np.nan_to_num(table[f"{field}__zscore"].to_numpy())
    rows = table.take(pa.array(np.flatnonzero(np.abs(zscore) > ANOMALY)))
    times_us = rows["event_time"].cast(pa.int64()).to_pylist()
    columns = (rows[name].to_pylist() for name in ("entity_id", f"{field}__last", f"{field}__zscore"))
    return [Anomaly(view, e, t, field, last, z) for t, e, last, z in zip(times_us, *columns, strict=True)]
