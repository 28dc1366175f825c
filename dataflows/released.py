"""Events that were held and released, on their way back into the flow; slot 0 of the source reads them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from operators.intake import Piece
from operators.records import NO_WATERMARK, RawChunk
from operators.watermark import Status, Tick
from stores.holding.port import log_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from operators.decode import Decoder
    from operators.records import SignalBatch
    from stores.holding.port import HeldEvent, Holding

RELEASED = "/released"
"""Stands beside the partitions, so that a log does not end before what was released is in; none is called so."""

_EVENTS_MAX = 4096


class ReleasedEvents:
    """Reads released events by their numbers, each once with recovery: the snapshot is the last number."""

    def __init__(self, holding: Holding, decoder: Decoder, state: dict[str, object] | None) -> None:
        """Begin with the first that was ever released, or behind what `state` returned."""
        self._holding = holding
        self._decoder = decoder
        self._last = 0 if state is None else int(str(state["released"]))
        self._begun = False

    def take(self, known: tuple[str, ...], *, follow: bool) -> list[Piece]:
        """Return what was released since the last call.

        At first there is always a piece, so that nobody waits for RELEASED; with follow=False all is in it that is
        released by then, and nothing comes later.
        """
        if self._begun and not follow:
            return []
        batches: list[SignalBatch] = []
        while found := self._holding.released(self._last, limit=_EVENTS_MAX):
            batches += self._decoded([event for _, event in found])
            self._last = found[-1][0]
        if self._begun and not batches:
            return []
        self._begun = True
        status = Status.IDLE if follow else Status.ENDED
        return [Piece(Tick(RELEASED, NO_WATERMARK, NO_WATERMARK, status), known, released=tuple(batches))]

    def state(self) -> dict[str, object]:
        """As a partition's state, JSON-able: it has no position and has seen nothing of its own."""
        return {"position": {"offset": 0}, "intake": [NO_WATERMARK, 0, 0, 0], "released": self._last}

    def _decoded(self, events: Sequence[HeldEvent]) -> list[SignalBatch]:
        """The events of each partition as a batch; they were signals when they were set aside."""
        ordered = sorted(events, key=log_place)
        out = []
        for partition, group in groupby(ordered, key=lambda e: e.partition):
            mine = list(group)
            lengths = np.array([len(e.original) for e in mine], np.int64)
            data = np.frombuffer(b"".join(e.original for e in mine), np.uint8)
            offsets = np.array([e.offset for e in mine], np.int64)
            chunk = RawChunk(partition, data, np.cumsum(lengths) - lengths, lengths, offsets)
            out.append(self._decoder.decode(chunk).batch)
        return out
