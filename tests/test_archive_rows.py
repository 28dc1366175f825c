"""Messages of many signals in the archive: each once, as it came, and which of its rows count for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflows.archiving import late_marks, verdicts_of
from operators.arrow_messages import without_name
from operators.decode import Decoder
from operators.forgotten import Forgotten, blanked, name_hash, quick_hash
from operators.intake import Intake
from operators.records import Decoded, RawChunk
from operators.retained import Lateness
from operators.windows import LateAtShard
from stores.archive.columns import message_table, messages_of, owned, refused_in, verdict_table
from stores.archive.memory import MemoryArchive
from stores.archive.port import ArchiveKey, ArchiveSelection
from stores.archive.reading import judged, messages_of_partition, refused_rows
from tests.archive_rows import BOUND_US, DAY, LATER, MIDNIGHT_MS, decoder, event, messages_in, raw_chunk
from tests.arrow_streams import columns, stream
from tests.messages import feature_sets

SECOND = 1_000_000


def many(*signals: tuple[str | None, int], sequence: int = 1000) -> bytes:
    """A message with a row for each (entity, second of the day)."""
    rows: list[dict[str, Any]] = [
        {
            "entity_id": who,
            "event_time": MIDNIGHT_MS * 1000 + at * SECOND,
            "sequence": sequence + i,
            "payload": {"a": 1.0},
        }
        for i, (who, at) in enumerate(signals)
    ]
    return stream(pa.table(columns(rows)))


LOG = (
    event(30),
    many(("pump", 40), (None, 41), ("fan", 42), ("pump", 3)),  # a row that is no signal, and a late one
    event(43),
    many(("fan", 5), ("fan", 6), sequence=2000),  # all late
    b"{",
    many((None, 44), (None, 45)),  # nothing but rows that are no signals
    event(46),
)
"""At offsets 0, 10, …, 60."""


def archived(raw: RawChunk, intake: Intake) -> MemoryArchive:
    """An archive of the chunk and of what is known of it at once."""
    archive = MemoryArchive()
    newest, decoded = intake.newest, intake.decode(raw)
    marks = late_marks(intake.take(raw, (), decoded))
    messages = messages_of(raw, decoded, marks, newest)
    put(archive, DAY, "aa.w", message_table(owned(messages)))
    for number, verdicts in enumerate(refused_in(messages, decoded, marks, newest)):
        put(archive, LATER, "aa.w", verdict_table(verdicts), number)
    return archive


def put(archive: MemoryArchive, key: ArchiveKey, writer: str, table: pa.Table, number: int = 0) -> None:
    """Publish a file with these rows."""
    file = archive.stage(writer, number, key)
    file.write(table)
    archive.publish([file.finish()])


def shown(archive: MemoryArchive) -> list[tuple[object, ...]]:
    """(offset, verdict, reason, entity, rows, second) of every message."""
    return [
        (r["offset"], r["verdict"], r["reason"], r["entity_id"], r["rows"], r["event_time"] and r["event_time"].second)
        for table in judged(archive)
        for r in table.to_pylist()
    ]


def test_a_message_of_many_is_archived_once_and_its_rows_are_judged() -> None:
    """Bytes, verdict of the whole, and which rows are late or no signals."""
    archive = archived(raw_chunk(LOG), Intake("p0", decoder(), BOUND_US))
    assert shown(archive) == [
        (0, "used", None, "pump", None, 30),
        (10, "used", None, None, 4, 40),
        (20, "used", None, "pump", None, 43),
        (30, "late", "late", None, 2, 5),
        (40, "dead", "not_json", None, None, None),
        (50, "dead", "entity_id", None, 2, None),
        (60, "used", None, "pump", None, 46),
    ]
    assert messages_in(messages_of_partition(archive, "p0")) == [(10 * i, m) for i, m in enumerate(LOG)]
    assert {p: rows.tolist() for p, rows in refused_rows(archive).items()} == {
        "p0": [[10, 1], [10, 3], [30, 0], [30, 1]]
    }
    pump = messages_in(messages_of_partition(archive, "p0", ArchiveSelection(entity_id="pump")))
    assert [offset for offset, _ in pump] == [0, 10, 20, 30, 50, 60]  # any message of many may have one of its rows


def test_rows_that_correct_count() -> None:
    """Under `correct` a late row is used, and one too old is not."""
    lateness = Lateness(35 * SECOND, BOUND_US, corrects=True)
    archive = archived(raw_chunk(LOG), Intake("p0", decoder(), BOUND_US, None, lateness))
    assert {p: rows.tolist() for p, rows in refused_rows(archive).items()} == {"p0": [[10, 1]]}
    assert shown(archive)[3] == (30, "used", None, None, 2, 5)
    strict = Lateness(32 * SECOND, BOUND_US, corrects=True)
    archive = archived(raw_chunk(LOG), Intake("p0", decoder(), BOUND_US, None, strict))
    assert refused_rows(archive)["p0"].tolist() == [[10, 1], [10, 3], [30, 0]]


def test_what_shards_refuse_counts_in_the_lineage_that_archived_it() -> None:
    """A row late at its shard is told by its place; another lineage's word on it does not count."""
    raw = raw_chunk([many(("pump", 40), ("fan", 41), ("pump", 42))])
    archive = archived(raw, Intake("p0", decoder(), BOUND_US))
    late = LateAtShard(decoder().decode(raw).batch, "idle", MIDNIGHT_MS * 1000 + 99 * SECOND)
    for writer, rows in (("aa.v0", [0, 2, 1]), ("bb.v0", [0, 1, 2])):
        (verdicts,) = verdicts_of(None, [late], lambda _, rows=rows: rows)  # type: ignore[misc]  # a default
        table = verdict_table(verdicts).slice(0, 2 if writer == "aa.v0" else 3)
        put(archive, LATER, writer, table)
    assert refused_rows(archive)["p0"].tolist() == [[0, 0], [0, 2]]
    assert shown(archive) == [(0, "used", None, None, 3, 40)]


