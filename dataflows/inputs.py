"""Files as inputs of a batch run: .jsonl, .csv and .parquet, each a partition.

CSV and Parquet rows become the messages that a producer would have sent, so that one decoder decides
for all of them. Columns: entity_id, event_time, sequence, source, trace_id; every other is a field.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Protocol

import numpy as np
import orjson

from dataflows.buses.folder import FileReader
from operators.errors import ConfigError
from operators.records import RawChunk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SIGNAL_COLUMNS = ("entity_id", "event_time", "sequence", "source", "trace_id")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_PARQUET_ROWS = 65_536


class Input(Protocol):
    """A complete file, read forwards."""

    def poll(self, events_max: int) -> RawChunk | None:
        """Return the next 1 to `events_max` messages, or None at the end."""
        ...

    def advanced(self) -> int:
        """Return how many bytes of the file were read since the last call; exact in sum."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_input(path: Path, event_bytes_max: int) -> Input:
    """Open a file by its ending. Raises ConfigError for another ending, and for a file that cannot be read."""
    try:
        match path.suffix:
            case ".jsonl" | ".ndjson":
                return _LinesInput(path, event_bytes_max)
            case ".csv":
                return _RowsInput(path, _csv_rows(path))
            case ".parquet":
                return _RowsInput(path, _parquet_rows(path))
    except OSError as error:
        raise ConfigError(f"input `{path}` cannot be read: {error}") from error
    raise ConfigError(f"input `{path}` must end in .jsonl, .csv or .parquet")


class _LinesInput:
    """Lines of JSON; unlike on a bus, a last line without its end is complete."""

    def __init__(self, path: Path, event_bytes_max: int) -> None:
        self._path = path
        self._reader = FileReader(path, path.stem, None, event_bytes_max=event_bytes_max)
        self._reported = 0
        self._ended = False

    def poll(self, events_max: int) -> RawChunk | None:
        chunk = self._reader.poll(events_max)
        if chunk is not None or self._ended:
            return chunk
        self._ended = True
        start = int(str(self._reader.position()["offset"]))
        with self._path.open("rb") as file:
            file.seek(start)
            rest = file.read().rstrip(b"\r")
        return _chunk(self._path.stem, [rest], [start]) if rest else None

    def advanced(self) -> int:
        at = self._path.stat().st_size if self._ended else int(str(self._reader.position()["offset"]))
        more = at - self._reported
        self._reported = at
        return more

    def close(self) -> None:
        self._reader.close()


class _RowsInput:
    """Rows that were turned into messages; the offset is the number of the row, from 0."""

    def __init__(self, path: Path, rows: Iterator[bytes]) -> None:
        self._path = path
        self._rows = rows
        self._next = 0
        self._unreported = path.stat().st_size

    def poll(self, events_max: int) -> RawChunk | None:
        messages = [m for m, _ in zip(self._rows, range(events_max), strict=False)] if events_max else []
        if not messages:
            return None
        start = self._next
        self._next += len(messages)
        return _chunk(self._path.stem, messages, list(range(start, self._next)))

    def advanced(self) -> int:
        more, self._unreported = self._unreported, 0
        return more

    def close(self) -> None:
        """The iterator closes its file."""


def _chunk(partition: str, messages: list[bytes], offsets: list[int]) -> RawChunk:
    lengths = np.array([len(m) for m in messages], np.int64)
    data = np.frombuffer(b"".join(messages), np.uint8)
    return RawChunk(partition, data, np.cumsum(lengths) - lengths, lengths, np.array(offsets, np.int64))


def _csv_rows(path: Path) -> Iterator[bytes]:
    """Each row as a message: what reads as a number is one, an empty cell is null, the rest is text."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file, restkey="", restval=""):
            yield _csv_message(row)


def _csv_message(row: dict[str, str]) -> bytes:
    parts: list[bytes] = []
    payload: list[bytes] = []
    for name, cell in row.items():
        text = cell if isinstance(cell, str) else ",".join(cell)
        key = _text(name)
        if name in ("entity_id", "source", "trace_id"):
            parts.append(key + b":" + (_text(text) if text else b"null"))
        elif name in _SIGNAL_COLUMNS:
            parts.append(key + b":" + (text.encode() if _INTEGER.fullmatch(text) else _text(text)))
        elif text == "":
            payload.append(key + b":null")
        else:
            payload.append(key + b":" + (text.encode() if _NUMBER.fullmatch(text) else _text(text)))
    return b"{" + b",".join([*parts, b'"payload":{' + b",".join(payload) + b"}"]) + b"}"


def _text(text: str) -> bytes:
    """A JSON string; bytes that were not UTF-8 stay what they were, for the decoder to refuse."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:
        return b'"' + text.encode("utf-8", "surrogateescape") + b'"'


def _parquet_rows(path: Path) -> Iterator[bytes]:
    """Each row as a message; a struct column `payload` holds the fields, or every further column is one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"input `{path}` is not a Parquet file: {error}") from error
    with file:
        for batch in file.iter_batches(_PARQUET_ROWS):
            for row in batch.to_pylist():
                signal = {name: row[name] for name in _SIGNAL_COLUMNS if name in row}
                rest = {name: value for name, value in row.items() if name not in _SIGNAL_COLUMNS}
                payload = rest["payload"] if isinstance(rest.get("payload"), dict) else rest
                yield orjson.dumps({**signal, "payload": payload}, default=str)
