"""The same log gives the same bits over Kafka as from files, however it is run and whatever is killed meanwhile."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.flows import SOAK, Log, Place, Run, clean_log, dirty_log, until
from tests.kafka_flows import KafkaLog, KafkaPlace, on_kafka, slices
from tests.kafka_server import own_broker
from tests.outcomes import batch_digests, prove


@contextmanager
def opened(root: Path, address: str, log: Log, partitions: int) -> Iterator[tuple[KafkaPlace, KafkaLog]]:
    """A lineage, and the log as it will stand in a topic of its own."""
    numbered = on_kafka(log, address, partitions)
    with KafkaPlace(root / "place", address=address, topic_name=numbered.topic) as place:
        yield place, numbered


WAYS: dict[str, Callable[[Place], list[Run]]] = {
    "live": lambda place: [place.signals()],
    "3 workers": lambda place: [place.signals(STREAM_CONCURRENCY=3)],
    "bare -w 2": lambda place: [place.bare("-w", "2")],
    "2 processes": lambda place: place.cluster(place.signals),
}


@pytest.mark.parametrize(
    ("partitions", "way"),
    [(1, "live"), (1, "3 workers"), (3, "live"), (3, "3 workers"), (3, "2 processes"), (8, "live"), (8, "3 workers"),
     (8, "bare -w 2"), (8, "2 processes")],
)  # fmt: skip
def test_every_way_of_running(tmp_path: Path, kafka: str, partitions: int, way: str) -> None:
    """Partitions, workers, processes: one digest, that of the folder bus, and one account of the events."""
    original = dirty_log(partitions=partitions)
    with opened(tmp_path, kafka, original, partitions) as (place, log):
        place.write(log)
        summaries = [run.done() for run in WAYS[way](place)]
        prove(place, log, batch_digests(original))
        for summary in filter(None, summaries):
            assert summary == log.summary.record()


def test_batches_of_a_few_events(tmp_path: Path, kafka: str) -> None:
    """How many events are read at once changes nothing."""
    original = dirty_log(seed=2, events=250, partitions=3)
    with opened(tmp_path, kafka, original, 3) as (place, log):
        place.write(log)
        place.quick(STREAM_BATCH_SIZE=7).done()
        prove(place, log, batch_digests(original))


@pytest.mark.parametrize("seed", range(1 + 5 * SOAK))
def test_killed_again_and_again(tmp_path: Path, kafka: str, seed: int) -> None:
    """While producers go on, runs of any number of workers are killed (-9) at any time: nothing lost, nothing twice."""
    original = dirty_log(seed=seed, partitions=3)
    chance = random.Random(seed)
    with opened(tmp_path, kafka, original, 3) as (place, log):
        for part in slices(log, 5):
            run = place.quick(BUS_FOLLOW=1, STREAM_CONCURRENCY=chance.choice([1, 2, 3]), STREAM_BATCH_SIZE=40)
            before = place.durable_bytes()
            place.write(part)
            until(lambda: place.durable_bytes() > before or run.ended, "something to be read")  # noqa: B023  # called here
            run.lives_for(chance.uniform(0, 0.3))
            run.kill()
        place.quick().done()
        prove(place, log, batch_digests(original))


def test_stop_and_go(tmp_path: Path, kafka: str) -> None:
    """Runs that are stopped by a signal go on where they stopped: one worker, two processes, `-w 2`."""
    original = dirty_log(seed=3, partitions=8)
    with opened(tmp_path, kafka, original, 8) as (place, log):
        starts: list[Callable[[], list[Run]]] = [
            lambda: [place.bare(BUS_FOLLOW=1, STREAM_BATCH_SIZE=9)],
            lambda: place.cluster(place.bare, BUS_FOLLOW=1, STREAM_BATCH_SIZE=50),
            lambda: [place.bare("-w", "2", BUS_FOLLOW=1)],
        ]
        for start, part in zip(starts, slices(log, 3), strict=True):
            place.write(part)
            runs = start()
            place.wait_until_read(runs[0])
            for run in runs:
                run.process.send_signal(signal.SIGTERM)
            for run in runs:
                run.done()
        place.quick().done()
        prove(place, log, batch_digests(original))


def test_partitions_in_any_interleaving(tmp_path: Path, kafka: str) -> None:
    """Nothing late: the events dealt to eight partitions at random have the digest that they have in one file."""
    original = clean_log()
    with opened(tmp_path, kafka, original.spread(8, 1), 8) as (place, log):
        place.write(log)
        place.quick(STREAM_CONCURRENCY=2).done()
        prove(place, log, batch_digests(original))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_broker_that_is_away_for_a_while(tmp_path: Path, how: str) -> None:
    """A run that follows waits for its broker, says so once, goes on by itself, and no partition becomes idle by it."""
    original = dirty_log(seed=4, partitions=3)
    with (
        own_broker(tmp_path) as broker,
        opened(tmp_path, broker.address, original, 3) as (place, log),
    ):
        first, second = slices(log, 2)
        place.write(first)
        run = place.quick(BUS_FOLLOW=1, WATERMARK_IDLE_SECONDS=5, STREAM_CONCURRENCY=2)
        place.wait_until_read(run)
        if how == "killed":
            broker.kill()
        else:
            broker.freeze(frozen=True)
        until(lambda: "bus away" in run.errors, "the absence to be noticed")
        assert run.lives_for(7)
        assert "idle" not in run.errors
        if how == "killed":
            broker.start()
        else:
            broker.freeze(frozen=False)
        place.write(second)
        until(lambda: "bus back" in run.errors, "the return to be noticed")
        place.wait_until_read(run)
        assert run.errors.count("bus away") == 1
        run.stop()
        place.quick().done()
        prove(place, log, batch_digests(original))


WRITER = "dataflows.buses.kafka_writer:KafkaWriter"
NAMED = [
    f"{WRITER}._begin:after:1",
    f"{WRITER}._again:after:3",
    f"{WRITER}._commit:after:2",
    "stores.log_writer:LogWriter.snapshot:after:8",
    "stores.results_writer:ResultsWriter.snapshot:after:7",
    "dataflows.runner:settle:before:1",
]


def test_killed_while_it_writes_to_kafka(tmp_path: Path, kafka: str) -> None:
    """Within a transaction, behind it, at snapshots, before the last word: late events, letters and rows come once."""
    original = dirty_log(seed=5, partitions=3)
    with opened(tmp_path, kafka, original, 3) as (place, log):
        for number, (point, part) in enumerate(zip(NAMED, slices(log, len(NAMED)), strict=True)):
            place.write(part)
            run = place.quick(point, BUS_FOLLOW=1, STREAM_BATCH_SIZE=50, STREAM_CONCURRENCY=1 + number % 2)
            if "settle" in point:
                until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the log to be read")  # noqa: B023  # called at once
                run.process.terminate()
            assert run.wait() == -signal.SIGKILL, (point, run.errors)
        place.quick().done()
        prove(place, log, batch_digests(original))
