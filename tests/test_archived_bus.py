"""History out of the archive, then the bus: each message once, whatever either of them lacks, or an error."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.buses.archived import ArchivedBus
from dataflows.buses.folder import FolderBus
from dataflows.buses.memory import MemoryBus
from dataflows.buses.port import BoundedBus, PartitionReader, Position, WritableBus
from operators.errors import ResumeError
from operators.messages import Message
from operators.records import RawChunk
from stores.archive.memory import MemoryArchive
from stores.archive.port import ArchiveKey
from tests.archive_rows import event, put, raw_chunk, read_chunk
from tests.buses import EVENT_BYTES_MAX, Found, drained, read_all

TOPIC, PARTITION = "t", "p0"


class Trimmed(MemoryBus):
    """A bus in a dict that has forgotten its oldest messages."""

    def __init__(self, *, held_from: int = 0) -> None:
        """held_from: offset of the oldest message that is left."""
        super().__init__()
        self.held_from = held_from

    def first(self, topic: str, partition: str) -> int:
        """See BoundedBus."""
        del topic, partition
        return self.held_from

    def position_at(self, topic: str, partition: str, offset: int) -> Position:
        """See BoundedBus."""
        if offset < self.held_from:
            raise ResumeError(f"holds {self.held_from} and what follows only")
        return super().position_at(topic, partition, offset)

    def reader(self, topic: str, partition: str, position: Mapping[str, object] | None) -> PartitionReader:
        """See Bus."""
        at = self.held_from if position is None else int(str(position["offset"]))
        if at < self.held_from:
            raise ResumeError("gone")
        return super().reader(topic, partition, {"offset": at})

    def fetch(self, topic: str, partition: str, offset: int) -> bytes:
        """See Bus."""
        if offset < self.held_from:
            raise ResumeError("gone")
        return super().fetch(topic, partition, offset)


def archive_of(messages: Sequence[Found], runs: Sequence[Sequence[int]]) -> MemoryArchive:
    """An archive that has these messages (by their places), a file a run."""
    archive = MemoryArchive()
    for number, run in enumerate(runs):
        if not run:
            continue
        chunk = raw_chunk([messages[i][1] for i in run], partition=PARTITION)
        offsets = np.array([messages[i][0] for i in run], np.int64)
        chunk = RawChunk(PARTITION, chunk.data, chunk.starts, chunk.lengths, offsets)
        put(archive, f"a.w{number}", number, read_chunk(chunk), ArchiveKey("signals", f"2024-10-{number + 1:02d}"))
    return archive


def filled(bus: WritableBus, count: int) -> list[Found]:
    """Write signals to the bus; return them with their offsets."""
    bus.append(TOPIC, PARTITION, [Message(event(i)) for i in range(count)], at=0)
    with closing(bus.reader(TOPIC, PARTITION, {"offset": 0} if isinstance(bus, MemoryBus) else None)) as reader:
        return drained(reader)


def in_pieces(bus: BoundedBus, archive: MemoryArchive, chance: random.Random) -> list[Found]:
    """Polls of any size, the reader now and then opened anew where it stands."""
    found: list[Found] = []
    both = ArchivedBus(bus, archive)
    reader = both.reader(TOPIC, PARTITION, None)
    while (chunk := reader.poll(chance.randrange(1, 6))) is not None:
        found += [(offset, chunk.message(i)) for i, offset in enumerate(chunk.offsets.tolist())]
        if chance.random() < 0.4:
            position = reader.position()
            reader.close()
            both = ArchivedBus(bus, archive)
            reader = both.reader(TOPIC, PARTITION, position)
    reader.close()
    return found


@given(count=st.integers(1, 24), archived=st.sets(st.integers(0, 23)), files=st.integers(1, 3), seed=st.integers(0, 99))
@pytest.mark.parametrize("adapter", ["memory", "folder", "crlf"])
def test_every_message_comes_once_whatever_the_archive_lacks(
    adapter: str, count: int, archived: set[int], files: int, seed: int
) -> None:
    """Any part of the log is archived, in files that overlap; the bus is whole: all come, once, in order."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        bus: WritableBus = MemoryBus() if adapter == "memory" else FolderBus(name, event_bytes_max=EVENT_BYTES_MAX)
        messages = filled(bus, count)
        if adapter == "crlf":
            path = Path(name) / TOPIC / f"{PARTITION}.jsonl"
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
            messages = read_all(bus, TOPIC, PARTITION)
        runs: list[list[int]] = [[] for _ in range(files)]
        for place in sorted(archived & set(range(count))):
            chance.choice(runs).append(place)
        assert in_pieces(bus, archive_of(messages, runs), chance) == messages


