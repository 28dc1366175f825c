"""Two offline stores over one registry, Feast's own and ours, and rows for both to join."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from feast import FeatureStore

OURS, FEASTS = "stores.features.asof.AsofOfflineStore", "duckdb"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMESTAMP = pa.timestamp("us", tz="UTC")
HEAT = 'heat"; DROP TABLE entity; --'
"""A feature whose name has to be quoted."""


def at(second: float) -> datetime:
    """So many seconds after the start."""
    return START + timedelta(seconds=second)


@dataclass(frozen=True, slots=True)
class Place:
    """Two stores over one registry, and the folders that their views read."""

    ours: FeatureStore
    feasts: FeatureStore
    rooms: Path
    pairs: Path

    def write(self, rooms: pa.Table, pairs: pa.Table | None = None, *, part: str = "part") -> None:
        """Put the tables where the views read; without `part` instead of what was there."""
        for folder, table in ((self.rooms, rooms), (self.pairs, pairs)):
            if table is None:
                continue
            if part == "part":
                shutil.rmtree(folder, ignore_errors=True)
            (folder / "date=2026-03-01").mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / "date=2026-03-01" / f"{part}.parquet")


def new_place(folder: Path) -> Place:
    """Views with and without ttl, with one key, two and none, with renamed columns, and one on demand."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64, Int64, String

    room = Entity(name="room", join_keys=["entity_id"], value_type=ValueType.STRING)
    floor = Entity(name="floor", join_keys=["floor_id"], value_type=ValueType.INT64)

    def view(name: str, at: str, ttl: int, entities: Sequence[Entity] = (room,), **source: Any) -> FeatureView:  # noqa: ANN401
        keys = [Field(name=e.join_key, dtype=String if e is room else Int64) for e in entities]
        values = [Field(name=HEAT, dtype=Float64), Field(name="n" if source else "count", dtype=Int64)]
        files = FileSource(
            name=f"{name}_files",
            path=str(folder / at),
            file_format=ParquetFormat(),
            timestamp_field="event_time",
            created_timestamp_column="created_at",
            **source,
        )
        return FeatureView(
            name=name, entities=list(entities), schema=[*keys, *values], source=files, ttl=timedelta(seconds=ttl)
        )

    ever = view("ever", "rooms", 0)
    views = [
        ever,
        view("short", "rooms", 3, field_mapping={"count": "n"}),
        view("pair", "pairs", 86_400, (room, floor)),
        view("anywhere", "rooms", 5, ()),
    ]

    @on_demand_feature_view(sources=[ever], schema=[Field(name="twice", dtype=Int64)], mode="pandas")
    def doubled(inputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # Feast evaluates what it finds here
        return inputs[["count"]].astype("Int64").rename(columns={"count": "twice"}) * 2

    stores = []
    for kind in (OURS, FEASTS):
        store = opened(folder, kind)
        store.apply([room, floor, *views, doubled])
        stores.append(store)
    made = Place(stores[0], stores[1], folder / "rooms", folder / "pairs")
    made.write(rooms_table([("a", 0, 0, 1.0)]), pairs_table([]))
    return made


def opened(folder: Path, kind: str) -> FeatureStore:
    """A feature store with its files in the folder and an offline store of this type."""
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    online = {"type": "sqlite", "path": str(folder / "online.db")}
    return FeatureStore(
        config=RepoConfig(
            project="asof",
            registry=str(folder / "registry.db"),
            provider="local",
            online_store=online,
            offline_store={"type": kind},
            entity_key_serialization_version=3,
            repo_path=str(folder),
        )
    )


Row = tuple[str | None, int, int | None, float | None]
"""Entity, event_time and created_at in seconds, value."""


def rooms_table(rows: Sequence[Row]) -> pa.Table:
    """Rows that know no revisions; `count` is the row's place."""
    return pa.table(
        {
            "entity_id": pa.array([row[0] for row in rows], pa.string()),
            "event_time": pa.array([at(row[1]) for row in rows], TIMESTAMP),
            "created_at": pa.array([None if row[2] is None else at(row[2]) for row in rows], TIMESTAMP),
            HEAT: pa.array([row[3] for row in rows], pa.float64()),
            "count": pa.array(range(len(rows)), pa.int64()),
        }
    )


def pairs_table(rows: Sequence[Row]) -> pa.Table:
    """The same, of one of two floors each."""
    floors = pa.array([(row[1] + (row[2] or 0)) % 2 for row in rows], pa.int64())
    return rooms_table(rows).append_column("floor_id", floors)


def frame(rows: Sequence[Mapping[str, object]]) -> Any:  # noqa: ANN401  # pandas carries no types here
    """The rows as people hand them to Feast."""
    import pandas as pd

    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision, times in seconds."""

    entity: str
    event_time: int
    number: int
    known_at: int
    value: float
    retracted: bool = False


def revisions_table(rows: Sequence[Revision]) -> pa.Table:
    """The rows with the columns that say when each became known and which are retracted."""
    created = [at(row.event_time) + timedelta(microseconds=row.number) for row in rows]
    table = rooms_table([(row.entity, row.event_time, None, row.value) for row in rows])
    table = table.set_column(2, "created_at", pa.array(created, TIMESTAMP))
    return (
        table.append_column("known_at", pa.array([at(row.known_at) for row in rows], TIMESTAMP))
        .append_column("supersedes", pa.array([bytes(16) if row.number else None for row in rows], pa.binary(16)))
        .append_column("cause", pa.array(["late" if row.number else None for row in rows], pa.string()))
        .append_column("retracted", pa.array([row.retracted for row in rows], pa.bool_()))
    )
