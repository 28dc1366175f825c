"""The vocabulary: what flows between the steps, as columns, and the schemas that others read.

Times are int64 microseconds since the Unix epoch, UTC. A null value is NaN inside these classes
(a payload can hold none) and null in Arrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.feature_sets import SETS_MAX, FeatureSet

TIMESTAMP = pa.timestamp("us", tz="UTC")

NO_WATERMARK = np.iinfo(np.int64).min
"""Watermark before the first event: nothing is late, nothing closes."""

END_OF_TIME = np.iinfo(np.int64).max
"""Watermark of a log that has ended: everything closes."""


class Headers(NamedTuple):
    """What may stand beside a message: its content type, its version of CloudEvents, its W3C `traceparent`.

    specversion: set if the message is a CloudEvent whose attributes stand beside it, and its data are the message.
    """

    content_type: bytes | None = None
    specversion: bytes | None = None
    traceparent: bytes | None = None


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Messages of one bus partition as they came, in the order of the log.

    partition: its name on the bus.
    data: uint8; message i is data[starts[i]:starts[i] + lengths[i]], without line end.
    starts, lengths, offsets: int64 (n,); offset is the position in the log, strictly rising.
    timestamps: int64 (n,), milliseconds since the Unix epoch at which the bus took the message, -1 where it did not
        note that; None for a bus that notes none.
    headers: gives those of a message, by its index, until the next messages are read; None for a bus that has none.
    """

    partition: str
    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64] | None = None
    headers: Callable[[int], Headers] | None = None

    def message(self, index: int) -> bytes:
        """The original bytes of message `index`."""
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])].tobytes()


@dataclass(frozen=True, slots=True)
class SignalBatch:
    """Signals of one partition in the order of the log, one array a column, all of length n.

    entity_data, entity_offsets: UTF-8 bytes and int64 (n + 1,); entity i is
        entity_data[entity_offsets[i]:entity_offsets[i + 1]].
    entity_hash: uint64 (n,), low half of MurmurHash3 x64 128 of those bytes.
    event_time, sequence, offset: int64 (n,); event_time in microseconds.
    sets: uint64 (n,); bit i is set if the signal feeds feature set i.
    values: float64 (n, fields), C order; NaN is null or missing.
    """

    partition: str
    entity_data: NDArray[np.uint8]
    entity_offsets: NDArray[np.int64]
    entity_hash: NDArray[np.uint64]
    event_time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    offset: NDArray[np.int64]
    sets: NDArray[np.uint64]
    values: NDArray[np.float64]

    def __reduce__(self) -> tuple[type[SignalBatch], tuple[object, ...]]:
        """Pickle only the bytes that this batch's own entities span: it may be a view of a larger one."""
        start, stop = int(self.entity_offsets[0]), int(self.entity_offsets[-1])
        data, offsets = self.entity_data[start:stop], self.entity_offsets - start
        rest = (self.entity_hash, self.event_time, self.sequence, self.offset, self.sets, self.values)
        return SignalBatch, (self.partition, data, offsets, *rest)

    def __len__(self) -> int:
        """Signals in the batch."""
        return len(self.event_time)

    def entity(self, index: int) -> str:
        """The entity_id of signal `index`."""
        start, stop = self.entity_offsets[index : index + 2]
        return self.entity_data[start:stop].tobytes().decode()


@dataclass(frozen=True, slots=True)
class Reject:
    """A message, or a row of one, that is no signal: where it stood, why it was refused, and its original bytes.

    index: its place in the RawChunk. reason: a short stable word; detail: one sentence. row: its place in a message of
    many signals, of which it is one; None for a whole message. The original of a row is a message of its own.
    """

    index: int
    offset: int
    reason: str
    detail: str
    original: bytes
    trace_id: str | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one decoder call made of a RawChunk: n signals and the rejects; together all messages and their rows.

    index: int64 (n,); place of signal i's message in the RawChunk, never falling. rows: int64 (n,), place of signal i
    in its message, -1 where that is one signal; None if all are. Rows of one message share its offset and stand
    in their order.
    """

    batch: SignalBatch
    index: NDArray[np.int64]
    rejects: tuple[Reject, ...]
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Revisions:
    """What corrected rows have beside their values, one array a column, all of length n.

    revision: int32 (n,), 0 for a row that was not there before. known_at: int64 (n,), microseconds, the event
    time from which on the row counts. supersedes: uint64 (n, 2), content hash of the revision replaced, where
    replaces: bool (n,) is set. retracted: bool (n,), the row is no more. cause_data, cause_offsets: text of
    n causes, as entities in SignalBatch; an empty one is null.
    """

    revision: NDArray[np.int32]
    known_at: NDArray[np.int64]
    supersedes: NDArray[np.uint64]
    replaces: NDArray[np.bool_]
    retracted: NDArray[np.bool_]
    cause_data: NDArray[np.uint8]
    cause_offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Closed windows of one feature set, as rows.

    set_index: into FeatureSets.sets.
    entity_data, entity_offsets: as in SignalBatch.
    place: int64 (n, 4), C order: the entity's index in its shard, the window spec's in FeatureSet.windows,
        window_start and event_time, which is the window's end.
    values: float64 (n, fields * statistics), C order: of each field of the set all STATISTICS, asked for or
        not; NaN is null.
    revisions: of corrected rows; None for rows of windows that closed when their time came: these are revision 0,
        known at their event_time.
    hashes: uint64 (n, 2), content hashes where they are known already; None where not.
    """

    set_index: int
    entity_data: NDArray[np.uint8]
    entity_offsets: NDArray[np.int64]
    place: NDArray[np.int64]
    values: NDArray[np.float64]
    revisions: Revisions | None = None
    hashes: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        """Rows in the block."""
        return len(self.place)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused input with all that is needed to look at it, mend it and send it again.

    letter_id: hex; a function of (topic, partition, offset, stage), so a repeat is the same letter.
    time_us: when it was first refused, wall clock, microseconds. original: the bytes as they came.
    """

    letter_id: str
    time_us: int
    stage: str
    reason: str
    detail: str
    source: str
    partition: str
    offset: int
    original: bytes
    trace_id: str | None = None


@lru_cache(maxsize=SETS_MAX)
def feature_row_schema(feature_set: FeatureSet) -> pa.Schema:
    """Arrow schema of the set's rows in the offline store.

    `window` and `date` are not columns of a file: they are keys of its path, which hive-aware
    readers add; a file that held `window` as well could not be read by `pyarrow.parquet.read_table`.
    Value columns are null where undefined; `count` columns never are.

    A row is known by (entity_id, event_time) in its partition; readers take its highest revision, and drop it if
    that is `retracted`. known_at: the event time from which on a revision counts, so that a filter on it gives the
    rows as they were known then. supersedes: content_hash of the revision before. cause: what made a revision.
    """
    fields = [
        pa.field("entity_id", pa.string(), nullable=False),
        pa.field("window_start", TIMESTAMP, nullable=False),
        pa.field("event_time", TIMESTAMP, nullable=False),
        pa.field("feature_set", pa.string(), nullable=False),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("created_at", TIMESTAMP, nullable=False),
        pa.field("known_at", TIMESTAMP, nullable=False),
        pa.field("supersedes", pa.binary(16), nullable=True),
        pa.field("cause", pa.string(), nullable=True),
        pa.field("retracted", pa.bool_(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
    ]
    for column in feature_set.columns:
        count = column.endswith("__count")
        fields.append(pa.field(column, pa.int64() if count else pa.float64(), nullable=not count))
    return pa.schema(fields)
