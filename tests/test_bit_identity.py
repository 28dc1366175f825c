"""The same log gives the same bits, however it is run; and every event is accounted for."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataflows.summary import Summary
from stores.offline.parquet import ParquetOfflineStore
from tests import oracles
from tests.flows import SETS, SOAK, Place, Run, clean_log, digests, dirty_log
from tests.outcomes import batch_digests, dead_places, prove
from tests.test_windows import Key, assert_rows


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


def stored_rows(place: Place) -> dict[Key, dict[str, float | None]]:
    """Every row of the history, as the oracle writes rows."""
    out: dict[Key, dict[str, float | None]] = {}
    for key, table in ParquetOfflineStore(place.offline).scan():
        columns = next(s for s in SETS.sets if s.name == key.feature_set).columns
        times = [table[name].cast("int64").to_pylist() for name in ("window_start", "event_time")]
        for record, start, end in zip(table.to_pylist(), *times, strict=True):
            row = (key.feature_set, key.version, key.window, record["entity_id"], start, end)
            out[row] = {column: record[column] for column in columns}
    return out


def test_backfill_equals_the_oracle(place: Place) -> None:
    """The stored rows of a log with late, repeated, conflicting and broken lines are those that lists and sums give."""
    log = dirty_log(events=300)
    place.write(log)
    summary = place.backfill()
    assert Summary(*list(summary.values())[:7]) == log.summary
    assert_rows(stored_rows(place), oracles.rows(log.verdict.used, SETS))
    assert digests(place.offline) == batch_digests(log)
    assert dead_places(place) == log.broken
    assert min(log.summary.used, log.summary.duplicate, log.summary.conflict, log.summary.late, log.summary.dead) > 0


WAYS: dict[str, Callable[[Place], list[Run]]] = {
    "live": lambda place: [place.signals()],
    "3 workers": lambda place: [place.signals(STREAM_CONCURRENCY=3)],
    "another number of shards": lambda place: [place.signals(SIGNAL_SHARDS=5)],
    "bare": lambda place: [place.bare()],
    "bare -w 2": lambda place: [place.bare("-w", "2")],
    "bare, 2 processes": lambda place: place.cluster(place.bare),
    "2 processes": lambda place: place.cluster(place.signals),
    "rows visible at once": lambda place: [place.signals(EXACTLY_ONCE_SINK=0)],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_running(place: Place, way: str) -> None:
    """Live and batch, one process or several, workers and shards: one digest, one account of the events."""
    log = dirty_log()
    place.write(log)
    summaries = [run.done() for run in WAYS[way](place)]
    prove(place, log, batch_digests(log))
    for summary in filter(None, summaries):
        assert summary == log.summary.record()


@pytest.mark.parametrize("size", [1, 7, 65_536])
def test_every_batch_size(place: Place, size: int) -> None:
    """How many events are read at once changes nothing."""
    log = dirty_log(seed=2, events=250, partitions=3)
    place.write(log)
    place.quick(STREAM_BATCH_SIZE=size).done()
    prove(place, log, batch_digests(log))


@pytest.mark.parametrize("partitions", [1, 2, 5])
@pytest.mark.parametrize("seed", range(1 + 10 * SOAK))
def test_partitions_that_grow_while_they_are_followed(place: Place, partitions: int, seed: int) -> None:
    """Nothing late: any number of partitions, written in any interleaving, torn lines and all, has one digest."""
    original = clean_log()
    log = original.spread(partitions, seed)
    assert log.summary.late == 0
    chance = random.Random(seed)
    left = {p: b"".join(line + b"\n" for q, line in log.lines if q == p) for p in log.partitions}
    for partition in left:
        place.append(partition, b"")  # known from the start: one that appears later is idle until then
    run = place.quick(BUS_FOLLOW=1, STREAM_CONCURRENCY=partitions, STREAM_BATCH_SIZE=chance.choice([5, 60, 1000]))
    largest = 2 * max(map(len, left.values())) // 5
    while left:
        for partition in chance.sample(sorted(left), len(left)):
            cut = chance.randrange(1, largest)
            place.append(partition, left[partition][:cut])
            left[partition] = left[partition][cut:]
        left = {p: data for p, data in left.items() if data}
        place.wait_until_read(run)
    run.stop()
    place.quick().done()
    prove(place, log, batch_digests(log))
    assert digests(place.offline) == batch_digests(original)


def test_stop_and_go_of_bare_runs(place: Place) -> None:
    """Bare runs, each process stopped by a signal, go on where they stopped: one worker, two processes, `-w 2`."""
    log = dirty_log(seed=3, partitions=4)
    starts: list[Callable[[], list[Run]]] = [
        lambda: [place.bare(BUS_FOLLOW=1, STREAM_BATCH_SIZE=9)],
        lambda: place.cluster(place.bare, BUS_FOLLOW=1, STREAM_BATCH_SIZE=50),
        lambda: [place.bare("-w", "2", BUS_FOLLOW=1)],
    ]
    for start, number, part in zip(starts, (signal.SIGTERM, signal.SIGTERM, signal.SIGINT), log.slices(3), strict=True):
        place.write(part)
        runs = start()
        place.wait_until_read(runs[0])
        for run in runs:
            run.process.send_signal(number)
        for run in runs:
            run.done()
    place.quick().done()
    prove(place, log, batch_digests(log))
