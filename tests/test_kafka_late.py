"""Late events over a real Kafka, many signals in a message: corrected, held, released, archived, told, verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stores.archive.parquet import ParquetArchive
from stores.archive.reading import messages_of_partition, partitions, refused_rows
from tests.archive_rows import messages_in
from tests.commands import headrace
from tests.flows import Log
from tests.kafka_flows import KafkaPlace, on_kafka
from tests.kafka_server import produce_all
from tests.late_rows import CORRECT, HOLD, WIDE, batch_rows, check_chains, late_log, newest, revisions
from tests.test_kafka_formats import in_arrow

PARTITIONS = 3
LOG = late_log(6, events=900, partitions=PARTITIONS)


@pytest.fixture
def place(tmp_path: Path, kafka: str) -> Iterator[KafkaPlace]:
    """A lineage over topics of its own, in which the log is, many signals in a message."""
    topic = on_kafka(LOG, kafka, PARTITIONS).topic
    with KafkaPlace(tmp_path / "place", address=kafka, topic_name=topic) as made:
        produce_all(kafka, topic, sent())
        yield made


def sent() -> list[tuple[int, bytes]]:
    """The log as messages: (partition, message)."""
    return [(int(name.removeprefix("p-")), message) for name, message in in_arrow(LOG, seed=1)]


def environment(place: KafkaPlace) -> dict[str, Any]:
    """Settings that turn the archive on."""
    return {"ARCHIVE_SIGNALS": 1, "ARCHIVE_PATH": place.root / "archive"}


def prove_whole(place: KafkaPlace, log: Log) -> None:
    """Assert that rows are those of a log in which nothing came late, and the archive is the log."""
    rows = revisions(place.offline)
    check_chains(rows)
    assert newest(rows) == newest(batch_rows(log, None, WIDE)[0])
    archive = ParquetArchive(place.root / "archive")
    kept = {name: [m for _, m in messages_in(messages_of_partition(archive, name))] for name in partitions(archive)}
    assert kept == {str(n): [m for at, m in sent() if at == n] for n in range(PARTITIONS)}


def prove_verified(place: KafkaPlace, **settings: object) -> None:
    """Assert that the history is found equal to what is computed anew, out of the archive."""
    done = headrace(place, "verify", "signals", "--json", **settings)
    assert (done.code, done.records[-1]["equal"], done.records[-1]["archived"]) == (0, True, PARTITIONS), done.err


def test_rows_of_messages_correct_what_is_out(place: KafkaPlace) -> None:
    """Under `correct` the rows are those of the whole log, and every revision is told with what it replaces and why."""
    settings = {**environment(place), **CORRECT}
    place.quick(STREAM_BATCH_SIZE=30, **settings).done()
    prove_whole(place, LOG)
    told = {
        (d["feature_set"], d["window"].replace("/", "_"), d["entity_id"], d["event_time"], d["revision"]): d
        for d in (event["data"] for event in place.results("features_emitted"))
    }
    rows = revisions(place.offline)
    assert len(told) == len(rows) == len(place.results("features_emitted"))
    assert {d["cause"] for d in told.values()} >= {row.cause for row in rows}
    for row in rows:
        data = told[row.feature_set, row.window, row.entity, f"{row.event_time:%Y-%m-%dT%H:%M:%S.%fZ}", row.revision]
        assert data["supersedes"] == (None if row.supersedes is None else row.supersedes.hex())
        assert (data["cause"], data["retracted"]) == (row.cause, row.retracted)
        assert (data["content_hash"], data["known_at"]) == (row.content.hex(), f"{row.known_at:%Y-%m-%dT%H:%M:%S.%fZ}")
    assert refused_rows(ParquetArchive(place.root / "archive")) == {}
    prove_verified(place, **settings)


def test_rows_of_messages_are_held_each_and_released(place: KafkaPlace) -> None:
    """Under `hold` every late row is an entry of its own; once all are released the rows are those of the whole log."""
    settings = {**environment(place), **HOLD}
    place.quick(STREAM_BATCH_SIZE=30, **settings).done()
    prove_verified(place, **settings)
    listed = headrace(place, "late", "list", "--json", "--limit", "10000", **settings).records
    assert len({event["id"] for event in listed}) == len(listed) == len(LOG.late)
    assert any(str(event["id"]).count("/") == 3 for event in listed)
    first = str(next(event["id"] for event in listed if str(event["id"]).count("/") == 3))
    assert headrace(place, "late", "release", first, "--json", **settings).records == [{"released": 1}]
    assert headrace(place, "late", "release", "--all", "--json", **settings).records == [{"released": len(listed) - 1}]
    place.quick(STREAM_CONCURRENCY=2, **settings).done()
    prove_whole(place, LOG)
    prove_verified(place, **settings)
    assert place.late_values() == []


def test_late_rows_that_are_dropped_are_verified_as_such(place: KafkaPlace) -> None:
    """Under `drop` the late rows go to the late topic, and what is computed anew is without them."""
    settings = environment(place)
    place.quick(STREAM_BATCH_SIZE=30, **settings).done()
    assert len(place.late_values()) == len(LOG.late)
    refused = refused_rows(ParquetArchive(place.root / "archive"))
    assert sum(len(rows) for rows in refused.values()) == sum(b'"arrow":' in value for value in place.late_values())
    prove_verified(place, **settings)
