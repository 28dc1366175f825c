"""What only the bus in a folder can do, or can suffer: files that others write, damage, replace."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from dataflows.buses.folder import FolderBus
from dataflows.buses.port import Position
from operators.errors import ConfigError, FatalError, ResumeError
from operators.messages import Message
from tests import buses
from tests.buses import Found, drained

HOSTILE = ["", ".", "..", "../up", "a/b", "/etc/passwd", ".hidden", "nul\0", "x" * 300]
"""Names that a file must not have."""


@pytest.fixture
def folder(tmp_path: Path) -> FolderBus:
    """The folder adapter, with its topic's folder."""
    (tmp_path / "t").mkdir()
    return FolderBus(tmp_path, event_bytes_max=1 << 20)


def read_all(bus: FolderBus, position: Position | None = None, *, events_max: int = 1000) -> list[Found]:
    """Everything in partition p of topic t from the position on."""
    return buses.read_all(bus, "t", "p", position, events_max=events_max)


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
        folder.append("t", name, [Message(b"x")], at=0)
    with pytest.raises((ConfigError, ResumeError)):
        folder.reader("t", name, None)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_append_cut_short_is_mended_by_its_repeat(folder: FolderBus, tmp_path: Path) -> None:
    """Half of the bytes of a lost append are written over by the whole."""
    at = folder.append("t", "p", [Message(b"first")], at=0)
    with (tmp_path / "t" / "p.jsonl").open("ab") as file:
        file.write(b"sec")
    folder.append("t", "p", [Message(b"second")], at=at)
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
        bus.append("t", "p", [Message(b"x")], at=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        bus.partitions("t")


def test_a_torn_line_is_no_place_to_go_on(tmp_path: Path) -> None:
    """What a killed writer left of a line is not glued to the next message: that one takes its place."""
    bus = FolderBus(tmp_path, event_bytes_max=1 << 20)
    bus.append("t", "p-0", [Message(b"whole")], at=0)
    with (tmp_path / "t" / "p-0.jsonl").open("ab") as file:
        file.write(b'{"torn": and longer than the next message')
    at = bus.end("t", "p-0")
    bus.append("t", "p-0", [Message(b"next")], at=at)
    assert (tmp_path / "t" / "p-0.jsonl").read_bytes() == b"whole\nnext\n"


def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    """A partition file whose name cannot be text stops with the file's name, not with an encoding error."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / os.fsdecode(b"caf\xe9.jsonl")).touch()
    with pytest.raises(ConfigError, match="xe9"):
        FolderBus(tmp_path, event_bytes_max=1 << 20).partitions("t")
