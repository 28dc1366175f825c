"""Small tables of feature rows, and what a store shows of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from operators.feature_sets import FeatureSet, WindowSpec
from operators.records import feature_row_schema
from stores.offline.port import EVERYTHING, OfflineStore, PartitionKey, Selection, Withheld

HOUR = 3_600_000_000
DAY = 24 * HOUR
MIDNIGHT = 20_000 * DAY  # 2024-10-04
SPEC = WindowSpec("1h", HOUR, HOUR, session=False)
SENSORS = FeatureSet("sensors", 1, ("heat",), (SPEC,), HOUR, ("count", "mean"))
KEY = PartitionKey("sensors", 1, "1h", "2024-10-04")
NEXT_DAY = PartitionKey("sensors", 1, "1h", "2024-10-05")


def rows(
    entities: Sequence[str],
    *,
    hour: int = 0,
    key: PartitionKey = KEY,
    revision: int = 0,
    content: int = 0,
) -> pa.Table:
    """One row an entity, all of one window; `content` makes its hash."""
    start = MIDNIGHT + hour * HOUR + (DAY if key.date == NEXT_DAY.date else 0)
    count = len(entities)
    columns: dict[str, object] = {
        "entity_id": list(entities),
        "window_start": [start] * count,
        "event_time": [start + HOUR] * count,
        "feature_set": [key.feature_set] * count,
        "version": [key.version] * count,
        "revision": [revision] * count,
        "created_at": [start + HOUR + revision] * count,
        "known_at": [start + HOUR] * count,
        "supersedes": [None] * count,
        "cause": [None] * count,
        "retracted": [False] * count,
        "content_hash": [np.array([content, i], "<u8").tobytes() for i in range(count)],
        "heat__count": list(range(count)),
        "heat__mean": [None if i % 3 == 2 else i / 7 for i in range(count)],
    }
    return pa.table(columns, schema=feature_row_schema(SENSORS))


def published(store: OfflineStore, selection: Selection = EVERYTHING) -> list[tuple[PartitionKey, str, int, int]]:
    """Every visible row as (key, entity, hour of the window, revision), in the order of the scan."""
    found: list[tuple[PartitionKey, str, int, int]] = []
    for key, table in store.scan(selection):
        hours = [(int(start.value) - MIDNIGHT) // HOUR for start in table["window_start"]]
        names, revisions = table["entity_id"].to_pylist(), table["revision"].to_pylist()
        found += [(key, *row) for row in zip(names, hours, revisions, strict=True)]
    return found


def entities_of(store: OfflineStore) -> list[str]:
    """Entities of all visible rows, in the order of the scan."""
    return [row[1] for row in published(store)]


def put(store: OfflineStore, writer: str, sequence: int, table: pa.Table, key: PartitionKey = KEY) -> Withheld:
    """Stage and publish at once; return what was withheld by both."""
    staged = store.stage(writer, sequence, {key: table})
    return staged.withheld + store.publish(staged.tokens)
