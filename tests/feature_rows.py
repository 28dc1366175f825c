"""Feature rows and Feast repositories for the tests of what is stored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.records import feature_row_schema
from stores.features import View

REPOSITORY = Path(__file__).parents[1] / "feature_repo"

_SETTINGS = ("FEATURE_SETS_PATH", "FEATURE_SET_VERSION", "FEATURE_WINDOWS", "OFFLINE_DATA_PATH")

SETS = """
[[feature_set]]
name = "room"
version = 1
fields = ["heat"]
windows = ["10s", "1m/10s", "session:30s"]
halflife = "1m"
statistics = ["count", "mean", "last"]
"""
"""A small feature set: three views of three columns each."""


@contextmanager
def no_settings() -> Iterator[None]:
    """Unset what `views.py` reads of the environment, until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _SETTINGS:
            patch.delenv(name, raising=False)
        yield


def room_sets() -> FeatureSets:
    """The feature sets of SETS."""
    return parse_feature_sets(SETS, where="SETS")


def feature_repository(folder: Path, *, sets: str = SETS) -> Path:
    """Copy the project's Feast repository to `folder`/feature_repo, with other feature sets in it."""
    repository = folder / "feature_repo"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    (repository / "feature_sets.toml").write_text(sets, "utf-8")
    return repository


def feature_rows(view: View, rows: Sequence[Mapping[str, object]]) -> pa.RecordBatch:
    """Rows of the view in the schema of the offline store.

    Each row names entity_id, event_time (int64 microseconds) and what differs from the rest: revision
    (default 0), known_at (default event_time) and values by column name (default: count 1, else null). created_at
    is derived.
    """
    schema = feature_row_schema(view.feature_set)
    full = []
    for row in rows:
        event_time, revision = row["event_time"], row.get("revision", 0)
        assert isinstance(event_time, int)
        assert isinstance(revision, int)
        fixed = {
            "window_start": event_time - view.window.size_us,
            "feature_set": view.feature_set.name,
            "version": view.feature_set.version,
            "revision": revision,
            "created_at": event_time + revision,
            "known_at": event_time,
            "retracted": False,
            "content_hash": bytes(16),
        }
        counts = {column: 1 for column in view.columns if column.endswith("__count")}
        full.append({**fixed, **counts, **row})
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in full]
        raw = pa.array(values, pa.int64() if pa.types.is_timestamp(field.type) else field.type)
        columns.append(raw.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_offline(offline: Path, view: View, rows: Sequence[Mapping[str, object]], *, part: str = "part") -> None:
    """Write the rows as the flow does: one Parquet file for each date, in hive folders below `offline`."""
    name, version = view.feature_set.name, view.feature_set.version
    folder = offline / "features" / name / f"v{version}" / f"window={view.window.folder}"
    dates: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        event_time = row["event_time"]
        assert isinstance(event_time, int)
        dates.setdefault(datetime.fromtimestamp(event_time // 1_000_000, UTC).date().isoformat(), []).append(row)
    for date, some in dates.items():
        (folder / f"date={date}").mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_batches([feature_rows(view, some)])
        pq.write_table(table, folder / f"date={date}" / f"{part}.parquet")
