"""The archive's writer: every message is there once, wherever the engine is killed and whatever it replays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import FatalError
from operators.packing import unpack
from stores import archive_writer
from stores.archive.columns import Messages, Verdicts
from stores.archive.memory import MemoryArchive
from stores.archive.parquet import ParquetArchive
from stores.archive.port import Archive, StagedFile, Verdict
from stores.archive.reading import messages_of_partition
from stores.archive_writer import ArchiveWriter, Background
from stores.offline.port import Withheld
from stores.writers import EPOCHS_MAX, staged_tokens, withheld_in
from tests.archive_rows import (
    DAY,
    DAY_MS,
    MIDNIGHT_MS,
    event,
    messages_in,
    numbered,
    outcomes,
    places,
    put,
    raw_chunk,
    read_chunk,
    verdicts,
)
from tests.epochs import PLANS, Engine


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    """The thread that all writers of the module share."""
    beside = Background()
    yield beside
    beside.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of two messages and files of five are large enough."""
    monkeypatch.setattr(archive_writer, "GROUP_ROWS", 2)
    monkeypatch.setattr(archive_writer, "FILE_ROWS", 5)
    monkeypatch.setattr(archive_writer, "_SHARED_ROWS", 1)


class Judging(ArchiveWriter):
    """Takes messages, each number twice over two partitions, and with them a verdict on every third."""

    def write(self, messages: Messages) -> None:
        """As the flow would."""
        super().write(messages)
        number = int(messages.raw.offsets[0])
        if number % 3 == 2:
            self.judge(verdicts([number - 1], Verdict.DUPLICATE, number))


def opened(archive: Archive, background: Background, name: str, resume: bytes | None) -> ArchiveWriter:
    """A writer whose snapshots are kept."""
    return ArchiveWriter(archive, background, name, resume, durable=True)


def item(number: int) -> Messages:
    """One message: of one of two partitions and one of two days."""
    at_ms = MIDNIGHT_MS + 1000 * number + (number % 5 == 4) * DAY_MS
    raw = raw_chunk([event(number, at_ms=at_ms)], first=number, step=1)
    return read_chunk(raw)


def seen(archive: Archive) -> list[int]:
    """Offsets of the visible messages, sorted; one that is there twice is in the list twice."""
    return sorted(offset for _, offset in places(archive))


@pytest.mark.usefixtures("small")
@given(plan=PLANS)
def test_messages_are_visible_once(plan: Sequence[str], background: Background) -> None:
    """At every moment each message is visible at most once and only if its epoch is durable; in the end all are."""
    archive = MemoryArchive()
    engine = Engine(lambda resume: Judging(archive, background, "aa.w0", resume, durable=True), item)
    for step in plan:
        engine.do(step)
        visible = seen(archive)
        assert len(visible) == len(set(visible))
        assert set(visible) <= set(range(engine.durable[1]))
    engine.finish()
    assert seen(archive) == list(range(engine.furthest))
    judged = {n - 1 for n in range(2, engine.furthest, 3)}
    expected = {n: ("duplicate" if n in judged and n % 5 != 4 else "used", None) for n in range(engine.furthest)}
    assert outcomes(archive) == expected
    read = messages_in(messages_of_partition(archive, "p0"))
    assert [offset for offset, _ in read] == list(range(engine.furthest))


@pytest.mark.usefixtures("small")
@given(plan=PLANS)
def test_what_a_durable_snapshot_has_staged_can_be_published_by_others(
    plan: Sequence[str], background: Background
) -> None:
    """After the last run `staged_tokens` of its snapshot publish the rest, and doing so again changes nothing."""
    archive = MemoryArchive()
    engine = Engine(lambda resume: ArchiveWriter(archive, background, "aa.w0", resume, durable=True), item)
    for step in [*plan, "epoch"]:
        engine.do(step)
    engine._commit()
    engine.writer.close()
    state, position = engine.durable
    assert state is not None
    for _ in range(2):
        assert archive.publish(staged_tokens(state)) == Withheld()
        assert seen(archive) == list(range(position))


@pytest.mark.usefixtures("small")
@given(plan=st.lists(st.sampled_from(["write", "epoch"]), max_size=20))
def test_without_durable_snapshots_closing_publishes(plan: Sequence[str], background: Background) -> None:
    """A run that remembers nothing has everything visible once it has ended well."""
    archive = MemoryArchive()
    engine = Engine(lambda resume: ArchiveWriter(archive, background, "aa.w0", resume, durable=False), item)
    for step in plan:
        engine.do(step)
    engine.writer.close()
    assert seen(archive) == list(range(engine.furthest))


@pytest.mark.usefixtures("small")
@given(first=PLANS, second=PLANS)
def test_a_new_recovery_folder_archives_nothing_twice(
    first: Sequence[str], second: Sequence[str], background: Background
) -> None:
    """A second lineage that replays the log adds what is missing and counts the rest as withheld."""
    archive = MemoryArchive()
    for lineage, plan in (("aa", first), ("bb", second)):
        engine = Engine(partial(opened, archive, background, f"{lineage}.w0"), item)
        before = seen(archive)
        for step in plan:
            engine.do(step)
        engine.finish()
        assert seen(archive) == sorted({*before, *range(engine.furthest)})
        engine.do("epoch")
        state = engine.durable[0]
        assert state is not None
        assert withheld_in(state).different == 0
        if not any(step.startswith("killed") for step in plan):  # a kill may lose a count, never a message
            assert withheld_in(state).repeated == len({*before} & {*range(engine.furthest)})


