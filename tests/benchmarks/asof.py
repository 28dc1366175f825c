"""The point-in-time join measured beside that of Feast's DuckDB store: `python -m tests.benchmarks.asof`.

Feast's store pairs every entity row with every earlier row of its entity: 50,000 entity rows over 900,000
feature rows of 500 entities take more than a minute and 16 GB, more than many machines have. So it is
measured at 10,000 entity rows, unless asked for `--full`, and ours at both: Feast's cost grows with the
entity rows, ours hardly does, so the ratio at full size is about five times the one at a fifth of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.asof_stores import FEASTS, OURS, START, TIMESTAMP, opened
from tests.benchmarks.fresh import measure

if TYPE_CHECKING:
    from feast import FeatureStore

HERE = "tests.benchmarks.asof"
FEATURE_ROWS = 900_000
ENTITIES = 500
ENTITY_ROWS = 50_000
FEASTS_ENTITY_ROWS = 10_000
COLUMNS = [f"f{field}__s{statistic}" for field in range(3) for statistic in range(11)]
_STEP_US = 10_000_000
_FILES = 16
_CORRECTED = 0.01
_RETRACTED = 0.1


@dataclass(frozen=True, slots=True)
class AsofFigures:
    """One join measured. known: what the entity rows see, as the function `join` takes it."""

    store: str
    known: str
    entities: int
    entity_rows: int
    seconds: float
    peak_mib: float


def write_history(folder: Path, entities: int, rows: int = FEATURE_ROWS) -> None:
    """Rows of the entities at every ten seconds, 33 features wide; of one in a hundred there is a correction."""
    chance = np.random.default_rng(0)
    place = np.arange(rows)
    corrected = chance.choice(rows, int(rows * _CORRECTED), replace=False)
    place = np.concatenate([place, corrected])
    revision = np.repeat([0, 1], [rows, len(corrected)])
    event_us = int(START.timestamp()) * 1_000_000 + (place // entities + 1) * _STEP_US
    delay_us = revision * chance.integers(1, 60, len(place)) * 1_000_000
    causes = pa.array([None, "late signals-0@1"])
    table = pa.table(
        {
            "entity_id": pa.array([f"device-{n:06d}" for n in range(entities)]).take(pa.array(place % entities)),
            "event_time": pa.array(event_us).cast(TIMESTAMP),
            "created_at": pa.array(event_us + revision).cast(TIMESTAMP),
            "known_at": pa.array(event_us + delay_us).cast(TIMESTAMP),
            "supersedes": pa.array([None, bytes(16)], pa.binary(16)).take(pa.array(revision)),
            "cause": causes.take(pa.array(revision)),
            "retracted": pa.array((revision == 1) & (chance.random(len(place)) < _RETRACTED)),
            **{column: chance.standard_normal(len(place)) for column in COLUMNS},
        }
    ).sort_by("created_at")
    folder.mkdir(parents=True)
    share = -(-len(table) // _FILES)
    for n in range(_FILES):
        pq.write_table(table.slice(n * share, share), folder / f"{n:02d}.parquet")


def join(
    folder: str, store: str, known: str, entities: int, entity_rows: int, feature_rows: int = FEATURE_ROWS
) -> tuple[int, float]:
    """Ask once for all features of `entity_rows` random moments: (rows answered, seconds).

    known: "now", "then" (each row what was known at its own moment) or "date" (at the middle of the span).
    """
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as registry:
        features = _registered(Path(registry), folder, store)
        span_us = feature_rows // entities * _STEP_US
        _answered(features, _asked(entities, 10, span_us, known))  # imports and connections are not the join
        asked = _asked(entities, entity_rows, span_us, known)
        start = perf_counter()
        answer = _answered(features, asked)
        return len(answer), perf_counter() - start


def _registered(place: Path, folder: str, kind: str) -> FeatureStore:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float64, String

    entity = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.STRING)
    source = FileSource(
        name="files",
        path=folder,
        file_format=ParquetFormat(),
        timestamp_field="event_time",
        created_timestamp_column="created_at",
    )
    fields = [Field(name="entity_id", dtype=String), *(Field(name=column, dtype=Float64) for column in COLUMNS)]
    view = FeatureView(name="view", entities=[entity], schema=fields, source=source, ttl=timedelta(days=36_500))
    store = opened(place, kind)
    store.apply([entity, view])
    return store


def _asked(entities: int, count: int, span_us: int, known: str) -> Any:  # noqa: ANN401  # pandas carries no types here
    import pandas as pd

    chance = np.random.default_rng(1)
    moments = START + pd.to_timedelta(chance.integers(0, span_us, count), unit="us")
    names = [f"device-{n:06d}" for n in chance.integers(0, entities, count)]
    asked = pd.DataFrame({"entity_id": names, "event_timestamp": moments})
    match known:
        case "then":
            asked["known_at"] = moments
        case "date":
            asked["known_at"] = START + timedelta(microseconds=span_us // 2)
    return asked


def _answered(store: FeatureStore, asked: Any) -> pa.Table:  # noqa: ANN401  # a frame
    return store.get_historical_features(asked, [f"view:{column}" for column in COLUMNS]).to_arrow()


def measure_asof(*, full: bool = False) -> Iterator[AsofFigures]:
    """Each store and way of reading in a process of its own; full: Feast's store at full size too."""
    feasts_rows = ENTITY_ROWS if full else FEASTS_ENTITY_ROWS
    cases = [
        (OURS, "now", ENTITIES, feasts_rows),
        (FEASTS, "now", ENTITIES, feasts_rows),
        *((OURS, known, ENTITIES, ENTITY_ROWS) for known in ("now", "date", "then")),
        *((OURS, known, ENTITIES // 50, ENTITY_ROWS) for known in ("now", "then")),
    ]
    with tempfile.TemporaryDirectory() as place:
        for store, known, entities, entity_rows in dict.fromkeys(cases):
            folder = Path(place) / str(entities)
            if not folder.exists():
                write_history(folder, entities)
            found = measure(
                f"{HERE}:join", folder=str(folder), store=store, known=known, entities=entities, entity_rows=entity_rows
            )
            yield AsofFigures(store, known, entities, entity_rows, found.seconds, found.peak_bytes / 2**20)


def measure_joins(*, full: bool = False) -> str:
    """The section of RESULTS.md. full: Feast's store at 50,000 entity rows too, which needs 20 GB."""
    lines = [
        "\n## Point-in-time joins\n",
        (
            f"`get_historical_features` over {FEATURE_ROWS:,} feature rows, {len(COLUMNS)} features, corrections of"
            f" {_CORRECTED:.0%} of the rows: our offline store beside Feast's DuckDB store, each in a fresh process."
            " *known*: the rows as they are known now, as they were on a date, or as they were when each was asked"
            " for.\n"
        ),
        "| store | known | entities | earlier rows each | entity rows | s | peak MiB |\n|---|---|--:|--:|--:|--:|--:|",
    ]
    seconds: dict[tuple[str, int], float] = {}
    for x in measure_asof(full=full):
        seconds.setdefault((x.store, x.entity_rows), x.seconds)
        name = "ours" if x.store == OURS else "Feast's"
        earlier = FEATURE_ROWS // x.entities
        lines.append(
            f"| {name} | {x.known} | {x.entities:,} | {earlier:,} | {x.entity_rows:,} | {x.seconds:.2f} |"
            f" {x.peak_mib:,.0f} |"
        )
    lines += [
        f"\nFeast's / ours at {rows:,} entity rows: {time_s / seconds[OURS, rows]:.0f} ×"
        for (store, rows), time_s in seconds.items()
        if store == FEASTS
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.asof", description=__doc__)
    options.add_argument("--full", action="store_true", help="Feast's store at 50,000 entity rows too (needs 20 GB)")
    sys.stdout.write(measure_joins(full=options.parse_args().full))


if __name__ == "__main__":
    main()
