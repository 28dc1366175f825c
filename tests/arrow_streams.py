"""Arrow IPC streams of signals, as any producer might write them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tests.messages import FIELDS

Row = Mapping[str, Any]
"""A signal as JSON would hold it, but with event_time in microseconds; null where it has nothing."""


def stream(table: pa.Table, parts: int = 1, **options: object) -> bytes:
    """The table as one message, in about so many record batches. options: of Arrow's writer."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=max(1, -(-len(table) // parts)))
    return sink.getvalue()


def columns(rows: Sequence[Row], fields: Sequence[str] = FIELDS) -> dict[str, pa.Array]:
    """The rows as the columns that a producer would choose first: text, timestamps in UTC, floats."""
    out = {
        "entity_id": pa.array([r["entity_id"] for r in rows], pa.string()),
        "event_time": pa.array([r["event_time"] for r in rows], pa.timestamp("us", "UTC")),
        "sequence": pa.array([r["sequence"] for r in rows], pa.int64()),
        "source": pa.array([r.get("source") for r in rows], pa.string()),
        "trace_id": pa.array([r.get("trace_id") for r in rows], pa.string()),
    }
    return out | {name: pa.array([r["payload"].get(name) for r in rows], pa.float64()) for name in fields}


def under_payload(flat: Mapping[str, pa.Array], missing: Sequence[bool]) -> dict[str, pa.Array]:
    """The same with the fields in a struct column, null where `missing`."""
    names = list(flat)[5:]
    struct = pa.StructArray.from_arrays([flat[name] for name in names], names, mask=pa.array(missing, pa.bool_()))
    return {name: flat[name] for name in list(flat)[:5]} | {"payload": struct}
