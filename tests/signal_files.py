"""The same signals as files of every kind that a backfill reads."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NOON = 1_772_366_400_000
SIGNAL = ("entity_id", "event_time", "sequence", "source", "trace_id")


def events(count: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Signals with disorder, nulls, unknown fields, duplicates and odd names."""
    chance = random.Random(seed)
    out: list[dict[str, Any]] = []
    for i in range(count):
        payload = {f: chance.choice([None, chance.gauss(1e6, 1), i % 7, -0.5e-7]) for f in "abc"}
        out.append(
            {
                "entity_id": chance.choice(['pump "1"', "ключ-😀", "a/../b, c", "line\nend", "7"]),
                "event_time": NOON + i * 100 + chance.randrange(-2000, 2000),
                "sequence": i,
                "source": chance.choice([None, "plant/1", "lab"]),
                "trace_id": None,
                "payload": {**payload, "note": "x"},
            }
        )
        if chance.random() < 0.05:
            out.append(out[-1])
    return out


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """A line a signal; the last one without an end."""
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A column a field, nulls as empty cells, with the mark that spreadsheets put first."""
    fields = list(rows[0]["payload"])
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*SIGNAL, *fields])
        for row in rows:
            writer.writerow([row[name] for name in SIGNAL] + [row["payload"][f] for f in fields])


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """A column a field, times as timestamps, nulls as NaN in one field and as nulls in the others."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in SIGNAL}
    times = pa.array(columns["event_time"], pa.timestamp("ms", tz="Europe/Berlin"))
    values = {f: [row["payload"][f] for row in rows] for f in "abc"}
    values["a"] = [math.nan if v is None else v for v in values["a"]]
    floats = {f: pa.array([None if v is None else float(v) for v in column]) for f, column in values.items()}
    pq.write_table(pa.table({**columns, "event_time": times, **floats}), path)


def write_nested_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """The payload as a struct, times as integers."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in SIGNAL}
    payload = [{f: None if row["payload"][f] is None else float(row["payload"][f]) for f in "abc"} for row in rows]
    pq.write_table(pa.table({**columns, "payload": payload}), path)


def write_arrows(path: Path, rows: list[dict[str, Any]]) -> None:
    """An Arrow stream of several compressed record batches, with dictionary-encoded text."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in SIGNAL}
    columns["entity_id"] = pa.array(columns["entity_id"]).dictionary_encode()
    columns["trace_id"] = pa.nulls(len(rows))
    floats = {f: pa.array([None if (v := row["payload"][f]) is None else float(v) for row in rows]) for f in "abc"}
    table = pa.table({**columns, **floats, "note": [row["payload"]["note"] for row in rows]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=150)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    """An Arrow file with the payload as a struct."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in SIGNAL}
    times = pa.array(columns["event_time"], pa.timestamp("ms", tz="UTC")).cast(pa.timestamp("ns", tz="UTC"))
    payload = [{f: None if row["payload"][f] is None else float(row["payload"][f]) for f in "abc"} for row in rows]
    table = pa.table({**columns, "event_time": times, "payload": payload})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=150)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "struct": write_nested_parquet,
    "arrow": write_arrow,
    "arrows": write_arrows,
}
