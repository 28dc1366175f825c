"""What does not go on: late events as messages of the late topic, rejects as dead letters."""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING

import orjson

from dataflows.observability.events import Late, Refused, tell
from operators.arrow_messages import find_rows, is_stream
from operators.errors import SkippableError
from operators.messages import STRUCTURED, Message
from operators.records import DeadLetter
from operators.signal_rules import open_document
from stores.deadletters.port import letter_id
from stores.holding.port import HeldEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dataflows.buses.port import Bus
    from operators.feature_sets import FeatureSets
    from operators.intake import Piece
    from operators.records import SignalBatch
    from operators.windows import LateAtShard

DECODE = "decode"
"""Stage of a dead letter that could not be decoded."""


def late_messages(piece: Piece, topic: str) -> list[Message]:
    """The piece's late events as messages for the late topic, in the order of the log."""
    if piece.batch is None or piece.late is None or not piece.originals:
        return []
    index = piece.set_aside
    reason = "late" if piece.due is None else "too_old"
    tell(_late(piece.batch, int(index[0]), reason, len(index), piece.originals[0]))
    out = []
    for i, original, row in zip(index.tolist(), piece.originals, _rows(piece), strict=True):
        out.append(late_message(original, topic, piece.batch, i, reason, row))
    return out


def late_at_shard_messages(late: LateAtShard, topic: str, bus: Bus, declared: FeatureSets) -> list[Message]:
    """Events that came below their shard's watermark, their originals fetched from the bus again.

    declared: the sets that they were decoded for.
    """
    events = late.events
    found = _fetched(events, topic, bus, declared)
    tell(_late(events, 0, late.reason, len(events), found[0][1]))
    return [late_message(original, topic, events, i, late.reason, row) for i, (row, original) in enumerate(found)]


def rows_of(late: LateAtShard, topic: str, bus: Bus, declared: FeatureSets) -> list[int]:
    """Of each event its place in a message of many signals, -1 for a message of its own; see late_at_shard_messages."""
    return [row for row, _ in _fetched(late.events, topic, bus, declared)]


def held_events(piece: Piece, topic: str) -> list[HeldEvent]:
    """The piece's late events as they are held, in the order of the log."""
    index = piece.set_aside
    if piece.batch is None or not piece.originals:
        return []
    tell(_late(piece.batch, int(index[0]), "late", len(index), piece.originals[0]))
    found = zip(index.tolist(), piece.originals, _rows(piece), strict=True)
    return [_held((row, o), topic, piece.batch, i, ("late", piece.tick.watermark)) for i, o, row in found]


def held_at_shard(late: LateAtShard, topic: str, bus: Bus, declared: FeatureSets) -> list[HeldEvent]:
    """Events that came below their shard's watermark, their originals fetched from the bus again.

    declared: the sets that they were decoded for.
    """
    events = late.events
    found = _fetched(events, topic, bus, declared)
    tell(_late(events, 0, late.reason, len(events), found[0][1]))
    return [_held(message, topic, events, i, (late.reason, late.watermark)) for i, message in enumerate(found)]


def _rows(piece: Piece) -> tuple[int, ...]:
    """Of each event that is set aside its row, -1 for a message of its own."""
    return piece.late_rows or (-1,) * len(piece.originals)


def _fetched(events: SignalBatch, topic: str, bus: Bus, declared: FeatureSets) -> list[tuple[int, bytes]]:
    """Of each event its row, -1 for a message of its own, and its original; those of one message stand together."""
    found: list[tuple[int, bytes]] = []
    for offset, group in groupby(range(len(events)), key=events.offset.tolist().__getitem__):
        message, mine = bus.fetch(topic, events.partition, offset), list(group)
        if not is_stream(message):
            found += [(-1, message)] * len(mine)
            continue
        wanted = [(events.entity(i), int(events.event_time[i]), int(events.sequence[i])) for i in mine]
        found += find_rows(message, declared, offset, wanted)
    return found


def _held(message: tuple[int, bytes], topic: str, batch: SignalBatch, index: int, why: tuple[str, int]) -> HeldEvent:
    """message: row and original. why: reason and watermark."""
    row, original = message
    place = (topic, batch.partition, int(batch.offset[index]), *why)
    signal = (batch.entity(index), int(batch.event_time[index]), int(batch.sequence[index]))
    return HeldEvent(*place, *signal, original, row)


def late_message(original: bytes, topic: str, batch: SignalBatch, index: int, reason: str, row: int = -1) -> Message:
    """A structured CloudEvent, keyed by its entity, whose data is the signal as it came, to be fed in again as it is.

    Its id is a function of (topic, partition, offset) and of the row in a message of many signals: a consumer can drop
    repeats.
    """
    partition, offset = batch.partition, int(batch.offset[index])
    bare = b'"specversion"' not in original
    data = original.strip() if bare else orjson.dumps(open_document(original, bytes_max=len(original)).members)
    envelope = {
        "specversion": "1.0",
        "id": f"{topic}/{partition}/{offset}" if row < 0 else f"{topic}/{partition}/{offset}/{row}",
        "source": "/headrace/signals",
        "type": "headrace.signal.late",
        "datacontenttype": "application/json",
        "reason": reason,
        "partition": partition,
        "offset": str(offset),
        "subject": batch.entity(index),
    }
    value = orjson.dumps(envelope)[:-1] + b',"data":' + data + b"}"
    return Message(value, batch.entity(index).encode(), STRUCTURED)


def letters_of(piece: Piece, topic: str) -> list[DeadLetter]:
    """The piece's rejects as dead letters.

    time_us is the wall clock, no part of any result, a microsecond more each: listings keep the order of the log.
    """
    now_us = time.time_ns() // 1000
    partition = piece.tick.partition
    return [
        DeadLetter(
            letter_id=letter_id(topic, partition, r.offset, DECODE if r.row is None else f"{DECODE} row {r.row}"),
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
        place = (letter.partition, letter.offset, letter.trace_id, entity_of(letter.original))
        tell(Refused(letter.stage, letter.reason, letter.detail, *place))


def entity_of(original: bytes) -> str | None:
    """The entity_id of a refused message, if it can be read: whoever looks for the sender wants it."""
    try:
        entity = open_document(original).members.get("entity_id")
    except SkippableError:
        return None
    return entity if isinstance(entity, str) else None


def _late(batch: SignalBatch, index: int, reason: str, count: int, original: bytes) -> Late:
    trace_id = open_document(original, bytes_max=len(original)).trace_id
    return Late(reason, batch.partition, count, batch.entity(index), int(batch.offset[index]), trace_id)
