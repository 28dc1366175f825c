"""What every bus keeps to: order, offsets, resuming, and appends that may be repeated."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.buses import open_bus
from dataflows.buses.folder import FolderBus
from dataflows.buses.port import Bus, PartitionReader, Position
from operators.errors import ConfigError, FatalError, ResumeError

BUSES: dict[str, Callable[[Path], Bus]] = {
    "memory": lambda _: open_bus("memory:", event_bytes_max=1 << 20),
    "folder": lambda path: open_bus(f"folder:{path}", event_bytes_max=1 << 20),
}
"""One line an adapter."""

HOSTILE = ["", ".", "..", "../up", "a/b", "/etc/passwd", ".hidden", "nul\0", "x" * 300]
"""Names that a file must not have."""


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    """Each adapter, empty."""
    return BUSES[request.param](tmp_path / "bus")


@pytest.fixture
def folder(tmp_path: Path) -> FolderBus:
    """The folder adapter, with its topic's folder."""
    (tmp_path / "t").mkdir()
    return FolderBus(tmp_path, event_bytes_max=1 << 20)


def drained(reader: PartitionReader, events_max: int = 1000) -> list[tuple[int, bytes]]:
    """Everything up to the end of the log: (offset, message)."""
    out: list[tuple[int, bytes]] = []
    while (chunk := reader.poll(events_max)) is not None:
        assert 1 <= len(chunk.lengths) <= events_max
        out += [(offset, chunk.message(i)) for i, offset in enumerate(chunk.offsets.tolist())]
    return out


def read_all(bus: Bus, position: Position | None = None, *, events_max: int = 1000) -> list[tuple[int, bytes]]:
    """Everything in partition p of topic t from the position on."""
    with closing(bus.reader("t", "p", position)) as reader:
        return drained(reader, events_max)


def test_a_topic_that_does_not_exist_yet_has_no_partitions(bus: Bus) -> None:
    """Nothing there is no error: a producer may come later."""
    assert bus.partitions("nowhere") == ()
    assert bus.end("nowhere", "p") == 0


def test_partitions_are_sorted_and_of_their_topic(bus: Bus) -> None:
    """Names come sorted, whatever the order of their making."""
    for topic, partition in (("t", "b"), ("t", "a"), ("u", "c"), ("t", "ключ 😀")):
        bus.append(topic, partition, [b"x"], at=0)
    assert bus.partitions("t") == ("a", "b", "ключ 😀")
    assert bus.partitions("u") == ("c",)


def test_messages_come_in_order_with_rising_offsets(bus: Bus) -> None:
    """What was appended comes back, once each, in order; offsets rise, and each fetches its message."""
    messages = [b"one", b"", b"three " * 9, "ключ".encode(), b"\xff\x00"]
    at = bus.append("t", "p", messages[:2], at=0)
    end = bus.append("t", "p", messages[2:], at=at)
    assert bus.end("t", "p") == end
    found = read_all(bus)
    assert [message for _, message in found] == messages
    offsets = [offset for offset, _ in found]
    assert offsets == sorted(set(offsets))
    assert [bus.fetch("t", "p", offset) for offset in offsets] == messages


@given(
    messages=st.lists(st.binary(max_size=30).map(lambda m: m.replace(b"\n", b"").replace(b"\r", b"")), max_size=12),
    sizes=st.lists(st.integers(1, 5), min_size=1),
    reopen=st.lists(st.booleans(), min_size=1),
)
@pytest.mark.parametrize("adapter", BUSES)
def test_resuming_at_any_point_misses_and_repeats_nothing(
    adapter: str,
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[bytes],
    sizes: list[int],
    reopen: list[bool],
) -> None:
    """Polls of any size, readers reopened at their positions at any time: the same messages and offsets."""
    bus = BUSES[adapter](tmp_path_factory.mktemp("bus"))
    bus.append("t", "p", [*messages, b"last"], at=0)
    expected = read_all(bus)
    found: list[tuple[int, bytes]] = []
    reader = bus.reader("t", "p", None)
    step = 0
    while (chunk := reader.poll(sizes[step % len(sizes)])) is not None:
        found += [(offset, chunk.message(i)) for i, offset in enumerate(chunk.offsets.tolist())]
        if reopen[step % len(reopen)]:
            position = reader.position()
            reader.close()
            reader = bus.reader("t", "p", position)
        step += 1
    reader.close()
    assert found == expected
    assert [message for _, message in found] == [*messages, b"last"]


def test_a_reader_at_the_end_sees_what_comes(bus: Bus) -> None:
    """The end is the end for now: None, then what was appended since."""
    at = bus.append("t", "p", [b"a"], at=0)
    with closing(bus.reader("t", "p", None)) as reader:
        assert len(drained(reader)) == 1
        assert reader.poll(10) is None
        bus.append("t", "p", [b"b"], at=at)
        assert [message for _, message in drained(reader)] == [b"b"]


