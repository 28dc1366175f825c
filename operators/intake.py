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
    from operators.records import Decoded
    from operators.retained import Lateness


@dataclass(frozen=True, slots=True)
class Piece:
    """What one partition has to say: some signals (or none), and how far it has come.

    known: every partition of the topic that the source knows of. late: bool (len(batch),).
    due: int64 (len(batch),), when a late event counts, as a correction; NO_WATERMARK for one that is set aside and
        for one that is not late. None: no late event counts.
    originals: the messages of those that are set aside, in order; late_rows: their places in messages of many signals,
        -1 for a message of its own, () if all are.
    rejects: messages, and rows of them, that are no signals.
    released: late signals that were held and are to be applied now; they were counted when they came.
    """

    tick: Tick
    known: tuple[str, ...]
    batch: SignalBatch | None = None
    late: NDArray[np.bool_] | None = None
    due: NDArray[np.int64] | None = None
    originals: tuple[bytes, ...] = ()
    rejects: tuple[Reject, ...] = ()
    late_rows: tuple[int, ...] = ()
    released: tuple[SignalBatch, ...] = ()

    @property
    def messages(self) -> int:
        """Signals, and messages or rows that are none, that the piece stands for."""
        return self.signals + len(self.rejects)

    @property
    def signals(self) -> int:
        """Those that are signals, late or not."""
        return 0 if self.batch is None else len(self.batch)

    @property
    def set_aside(self) -> NDArray[np.int64]:
        """Which signals are late and count for nothing, int64 (m,)."""
        if self.late is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.late if self.due is None else self.late & (self.due == NO_WATERMARK))


class Intake:
    """Decodes and marks the messages of one partition, in the order of its log.

    seen, late (those set aside) and dead are counted since the beginning of the log.
    """

    def __init__(
        self,
        partition: str,
        decoder: Decoder,
        bound_us: int,
        state: Mapping[str, object] | None = None,
        lateness: Lateness | None = None,
        *,
        max_future_us: int | None = None,
    ) -> None:
        """Start at the beginning of the log, or from what `state` returned.

        lateness: what late events may still change; None: nothing. max_future_us: see `without_future`.
        """
        saved = (NO_WATERMARK, 0, 0, 0) if state is None else cast("tuple[int, int, int, int]", state["intake"])
        newest, self.seen, self.late, self.dead = saved
        self.partition = partition
        self._decoder = decoder
        self._max_future_us = max_future_us
        self._watermark = PartitionWatermark(bound_us, newest)
        self._lateness = lateness if lateness is not None and lateness.corrects else None

    @property
    def newest(self) -> int:
        """The newest event time so far, microseconds, or NO_WATERMARK."""
        return self._watermark.newest

    def decode(self, chunk: RawChunk) -> Decoded:
        """Decode the partition's next messages, those from a far future refused; nothing is counted yet."""
        decoded = self._decoder.decode(chunk)
        return decoded if self._max_future_us is None else without_future(decoded, chunk, self._max_future_us)

    def take(self, chunk: RawChunk, known: tuple[str, ...], decoded: Decoded | None = None) -> Piece:
        """Turn the partition's next messages into a piece. decoded: what `decode` said of them, if it was asked."""
        decoded = self.decode(chunk) if decoded is None else decoded
        late, due = self._mark(decoded.batch.event_time)
        aside = np.flatnonzero(late if due is None else late & (due == NO_WATERMARK))
        self.seen += len(decoded.batch) + len(decoded.rejects)
        self.late += len(aside)
        self.dead += len(decoded.rejects)
        return Piece(
            self.tick(Status.LIVE),
            known,
            decoded.batch,
            late,
            due,
            originals=originals(chunk, decoded, aside),
            late_rows=() if decoded.rows is None else tuple(decoded.rows[aside].tolist()),
            rejects=decoded.rejects,
        )

    def _mark(self, event_time: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
        if self._lateness is None:
            return self._watermark.mark(event_time), None
        return self._watermark.mark_due(event_time, self._lateness.allowed_us, self._lateness.grain_us)

    def tick(self, status: Status) -> Tick:
        """How far the partition has come."""
        return self._watermark.tick(self.partition, status)

    def state(self) -> dict[str, object]:
        """The whole state, JSON-able."""
        return {"intake": [self._watermark.newest, self.seen, self.late, self.dead]}
