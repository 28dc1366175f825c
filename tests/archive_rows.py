"""Small chunks of messages as the archive takes them, and what an archive shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import orjson

from operators.decode import Decoder
from operators.records import NO_WATERMARK, RawChunk
from operators.watermark import PartitionWatermark
from stores.archive.columns import Messages, Verdicts, message_table, messages_of, owned
from stores.archive.port import ALL, Archive, ArchiveKey, ArchiveSelection, Verdict
from stores.archive.reading import judged, scan
from stores.offline.port import Withheld
from tests.messages import feature_sets

MIDNIGHT_MS = 1_728_000_000_000
"""2024-10-04."""

DAY = ArchiveKey("signals", "2024-10-04")
NEXT = ArchiveKey("signals", "2024-10-05")
LATER = ArchiveKey("verdicts", "2024-10-04")
DAY_MS = 86_400_000
BOUND_US = 5_000_000


@cache
def decoder() -> Decoder:
    """One decoder for all tests."""
    return Decoder(feature_sets())


def raw_chunk(messages: Sequence[bytes], *, partition: str = "p0", first: int = 0, step: int = 10) -> RawChunk:
    """Messages with lines' ends between them, the first at offset `first`, each further one `step` beyond."""
    lengths = np.array([len(m) for m in messages], np.int64)
    starts = np.cumsum(lengths + 1) - lengths - 1
    data = np.frombuffer(b"\n".join(messages) + b"\n", np.uint8)
    return RawChunk(partition, data, starts, lengths, first + step * np.arange(len(messages), dtype=np.int64))


def event(number: int, *, entity: str = "pump", at_ms: int | None = None) -> bytes:
    """A good signal; by default one second after the one before."""
    time = MIDNIGHT_MS + 1000 * number if at_ms is None else at_ms
    return orjson.dumps({"entity_id": entity, "event_time": time, "sequence": number, "payload": {"a": number}})


def read_chunk(raw: RawChunk, watermark: PartitionWatermark | None = None) -> Messages:
    """What the reader of the partition makes of a chunk."""
    mark = watermark or PartitionWatermark(BOUND_US)
    decoded, newest = decoder().decode(raw), mark.newest
    return messages_of(raw, decoded, [(mark.mark(decoded.batch.event_time), "late")], newest)


def numbered(first: int, count: int, *, partition: str = "p0") -> Messages:
    """Signals first, first + 1, … of a partition; the number is the offset too."""
    raw = raw_chunk([event(n) for n in range(first, first + count)], partition=partition, first=first, step=1)
    return read_chunk(raw)


def put(archive: Archive, writer: str, sequence: int, messages: Messages, key: ArchiveKey = DAY) -> Withheld:
    """Stage and publish at once; return what was withheld."""
    file = archive.stage(writer, sequence, key)
    file.write(message_table(owned(messages)))
    return archive.publish([file.finish()])


def verdicts(offsets: Sequence[int], verdict: Verdict, known_s: int, *, reason: str | None = None) -> Verdicts:
    """Verdicts on messages of the first day in partition p0, known so many seconds after midnight."""
    n = len(offsets)
    return Verdicts(
        ("p0",),
        np.zeros(n, np.int32),
        np.array(offsets, np.int64),
        np.full(n, MIDNIGHT_MS * 1000, np.int64),
        np.full(n, verdict, np.uint8),
        np.full(n, MIDNIGHT_MS * 1000 + known_s * 1_000_000, np.int64),
        reason,
    )


def places(archive: Archive, selection: ArchiveSelection = ALL) -> list[tuple[str, int]]:
    """Partition and offset of every visible message, in the order of the scan."""
    return [
        place
        for _, rows in scan(archive, selection)
        for place in zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), strict=True)
    ]


def outcomes(archive: Archive, selection: ArchiveSelection = ALL) -> dict[int, tuple[str, str | None]]:
    """Offset → (verdict, reason) of every message; a message that is there twice is an error."""
    found: dict[int, tuple[str, str | None]] = {}
    for rows in judged(archive, selection):
        columns = (rows[name].to_pylist() for name in ("offset", "verdict", "reason"))
        for offset, verdict, reason in zip(*columns, strict=True):
            assert offset not in found
            found[offset] = (verdict, reason)
    return found


def taken_in(chunks: Iterable[RawChunk]) -> list[int]:
    """When the bus took each message, -1 where it does not say."""
    return [int(t) for c in chunks for t in (np.full(len(c.offsets), -1) if c.timestamps is None else c.timestamps)]


def messages_in(chunks: Iterable[RawChunk]) -> list[tuple[int, bytes]]:
    """Offset and bytes of every message, in order."""
    return [(int(c.offsets[i]), c.message(i)) for c in chunks for i in range(len(c.offsets))]


def blank_watermark() -> PartitionWatermark:
    """Of a partition that nothing was read of."""
    return PartitionWatermark(BOUND_US, NO_WATERMARK)
