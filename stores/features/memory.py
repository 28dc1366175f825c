"""Online features in the process's own memory: for tests, and the plainest statement of the contract."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import ConfigError
from stores.features.newest import coalesce, microseconds
from stores.features.port import OnlineRow, View


class MemoryFeatures:
    """Keeps the newest row of each (view, entity) in a dict, until the process ends."""

    def __init__(self) -> None:
        """Start empty and with no view known."""
        self._views: dict[str, dict[str, tuple[tuple[int, int], OnlineRow]]] = {}

    def prepare(self, views: Sequence[View]) -> None:
        """Get to know the views."""
        for view in views:
            self._views.setdefault(view.name, {})

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Serve each row, unless a newer one of its entity is served."""
        table = self._table(view)
        newest = coalesce(rows)
        times = zip(*(microseconds(newest, c).tolist() for c in ("event_time", "created_at")), strict=True)
        values = zip(*(newest.column(c).to_pylist() for c in view.columns), strict=True)
        for entity, time, row in zip(newest.column("entity_id").to_pylist(), times, values, strict=True):
            if entity not in table or table[entity][0] < time:
                table[entity] = time, OnlineRow(entity, time[0], dict(zip(view.columns, row, strict=True)))

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:
        """Give the served rows."""
        table = self._table(view)
        return [table[entity][1] if entity in table else None for entity in entity_ids]

    def unlike(self, view: View, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Compare row by row, as written down: so -0.0 is not 0.0."""
        table = self._table(view)
        times = microseconds(rows, "event_time").tolist()
        columns = rows.select(view.columns).to_pylist()
        names = rows.column("entity_id").to_pylist()
        there = (table[name][1] if name in table else None for name in names)
        mine = (OnlineRow(*row) for row in zip(names, times, columns, strict=True))
        return np.array([repr(a) != repr(b) for a, b in zip(there, mine, strict=True)], np.bool_)

    def forget(self, entity_id: str) -> int:
        """Take the entity's rows out."""
        return sum(table.pop(entity_id, None) is not None for table in self._views.values())

    def close(self) -> None:
        """Do nothing."""

    def _table(self, view: View) -> dict[str, tuple[tuple[int, int], OnlineRow]]:
        if view.name not in self._views:
            raise ConfigError(f"the online store does not know the view `{view.name}`; prepare it first")
        return self._views[view.name]
