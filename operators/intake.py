"""The way in of one partition: messages → signals, late events and rejects, with nothing lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

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
    originals: the messages of the late ones, in order. rejects: messages that are no signals.
    """

    tick: Tick
    known: tuple[str, ...]
    batch: SignalBatch | None = None
    late: NDArray[np.bool_] | None = None
    originals: tuple[bytes, ...] = ()
    rejects: tuple[Reject, ...] = ()

    @property
    def messages(self) -> int:
        """Messages that the piece stands for."""
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
        self, partition: str, decoder: Decoder, bound_us: int, state: Mapping[str, object] | None = None
    ) -> None:
        """Start at the beginning of the log, or from what `state` returned."""
        saved = (NO_WATERMARK, 0, 0, 0) if state is None else cast("tuple[int, int, int, int]", state["intake"])
        newest, self.seen, self.late, self.dead = saved
        self.partition = partition
        self._decoder = decoder
        self._watermark = PartitionWatermark(bound_us, newest)

    @property
    def newest(self) -> int:
        """The newest event time so far, microseconds, or NO_WATERMARK."""
        return self._watermark.newest

    def take(self, chunk: RawChunk, known: tuple[str, ...]) -> Piece:
        """Turn the partition's next messages into a piece."""
        decoded = self._decoder.decode(chunk)
        late = self._watermark.mark(decoded.batch.event_time)
        originals = tuple(chunk.message(int(i)) for i in decoded.index[late])
        self.seen += len(chunk.lengths)
        self.late += len(originals)
        self.dead += len(decoded.rejects)
        return Piece(self.tick(Status.LIVE), known, decoded.batch, late, originals, decoded.rejects)

    def tick(self, status: Status) -> Tick:
        """How far the partition has come."""
        return self._watermark.tick(self.partition, status)

    def state(self) -> dict[str, object]:
        """The whole state, JSON-able."""
        return {"intake": [self._watermark.newest, self.seen, self.late, self.dead]}
