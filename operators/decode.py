"""Decode: message bytes to one batch of columns and the rejects, in the order of the log.

Two lanes. The fast lane is compiled and takes the plain messages; what it leaves is judged one by one by
`operators.signal_rules`, which alone decides what is good. A value is the same whichever lane read it. A message of
many signals is an Arrow IPC stream, known by its first bytes; its rows are read by `operators.arrow_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numba import int64, uint64
from numpy.typing import NDArray

from operators import lane_tables, signal_rules
from operators.arrow_messages import is_stream, refused_rows, with_rows
from operators.arrow_rows import ArrowRows, read_rows
from operators.compiled import kernel
from operators.errors import DecodeError, SkippableError
from operators.feature_sets import FeatureSets
from operators.forgotten import Forgotten
from operators.json_lane import hash_entities, read_messages
from operators.lane_tables import Columns, Sources
from operators.message_headers import explained, trace_of
from operators.records import Decoded, RawChunk, Reject, SignalBatch
from operators.signal_rules import ENTITY_BYTES_MAX, EVENT_BYTES_MAX, Reason, Signal
from operators.simd import newline_mask, trailing_zeros

__all__ = ["ENTITY_BYTES_MAX", "EVENT_BYTES_MAX", "Decoder", "Reason", "split_lines"]

_VECTOR = 32


class Decoder:
    """Turns chunks of raw messages into signals and rejects; every message, or row of one, becomes one or the other.

    A pure function of the chunk: a decoder keeps nothing between calls, and threads may share it.
    """

    def __init__(
        self, sets: FeatureSets, *, event_bytes_max: int = EVENT_BYTES_MAX, forgotten: Forgotten | None = None
    ) -> None:
        """Decode the payload fields of `sets`; a message over `event_bytes_max` bytes is refused unread.

        forgotten: whose signals are refused, and not even kept as rejects.
        """
        self._forgotten = forgotten
        self._sets = sets
        self._fields = sets.fields
        self._event_bytes_max = event_bytes_max
        self._keys = lane_tables.lay_keys(self._fields)
        self._selective = any(declared.sources for declared in sets.sets)

    def decode(self, chunk: RawChunk) -> Decoded:
        """Decode all messages of a chunk.

        The batch holds the good ones in the order of the log, `values` in the order of `sets.fields`; nothing in it is
        shared with the chunk. A bad message is never raised, it is a Reject with a `Reason`; so is a bad row of a
        message whose columns are good.
        """
        columns, masks, flagged = self._read_plain(chunk)
        judged = self._judge(chunk, flagged)
        if judged.rows:
            columns = _with_entities(columns, judged)
            self._place(judged, columns, masks)
        decoded = _assemble(chunk, columns, masks, judged)
        decoded = with_rows(decoded, judged.opened, chunk) if judged.opened else decoded
        return decoded if self._forgotten is None else self._forgotten.taken_out(decoded)

    def _read_plain(self, chunk: RawChunk) -> tuple[Columns, NDArray[np.uint64], NDArray[np.int64]]:
        """Columns and masks with a row a message, as far as the fast lane takes them, and those it leaves."""
        spans = np.empty((len(chunk.starts), 2), np.int64)
        spans[:, 0] = chunk.starts
        spans[:, 1] = np.where(chunk.lengths > self._event_bytes_max, -1, chunk.lengths)
        data = _bytes_view(chunk.data)
        sources = lane_tables.lay_sources(len(spans) if self._selective else 0)
        columns = lane_tables.lay_columns(len(spans), len(self._fields), int(chunk.lengths.sum()))
        flagged = read_messages(data, spans, self._keys, lane_tables.lay_trail(self._keys), sources, columns)
        masks = self._masks(data, sources)[columns.source]
        return columns, masks, columns.flagged[:flagged]

    def _masks(self, data: NDArray[np.uint8], sources: Sources) -> NDArray[np.uint64]:
        """Sets that each numbered source feeds, and last those of no source, which has number -1."""
        found = int(sources.found[0])
        spans = zip(sources.begin[:found].tolist(), sources.size[:found].tolist(), strict=True)
        masks = [self._sets.mask(data[begin : begin + size].tobytes().decode()) for begin, size in spans]
        return np.array([*masks, self._sets.mask(None)], np.uint64)

    def _judge(self, chunk: RawChunk, flagged: NDArray[np.int64]) -> _Judged:
        judged = _Judged()
        for index in flagged.tolist():
            message = chunk.message(index)
            document = None
            try:
                if is_stream(message):
                    self._open(message, index, int(chunk.offsets[index]), judged)
                    continue
                document = signal_rules.open_document(message, bytes_max=self._event_bytes_max)
                judged.signals.append(signal_rules.check(document, self._fields))
                judged.rows.append(index)
            except SkippableError as error:
                trace_id = document.trace_id if document is not None else None
                judged.rejects.append(_reject(chunk, index, error, message, trace_id))
        return judged

    def _open(self, message: bytes, index: int, offset: int, judged: _Judged) -> None:
        """Read a message of many signals. Raises SkippableError if none of them can be read."""
        if len(message) > self._event_bytes_max:
            told = f"the message has {len(message)} bytes; at most {self._event_bytes_max} are taken"
            raise DecodeError(Reason.TOO_LARGE, told)
        rows = read_rows(message, self._sets, self._event_bytes_max)
        judged.opened.append((index, rows))
        if not rows.good.all():
            judged.rejects.extend(refused_rows(rows, index, offset, self._fields))

    def _place(self, judged: _Judged, columns: Columns, masks: NDArray[np.uint64]) -> None:
        """Put judged signals into their rows; their entities stand there already."""
        rows = np.array(judged.rows, np.int64)
        hash_entities(columns, rows)
        columns.event_time[rows] = [signal.event_time for signal in judged.signals]
        columns.sequence[rows] = [signal.sequence for signal in judged.signals]
        columns.values[rows] = [signal.values for signal in judged.signals]
        mask_of = {source: self._sets.mask(source) for source in {signal.source for signal in judged.signals}}
        masks[rows] = np.array([mask_of[signal.source] for signal in judged.signals], np.uint64)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Verdicts on the flagged messages of a chunk: signals with their rows, rejects, and messages of many signals."""

    signals: list[Signal] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    opened: list[tuple[int, ArrowRows]] = field(default_factory=list)