@given(count=st.integers(2, 20), archived=st.integers(0, 20), held_from=st.integers(0, 20), seed=st.integers(0, 99))
def test_what_the_bus_has_forgotten_comes_out_of_the_archive(
    count: int, archived: int, held_from: int, seed: int
) -> None:
    """The archive has the beginning, the bus the rest: all come once if they meet, else the gap is an error."""
    archived, held_from = min(archived, count), min(held_from, count)
    bus = Trimmed(held_from=held_from)
    messages = filled_then(bus, count, held_from)
    archive = archive_of(messages, [range(archived)])
    if archived == 0:
        assert in_pieces(bus, archive, random.Random(seed)) == messages[held_from:]
    elif archived >= held_from:
        assert in_pieces(bus, archive, random.Random(seed)) == messages
    else:
        with pytest.raises(ResumeError, match=rf"partition `p0` of topic `t`.*offset {archived - 1} is neither"):
            in_pieces(bus, archive, random.Random(seed))


def filled_then(bus: Trimmed, count: int, held_from: int) -> list[Found]:
    """Fill the bus before it forgets."""
    bus.held_from = 0
    messages = filled(bus, count)
    bus.held_from = held_from
    return messages


def test_a_hole_that_nobody_fills_is_named() -> None:
    """Partition and offsets that are in neither: an error, unless a setting says to go on without them."""
    bus = Trimmed()
    messages = filled_then(bus, 20, 15)
    archive = archive_of(messages, [[0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15]])
    reader = ArchivedBus(bus, archive).reader(TOPIC, PARTITION, None)
    with pytest.raises(ResumeError, match="partition `p0` of topic `t`: offsets 4 to 6 is neither"):
        drained(reader)
    assert read_all(ArchivedBus(bus, archive, passes_gaps=True), TOPIC, PARTITION) == messages[:4] + messages[7:]


def test_an_archive_of_another_log_is_refused() -> None:
    """The bus was made anew: what the archive holds is not its past."""
    bus = MemoryBus()
    messages = filled(bus, 10)
    archive = archive_of([(offset, message + b" ") for offset, message in messages], [range(5)])
    with pytest.raises(ResumeError, match="they are of two logs"):
        read_all(ArchivedBus(bus, archive), TOPIC, PARTITION)


def test_a_partition_that_the_bus_has_lost_is_what_the_archive_has_of_it(tmp_path: Path) -> None:
    """An old partition file that was removed is history still; it ends where the archive does."""
    bus = FolderBus(tmp_path, event_bytes_max=EVENT_BYTES_MAX)
    messages = filled(bus, 6)
    archive = archive_of(messages, [range(6)])
    (tmp_path / TOPIC / f"{PARTITION}.jsonl").unlink()
    both = ArchivedBus(bus, archive)
    assert both.partitions(TOPIC) == (PARTITION,)
    assert read_all(both, TOPIC, PARTITION) == messages


def test_progress_adds_up_to_the_end_of_the_log(tmp_path: Path) -> None:
    """What is heard, reopened readers included, is how far reading has come."""
    bus = FolderBus(tmp_path, event_bytes_max=EVENT_BYTES_MAX)
    messages = filled(bus, 9)
    heard: list[int] = []
    both = ArchivedBus(bus, archive_of(messages, [range(4)]), progress=heard.append)
    assert read_all(both, TOPIC, PARTITION, events_max=2) == messages
    assert sum(heard) == bus.end(TOPIC, PARTITION)
    assert both.fetch(TOPIC, PARTITION, messages[2][0]) == messages[2][1]
    assert both.fetch(TOPIC, PARTITION, messages[7][0]) == messages[7][1]


@given(count=st.integers(1, 16), archived=st.integers(1, 16), blanks=st.sets(st.integers(0, 15)), gone=st.booleans())
def test_messages_whose_bytes_were_forgotten_are_passed_over(
    count: int, archived: int, blanks: set[int], *, gone: bool
) -> None:
    """The archive has some without their bytes, so nobody knows where they ended: the others come, in their places."""
    archived = count if gone else min(archived, count)
    with tempfile.TemporaryDirectory() as name:
        bus = FolderBus(name, event_bytes_max=EVENT_BYTES_MAX)
        messages = filled(bus, count)
        left = [(offset, b"" if i in blanks and i < archived else m) for i, (offset, m) in enumerate(messages)]
        archive = archive_of(messages, [range(archived)])
        forgotten = {left[i][0] for i in blanks if i < archived}
        archive.blank(lambda rows: np.isin(rows["offset"].to_numpy(), list(forgotten)))
        if gone:
            (Path(name) / TOPIC / f"{PARTITION}.jsonl").unlink()
        assert in_pieces(bus, archive, random.Random(count)) == left
