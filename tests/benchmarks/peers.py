"""What others do with the same bytes, each at its best: in memory before the clock starts, on one worker.

Each function takes the paths of the files of events, and as `limit` how many events to use (None: all; of several
files the same share of each), and returns (events, seconds). Run them through `fresh.measure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson

_BATCH_LINES = 1_000
_WAIT = timedelta(seconds=5)
_WINDOW = timedelta(seconds=1)
_WINDOWS_START = datetime(2026, 1, 1, tzinfo=UTC)


def bare_loop(paths: Sequence[str], limit: int | None = None) -> tuple[int, float]:
    """Parse every line with orjson and drop what was parsed: the least that Python can do for one event at a time."""
    lines = _lines(paths, limit)
    start = perf_counter()
    for line in lines:
        orjson.loads(line)
    return len(lines), perf_counter() - start


def pyarrow_json(paths: Sequence[str], limit: int | None = None, *, threads: bool = False) -> tuple[int, float]:
    """Parse all lines into one Arrow table, types inferred; on one thread unless `threads`."""
    import pyarrow as pa
    from pyarrow import json

    data = b"\n".join(_lines(paths, limit)) + b"\n"
    options = json.ReadOptions(use_threads=threads)
    start = perf_counter()
    table = json.read_json(pa.BufferReader(data), read_options=options)
    return table.num_rows, perf_counter() - start


def native_bytewax(paths: Sequence[str], limit: int | None = None) -> tuple[int, float]:
    """Count, mean and std of one field in one tumbling window of a second, with Bytewax's own clock and windows.

    One worker, no recovery, results dropped; lines are parsed a batch at a time in one comprehension. The clock's
    system time stands still: as it comes, it advances watermarks while the log waits to be read, and a log that takes
    longer to read than to happen comes out late. The rate is that
    of the sample: state per entity and open windows are those of the full run only if the sample spans more event
    time than the clock's wait of five seconds.
    """
    from bytewax.testing import run_main

    lines = _lines(paths, limit)
    flow, counts = _native_flow(lines)
    start = perf_counter()
    run_main(flow)  # type: ignore[no-untyped-call]  # Bytewax gives it no types
    seconds = perf_counter() - start
    used = sum(counts)
    assert used == len(lines), f"windows hold {used} of {len(lines)} events"
    return used, seconds


def _native_flow(lines: list[bytes]) -> tuple[Any, list[int]]:
    """The flow, and the list to which it appends the count of every window that it closes."""
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.inputs import DynamicSource, StatelessSourcePartition
    from bytewax.operators import windowing
    from bytewax.outputs import DynamicSink, StatelessSinkPartition

    class Lines(StatelessSourcePartition[bytes]):
        def __init__(self) -> None:
            self.position = 0

        def next_batch(self) -> list[bytes]:
            if self.position >= len(lines):
                raise StopIteration
            self.position += _BATCH_LINES
            return lines[self.position - _BATCH_LINES : self.position]

    class LinesSource(DynamicSource[bytes]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Lines:  # noqa: ARG002  # Bytewax's names
            return Lines()

    counts: list[int] = []

    class Counts(StatelessSinkPartition[tuple[int, float, float | None]]):
        def write_batch(self, items: list[tuple[int, float, float | None]]) -> None:
            counts.extend(item[0] for item in items)

    class CountsSink(DynamicSink[tuple[int, float, float | None]]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Counts:  # noqa: ARG002  # Bytewax's names
            return Counts()

    flow = Dataflow("native")
    events = op.flat_map_batch("parse", op.input("lines", flow, LinesSource()), _parsed)
    clock = windowing.EventClock(_event_time, wait_for_system_duration=_WAIT, now_getter=lambda: _WINDOWS_START)
    windower = windowing.TumblingWindower(length=_WINDOW, align_to=_WINDOWS_START)
    windows = windowing.fold_window("windows", events, clock, windower, _nothing_yet, _updated, _merged, ordered=False)
    op.output("drop", op.map("statistics", windows.down, _statistics), CountsSink())
    return flow, counts


_Event = tuple[datetime, float]
_Moments = tuple[int, float, float]


def _parsed(lines: list[bytes]) -> Iterable[tuple[str, _Event]]:
    signals = map(orjson.loads, lines)
    parse = datetime.fromisoformat
    return [(s["entity_id"], (parse(s["event_time"]), s["payload"]["temperature"])) for s in signals]


def _event_time(event: _Event) -> datetime:
    return event[0]


def _nothing_yet() -> _Moments:
    return 0, 0.0, 0.0


def _updated(moments: _Moments, event: _Event) -> _Moments:
    """Count, mean and sum of squared deviations with one more value (Welford)."""
    count, mean, squares = moments
    count += 1
    distance = event[1] - mean
    mean += distance / count
    return count, mean, squares + distance * (event[1] - mean)


def _merged(left: _Moments, right: _Moments) -> _Moments:
    count = left[0] + right[0]
    distance = right[1] - left[1]
    mean = left[1] + distance * right[0] / count
    return count, mean, left[2] + right[2] + distance * distance * left[0] * right[0] / count


def _statistics(window: tuple[str, tuple[int, _Moments]]) -> tuple[int, float, float | None]:
    count, mean, squares = window[1][1]
    return count, mean, sqrt(squares / (count - 1)) if count > 1 else None


def _lines(paths: Sequence[str], limit: int | None) -> list[bytes]:
    """Lines of all files without their ends, the first `limit` of them: of several files an equal share of each."""
    share = None if limit is None else limit // len(paths)
    lines = []
    for path in paths:
        with Path(path).open("rb") as file:
            lines += [line.rstrip(b"\n") for line in islice(file, share)]
    return lines