def _reject(chunk: RawChunk, index: int, error: SkippableError, message: bytes, trace_id: str | None) -> Reject:
    """The verdict on a bad message, with what its headers tell of it."""
    if chunk.headers is not None:
        headers = chunk.headers(index)
        error = explained(error, headers)
        trace_id = trace_id or trace_of(headers)
    return Reject(index, int(chunk.offsets[index]), error.reason, str(error), message, trace_id)


def _with_entities(columns: Columns, judged: _Judged) -> Columns:
    """Bring the entities of judged signals in between those of the fast lane, where flagged rows have no bytes."""
    offsets = columns.entity_offsets
    plain = columns.entity_data[: int(offsets[-1])].tobytes()
    pieces = []
    done = 0
    grown = np.zeros(len(offsets), np.int64)
    for row, signal in zip(judged.rows, judged.signals, strict=True):
        at = int(offsets[row])
        pieces += [plain[done:at], signal.entity]
        done = at
        grown[row + 1] = len(signal.entity)
    pieces.append(plain[done:])
    data = np.frombuffer(bytearray().join(pieces), np.uint8)
    return columns._replace(entity_data=data, entity_offsets=offsets + np.cumsum(grown))


def _assemble(chunk: RawChunk, columns: Columns, masks: NDArray[np.uint64], judged: _Judged) -> Decoded:
    """Drop the rows of rejects and of messages of many signals; they have no entity bytes."""
    good = np.ones(len(masks), np.bool_)
    good[[reject.index for reject in judged.rejects]] = False
    good[[index for index, _ in judged.opened]] = False
    index = np.flatnonzero(good)
    keep = slice(None) if len(index) == len(masks) else index
    offsets = columns.entity_offsets
    batch = SignalBatch(
        partition=chunk.partition,
        entity_data=columns.entity_data[: int(offsets[-1])].copy(),
        entity_offsets=np.append(offsets[:-1][keep], offsets[-1:]),
        entity_hash=columns.entity_hash[keep],
        event_time=columns.event_time[keep],
        sequence=columns.sequence[keep],
        offset=chunk.offsets[index],
        sets=masks[keep],
        values=columns.values[keep],
    )
    return Decoded(batch, index, tuple(judged.rejects))


def split_lines(data: NDArray[np.uint8], *, lines_max: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    r"""Find the whole lines in bytes: their starts, their lengths, and how many bytes they and their ends take.

    data: uint8 (n,). At most `lines_max` lines are given. A line ends at `\n`; a `\r` before that is not part of it.
    What stands behind the last `\n` is still being written, and is neither in the result nor in the count of bytes.
    """
    starts = np.empty(min(lines_max, len(data)), np.int64)
    lengths = np.empty(len(starts), np.int64)
    count, consumed = _find_lines(_bytes_view(data), starts, lengths)
    return starts[:count].copy(), lengths[:count].copy(), int(consumed)


def _bytes_view(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes as the one kind of array that the kernels are compiled for: contiguous and read-only."""
    view = np.ascontiguousarray(data, np.uint8).view()
    view.flags.writeable = False
    return view


@kernel
def _find_lines(data, starts, lengths):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """(lines found, bytes consumed); stops when `starts` is full."""
    count = 0
    begin = 0
    at = 0
    while at < len(data):
        if at + _VECTOR <= len(data):
            ends = newline_mask(data, at)
            width = _VECTOR
        else:
            ends = uint64(data[at] == ord("\n"))
            width = 1
        while ends != uint64(0):
            if count == len(starts):
                return count, begin
            end = at + trailing_zeros(ends)
            starts[count] = begin
            lengths[count] = end - begin - int64(end > begin and data[end - 1] == ord("\r"))
            count += 1
            begin = end + 1
            ends &= ends - uint64(1)
        at += width
    return count, begin