def test_a_snapshot_holds_no_message(background: Background, tmp_path: Path) -> None:
    """However many messages an epoch has, its snapshot is names of files; the files are the writer's, staged."""
    archive = ParquetArchive(tmp_path)
    writer = ArchiveWriter(archive, background, "aa.w0", None, durable=True)
    for n in range(10):
        writer.write(numbered(1000 * n, 1000))
    state = writer.snapshot()
    assert len(state) < 500
    assert unpack(state)[1] == {}
    assert [t.partition("/date=")[0] for t in staged_tokens(state)] == ["signals"]
    assert seen(archive) == []
    writer.close()


def test_small_files_wait_for_company(background: Background, tmp_path: Path) -> None:
    """Few messages an epoch become one file once EPOCHS_MAX snapshots have passed, and no leftovers."""
    archive = ParquetArchive(tmp_path)
    writer = ArchiveWriter(archive, background, "aa.w0", None, durable=True)
    for n in range(EPOCHS_MAX):
        writer.write(numbered(n, 1))
        state = writer.snapshot()
        assert len(staged_tokens(state)) == (n + 1 if n + 1 < EPOCHS_MAX else 1)
    writer.snapshot()
    assert seen(archive) == list(range(EPOCHS_MAX))
    assert len(list(tmp_path.glob("signals/*/*.parquet"))) == 1
    assert list((tmp_path / "_staging" / "writers" / "aa.w0").iterdir()) == []
    writer.close()


def test_the_reader_may_use_its_buffer_again(background: Background) -> None:
    """What was written before the buffer changed is archived as it was."""
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, background, "aa.w0", None, durable=False)
    messages = numbered(0, 4)
    buffer = messages.raw.data.copy()
    raw = type(messages.raw)("p0", buffer, messages.raw.starts, messages.raw.lengths, messages.raw.offsets)
    writer.write(read_chunk(raw))
    buffer[:] = 0
    writer.close()
    assert messages_in(messages_of_partition(archive, "p0")) == [(n, event(n)) for n in range(4)]


def test_many_days_need_few_open_files(background: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of more days than files may be open are archived all the same, each on its day."""
    monkeypatch.setattr(archive_writer, "_FILES_MAX", 3)
    monkeypatch.setattr(archive_writer, "_WAITING_BYTES_MAX", 2000)
    archive = ParquetArchive(tmp_path)
    writer = ArchiveWriter(archive, background, "aa.w0", None, durable=False)
    lines = [event(n, at_ms=MIDNIGHT_MS + (n % 40) * DAY_MS) for n in range(400)]
    for begin in range(0, 400, 100):
        writer.write(read_chunk(raw_chunk(lines[begin : begin + 100], first=begin, step=1)))
    writer.close()
    assert messages_in(messages_of_partition(archive, "p0")) == list(enumerate(lines))
    assert len(list(tmp_path.glob("signals/date=*"))) == 40


def test_partitions_share_row_groups_when_they_are_small(background: Background) -> None:
    """Many partitions with few messages do not make as many row groups; each is read back whole."""
    archive = MemoryArchive()
    writer = ArchiveWriter(archive, background, "aa.w0", None, durable=False)
    for n in range(3):
        for p in range(20):
            writer.write(numbered(n, 1, partition=f"p{p}"))
    writer.close()
    assert len(archive.segments("signals")) == 1
    for p in range(20):
        assert messages_in(messages_of_partition(archive, f"p{p}")) == [(n, event(n)) for n in range(3)]


class _Full:
    """A file on a disk that is full."""

    def write(self, rows: object) -> None:
        """Fail."""
        del rows
        raise FatalError("the disk is full")

    def finish(self) -> str:
        """Fail too."""
        raise FatalError("the disk is full")

    def abandon(self) -> None:
        """Let go."""


class FullArchive(MemoryArchive):
    """An archive on a disk that is full."""

    def stage(self, *_: object) -> StagedFile:  # type: ignore[override]  # nothing is looked at
        """A file that fails."""
        return _Full()


def test_a_full_disk_is_heard_of(background: Background) -> None:
    """A failure beside the flow is raised by the next snapshot, and closing does not hang or raise."""
    writer = ArchiveWriter(FullArchive(), background, "aa.w0", None, durable=True)
    writer.write(numbered(0, 4))
    with pytest.raises(FatalError, match="full"):
        writer.snapshot()
    writer.close()


def test_who_is_too_fast_waits() -> None:
    """More work than the limit is not taken before some is done; one large piece alone is."""
    beside = Background(bytes_max=100)
    go, taken = Event(), []
    beside.submit(lambda: taken.append(go.wait(60)), 1000)
    other = Thread(target=lambda: beside.submit(lambda: taken.append(True), 60).result(60))
    other.start()
    other.join(0.05)
    assert other.is_alive()
    assert taken == []
    go.set()
    other.join(60)
    assert taken == [True, True]
    beside.close()


def test_verdicts_alone_and_nothing(background: Background) -> None:
    """Verdicts may come without messages, and an epoch may have neither."""
    archive = MemoryArchive()
    put(archive, "aa.0", 0, numbered(0, 3))
    writer = ArchiveWriter(archive, background, "aa.w0", None, durable=False)
    nothing = np.empty(0, np.int64)
    writer.judge(Verdicts(("p0",), nothing.astype(np.int32), nothing, nothing, nothing.astype(np.uint8), nothing))
    writer.write(numbered(0, 0))
    writer.snapshot()
    writer.judge(verdicts([2, 0], Verdict.CONFLICT, 5, reason="corrected"))
    writer.close()
    assert outcomes(archive) == {0: ("conflict", "corrected"), 1: ("used", None), 2: ("conflict", "corrected")}
    assert {s.key.date for s in archive.segments("verdicts")} == {DAY.date}
