"""What a lineage must have come to, however its runs went: one digest, one account of every event."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from pathlib import Path

import orjson

from dataflows.batch import BatchPlan, run_batch
from stores.deadletters import open_dead_letters
from stores.offline.parquet import ParquetOfflineStore
from tests.flows import BOUND, SETS, Digests, Log, Place, digests
from tests.kafka_flows import KafkaPlace


def fingerprint(*folders: Path) -> str:
    """A hash of every name and every byte below the folders."""
    state = hashlib.blake2b()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            state.update(str(path.relative_to(folder)).encode())
            state.update(path.read_bytes() if path.is_file() else b"/")
    return state.hexdigest()


@functools.cache
def batch_digests(log: Log) -> Digests:
    """What every way of running must come to: the batch over the same log, in this process."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name) / "place")
        place.topic.mkdir(parents=True)
        place.write(log)
        store, letters = ParquetOfflineStore(place.offline), open_dead_letters("memory:")
        plan = BatchPlan(SETS, 3, BOUND, 1000, 1 << 20, store, letters, lambda _: "signals")
        done, _ = run_batch(plan, sorted(place.topic.iterdir()), lambda _: None)
        assert done == log.summary
        return digests(place.offline)


def late_ids(place: Place) -> list[str]:
    """Ids of all messages of the late topic, sorted; a repeated one is in the list twice."""
    return sorted(orjson.loads(value)["id"] for value in _late_values(place))


def _late_values(place: Place) -> list[bytes]:
    if isinstance(place, KafkaPlace):
        return place.late_values()
    files = sorted((place.root / "bus" / "late").glob("*.jsonl"))
    return [line for path in files for line in path.read_bytes().splitlines()]


def dead_places(place: Place) -> list[tuple[str, int]]:
    """Partition and offset of all dead letters, sorted."""
    topic = f"{place.topic_name}.dlq" if isinstance(place, KafkaPlace) else "dlq"
    with contextlib.closing(open_dead_letters(f"sqlite:///{place.root / 'bus' / topic / 'deadletters.db'}")) as store:
        return sorted((head.partition, head.offset) for head in store.list(limit=1_000_000))


def prove(place: Place, log: Log, expected: Digests) -> None:
    """Assert that a lineage, however it went, has done with the whole log what must be done with it."""
    assert digests(place.offline) == expected
    totals = place.totals()
    assert totals == log.summary
    assert totals.seen == totals.used + totals.duplicate + totals.conflict + totals.late + totals.dead
    assert late_ids(place) == log.late
    assert dead_places(place) == log.broken
    if isinstance(place, KafkaPlace):
        place.prove_told(log, expected)
