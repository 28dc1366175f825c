"""Patience with a store or server that is away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from operators.errors import RetryableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and after which pauses a call is made again while it raises RetryableError.

    tries_max: calls in all; the last error is raised as it came. Pauses double from pause_s up to
    pause_s_max, or are as long as the other side asks (retry_after_s); with the defaults about 50 s in all.
    sleep: waits that many seconds, or less where somebody wants it to end.
    """

    tries_max: int = 10
    pause_s: float = 0.1
    pause_s_max: float = 30.0
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        """At least one call is made."""
        assert self.tries_max > 0

    def call(self, call: Callable[[], T]) -> T:
        """What the call returns."""
        for done in range(self.tries_max - 1):
            try:
                return call()
            except RetryableError as error:
                pause_s = min(self.pause_s * 2**done, self.pause_s_max)
                self.sleep(pause_s if error.retry_after_s is None else error.retry_after_s)
        return call()
