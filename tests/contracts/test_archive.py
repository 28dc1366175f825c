"""What every archive promises, and what its Parquet files promise to other readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, CorruptStoreError, ResumeError
from operators.records import NO_WATERMARK
from stores.archive import open_archive
from stores.archive.columns import message_table, owned, verdict_table
from stores.archive.memory import MemoryArchive
from stores.archive.parquet import ParquetArchive
from stores.archive.port import MESSAGES, Archive, ArchiveKey, ArchiveSelection, Verdict
from stores.archive.reading import PartitionInput, judged, messages_of_partition, partitions, scan
from stores.offline.port import Withheld
from tests.archive_rows import (
    DAY,
    DAY_MS,
    LATER,
    MIDNIGHT_MS,
    NEXT,
    blank_watermark,
    event,
    messages_in,
    numbered,
    outcomes,
    places,
    put,
    raw_chunk,
    read_chunk,
    taken_in,
    verdicts,
)

Opener = Callable[[], Archive]


@pytest.fixture(params=["memory", "parquet"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """One open, empty archive."""
    return MemoryArchive() if request.param == "memory" else ParquetArchive(tmp_path / "archive")


def offsets(archive: Archive, selection: ArchiveSelection) -> list[int]:
    """Offsets of the selected messages, in the order of the scan."""
    return [offset for _, offset in places(archive, selection)]


def judge(archive: Archive, sequence: int, *tables: pa.Table, writer: str = "aa.0") -> None:
    """Publish verdicts."""
    file = archive.stage(writer, sequence, LATER)
    for table in tables:
        file.write(table)
    archive.publish([file.finish()])


def test_staged_messages_are_seen_once_they_are_published(archive: Archive) -> None:
    """Staging shows nothing; publishing shows every message once; publishing again changes nothing."""
    file = archive.stage("aa.0", 0, DAY)
    file.write(message_table(owned(numbered(0, 3))))
    file.write(message_table(owned(numbered(3, 2))))
    token = file.finish()
    assert places(archive) == []
    for _ in range(2):
        assert archive.publish([token]) == Withheld()
        assert places(archive) == [("p0", n) for n in range(5)]


def test_messages_come_back_as_they_went(archive: Archive) -> None:
    """Bytes of every kind, names of any script, late and dead messages: value, times, verdict and reason survive."""
    lines = [event(9), event(0), event(8, entity="温度計"), b"\xff{broken\x00", b"", event(7, entity="é" * 300)]
    messages = read_chunk(raw_chunk(lines))
    put(archive, "aa.0", 0, messages)
    ((segment, rows),) = scan(archive)
    assert (segment.key, segment.rows, segment.offset_first, segment.offset_last) == (DAY, 6, 0, 50)
    assert rows.schema.equals(MESSAGES, check_metadata=False)
    assert rows["value"].to_pylist() == lines
    assert rows["entity_id"].to_pylist() == ["pump", "pump", "温度計", None, None, "é" * 300]
    assert rows["verdict"].to_pylist() == ["accepted", "late", "accepted", "dead", "dead", "accepted"]
    assert [r is None for r in rows["reason"].to_pylist()] == [True, False, True, False, False, True]
    times = rows["event_time"].cast(pa.int64()).to_pylist()
    assert times == [1000 * (MIDNIGHT_MS + 1000 * n) if n is not None else None for n in (9, 0, 8, None, None, 7)]


def test_a_dead_message_has_the_day_of_its_partition(archive: Archive) -> None:
    """A dead message lies on the day of the newest event before it, however the log is cut; 1970 before the first."""
    del archive
    lines = [b"dead", event(1), b"dead", event(0, at_ms=MIDNIGHT_MS + DAY_MS), event(2), b"dead"]
    first = MIDNIGHT_MS // DAY_MS
    expected = [0, first, first, first + 1, first, first + 1]
    for cut in range(len(lines) + 1):
        mark = blank_watermark()
        days = [read_chunk(raw_chunk(part), mark).day for part in (lines[:cut], lines[cut:]) if part]
        assert np.concatenate(days).tolist() == expected
    assert read_chunk(raw_chunk(lines[:1])).event_time.tolist() == [NO_WATERMARK]


def test_discard_removes_what_the_snapshot_does_not_know(archive: Archive) -> None:
    """Only the tokens to keep can still be published; other writers and published messages are not touched."""
    put(archive, "aa.0", 0, numbered(0, 1))
    tokens = []
    for sequence, writer in ((1, "aa.0"), (2, "aa.0"), (1, "aa.1")):
        file = archive.stage(writer, sequence, DAY)
        file.write(message_table(owned(numbered(10 * sequence + int(writer[-1]), 1))))
        tokens.append(file.finish())
    kept, lost, other = tokens
    archive.discard("aa.0", [kept])
    archive.discard("aa.0", [kept])
    archive.discard("bb.unknown", [])
    archive.publish([kept, other])
    assert sorted(places(archive)) == [("p0", 0), ("p0", 10), ("p0", 11)]
    with pytest.raises(CorruptStoreError, match="missing"):
        archive.publish([lost])


def test_a_sequence_is_published_once(archive: Archive) -> None:
    """A recovery folder older than the archive is refused, and the published messages stay as they are."""
    put(archive, "aa.0", 0, numbered(0, 1))
    with pytest.raises(ResumeError, match="published already"):
        put(archive, "aa.0", 0, numbered(5, 1))
    assert places(archive) == [("p0", 0)]


def test_abandoned_files_are_gone(archive: Archive) -> None:
    """What was let go cannot be published, and the same sequence can be staged again."""
    file = archive.stage("aa.0", 0, DAY)
    file.write(message_table(owned(numbered(0, 1))))
    file.abandon()
    archive.discard("aa.0", [])
    put(archive, "aa.0", 0, numbered(1, 1))
    assert places(archive) == [("p0", 1)]


def test_small_files_become_one(archive: Archive) -> None:
    """A merge has the rows of all, in order; the small files stay staged until they are discarded."""
    tokens = []
    for sequence, first in enumerate((4, 0, 2)):
        file = archive.stage("aa.0", sequence, DAY)
        file.write(message_table(owned(numbered(first, 2))))
        tokens.append(file.finish())
    merged = archive.merge(tokens, 3)
    archive.discard("aa.0", [merged])
    archive.publish([merged])
    assert places(archive) == [("p0", n) for n in range(6)]
    assert len(archive.segments("signals")) == 1
    with pytest.raises(CorruptStoreError, match="missing"):
        archive.merge(tokens, 4)


def test_selections(archive: Archive) -> None:
    """Dates, partition, offsets and entity each select, all bounds inclusive, and together."""
    put(archive, "aa.0", 0, numbered(0, 4))
    put(archive, "aa.0", 1, numbered(0, 2, partition="p1"))
    other = [event(n, entity=e, at_ms=MIDNIGHT_MS + DAY_MS) for n, e in enumerate(["valve", "pump", "valve"])]
    put(archive, "aa.0", 2, read_chunk(raw_chunk(other, first=100)), NEXT)
    assert partitions(archive) == ("p0", "p1")
    assert partitions(archive, ArchiveSelection(date_first=NEXT.date)) == ("p0",)
    assert offsets(archive, ArchiveSelection(date_last=DAY.date)) == [0, 1, 2, 3, 0, 1]
    assert offsets(archive, ArchiveSelection(partition="p1")) == [0, 1]
    assert offsets(archive, ArchiveSelection(offset_first=2, offset_last=110)) == [2, 3, 100, 110]
    assert offsets(archive, ArchiveSelection(entity_id="valve")) == [100, 120]
    assert offsets(archive, ArchiveSelection(entity_id="valve", offset_first=101)) == [120]
    assert offsets(archive, ArchiveSelection(entity_id="nobody")) == []
    ((_, rows),) = scan(archive, ArchiveSelection(entity_id="valve"), columns=["value", "offset"])
    assert rows.column_names == ["value", "offset"]
    with pytest.raises(KeyError):
        list(scan(archive, columns=["colour"]))


def test_messages_of_another_lineage_are_not_archived_again(archive: Archive) -> None:
    """The same message is withheld, counted by whether its bytes are the same; partitions and dates are apart."""
    put(archive, "aa.0", 0, numbered(0, 4))
    assert put(archive, "bb.0", 0, numbered(2, 4)) == Withheld(repeated=2)
    assert put(archive, "bb.0", 1, numbered(0, 2, partition="p1")) == Withheld()
    strange = read_chunk(raw_chunk([event(0, entity="other")] * 7, first=0, step=1))
    assert put(archive, "cc.0", 0, strange) == Withheld(different=6)
    assert sorted(places(archive)) == [*(("p0", n) for n in range(7)), ("p1", 0), ("p1", 1)]
    assert put(archive, "dd.0", 0, numbered(1, 3)) == Withheld(repeated=3)
    assert len(places(archive)) == 9


def test_the_newest_verdict_is_the_final_one(archive: Archive) -> None:
    """A message is used, late or dead as it was read, unless a later verdict says otherwise; the newest counts."""
    lines = [event(9), event(0), b"dead", *(event(9) for _ in range(3))]
    put(archive, "aa.0", 0, read_chunk(raw_chunk(lines, step=1)))
    early = verdict_table(verdicts([3, 4], Verdict.DUPLICATE, 9))
    late = verdict_table(verdicts([1], Verdict.USED, 20, reason="corrected"))
    judge(archive, 0, verdict_table(verdicts([4, 99], Verdict.CONFLICT, 20)), early, late)
    dead_reason = outcomes(archive)[2][1]
    assert outcomes(archive) == {
        0: ("used", None),
        1: ("used", "corrected"),
        2: ("dead", dead_reason),
        3: ("duplicate", None),
        4: ("conflict", None),
        5: ("used", None),
    }
    (rows,) = judged(archive, ArchiveSelection(offset_first=4, offset_last=4))
    assert rows["known_at"].cast(pa.int64()).to_pylist() == [1000 * MIDNIGHT_MS + 20_000_000]


def test_verdicts_of_a_run_count_for_that_run(archive: Archive) -> None:
    """Late at the shard holds for messages of the same lineage only; duplicates are a matter of the log."""
    put(archive, "aa.0", 0, numbered(0, 3))
    for sequence, writer in enumerate(("bb.0", "aa.0")):
        late = verdict_table(verdicts([sequence], Verdict.LATE, 30, reason="idle"))
        judge(archive, sequence, late, verdict_table(verdicts([2], Verdict.DUPLICATE, 1)), writer=writer)
    assert outcomes(archive) == {0: ("used", None), 1: ("late", "idle"), 2: ("duplicate", None)}


@settings(max_examples=30)
@given(data=st.data())
def test_a_partition_is_read_as_the_bus_gave_it(data: st.DataObject) -> None:
    """However messages fell on days, files and lineages, a partition comes back whole, in order, byte for byte."""
    archive = MemoryArchive()
    count = data.draw(st.integers(1, 40))
    days = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    lines = [b"dead" if n % 7 == 5 else event(n, at_ms=MIDNIGHT_MS + d * DAY_MS + n) for n, d in enumerate(days)]
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=6)) | {count})
    taken = np.array(data.draw(st.lists(st.integers(-1, 1 << 41), min_size=count, max_size=count)), np.int64)
    begin, mark = 0, blank_watermark()
    for sequence, end in enumerate(cuts):
        raw = replace(raw_chunk(lines[begin:end], first=begin, step=1), timestamps=taken[begin:end])
        messages = owned(read_chunk(raw, mark))
        tokens = []
        for day in np.unique(messages.day).tolist():
            key = ArchiveKey("signals", str(np.datetime64(day, "D")))
            file = archive.stage(data.draw(st.sampled_from(["aa.0", "bb.0"])), sequence, key)
            file.write(message_table(owned(messages, np.flatnonzero(messages.day == day))))
            tokens.append(file.finish())
        archive.publish(tokens)
        begin = end
    assert messages_in(messages_of_partition(archive, "p0")) == list(enumerate(lines))
    assert taken_in(messages_of_partition(archive, "p0")) == taken.tolist()
    first, last = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
    part = ArchiveSelection(offset_first=first, offset_last=last)
    assert messages_in(messages_of_partition(archive, "p0", part)) == list(enumerate(lines))[first : last + 1]
    source = PartitionInput(archive, "p0")
    polled = []
    while (chunk := source.poll(3)) is not None:
        assert 1 <= len(chunk.offsets) <= 3
        polled.append(chunk)
    assert messages_in(polled) == list(enumerate(lines))
    assert taken_in(polled) == taken.tolist()
    assert source.advanced() == sum(map(len, lines))
    assert source.advanced() == 0


@pytest.mark.parametrize("name", ["", "aa", "AA.0", "aa.0/1", "../x.0", "aa.merged"])
def test_hostile_writers_are_refused(archive: Archive, name: str) -> None:
    """A name that could leave its folder, or be taken for another's, is a ConfigError before anything is written."""
    with pytest.raises(ConfigError, match="writer"):
        archive.stage(name, 0, DAY)
    with pytest.raises(ConfigError, match="writer"):
        archive.discard(name, [])
    with pytest.raises(ValueError, match="sequence"):
        archive.stage("aa.0", -1, DAY)


