"""What does not go on: late events as messages of the late topic, rejects as dead letters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import orjson

from dataflows.observability.events import Late, tell
from stores.deadletters.port import letter_id
from operators.records import DeadLetter

if TYPE_CHECKING:
    from dataflows.buses.port import Bus
    from operators.intake import Piece
    from operators.records import SignalBatch
    from operators.windows import LateAtShard

DECODE = "decode"
"""Stage of a dead letter that could not be decoded."""


def late_messages(piece: Piece, topic: str) -> list[bytes]:
    """The piece's late events as messages for the late topic, in the order of the log."""
    if piece.batch is None or piece.late is None or not piece.originals:
        return []
    index = np.flatnonzero(piece.late)
    _tell_late(piece.batch, int(index[0]), "late", len(index))
    out = []
    for i, original in zip(index.tolist(), piece.originals, strict=True):
        out.append(late_message(original, topic, piece.batch, i, "late"))
    return out


def late_at_shard_messages(late: LateAtShard, topic: str, bus: Bus) -> list[bytes]:
    """Events that came below their shard's watermark, their originals fetched from the bus again."""
    events = late.events
    _tell_late(events, 0, late.reason, len(events))
    out = []
    for i, offset in enumerate(events.offset.tolist()):
        original = bus.fetch(topic, events.partition, offset)
        out.append(late_message(original, topic, events, i, late.reason))
    return out


def late_message(original: bytes, topic: str, batch: SignalBatch, index: int, reason: str) -> bytes:
    """A structured CloudEvent whose data is the signal as it came, so that it can be fed in again as it is.

    Its id is a function of (topic, partition, offset): a consumer can drop repeats.
    """
    partition, offset = batch.partition, int(batch.offset[index])
    signal = orjson.loads(original)
    data = original.strip() if "specversion" not in signal else orjson.dumps(signal.get("data"))
    envelope = {
        "specversion": "1.0",
        "id": f"{topic}/{partition}/{offset}",
        "source": "/headrace/signals",
        "type": "headrace.signal.late",
        "datacontenttype": "application/json",
        "reason": reason,
        "partition": partition,
        "offset": str(offset),
        "subject": batch.entity(index),
    }
    return orjson.dumps(envelope)[:-1] + b',"data":' + data + b"}"


def letters_of(piece: Piece, topic: str) -> list[DeadLetter]:
    """The piece's rejects as dead letters. time_us is the wall clock: it is no part of any result."""
    now_us = time.time_ns() // 1000
    partition = piece.tick.partition
    return [
        DeadLetter(
            letter_id=letter_id(topic, partition, r.offset, DECODE),
            time_us=now_us,
            stage=DECODE,
            reason=r.reason,
            detail=r.detail,
            source=topic,
            partition=partition,
            offset=r.offset,
            original=r.original,
            trace_id=r.trace_id,
        )
        for r in piece.rejects
    ]


def _tell_late(batch: SignalBatch, index: int, reason: str, count: int) -> None:
    tell(Late(reason, batch.partition, count, batch.entity(index), int(batch.offset[index])))
