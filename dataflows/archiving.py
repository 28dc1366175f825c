"""The archive beside the flow: each slot writes what it reads, one sink writes what shards find out later."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import orjson

from operators.records import NO_WATERMARK
from stores.archive.columns import CORRECTS, Verdicts, messages_of, refused_in
from stores.archive.port import Verdict
from stores.archive_writer import ArchiveWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from operators.intake import Piece
    from operators.records import Decoded, RawChunk
    from operators.verdicts import Fates
    from operators.windows import LateAtShard
    from stores.archive.columns import Late

ARCHIVE = "/archive"
"""Stands beside the partitions in the snapshot of a slot; no partition is called so."""

OpenWriter = Callable[[str, bytes | None], ArchiveWriter]
"""(part, what its snapshot returned) → the writer of that part."""


class SlotArchive:
    """What one slot of the source keeps of all that it reads.

    With the archive off a state that is there is kept as it is: what it has staged is published once the archive is
    on again, which then goes on from there. So an archive holds what was read while it was on.
    """

    def __init__(self, open_writer: OpenWriter | None, slot: int, state: dict[str, object] | None) -> None:
        """open_writer: None if the archive is off. state: as `states` gave it, if it did."""
        self._kept = state
        resume = None if state is None else _writer_state(state)
        self._writer = None if open_writer is None else open_writer(f"slot-{slot:02d}", resume)

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._writer is not None

    def write(self, chunk: RawChunk, decoded: Decoded, piece: Piece, newest: int) -> None:
        """Take a chunk with what became of it. newest: the partition's newest event time before it."""
        if self._writer is not None and len(chunk.offsets):
            late = late_marks(piece)
            messages = messages_of(chunk, decoded, late, newest)
            self._writer.write(messages)
            for refused in refused_in(messages, decoded, late, newest):
                self._writer.judge(refused)

    def states(self) -> dict[str, dict[str, object]]:
        """The state, if there is one, by its name: as that of a partition that has no position and has seen nothing."""
        if self._writer is not None:
            state = base64.b64encode(self._writer.snapshot()).decode()
            self._kept = {"position": {"offset": 0}, "intake": [NO_WATERMARK, 0, 0, 0], "archive": state}
        return {} if self._kept is None else {ARCHIVE: self._kept}

    def close(self) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()


def late_marks(piece: Piece) -> list[Late]:
    """Which signals of a piece came late, each with the word for what that means for them."""
    if piece.late is None:
        return []
    if piece.due is None:
        return [(piece.late, "late")]
    corrects = piece.due != NO_WATERMARK
    return [(corrects, CORRECTS), (piece.late & ~corrects, "too_old")]


def verdicts_of(
    fates: Fates | None, late: Sequence[LateAtShard], rows_of: Callable[[LateAtShard], Sequence[int]]
) -> list[Verdicts]:
    """What a shard found out, as the archive takes it. rows_of: place of each in a message of many signals, or -1."""
    found = [] if fates is None else [Verdicts(*fates)]
    for each in late:
        events = each.events
        n = len(events)
        verdict, known_at = np.full(n, Verdict.LATE, np.uint8), np.full(n, each.watermark)
        place = (events.offset, events.event_time, verdict, known_at)
        rows = np.array(rows_of(each), np.int32)
        found.append(Verdicts((events.partition,), np.zeros(n, np.int32), *place, each.reason, rows))
    return found


def slot_writer_state(snapshot: bytes) -> bytes | None:
    """The archive writer's state in a committed snapshot of a slot; None if there is none."""
    state = orjson.loads(snapshot).get(ARCHIVE)
    return None if state is None else _writer_state(state)


def _writer_state(state: dict[str, object]) -> bytes:
    return base64.b64decode(str(state["archive"]))
