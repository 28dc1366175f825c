"""What does not go on: late events as messages of the late topic, rejects as dead letters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson

from dataflows.observability.events import Late, Refused, tell
from operators.errors import SkippableError
from operators.records import DeadLetter
from operators.signal_rules import open_document
from stores.deadletters.port import letter_id
from stores.holding.port import HeldEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    index = piece.set_aside
    reason = "late" if piece.due is None else "too_old"
    tell(_late(piece.batch, int(index[0]), reason, len(index), piece.originals[0]))
    out = []
    for i, original in zip(index.tolist(), piece.originals, strict=True):
        out.append(late_message(original, topic, piece.batch, i, reason))
    return out


def late_at_shard_messages(late: LateAtShard, topic: str, bus: Bus) -> list[bytes]:
    """Events that came below their shard's watermark, their originals fetched from the bus again."""
    events = late.events
    originals = [bus.fetch(topic, events.partition, offset) for offset in events.offset.tolist()]
    tell(_late(events, 0, late.reason, len(events), originals[0]))
    return [late_message(original, topic, events, i, late.reason) for i, original in enumerate(originals)]


def held_events(piece: Piece, topic: str) -> list[HeldEvent]:
    """The piece's late events as they are held, in the order of the log."""
    index = piece.set_aside
    if piece.batch is None or not piece.originals:
        return []
    tell(_late(piece.batch, int(index[0]), "late", len(index), piece.originals[0]))
    pairs = zip(index.tolist(), piece.originals, strict=True)
    return [_held(original, topic, piece.batch, i, "late", piece.tick.watermark) for i, original in pairs]


def held_at_shard(late: LateAtShard, topic: str, bus: Bus) -> list[HeldEvent]:
    """Events that came below their shard's watermark, their originals fetched from the bus again."""
    events = late.events
    originals = [bus.fetch(topic, events.partition, offset) for offset in events.offset.tolist()]
    tell(_late(events, 0, late.reason, len(events), originals[0]))
    return [_held(o, topic, events, i, late.reason, late.watermark) for i, o in enumerate(originals)]


def _held(original: bytes, topic: str, batch: SignalBatch, index: int, reason: str, watermark: int) -> HeldEvent:
    place = (topic, batch.partition, int(batch.offset[index]), reason, watermark)
    signal = (batch.entity(index), int(batch.event_time[index]), int(batch.sequence[index]))
    return HeldEvent(*place, *signal, original)


def late_message(original: bytes, topic: str, batch: SignalBatch, index: int, reason: str) -> bytes:
    """A structured CloudEvent whose data is the signal as it came, so that it can be fed in again as it is.

    Its id is a function of (topic, partition, offset): a consumer can drop repeats.
    """
    partition, offset = batch.partition, int(batch.offset[index])
    bare = b'"specversion"' not in original
    data = original.strip() if bare else orjson.dumps(open_document(original, bytes_max=len(original)).members)
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
    """The piece's rejects as dead letters.

    time_us is the wall clock, no part of any result, a microsecond more each: listings keep the order of the log.
    """
    now_us = time.time_ns() // 1000
    partition = piece.tick.partition
    return [
        DeadLetter(
            letter_id=letter_id(topic, partition, r.offset, DECODE),
            time_us=now_us + i,
            stage=DECODE,
            reason=r.reason,
            detail=r.detail,
            source=topic,
            partition=partition,
            offset=r.offset,
            original=r.original,
            trace_id=r.trace_id,
        )
        for i, r in enumerate(piece.rejects)
    ]


def tell_refused(letters: Sequence[DeadLetter]) -> None:
    """Tell whoever watches of each letter, without its original."""
    for letter in letters:
        place = (letter.partition, letter.offset, letter.trace_id, _entity_of(letter.original))
        tell(Refused(letter.stage, letter.reason, letter.detail, *place))


def _entity_of(original: bytes) -> str | None:
    """The entity_id of a refused message, if it can be read: whoever looks for the sender wants it."""
    try:
        entity = open_document(original).members.get("entity_id")
    except SkippableError:
        return None
    return entity if isinstance(entity, str) else None


def _late(batch: SignalBatch, index: int, reason: str, count: int, original: bytes) -> Late:
    trace_id = open_document(original, bytes_max=len(original)).trace_id
    return Late(reason, batch.partition, count, batch.entity(index), int(batch.offset[index]), trace_id)
