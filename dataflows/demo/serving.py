"""What a user of Feast does with the rows: materialize, read online, read by point in time; each answer checked."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dataflows.demo.check import Anomaly, History
from operators.errors import HeadraceError
from stores.features import View

if TYPE_CHECKING:  # importing Feast takes seconds
    from feast import FeatureStore

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP_US = 1
_ASKED = ("last", "zscore")

Value = float | int | None


@dataclass(frozen=True, slots=True)
class Served:
    """The newest row of an entity in one view as Feast serves it; values by column name."""

    view: View
    entity_id: str
    event_time_us: int
    values: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What Feast answers for a microsecond before an anomaly was known, and for that moment itself."""

    anomaly: Anomaly
    last_before: Value
    last_then: Value


class Serving:
    """Feast over the demo's repository, as any user opens it."""

    def __init__(self, repository: Path) -> None:
        """Open the repository."""
        with _silent():
            from feast import FeatureStore

            self._store: FeatureStore = FeatureStore(repo_path=str(repository))

    @property
    def online_store(self) -> str:
        """Which online store serves, as `feature_store.yaml` names it."""
        return str(self._store.config.online_store.type)

    def materialize(self, history: History) -> None:
        """Bring the newest rows of the history online; both ends of the span are in the time of the data."""
        times_us = np.concatenate([t["event_time"].cast(pa.int64()).to_numpy() for t in history.values()])
        with _silent():
            self._store.materialize(moment(int(times_us.min())), moment(int(times_us.max())))

    def read_online(self, history: History) -> list[Served]:
        """Read all features of every entity.

        Raises HeadraceError unless every value is, to the bit, that of the newest row of the history.
        """
        served: list[Served] = []
        for view, table in history.items():
            for entity, row in _newest(table).items():
                values = self._online(view, entity)
                _check(f"the online features of `{entity}` in `{view.name}`", values, row)
                served.append(Served(view, entity, _microseconds(row["event_time"]), values))
        return served

    def look_back(self, history: History, anomalies: Sequence[Anomaly]) -> list[Remembered]:
        """Ask by point in time for the moment at which each anomaly was known, and for just before it.

        Raises HeadraceError unless the answers are the anomaly's row and the one before it.
        """
        return [self._look_back(history[anomaly.view], anomaly) for anomaly in anomalies]

    def _online(self, view: View, entity: str) -> dict[str, Value]:
        with _silent():
            references = [f"{view.name}:{column}" for column in view.columns]
            answer = self._store.get_online_features(references, [{"entity_id": entity}]).to_dict()
        return {column: answer[column][0] for column in view.columns}

    def _look_back(self, table: pa.Table, anomaly: Anomaly) -> Remembered:
        moments = (anomaly.event_time_us - _STEP_US, anomaly.event_time_us)
        columns = [f"{anomaly.field}__{statistic}" for statistic in _ASKED]
        table = table.select(["entity_id", "event_time", *columns])
        answers = self._history(anomaly.view, anomaly.entity_id, moments, columns)
        for asked_us, answer in zip(moments, answers, strict=True):
            row = _row_at(table, anomaly.entity_id, asked_us)
            what = f"the answer for `{anomaly.entity_id}` at {moment(asked_us).isoformat()} in `{anomaly.view.name}`"
            _check(what, answer, row)
        before, then = (answer[columns[0]] for answer in answers)
        return Remembered(anomaly, before, then)

    def _history(
        self, view: View, entity: str, moments_us: Sequence[int], columns: Sequence[str]
    ) -> list[dict[str, Value]]:
        """Values for each moment, in the order of `moments_us`, which rise."""
        with _silent():
            import pandas as pd

            questions = pd.DataFrame({"entity_id": entity, "event_timestamp": [moment(m) for m in moments_us]})
            references = [f"{view.name}:{column}" for column in columns]
            answer = self._store.get_historical_features(questions, references).to_arrow().sort_by("event_timestamp")
        return [{c: row[c] for c in columns} for row in answer.to_pylist()]


def _newest(table: pa.Table) -> dict[str, dict[str, Any]]:
    """The last row of each entity; the table is sorted by entity and time."""
    entities = table["entity_id"].to_numpy()
    last = np.flatnonzero(np.append(entities[1:] != entities[:-1], True))
    return {row["entity_id"]: row for row in table.take(pa.array(last)).to_pylist()}


def _row_at(table: pa.Table, entity: str, moment_us: int) -> Mapping[str, Any]:
    """What was known of the entity at that moment, by a plain search; {} for nothing."""
    rows = [r for r in table.to_pylist() if r["entity_id"] == entity and _microseconds(r["event_time"]) <= moment_us]
    return rows[-1] if rows else {}


def _check(what: str, found: Mapping[str, Value], row: Mapping[str, Any]) -> None:
    """Raise HeadraceError unless Feast's values are the row's own; Feast gives null or NaN for null."""
    for column, value in found.items():
        known = None if value is None or value != value else value  # noqa: PLR0124  # NaN
        if known != row.get(column):
            raise HeadraceError(f"{what} are not those of the history: {column} is {value}, not {row.get(column)}")


def moment(time_us: int) -> datetime:
    """The time in UTC."""
    return _EPOCH + timedelta(microseconds=time_us)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


@contextmanager
def _silent() -> Iterator[None]:
    """Feast prints what it does on both streams; the demo says it in its own words."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
