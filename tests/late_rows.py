"""What readers of the history see of rows that were corrected, and logs whose events come late."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dataflows.batch import BatchPlan, run_batch
from dataflows.recovery import Recovery
from dataflows.summary import Summary, summary_of
from operators.retained import Lateness
from stores.deadletters import open_dead_letters
from stores.offline.parquet import ParquetOfflineStore
from tests import oracles
from tests.flows import BOUND, SETS, START, STEP, Log, Place
from tests.strategies import SECOND

LATENESS = Lateness(60 * SECOND, BOUND, corrects=True)
CORRECT: dict[str, Any] = {"LATE_EVENT_POLICY": "correct", "ALLOWED_LATENESS_SECONDS": 60}
HOLD: dict[str, Any] = {"LATE_EVENT_POLICY": "hold", "ALLOWED_LATENESS_SECONDS": 600}
WIDE = 10_000 * SECOND
"""A watermark bound under which nothing is late."""


class Row(NamedTuple):
    """One revision of a row, without its values."""

    feature_set: str
    window: str
    entity: str
    event_time: object
    revision: int
    known_at: object
    supersedes: bytes | None
    cause: str | None
    retracted: bool
    content: bytes
    start: object

    @property
    def place(self) -> tuple[object, ...]:
        """What its revisions share."""
        return self[:4]


COLUMNS = ("entity_id", "event_time", "revision", "known_at", "supersedes", "cause", "retracted", "content_hash")


def revisions(offline: Path) -> list[Row]:
    """Every revision of every row of the history, sorted."""
    out = []
    for key, table in ParquetOfflineStore(offline).scan():
        columns = [table[c].to_pylist() for c in (*COLUMNS, "window_start")]
        out += [Row(key.feature_set, key.window, *line) for line in zip(*columns, strict=True)]
    return sorted(out, key=lambda row: row[:5])


def newest(rows: list[Row]) -> dict[tuple[object, ...], tuple[bytes, object]]:
    """What readers take: content and start of each row's newest revision, unless it is retracted."""
    last = {row.place: row for row in rows}
    return {place: (row.content, row.start) for place, row in last.items() if not row.retracted}


def check_chains(rows: list[Row]) -> None:
    """No revision is missing or there twice, and each replaces the one before."""
    before: Row | None = None
    for row in rows:
        if before is None or before.place != row.place:
            assert (row.revision, row.supersedes) == (0, None)
        else:
            assert (row.revision, row.supersedes) == (before.revision + 1, before.content)
            assert (row.content, row.retracted) != (before.content, before.retracted)
        before = row


@functools.cache
def batch_rows(log: Log, lateness: Lateness | None, bound: int) -> tuple[list[Row], Summary]:
    """What a batch over the whole log gives, in this process."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name) / "place")
        place.topic.mkdir(parents=True)
        place.write(log)
        store, letters = ParquetOfflineStore(place.offline), open_dead_letters("memory:")
        plan = BatchPlan(SETS, 3, bound, 1000, 1 << 20, store, letters, lambda _: "signals", lateness)
        done, _ = run_batch(plan, sorted(place.topic.iterdir()), lambda _: None)
        return revisions(place.offline), done


def late_log(seed: int = 0, *, events: int = 1200, partitions: int = 3) -> Log:
    """Events of 24 entities, of any partition: a tenth late by up to 40 seconds, with repeats and conflicts."""
    chance = random.Random(seed)
    out: list[tuple[str, bytes]] = []
    for i in range(events):
        when = START + i * STEP * 2 + chance.randrange(-2 * SECOND, 2 * SECOND)
        if chance.random() < 0.1:
            when -= chance.randrange(5, 40) * SECOND
        payload = {f: chance.choice([None, chance.gauss(1e6, 1), float(i % 7)]) for f in "abc" if chance.random() < 0.9}
        entity, source = f"s{chance.randrange(24)}", chance.choice([None, "plant/1"])
        record = {"entity_id": entity, "event_time": when // 1000, "sequence": i, "payload": payload, "source": source}
        if out and chance.random() < 0.05:
            record = orjson.loads(chance.choice(out[-200:])[1])
            if chance.random() < 0.5:
                record["payload"] = {"b": chance.gauss(0, 1)}
        out.append((f"p-{chance.randrange(partitions)}", orjson.dumps(record)))
    return Log(tuple(out))


def whole_summary(log: Log, rows: int) -> Summary:
    """The counts if nothing is late after all."""
    verdict = oracles.judge(log.events, WIDE, SETS)
    return Summary(len(log.lines), len(verdict.used), verdict.duplicate, verdict.conflict, 0, 0, rows)


def prove_corrected(place: Place, log: Log) -> None:
    """Assert that a lineage has come to the revisions of a batch that corrects, and so to the rows of the whole log."""
    rows = revisions(place.offline)
    check_chains(rows)
    expected, done = batch_rows(log, LATENESS, BOUND)
    assert rows == expected
    assert newest(rows) == newest(batch_rows(log, None, WIDE)[0])
    assert done == whole_summary(log, len(rows))
    assert summary_of(Recovery(place.recovery), SETS, LATENESS) == done
