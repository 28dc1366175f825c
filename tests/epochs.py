"""What Bytewax does to a sink, as a small engine that is killed where a plan says, and rows to feed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from hypothesis import strategies as st

from operators.feature_sets import STATISTICS, FeatureSets
from operators.records import RowBlock
from stores.features.port import View
from stores.writers import EPOCHS_MAX, Rows
from tests.offline_rows import HOUR, MIDNIGHT, SENSORS, SPEC

Item = TypeVar("Item")
Taken_contra = TypeVar("Taken_contra", contravariant=True)

SETS = FeatureSets((SENSORS,))
VIEW = View(SENSORS, SPEC)
PLANS = st.lists(st.sampled_from(["write", "write", "epoch", "killed", "killed after the epoch"]), max_size=40)
"""What happens to a writer, step by step."""


class Writer(Protocol[Taken_contra]):
    """What the engine sees of a writer."""

    def write(self, value: Taken_contra, /) -> None:
        """Take an item."""

    def snapshot(self) -> bytes:
        """End an epoch."""

    def close(self) -> None:
        """Let go."""


@dataclass
class Engine(Generic[Item]):
    """What Bytewax does to a sink: an epoch is durable only some time after its snapshot, but before the next one ends.

    A kill loses the epoch or does not; what came after the last durable one is written again.
    """

    open: Callable[[bytes | None], Writer[Item]]
    item: Callable[[int], Item]
    durable: tuple[bytes | None, int] = (None, 0)
    pending: tuple[bytes, int] | None = None
    position: int = 0
    furthest: int = 0

    def __post_init__(self) -> None:
        """Start for the first time."""
        self.writer = self.open(None)

    def do(self, step: str) -> None:
        """Do one step of a plan."""
        match step:
            case "write":
                self.writer.write(self.item(self.position))
                self.position += 1
                self.furthest = max(self.furthest, self.position)
            case "epoch":
                self._commit()
                self.pending = (self.writer.snapshot(), self.position)
            case _:
                if step == "killed after the epoch":
                    self._commit()
                self.pending = None
                self.writer.close()
                state, self.position = self.durable
                self.writer = self.open(state)

    def finish(self, epochs: int = EPOCHS_MAX + 2) -> None:
        """Write what is missing and let epochs pass until nothing waits."""
        while self.position < self.furthest:
            self.do("write")
        for _ in range(epochs):
            self.do("epoch")

    def _commit(self) -> None:
        if self.pending is not None:
            self.durable, self.pending = self.pending, None


def hour_rows(number: int, *, final: bool = False) -> Rows:
    """A row of its own hour, on one of three dates; `number` is its count, and so in its hash."""
    name = f"e{number % 5}".encode()
    start = MIDNIGHT + number * 7 % 60 * HOUR
    values = np.full((1, len(STATISTICS)), np.nan)
    values[0, STATISTICS.index("count")] = number
    place = np.array([[0, 0, start, start + HOUR]])
    block = RowBlock(0, np.frombuffer(name, np.uint8).copy(), np.array([0, len(name)]), place, values)
    return Rows((block,), final=final)
