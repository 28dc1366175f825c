"""Files as inputs of a batch run: .jsonl, .csv, .parquet, .arrow and .arrows, each a partition.

Rows become the messages that a producer would have sent, those of Arrow many in one, so that one decoder decides
for all of them. Columns: entity_id, event_time, sequence, and if there are any source and trace_id;
every other is a field of the payload.
"""

from __future__ import annotations

import csv
import json
import math
import re
from io import TextIOWrapper
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import orjson

from dataflows.buses.folder import FileReader
from operators.errors import ConfigError
from operators.records import RawChunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

_NEEDED_COLUMNS = ("entity_id", "event_time", "sequence")
_SIGNAL_COLUMNS = (*_NEEDED_COLUMNS, "source", "trace_id")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_PARQUET_ROWS = 65_536
_ARROW_ROWS = 8192
_CELL_BYTES_MAX = 1 << 26


class Input(Protocol):
    """A complete file, read forwards. Methods raise ConfigError for a file that turns out to be damaged."""

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
            case ".arrow" | ".arrows":
                return _ArrowInput(path, event_bytes_max)
    except OSError as error:
        raise ConfigError(f"input `{path}` cannot be read: {error}") from error
    raise ConfigError(f"input `{path}` must end in .jsonl, .csv, .parquet, .arrow or .arrows")


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

    def __init__(self, path: Path, rows: Iterator[tuple[bytes, int]]) -> None:
        """rows: messages, each with how many bytes of the file were read by then."""
        self._path = path
        self._rows = rows
        self._next = 0
        self._read = 0
        self._reported = 0

    def poll(self, events_max: int) -> RawChunk | None:
        taken = list(islice(self._rows, events_max))
        if not taken:
            self._read = self._path.stat().st_size
            return None
        start = self._next
        self._next += len(taken)
        self._read = taken[-1][1]
        return _chunk(self._path.stem, [message for message, _ in taken], list(range(start, self._next)))

    def advanced(self) -> int:
        more, self._reported = self._read - self._reported, self._read
        return more

    def close(self) -> None:
        """The iterator closes its file."""


class _ArrowInput:
    """Record batches, some rows at a time as one message; the offset is the number of its first row, from 0."""

    def __init__(self, path: Path, message_bytes_max: int) -> None:
        self._path = path
        self._message_bytes_max = message_bytes_max
        self._batches = _arrow_batches(path)
        self._left: pa.RecordBatch | None = None
        self._next = 0
        self._at = 0
        self._read = 0
        self._reported = 0

    def poll(self, events_max: int) -> RawChunk | None:
        while self._left is None or self._at == self._left.num_rows:
            self._left, self._read = next(self._batches, (None, self._path.stat().st_size))
            self._at = 0
            if self._left is None:
                return None
        rows = min(events_max, _ARROW_ROWS, self._left.num_rows - self._at)
        message = _stream(self._left.slice(self._at, rows))
        while len(message) > self._message_bytes_max and rows > 1:
            rows //= 2
            message = _stream(self._left.slice(self._at, rows))
        start, self._next, self._at = self._next, self._next + rows, self._at + rows
        return _chunk(self._path.stem, [message], [start])

    def advanced(self) -> int:
        more, self._reported = self._read - self._reported, self._read
        return more

    def close(self) -> None:
        """The iterator closes its file."""


def _chunk(partition: str, messages: list[bytes], offsets: list[int]) -> RawChunk:
    lengths = np.array([len(m) for m in messages], np.int64)
    data = np.frombuffer(b"".join(messages), np.uint8)
    return RawChunk(partition, data, np.cumsum(lengths) - lengths, lengths, np.array(offsets, np.int64))


def _csv_rows(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each row as a message: what reads as a number is one, an empty cell is null, the rest is text."""
    csv.field_size_limit(_CELL_BYTES_MAX)
    with path.open("rb") as file:
        # utf-8-sig: spreadsheets put a mark before the first column's name.
        lines = TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.DictReader(lines, restkey="", restval="")
        try:
            _check_columns(path, rows.fieldnames)
            for row in rows:
                yield _csv_message(row), file.tell()
        except csv.Error as error:
            raise ConfigError(f"input `{path}` is not CSV near line {rows.line_num}: {error}") from error


def _check_columns(path: Path, names: Sequence[str] | None) -> None:
    """Without them every row would be refused: that is a wrong file, not that many dead letters."""
    missing = [] if names is None else [n for n in _NEEDED_COLUMNS if n not in names]
    if missing:
        raise ConfigError(f"input `{path}` has no column `{missing[0]}`; needed are {', '.join(_NEEDED_COLUMNS)}")


def _csv_message(row: dict[str, str | list[str]]) -> bytes:
    """Cells beyond the header become an array, which no payload may hold: the row is refused, not guessed at."""
    parts: list[bytes] = []
    payload: list[bytes] = []
    for name, cell in row.items():
        key = _text(name)
        if isinstance(cell, list):
            payload.append(key + b":[" + b",".join(_text(c) for c in cell) + b"]")
        elif name in ("entity_id", "source", "trace_id"):
            parts.append(key + b":" + (_text(cell) if cell else b"null"))
        elif name in _SIGNAL_COLUMNS:
            parts.append(key + b":" + (cell.encode() if _INTEGER.fullmatch(cell) else _text(cell)))
        elif cell == "":
            payload.append(key + b":null")
        else:
            payload.append(key + b":" + (cell.encode() if _NUMBER.fullmatch(cell) else _text(cell)))
    return b"{" + b",".join([*parts, b'"payload":{' + b",".join(payload) + b"}"]) + b"}"


def _text(text: str) -> bytes:
    """A JSON string; bytes that were not UTF-8 stay what they were, for the decoder to refuse."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:
        return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _parquet_rows(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each row as a message; a struct column `payload` holds the fields, or every further column is one.

    NaN is null, as in a table it stands for a missing value; infinity is text, which the decoder refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            bytes_a_row = path.stat().st_size / max(1, file.metadata.num_rows)
            done = 0
            for batch in file.iter_batches(_PARQUET_ROWS):
                done += batch.num_rows
                at = round(done * bytes_a_row)
                for row in batch.to_pylist():
                    yield _row_message(row), at
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"input `{path}` is not a readable Parquet file: {error}") from error


def _row_message(row: dict[str, object]) -> bytes:
    signal = {name: row[name] for name in _SIGNAL_COLUMNS if name in row}
    rest = {name: value for name, value in row.items() if name not in _SIGNAL_COLUMNS}
    struct = rest.get("payload")
    payload = struct if isinstance(struct, dict) else rest
    sendable = {name: _sendable(value) for name, value in payload.items()}
    return orjson.dumps({**signal, "payload": sendable}, default=str)


def _sendable(value: object) -> object:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _arrow_batches(path: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Each record batch, with plain columns for dictionary-encoded ones, and how many bytes were read by then."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            batches: Iterable[pa.RecordBatch]
            if path.suffix == ".arrows":
                batches = pa.ipc.open_stream(file)
            else:
                whole = pa.ipc.open_file(file)
                batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
            for batch in batches:
                _check_columns(path, batch.schema.names)
                columns = {
                    name: column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                yield pa.RecordBatch.from_pydict(columns), file.tell()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"input `{path}` is not a readable file of Arrow IPC: {error}") from error


def _stream(batch: pa.RecordBatch) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
