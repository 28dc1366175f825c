"""The way in of one partition: messages → signals, late events and rejects, with nothing lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from operators.arrow_messages import originals
from operators.future import without_future
from operators.records import NO_WATERMARK, RawChunk, Reject, SignalBatch
from operators.watermark import PartitionWatermark, Status, Tick

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from operators.decode import Decoder


@dataclass(frozen=True, slots=True)
class Piece:
    """What one partition has to say: some signals (or none), and how far it has come.

    known: every partition of the topic that the source knows of. late: bool (len(batch),).
    originals: the messages of the late ones, in order; late_rows: their places in messages of many signals, -1 for a
    message of its own, () if all are. rejects: messages, and rows of them, that are no signals.
    """

    tick: Tick
    known: tuple[str, ...]
    batch: SignalBatch | None = None
    late: NDArray[np.bool_] | None = None
    originals: tuple[bytes, ...] = ()
    rejects: tuple[Reject, ...] = ()
    late_rows: tuple[int, ...] = ()

    @property
    def messages(self) -> int:
        """Signals, and messages or rows that are none, that the piece stands for."""
        return self.signals + len(self.rejects)

    @property
    def signals(self) -> int:
        """Those that are signals, late or not."""
        return 0 if self.batch is None else len(self.batch)


class Intake:
    """Decodes and marks the messages of one partition, in the order of its log.

    seen = signals + late + dead, counted since the beginning of the log.
    """

    def __init__(
        self,
        partition: str,
        decoder: Decoder,
        bound_us: int,
        state: Mapping[str, object] | None = None,
        *,
        max_future_us: int | None = None,
    ) -> None:
        """Start at the beginning of the log, or from what `state` returned. max_future_us: see `without_future`."""
        saved = (NO_WATERMARK, 0, 0, 0) if state is None else cast("tuple[int, int, int, int]", state["intake"])
        newest, self.seen, self.late, self.dead = saved
        self.partition = partition
        self._decoder = decoder
        self._max_future_us = max_future_us
        self._watermark = PartitionWatermark(bound_us, newest)

    @property
    def newest(self) -> int:
        """The newest event time so far, microseconds, or NO_WATERMARK."""
        return self._watermark.newest

    def take(self, chunk: RawChunk, known: tuple[str, ...]) -> Piece:
        """Turn the partition's next messages into a piece."""
        decoded = self._decoder.decode(chunk)
        if self._max_future_us is not None:
            decoded = without_future(decoded, chunk, self._max_future_us)
        late = self._watermark.mark(decoded.batch.event_time)
        which = np.flatnonzero(late)
        late_rows = () if decoded.rows is None else tuple(decoded.rows[which].tolist())
        self.seen += len(decoded.batch) + len(decoded.rejects)
        self.late += len(which)
        self.dead += len(decoded.rejects)
        found = originals(chunk, decoded, which)
        return Piece(self.tick(Status.LIVE), known, decoded.batch, late, found, decoded.rejects, late_rows)

    def tick(self, status: Status) -> Tick:
        """How far the partition has come."""
        return self._watermark.tick(self.partition, status)

    def state(self) -> dict[str, object]:
        """The whole state, JSON-able."""
        return {"intake": [self._watermark.newest, self.seen, self.late, self.dead]}
