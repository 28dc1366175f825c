"""Everything that Feast knows of Headrace, built from `feature_sets.toml`.

`feast -c feature_repo apply` imports this file as a top-level module and registers what stands at module
level. Environment: FEATURE_SETS_PATH, OFFLINE_DATA_PATH, FEATURE_WINDOWS, FEATURE_SET_VERSION; relative
paths start at the project's root, the folder above this one, because Feast changes into this folder
before it imports it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64, String

STATISTICS = ("count", "sum", "mean", "std", "min", "max", "first", "last", "ewma", "ewm_std", "zscore")
"""Every statistic, in the order of the columns."""

# `materialize-incremental` starts its first run at now - ttl and skips in silence whatever is older. A ttl
# that reaches behind 1970, before which no signal is accepted, lets the first run take recordings of any
# age. Whoever wants to serve no stale value looks at the row's event_time.
TTL = timedelta(days=36_500)

entity = Entity(
    name="entity",
    join_keys=["entity_id"],
    value_type=ValueType.STRING,
    description="What the signals are about: a sensor, a device, a station.",
)


@dataclass(frozen=True)
class Declared:
    """The Feast objects of one feature set: a view and its push source each window, and the service."""

    views: tuple[FeatureView, ...]
    pushes: tuple[PushSource, ...]
    service: FeatureService

    def named(self) -> Iterator[tuple[str, Any]]:
        """Pairs of a name, unique in a module, and an object."""
        for view, push in zip(self.views, self.pushes, strict=True):
            yield view.name, view
            yield push.name, push
        yield f"{self.service.name}_service", self.service


def declare(text: str, offline: str, windows: str | None = None, version: int | None = None) -> list[Declared]:
    """Build the objects of every feature set in `text`, the content of a `feature_sets.toml`.

    offline: folder or URL of the offline store. windows, version: override those of every set, as
    FEATURE_WINDOWS (comma-separated specs) and FEATURE_SET_VERSION do. Raises what a broken file raises
    (TOMLDecodeError, KeyError); the full check, with line and key, is the flow's.
    """
    specs = [spec.strip() for spec in windows.split(",") if spec.strip()] if windows else None
    return [_feature_set(table, offline, specs, version) for table in tomllib.loads(text)["feature_set"]]


def declare_from(environ: Mapping[str, str], root: Path) -> list[Declared]:
    """Build the objects as the environment says; relative paths in it start at `root`."""
    toml = root / (environ.get("FEATURE_SETS_PATH") or Path(__file__).with_name("feature_sets.toml"))
    offline = environ.get("OFFLINE_DATA_PATH") or "data/offline"
    if "://" not in offline:
        offline = str(root / offline)
    version = environ.get("FEATURE_SET_VERSION")
    windows = environ.get("FEATURE_WINDOWS")
    return declare(toml.read_text("utf-8"), offline, windows or None, int(version) if version else None)


def _feature_set(table: dict[str, Any], offline: str, windows: list[str] | None, version: int | None) -> Declared:
    name = f"{table['name']}_v{version or table['version']}"
    base = f"{offline.rstrip('/')}/features/{table['name']}/v{version or table['version']}"
    wanted = table.get("statistics", STATISTICS)
    columns = [f"{field}__{statistic}" for field in table["fields"] for statistic in STATISTICS if statistic in wanted]
    schema = [Field(name="entity_id", dtype=String)]
    schema += [Field(name=column, dtype=Int64 if column.endswith("__count") else Float64) for column in columns]
    views, pushes = [], []
    for window in windows or table["windows"]:
        folder = window.replace("/", "_")
        view_name = f"{name}_{folder.replace(':', '_')}"
        push = PushSource(
            name=f"{view_name}_push",
            batch_source=FileSource(
                name=f"{view_name}_files",
                path=f"{base}/window={folder}",
                file_format=ParquetFormat(),  # without it the duckdb store fails on None
                timestamp_field="event_time",
                created_timestamp_column="created_at",
            ),
        )
        tags = {"feature_set": table["name"], "window": window}
        views.append(FeatureView(name=view_name, entities=[entity], schema=schema, source=push, ttl=TTL, tags=tags))
        pushes.append(push)
    return Declared(tuple(views), tuple(pushes), FeatureService(name=name, features=list(views)))


# Feast registers what it finds by name at module level, and does not look into lists.
for declared in declare_from(os.environ, Path(__file__).resolve().parent.parent):
    globals().update(declared.named())