def test_forgotten_rows_leave_no_bytes_and_the_others_their_places() -> None:
    """The archive gets the message with nulls where the forgotten entity's rows were."""
    salt = bytes(range(16))
    quick = np.array([quick_hash(salt, "fan")], np.uint64)
    forgotten = Forgotten(salt, quick, frozenset({name_hash(salt, "entity", "fan")}))
    strict = Decoder(feature_sets(), forgotten=forgotten)
    raw = raw_chunk([event(30), many(("pump", 40), ("fan", 41), ("pump", 42)), event(43, entity="fan")])
    decoded = strict.decode(raw)
    assert [(r.offset, r.row, r.original) for r in decoded.rejects] == [(10, 1, b""), (20, None, b"")]
    kept = blanked(raw, decoded)
    assert [len(kept.message(i)) > 0 for i in range(3)] == [True, True, False]
    assert b"fan" not in kept.message(1)
    again = decoder().decode(kept)
    assert again.rows is not None
    assert (signals(again), again.rows.tolist()) == (signals(decoded), [-1, 0, 2])
    archive = archived(raw, Intake("p0", strict, BOUND_US))
    assert refused_rows(archive)["p0"].tolist() == [[10, 1]]
    assert b"fan" not in b"".join(m for _, m in messages_in(messages_of_partition(archive, "p0")))


def test_an_entity_is_taken_out_of_messages_of_many() -> None:
    """Its rows become nulls, the rows and verdicts of others stay; once is enough."""
    archive = archived(raw_chunk(LOG), Intake("p0", decoder(), BOUND_US))
    before = refused_rows(archive)["p0"].tolist()
    takes = lambda rows: pc.fill_null(pc.equal(rows["entity_id"], "fan"), False).to_numpy()  # noqa: E731, FBT003  # asked twice
    assert archive.blank(takes, lambda message: without_name(message, "fan")) == 2
    assert archive.blank(takes, lambda message: without_name(message, "fan")) == 0
    kept = messages_in(messages_of_partition(archive, "p0"))
    assert [message == old for (_, message), old in zip(kept, LOG, strict=True)] == [i not in (1, 3) for i in range(7)]
    assert b"fan" not in b"".join(message for _, message in kept)
    again = decoder().decode(raw_chunk([kept[1][1]]))
    assert again.rows is not None
    assert (again.rows.tolist(), [r.row for r in again.rejects]) == ([0, 3], [1, 2])
    assert refused_rows(archive)["p0"].tolist() == before


def signals(decoded: Decoded) -> list[tuple[str, int, int, list[float]]]:
    """Entity, time, sequence and values."""
    batch = decoded.batch
    return [
        (batch.entity(i), int(batch.event_time[i]), int(batch.sequence[i]), np.nan_to_num(batch.values[i]).tolist())
        for i in range(len(batch))
    ]
