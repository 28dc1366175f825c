"""Single messages of a Kafka topic, by their offsets."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from dataflows.buses.kafka_lane import nothing
from operators.errors import ResumeError, UnavailableError

if TYPE_CHECKING:
    from dataflows.buses.kafka_lane import Lane, Tap

_WAIT_S = 60.0
_EVENTS = 64
_AHEAD = 4096


class Lookup:
    """Fetches single messages; those that follow one another in a partition are read in one go."""

    def __init__(self, lane: Lane) -> None:
        """lane: its own, since a partition can have one tap there."""
        self._lane = lane
        self._tap: Tap | None = None
        self._place = ("", -1)
        self._taken = nothing()

    def message(self, topic: str, partition: int, offset: int) -> bytes:
        """The message at the offset. Raises ResumeError, UnavailableError."""
        place = (topic, partition)
        known = self._taken.offsets
        if place != self._place or len(known) == 0 or not known[0] <= offset <= known[-1] + _AHEAD:
            self.close()
            self._tap, self._place = self._lane.open(topic, partition, offset), place
        deadline = time.monotonic() + _WAIT_S
        while len(self._taken.offsets) == 0 or self._taken.offsets[-1] < offset:
            assert self._tap is not None  # opened above, now or in an earlier call
            taken = self._tap.take(_EVENTS)
            if len(taken.offsets) > 0:
                self._taken = taken
                deadline = time.monotonic() + _WAIT_S
            else:
                threading.Event().wait(0.001)
            ended = taken.eof is not None or bool(taken.errors)
            if ended and (len(taken.offsets) == 0 or taken.offsets[-1] < offset):
                raise self._gone(offset)
            if time.monotonic() > deadline:
                raise UnavailableError(f"message {offset} of partition `{partition}` of topic `{topic}` does not come")
        index = int(np.searchsorted(self._taken.offsets, offset))
        if self._taken.offsets[index] != offset:
            raise self._gone(offset)
        start = int(self._taken.starts[index])
        return self._taken.data[start : start + int(self._taken.lengths[index])].tobytes()

    def close(self) -> None:
        """Let go of the partition that was read last; safe to call twice."""
        if self._tap is not None:
            self._tap.close()
        self._tap, self._place, self._taken = None, ("", -1), nothing()

    def _gone(self, offset: int) -> ResumeError:
        topic, partition = self._place
        self.close()
        return ResumeError(f"partition `{partition}` of topic `{topic}` has no message at offset {offset} (any more)")
