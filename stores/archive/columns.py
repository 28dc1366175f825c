"""Messages and verdicts as the flow has them, in arrays, and the tables that they become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.entities import gather_bytes
from operators.forgotten import blanked
from operators.records import NO_WATERMARK, TIMESTAMP, Decoded, RawChunk
from operators.spans import gather_spans
from stores.archive.port import FINAL, FIRST, MESSAGES, VERDICTS, First, Verdict

DAY_US = 86_400_000_000

_TAKEN = MESSAGES.field("taken_at").type

Late = tuple[NDArray[np.bool_], str]
"""Which of a decoder's signals are late, bool (signals,), and for which reason."""

CORRECTS = "correct"
"""Reason of a late signal that counts all the same, as a correction."""


@dataclass(frozen=True, slots=True)
class Messages:
    """All messages of a chunk, good and bad, with the verdict of the one who read them; n in all.

    event_time: int64 (n,), microseconds, NO_WATERMARK for dead ones. day: int64 (n,), days since 1970.
    entity_data, entity_offsets: UTF-8 bytes and int64 (n + 1,), no bytes for dead ones.
    verdict: uint8 (n,), of `First`. reason: uint8 (n,), 0 for none, else 1 + its place in `reasons`.
    rows: int32 (n,), rows of messages of many signals, -1 for one of its own; None if all are.
    """

    raw: RawChunk
    event_time: NDArray[np.int64]
    day: NDArray[np.int64]
    entity_data: NDArray[np.uint8]
    entity_offsets: NDArray[np.int64]
    verdict: NDArray[np.uint8]
    reason: NDArray[np.uint8]
    reasons: tuple[str, ...]
    rows: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Messages, good and bad."""
        return len(self.raw.offsets)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was found out about messages that were read earlier; n in all, in any order.

    partitions: names; partition: int32 (n,), into them. offset, event_time, known_at: int64 (n,), event_time that of
    the message. verdict: uint8 (n,), of `Verdict`. reason: of all of them, or None. row: int32 (n,), place in a message
    of many signals, -1 for others; None if that is not known of any.
    """

    partitions: tuple[str, ...]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    event_time: NDArray[np.int64]
    verdict: NDArray[np.uint8]
    known_at: NDArray[np.int64]
    reason: str | None = None
    row: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Verdicts."""
        return len(self.offset)


def messages_of(raw: RawChunk, decoded: Decoded, late: Sequence[Late], newest: int) -> Messages:
    """Return the messages of a chunk with what the decoder and the partition's watermark said of them.

    newest: the partition's newest event time before the chunk, or NO_WATERMARK. Nothing is copied where all
    messages are signals. Of a forgotten entity no bytes are taken.
    """
    raw = blanked(raw, decoded)
    if decoded.rows is not None:
        return _of_many(raw, decoded, late, newest)
    n, batch, index = len(raw.offsets), decoded.batch, decoded.index
    verdict, reason = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    words = list(dict.fromkeys([word for _, word in late] + [reject.reason for reject in decoded.rejects]))
    for mask, word in late:
        verdict[index[mask]] = First.LATE
        reason[index[mask]] = 1 + words.index(word)
    time, ends = batch.event_time, batch.entity_offsets
    day = time // DAY_US
    if decoded.rejects:
        dead = np.array([reject.index for reject in decoded.rejects], np.int64)
        verdict[dead] = First.DEAD
        reason[dead] = [1 + words.index(reject.reason) for reject in decoded.rejects]
        time = np.full(n, NO_WATERMARK, np.int64)
        time[index] = batch.event_time
        sizes = np.zeros(n + 1, np.int64)
        sizes[index + 1] = np.diff(batch.entity_offsets)
        ends = batch.entity_offsets[0] + np.cumsum(sizes)
        day = time // DAY_US
        day[dead] = np.maximum(np.maximum.accumulate(np.maximum(time, newest))[dead], 0) // DAY_US
    return Messages(raw, time, day, batch.entity_data, ends, verdict, reason, tuple(words))


def _of_many(raw: RawChunk, decoded: Decoded, late: Sequence[Late], newest: int) -> Messages:
    """The same where some messages are of many signals: each is one message."""
    n, batch, index = len(raw.offsets), decoded.batch, decoded.index
    own = np.ones(len(index), np.bool_) if decoded.rows is None else decoded.rows < 0
    words = list(dict.fromkeys([word for _, word in late] + [reject.reason for reject in decoded.rejects]))
    code = np.zeros(len(index), np.uint8)
    for mask, word in late:
        code[mask if word != CORRECTS else mask & own] = 1 + words.index(word)
    good, aside = np.bincount(index, minlength=n), np.bincount(index[code > 0], minlength=n)
    verdict = np.where(good == 0, First.DEAD, np.where(aside == good, First.LATE, First.ACCEPTED)).astype(np.uint8)
    heads = np.flatnonzero(np.append(True, np.diff(index) != 0)[: len(index)])
    reason, rows = np.zeros(n, np.uint8), np.full(n, -1, np.int32)
    reason[index[heads]] = np.where(aside[index[heads]] == good[index[heads]], code[heads], 0)
    many = np.bincount([r.index for r in decoded.rejects if r.row is not None], minlength=n).astype(np.int64)
    many += np.bincount(index[~own], minlength=n)
    rows[many > 0] = many[many > 0]
    for reject in reversed(decoded.rejects):
        if good[reject.index] == 0:
            reason[reject.index] = 1 + words.index(reject.reason)
    time, top = np.full((2, n), NO_WATERMARK, np.int64)
    time[index[heads]] = batch.event_time[heads]
    np.maximum.at(top, index, batch.event_time)
    day, dead = time // DAY_US, good == 0
    day[dead] = np.maximum(np.maximum.accumulate(np.maximum(top, newest))[dead], 0) // DAY_US
    data, ends = gather_bytes(batch.entity_data, batch.entity_offsets, np.flatnonzero(own))
    sizes = np.zeros(n + 1, np.int64)
    sizes[index[own] + 1] = np.diff(ends)
    return Messages(raw, time, day, data, np.cumsum(sizes), verdict, reason, tuple(words), rows)


def refused_in(messages: Messages, decoded: Decoded, late: Sequence[Late], newest: int) -> Iterator[Verdicts]:
    """Yield what is known at once of rows of messages of many signals that count for nothing, by reason.

    messages: as `messages_of` gave them. Of a message that is dead as a whole nothing is said.
    """
    if decoded.rows is None:
        return
    top = np.full(len(messages), NO_WATERMARK, np.int64)
    np.maximum.at(top, decoded.index, decoded.batch.event_time)
    known = np.maximum.accumulate(np.maximum(top, newest))
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for mask, word in late:
        aside = np.flatnonzero(mask & (decoded.rows >= 0)) if word != CORRECTS else ()
        for i in aside:
            found.setdefault((word, Verdict.LATE), []).append((int(decoded.index[i]), int(decoded.rows[i])))
    for reject in decoded.rejects:
        if reject.row is not None and messages.verdict[reject.index] != First.DEAD:
            found.setdefault((reject.reason, Verdict.DEAD), []).append((reject.index, reject.row))
    for (word, verdict), pairs in found.items():
        index, row = np.array(pairs, np.int64).T
        n = len(index)
        yield Verdicts(
            (messages.raw.partition,),
            np.zeros(n, np.int32),
            messages.raw.offsets[index],
            messages.event_time[index],
            np.full(n, verdict, np.uint8),
            known[index],
            word,
            row.astype(np.int32),
        )


def owned(messages: Messages, index: NDArray[np.int64] | None = None, out: NDArray[np.uint8] | None = None) -> Messages:
    """The messages `index` (int64 (m,), rising; None: all) with bytes of their own, end to end.

    The reader of the others may use its buffer again. out: see `gather_spans`.
    """
    raw = messages.raw
    if index is None:
        data, ends = gather_spans(raw.data, raw.starts, raw.lengths, out)
        return replace(messages, raw=replace(raw, data=data, starts=ends[:-1]))
    data, ends = gather_spans(raw.data, raw.starts[index], raw.lengths[index], out)
    taken = None if raw.timestamps is None else raw.timestamps[index]
    names, name_ends = gather_bytes(messages.entity_data, messages.entity_offsets, index)
    return Messages(
        RawChunk(raw.partition, data, ends[:-1], raw.lengths[index], raw.offsets[index], taken),
        messages.event_time[index],
        messages.day[index],
        names,
        name_ends,
        messages.verdict[index],
        messages.reason[index],
        messages.reasons,
        None if messages.rows is None else messages.rows[index],
    )


def chosen(verdicts: Verdicts, index: NDArray[np.int64] | None) -> Verdicts:
    """The verdicts `index` (int64 (m,); None: all)."""
    if index is None:
        return verdicts
    return Verdicts(
        verdicts.partitions,
        verdicts.partition[index],
        verdicts.offset[index],
        verdicts.event_time[index],
        verdicts.verdict[index],
        verdicts.known_at[index],
        verdicts.reason,
        None if verdicts.row is None else verdicts.row[index],
    )


def by_day(day: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64] | None]]:
    """Yield each day with the places that have it, rising; None for the places where there is but one day."""
    if len(day) == 0:
        return
    if day.min() == day.max():
        yield int(day[0]), None
        return
    order = np.argsort(day, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(day[order])) + 1):
        yield int(day[places[0]]), places


def message_table(messages: Messages) -> pa.Table:
    """Return the messages, as `owned` gives them, as a table of MESSAGES in their order; nothing is copied."""
    raw, taken, n = messages.raw, messages.raw.timestamps, len(messages)
    alive = messages.verdict != First.DEAD
    valid = None if alive.all() else _bitmap(alive)
    named = valid if messages.rows is None else _bitmap(alive & (messages.rows < 0))
    first, last = messages.entity_offsets[[0, -1]]
    reasons = pa.array([None, *messages.reasons], pa.string())
    columns = [
        _words(np.zeros(n, np.int32), (raw.partition,)),
        _column(pa.int64(), raw.offsets, None),
        pa.nulls(n, _TAKEN) if taken is None else _column(_TAKEN, taken, _bitmap(taken >= 0)),
        _column(TIMESTAMP, messages.event_time, valid),
        _strings(pa.string(), messages.entity_data[first:last], messages.entity_offsets - first, named),
        _words(messages.verdict, FIRST),
        reasons.take(pa.array(messages.reason)),
        _numbers(messages.rows, n),
        _strings(pa.binary(), raw.data, np.append(raw.starts, len(raw.data)), None),
    ]
    return pa.Table.from_arrays(columns, schema=MESSAGES)


def verdict_table(verdicts: Verdicts) -> pa.Table:
    """Return the verdicts as a table of VERDICTS."""
    columns = [
        _words(verdicts.partition, verdicts.partitions),
        _column(pa.int64(), verdicts.offset, None),
        _numbers(verdicts.row, len(verdicts)),
        _column(TIMESTAMP, verdicts.event_time, None),
        _words(verdicts.verdict, FINAL),
        pa.repeat(pa.scalar(verdicts.reason, pa.string()), len(verdicts)),
        _column(TIMESTAMP, verdicts.known_at, None),
    ]
    return pa.Table.from_arrays(columns, schema=VERDICTS)


def in_log_order(tables: Iterable[pa.Table]) -> pa.Table:
    """All rows of the tables as one, sorted by partition and offset; rows of one place keep their order."""
    rows = pa.concat_tables(tables).unify_dictionaries()
    places = {"partition": rows["partition"].cast(pa.string()), "offset": rows["offset"]}
    order = pa.table({**places, "row": np.arange(rows.num_rows)})
    return rows.take(order.sort_by([(name, "ascending") for name in order.column_names])["row"])


def date_of(day: int) -> str:
    """`YYYY-MM-DD` of a number of days since 1970."""
    return str(np.datetime64(day, "D"))


def _bitmap(valid: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


def _words(codes: NDArray[np.integer], words: Sequence[str]) -> pa.DictionaryArray:
    indices = _column(pa.int32(), codes.astype(np.int32), None)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))


def _numbers(values: NDArray[np.int32] | None, n: int) -> pa.Array:
    """Null where negative."""
    return pa.nulls(n, pa.int32()) if values is None else _column(pa.int32(), values, _bitmap(values >= 0))


def _column(kind: pa.DataType, values: NDArray[np.generic], valid: pa.Buffer | None) -> pa.Array:
    """An Arrow column over the arrays, nothing copied. pa.array would do too, but imports pandas first."""
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def _strings(kind: pa.DataType, data: NDArray[np.uint8], ends: NDArray[np.int64], valid: pa.Buffer | None) -> pa.Array:
    buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(kind, len(ends) - 1, buffers)
