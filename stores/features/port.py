"""The port of the online features: the newest row of each entity, to be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.feature_sets import FeatureSet, FeatureSets, WindowSpec


@dataclass(frozen=True, slots=True)
class View:
    """One window of one feature set: a feature view of Feast, a table of an online store."""

    feature_set: FeatureSet
    window: WindowSpec

    @property
    def name(self) -> str:
        """Name of the view, `<set>_v<version>_<window>`: `glucose_v1_6h_1h`, `glucose_v1_session_30m`."""
        return view_name(self.feature_set, self.window)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features, `<field>__<statistic>`, field by field."""
        return self.feature_set.columns


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """What the online store serves for an entity.

    event_time_us: end of the row's window, microseconds since the epoch; a row that `feast materialize`
        brought has it as exactly as the store keeps it (Feast's SQLite: whole seconds).
    values: in the order of the view's columns; an int for `count`, else a float, None where undefined.
    """

    entity_id: str
    event_time_us: int
    values: dict[str, float | int | None]


class Features(Protocol):
    """A store that keeps the newest row of each (view, entity).

    Newest is the highest (event_time, created_at). Delivery: at least once from the caller, and
    repeating changes nothing, so the effect is exactly once. One writer for each (view, entity) at a
    time; within it, calls from several threads are safe.
    """

    def prepare(self, views: Sequence[View]) -> None:
        """Make sure that the store knows these views; call it once before `write` and `read`.

        Safe to call again. Raises ConfigError if a person must declare a view first (the message
        holds the command to type), RetryableError if the store is away.
        """

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Make each row of `rows` the served one, unless the store holds a newer row of its entity.

        rows: columns of `operators.records.feature_row_schema`, in any order; several rows of an
            entity are coalesced to the newest first. Empty input does nothing.
        When it returns, the rows are in the store. Safe to repeat, also after an error half-way and
        also with older rows: what is served never goes back. Raises RetryableError if the store is
        away, ConfigError if it does not know the view.
        """

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:
        """Give the served row of each entity asked, in that order; None for an unknown entity.

        Raises as `write` does.
        """

    def unlike(self, view: View, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Say which rows are not served as they are, bool (n,); a store that has no quick way may say so of any.

        rows: as for `write`, one an entity. Where it says False, time and every value are served to the bit. Raises
        as `write` does.
        """

    def forget(self, entity_id: str) -> int:
        """Take the entity's row out of every view that the store knows; return how many there were. Safe to repeat.

        Views of other feature sets and versions are among them. Raises as `write` does, and ConfigError for a kind of
        store from which nobody here knows how to delete; the message says what to delete.
        """

    def close(self) -> None:
        """Let go of connections. Safe to call twice; the store is not used afterwards."""


def view_name(feature_set: FeatureSet, window: WindowSpec) -> str:
    """Name of the feature view for this set and window; letters, digits and `_` only."""
    return f"{feature_set.name}_v{feature_set.version}_{window.folder.replace(':', '_')}"


def views_of(sets: FeatureSets) -> tuple[View, ...]:
    """Every view of the sets, in the order of declaration."""
    return tuple(View(feature_set, window) for feature_set in sets.sets for window in feature_set.windows)
