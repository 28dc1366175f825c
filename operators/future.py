"""Events from a far future: one with a wrong clock must not close the windows of all others."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from heapq import merge

import numpy as np

from operators.arrow_messages import originals
from operators.errors import SkippableError
from operators.records import Decoded, RawChunk, Reject
from operators.shard import take
from operators.signal_rules import open_document

FUTURE = "future"
"""Reason of such an event."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def without_future(decoded: Decoded, chunk: RawChunk, max_us: int) -> Decoded:
    """Turn signals that are more than `max_us` ahead of the time at which the bus took them into rejects.

    A function of the log: the time is the bus's, not this machine's. Where the bus has noted none, nothing is refused.
    """
    if chunk.timestamps is None or len(decoded.batch) == 0:
        return decoded
    taken_ms = chunk.timestamps[decoded.index]
    ahead = (taken_ms >= 0) & (decoded.batch.event_time - max_us > taken_ms * 1000)
    if not ahead.any():
        return decoded
    which = np.flatnonzero(ahead)
    rejects = [
        _reject(decoded, i, int(taken), original)
        for i, taken, original in zip(
            which.tolist(), taken_ms[which].tolist(), originals(chunk, decoded, which), strict=True
        )
    ]
    kept = np.flatnonzero(~ahead)
    together = merge(decoded.rejects, rejects, key=lambda r: (r.index, -1 if r.row is None else r.row))
    rows = None if decoded.rows is None else decoded.rows[kept]
    return replace(
        decoded, batch=take(decoded.batch, kept), index=decoded.index[kept], rejects=tuple(together), rows=rows
    )


def _reject(decoded: Decoded, i: int, taken_ms: int, original: bytes) -> Reject:
    row = -1 if decoded.rows is None else int(decoded.rows[i])
    event_time, taken = (_shown(us) for us in (int(decoded.batch.event_time[i]), taken_ms * 1000))
    try:
        trace_id = open_document(original, bytes_max=len(original)).trace_id
    except SkippableError:
        trace_id = None
    return Reject(
        index=int(decoded.index[i]),
        offset=int(decoded.batch.offset[i]),
        reason=FUTURE,
        detail=f"`event_time` is {event_time}, but the message was there at {taken} already",
        original=original,
        trace_id=trace_id,
        row=None if row < 0 else row,
    )


def _shown(us: int) -> str:
    """RFC 3339 in UTC."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat()
