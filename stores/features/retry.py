"""Patience with an online store that is away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from operators.errors import RetryableError
from stores.features.port import Features, OnlineRow, View

T = TypeVar("T")


class RetryingFeatures:
    """The same store, asked again with growing pauses while it raises RetryableError.

    tries_max: calls in all; the last error is raised as it came. Pauses double from pause_s up to
    pause_s_max, or are as long as the store asks (retry_after_s); with the defaults about 50 s in all.
    sleep: waits that many seconds.
    """

    def __init__(
        self,
        inner: Features,
        *,
        tries_max: int = 10,
        pause_s: float = 0.1,
        pause_s_max: float = 30.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Wrap `inner`."""
        assert tries_max > 0
        self._inner = inner
        self._pauses_s = [min(pause_s * 2**i, pause_s_max) for i in range(tries_max - 1)]
        self._sleep = sleep

    def prepare(self, views: Sequence[View]) -> None:
        """Make sure that the store knows these views."""
        self._patiently(lambda: self._inner.prepare(views))

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Serve each row, unless a newer one of its entity is served."""
        self._patiently(lambda: self._inner.write(view, rows))

    def read(self, view: View, entity_ids: Sequence[str]) -> list[OnlineRow | None]:
        """Give the served rows."""
        return self._patiently(lambda: self._inner.read(view, entity_ids))

    def close(self) -> None:
        """Close the store, without a second try."""
        self._inner.close()

    def _patiently(self, call: Callable[[], T]) -> T:
        for pause_s in self._pauses_s:
            try:
                return call()
            except RetryableError as error:
                self._sleep(pause_s if error.retry_after_s is None else error.retry_after_s)
        return call()
