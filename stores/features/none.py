"""No online features at all: what ONLINE_STORE=none means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.features.port import OnlineRow, View


class NoFeatures:
    """Takes every row and keeps none, so that a flow has the same steps with and without an online store."""

    def prepare(self, views: Sequence[View]) -> None:
        """Do nothing."""

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Do nothing."""

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:  # noqa: ARG002  # the port's names
        """Know no entity."""
        return [None] * len(entity_ids)

    def unlike(self, view: View, rows: pa.RecordBatch) -> NDArray[np.bool_]:  # noqa: ARG002  # the port's names
        """Serve nothing."""
        return np.ones(len(rows), np.bool_)

    def forget(self, entity_id: str) -> int:  # noqa: ARG002  # the port's names
        """Know no entity."""
        return 0

    def close(self) -> None:
        """Do nothing."""