@pytest.mark.parametrize("date", ["", "..", "2024-02-30", "20241004", "2024-10-04/.."])
def test_hostile_keys_are_refused(date: str) -> None:
    """A key that is no day of the calendar is a ConfigError."""
    with pytest.raises(ConfigError, match="date"):
        ArchiveKey("signals", date)
    with pytest.raises(ConfigError, match="kind"):
        ArchiveKey("../x", DAY.date)  # type: ignore[arg-type]  # hostile on purpose


@pytest.mark.parametrize("token", ["", "signals", "signals/date=2024-10-04/x", "../../date=2024-10-04/aa.0-1.parquet"])
def test_hostile_tokens_are_refused(archive: Archive, token: str) -> None:
    """What no stage gave is a CorruptStoreError."""
    with pytest.raises(CorruptStoreError, match="token"):
        archive.publish([token])


def test_a_closed_archive_is_closed(archive: Archive) -> None:
    """Every method raises ValueError; closing again is fine."""
    archive.close()
    archive.close()
    for call in (
        lambda: archive.stage("aa.0", 0, DAY),
        lambda: archive.publish([]),
        lambda: archive.discard("aa.0", []),
        lambda: archive.segments("signals"),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("url", ["", "parquet:", "parquet:///", "parquet:relative", "delta:///x"])
def test_unknown_urls_are_refused(url: str) -> None:
    """A URL that names no adapter or no folder is a ConfigError."""
    with pytest.raises(ConfigError, match="archive"):
        open_archive(url)


def test_other_readers_read_it(tmp_path: Path) -> None:
    """The folders are a hive-partitioned dataset to DuckDB and pyarrow, with row groups that can be skipped."""
    archive = open_archive(f"parquet:///{tmp_path}")
    put(archive, "aa.0", 0, numbered(0, 3))
    put(archive, "aa.0", 1, read_chunk(raw_chunk([b"dead", event(9, at_ms=MIDNIGHT_MS + DAY_MS)])), NEXT)
    found = duckdb.execute(
        f"select date::varchar, count(*), count(entity_id), min(value) from read_parquet("  # noqa: S608  # our own path
        f"'{tmp_path}/signals/*/*.parquet', hive_partitioning = true) group by 1 order by 1"
    ).fetchall()
    assert found == [("2024-10-04", 3, 3, event(0)), ("2024-10-05", 2, 1, b"dead")]
    table = pads.dataset(tmp_path / "signals", partitioning="hive").to_table()
    assert table["date"].to_pylist() == ["2024-10-04"] * 3 + ["2024-10-05"] * 2
    (segment, _) = archive.segments("signals")
    assert (segment.partition_first, segment.partition_last) == ("p0", "p0")
    assert (segment.offset_first, segment.offset_last) == (0, 2)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """A file that is no Parquet or is gone is a CorruptStoreError that names it."""
    archive = ParquetArchive(tmp_path)
    put(archive, "aa.0", 0, numbered(0, 3))
    (segment,) = archive.segments("signals")
    (path,) = tmp_path.glob("signals/*/*.parquet")
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptStoreError, match=path.name):
        archive.read(segment)
    with pytest.raises(CorruptStoreError, match=path.name):
        ParquetArchive(tmp_path).segments("signals")
    path.unlink()
    with pytest.raises(CorruptStoreError, match=path.name):
        archive.read(segment)