def test_repeating_an_append_changes_nothing(bus: Bus) -> None:
    """The same messages at the same offset, again and again: the log holds them once."""
    at = bus.append("t", "p", [b"a", b"bb"], at=0)
    for _ in range(2):
        end = bus.append("t", "p", [b"c", b"dd"], at=at)
    assert bus.append("t", "p", [], at=end) == end
    assert [message for _, message in read_all(bus)] == [b"a", b"bb", b"c", b"dd"]


def test_a_position_beyond_the_end_is_refused(bus: Bus) -> None:
    """A log that is shorter than what was read is another log."""
    bus.append("t", "p", [b"a", b"b"], at=0)
    with closing(bus.reader("t", "p", None)) as reader:
        drained(reader)
        position = reader.position()
    bus.append("t", "q", [b"a"], at=0)
    with pytest.raises(ResumeError):
        bus.reader("t", "q", position)
    with pytest.raises(ResumeError):
        bus.fetch("t", "p", 1000)


def test_an_append_beyond_the_end_is_refused(bus: Bus) -> None:
    """A log that has lost its end is not continued with a hole in it."""
    at = bus.append("t", "p", [b"a", b"b"], at=0)
    with pytest.raises(ResumeError):
        bus.append("t", "p", [b"c"], at=at + 1)
    assert [message for _, message in read_all(bus)] == [b"a", b"b"]


def test_closing_twice_is_safe(bus: Bus) -> None:
    """`close` may be called again."""
    bus.append("t", "p", [b"a"], at=0)
    reader = bus.reader("t", "p", None)
    reader.close()
    reader.close()


def test_schemes() -> None:
    """A bus that does not exist is a wrong setting."""
    with pytest.raises(ConfigError, match="`carrier-pigeon` is not one of folder, memory"):
        open_bus("carrier-pigeon:x", event_bytes_max=1)


# --- what only files can do -------------------------------------------------------------------------------------------


def test_an_empty_file_is_a_partition_at_its_end(folder: FolderBus, tmp_path: Path) -> None:
    """A file without a byte exists, and has nothing to read yet; hidden files and folders are no partitions."""
    (tmp_path / "t" / "p.jsonl").touch()
    (tmp_path / "t" / "notes.txt").touch()
    (tmp_path / "t" / "folder.jsonl").mkdir()
    for hidden in (".jsonl", "._p.jsonl"):
        (tmp_path / "t" / hidden).touch()
    assert folder.partitions("t") == ("p",)
    assert read_all(folder) == []


def test_an_unfinished_line_waits_for_its_end(folder: FolderBus, tmp_path: Path) -> None:
    """A last line is left alone until its newline comes, also by a reader that resumes before it."""
    path = tmp_path / "t" / "p.jsonl"
    path.write_bytes(b'{"a":1}\n{"b":')
    with closing(folder.reader("t", "p", None)) as reader:
        assert drained(reader) == [(0, b'{"a":1}')]
        position = reader.position()
        assert position["offset"] == 8
        for piece in (b"2", b"}"):
            with path.open("ab") as file:
                file.write(piece)
            assert reader.poll(10) is None
        assert read_all(folder, position) == []
        with pytest.raises(ResumeError):
            folder.fetch("t", "p", 8)
        with path.open("ab") as file:
            file.write(b"\n")
        assert drained(reader) == [(8, b'{"b":2}')]
    assert read_all(folder, position) == [(8, b'{"b":2}')]


def test_lines_may_end_in_carriage_return_and_newline(folder: FolderBus, tmp_path: Path) -> None:
    r"""`\r\n` ends a line as `\n` does; offsets count every byte; a `\r` inside stays."""
    (tmp_path / "t" / "p.jsonl").write_bytes(b"a\r\nb\rc\n\r\n\r\r\nd\r\n")
    assert read_all(folder, events_max=2) == [(0, b"a"), (3, b"b\rc"), (7, b""), (9, b"\r"), (12, b"d")]
    assert folder.fetch("t", "p", 0) == b"a"


@pytest.mark.parametrize("size", [100_000, 3_000_000, 20_000_000])
def test_a_long_line_comes_whole(folder: FolderBus, tmp_path: Path, size: int) -> None:
    """A line longer than any read buffer is one message, with its neighbours in their places."""
    line = b"x" * size
    (tmp_path / "t" / "p.jsonl").write_bytes(b"before\n" + line + b"\nafter\n")
    for events_max in (1, 1000):
        assert read_all(folder, events_max=events_max) == [(0, b"before"), (7, line), (8 + size, b"after")]


