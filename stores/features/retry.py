"""Patience with an online store that is away for a while."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.features.port import Features, OnlineRow, View
from stores.patience import Patience


class RetryingFeatures:
    """The same store, asked again with growing pauses while it raises RetryableError."""

    def __init__(self, inner: Features, patience: Patience) -> None:
        """Wrap `inner`."""
        self._inner = inner
        self._patience = patience

    def prepare(self, views: Sequence[View]) -> None:
        """Make sure that the store knows these views."""
        self._patience.call(lambda: self._inner.prepare(views))

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Serve each row, unless a newer one of its entity is served."""
        self._patience.call(lambda: self._inner.write(view, rows))

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:
        """Give the served rows."""
        return self._patience.call(lambda: self._inner.read(view, entity_ids))

    def unlike(self, view: View, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Say which rows are not served as they are."""
        return self._patience.call(lambda: self._inner.unlike(view, rows))

    def forget(self, entity_id: str) -> int:
        """Take the entity's rows out."""
        return self._patience.call(lambda: self._inner.forget(entity_id))

    def close(self) -> None:
        """Close the store, without a second try."""
        self._inner.close()