def test_a_line_beyond_all_measure_is_cut(folder: FolderBus, tmp_path: Path) -> None:
    """Of a line of over 64 MiB comes a head that is too long to be accepted; the next line is read as always."""
    size = (64 << 20) + 5
    with (tmp_path / "t" / "p.jsonl").open("wb") as file:
        file.write(b"before\n")
        file.truncate(7 + size)
        file.seek(0, os.SEEK_END)
        file.write(b"\nafter\n")
    (_, before), (at, head), (last, after) = read_all(folder)
    assert (before, after) == (b"before", b"after")
    assert (at, last) == (7, 8 + size)
    assert len(head) == (1 << 20) + 1


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(folder: FolderBus, tmp_path: Path, name: str) -> None:
    """No name leads out of the topic's folder or hides in it."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, FatalError)):
        folder.append("t", name, [b"x"], at=0)
    with pytest.raises((ConfigError, ResumeError)):
        folder.reader("t", name, None)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_append_cut_short_is_mended_by_its_repeat(folder: FolderBus, tmp_path: Path) -> None:
    """Half of the bytes of a lost append are written over by the whole."""
    at = folder.append("t", "p", [b"first"], at=0)
    with (tmp_path / "t" / "p.jsonl").open("ab") as file:
        file.write(b"sec")
    folder.append("t", "p", [b"second"], at=at)
    assert [message for _, message in read_all(folder)] == [b"first", b"second"]


def test_a_line_over_the_end_of_a_read_is_not_lost(folder: FolderBus, tmp_path: Path) -> None:
    """While another thread appends pieces of lines, a reader sees each line once and whole."""
    lines = [b"%d:%s" % (i, b"y" * (i * 37 % 5000)) for i in range(400)]
    data = b"".join(line + b"\n" for line in lines)
    path = tmp_path / "t" / "p.jsonl"
    path.touch()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for start in range(0, len(data), 1777):
                file.write(data[start : start + 1777])

    writer = threading.Thread(target=write)
    found: list[bytes] = []
    with closing(folder.reader("t", "p", None)) as reader:
        writer.start()
        while writer.is_alive():
            found += [message for _, message in drained(reader, 7)]
        writer.join()
        found += [message for _, message in drained(reader, 7)]
    assert found == lines


@pytest.mark.parametrize("harm", ["shrunk", "replaced", "written over", "removed"])
def test_a_file_that_is_not_the_one_that_was_read(folder: FolderBus, tmp_path: Path, harm: str) -> None:
    """Whether the reader is open or comes back later: it stops rather than read on in another file."""
    path = tmp_path / "t" / "p.jsonl"
    path.write_bytes(b"one\ntwo\nthree\n")
    with closing(folder.reader("t", "p", None)) as reader:
        drained(reader)
        position = reader.position()
        match harm:
            case "shrunk":
                os.truncate(path, 8)
            case "replaced":
                path.with_name("new").write_bytes(b"eins\nzwei\ndrei\nvier\n")
                path.with_name("new").replace(path)
            case "written over":
                path.write_bytes(b"eins\nzwei\ndrei\nvier\n")
            case _:
                path.unlink()
        with pytest.raises(ResumeError, match="was replaced or has shrunk while it was read"):
            reader.poll(10)
        assert reader.position() == position
    with pytest.raises(ResumeError):
        folder.reader("t", "p", position)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """Where a topic cannot be, the message names the file and what the system said."""
    (tmp_path / "t").write_text("a file, not a folder", "utf-8")
    bus = FolderBus(tmp_path, event_bytes_max=100)
    with pytest.raises(FatalError, match=r"`.*/t/p\.jsonl` cannot be written"):
        bus.append("t", "p", [b"x"], at=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        bus.partitions("t")


def test_a_torn_line_is_no_place_to_go_on(tmp_path: Path) -> None:
    """What a killed writer left of a line is not glued to the next message: that one takes its place."""
    bus = FolderBus(tmp_path, event_bytes_max=1 << 20)
    bus.append("t", "p-0", [b"whole"], at=0)
    with (tmp_path / "t" / "p-0.jsonl").open("ab") as file:
        file.write(b'{"torn": and longer than the next message')
    at = bus.end("t", "p-0")
    bus.append("t", "p-0", [b"next"], at=at)
    assert (tmp_path / "t" / "p-0.jsonl").read_bytes() == b"whole\nnext\n"


def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    """A partition file whose name cannot be text stops with the file's name, not with an encoding error."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / os.fsdecode(b"caf\xe9.jsonl")).touch()
    with pytest.raises(ConfigError, match="xe9"):
        FolderBus(tmp_path, event_bytes_max=1 << 20).partitions("t")
