"""The bus in a folder: `<root>/<topic>/<partition>.jsonl`, a line a message, offset = byte position.

Lines are only appended. A line without its end is still being written and is left for later.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from operators.decode import split_lines
from operators.errors import ConfigError, FatalError, ResumeError
from operators.records import RawChunk
from operators.simd import PAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dataflows.buses.port import PartitionReader, Position
    from operators.messages import Message

_SUFFIX = ".jsonl"
_READ_BYTES = 16 << 20
_READ_BYTES_MIN = 1 << 16
_EVENT_BYTES = 256
"""How long an event is thought to be before one was read."""

_LINE_BYTES_MAX = 64 << 20
_MARK_BYTES = 256


class FolderBus:
    """A Bus over .jsonl files; durable once `append` returns."""

    counts_bytes = True

    def __init__(self, root: str | Path, *, event_bytes_max: int) -> None:
        """root: folder of the topics; need not exist. event_bytes_max: longer lines are cut when huge."""
        self._root = Path(root)
        self._event_bytes_max = event_bytes_max

    def partitions(self, topic: str) -> tuple[str, ...]:
        """See Bus. The name of a partition is its file's, without `.jsonl`; hidden files are none."""
        folder = self._root / topic
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"topic folder `{folder}` cannot be read: {error.strerror}") from error
        names = [e.name.removesuffix(_SUFFIX) for e in entries if e.name.endswith(_SUFFIX) and e.is_file()]
        for name in names:
            if not name.isprintable():
                shown = os.fsencode(name).decode("utf-8", "backslashreplace") + _SUFFIX
                raise ConfigError(f"partition file {shown!r} in `{folder}` needs a printable UTF-8 name; rename it")
        return tuple(sorted(name for name in names if name and not name.startswith(".")))

    def reader(self, topic: str, partition: str, position: Mapping[str, object] | None) -> PartitionReader:
        """See Bus."""
        return FileReader(self._path(topic, partition), partition, position, event_bytes_max=self._event_bytes_max)

    def fetch(self, topic: str, partition: str, offset: int) -> bytes:
        """See Bus."""
        path = self._path(topic, partition)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                line = file.readline(_LINE_BYTES_MAX)
        except OSError as error:
            raise ResumeError(f"partition file `{path}` cannot be opened: {error.strerror}") from error
        if not line.endswith(b"\n"):
            raise ResumeError(f"`{path}` has no whole line at byte {offset}: the log has shrunk or was replaced")
        return line.rstrip(b"\r\n")

    def end(self, topic: str, partition: str) -> int:
        """See Bus. A last line without its end is no message: the next one stands in its place."""
        path = self._path(topic, partition)
        at = path.stat().st_size if path.exists() else 0
        while at > 0:
            start = max(0, at - _READ_BYTES)
            with path.open("rb") as file:
                file.seek(start)
                newline = file.read(at - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            at = start
        return 0

    def first(self, topic: str, partition: str) -> int:
        """See BoundedBus. A file is there whole."""
        del topic, partition
        return 0

    def position_at(self, topic: str, partition: str, offset: int) -> Position:
        """See BoundedBus."""
        path = self._path(topic, partition)
        try:
            with path.open("rb") as file:
                start = max(0, offset - _MARK_BYTES)
                file.seek(start)
                before = file.read(offset + 1 - start)
        except OSError as error:
            raise ResumeError(f"partition file `{path}` cannot be opened: {error.strerror}") from error
        if before[: offset - start].endswith(b"\r") and before[offset - start :] == b"\n":
            return self.position_at(topic, partition, offset + 1)
        before = before[: offset - start]
        if len(before) < offset - start or (before and not before.endswith(b"\n")):
            raise ResumeError(f"`{path}` has no line that begins at byte {offset}: it has shrunk or was replaced")
        return {"offset": offset, "mark": _mark(before[-_MARK_BYTES:])}

    def append(self, topic: str, writer: str, messages: Sequence[Message], *, at: int) -> int:
        """See WritableBus. Written in place at byte `at`, then fsynced."""
        if not messages:
            return at
        data = b"".join(m.value + b"\n" for m in messages)
        path = self._path(topic, writer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.fstat(file).st_size < at:
                    raise ResumeError(f"`{path}` has shrunk: its next line belongs at byte {at}; restore the file")
                written = 0
                while written < len(data):
                    written += os.pwrite(file, data[written:], at + written)
                os.ftruncate(file, at + len(data))
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise FatalError(f"`{path}` cannot be written: {error.strerror}; free space or mend the folder") from error
        return at + len(data)

    def written(self, topic: str, writer: str) -> int:
        """See WritableBus."""
        return self.end(topic, writer)

    def close(self) -> None:
        """See Bus. Files are open only while they are used."""

    def _path(self, topic: str, partition: str) -> Path:
        if not partition or "/" in partition or partition.startswith(".") or "\0" in partition:
            raise ConfigError(f"partition `{partition}` cannot be the name of a file")
        return self._root / topic / f"{partition}{_SUFFIX}"


class FileReader:
    """A PartitionReader over one file of lines.

    The position holds a digest of the bytes just before it, as they were read, so that a file that was
    replaced or written over is found out even if it is long enough.
    """

    def __init__(
        self, path: Path, partition: str, position: Mapping[str, object] | None, *, event_bytes_max: int
    ) -> None:
        """Open the file at the position. Raises ResumeError if it does not belong to the file."""
        self._path = path
        self._partition = partition
        self._event_bytes_max = event_bytes_max
        self._buffer = np.empty(0, np.uint8)
        self._event_bytes = _EVENT_BYTES
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ResumeError(f"partition file `{path}` cannot be opened: {error.strerror}") from error
        self._offset = 0 if position is None else int(str(position["offset"]))
        self._mark = self._digest()
        if position is not None and self._mark != position["mark"]:
            size = os.fstat(self._file).st_size
            os.close(self._file)
            raise ResumeError(
                f"partition file `{path}` was replaced or has shrunk: byte {self._offset} of {size} is not where it was"
                " left; restore the file, or start anew with an empty RECOVERY_DIR"
            )

    def poll(self, events_max: int) -> RawChunk | None:
        """See PartitionReader."""
        size = self._size()
        if size == self._offset:
            return None
        want = min(size - self._offset, _READ_BYTES, max(_READ_BYTES_MIN, events_max * self._event_bytes))
        while True:
            data = self._read(want)
            read = len(data) - PAD
            starts, lengths, consumed = split_lines(data[:read], lines_max=events_max)
            if len(starts) > 0 or read < want or self._offset + want >= size:
                break
            if want >= _LINE_BYTES_MAX:
                return self._huge_line(size)
            want = min(4 * want, _LINE_BYTES_MAX, size - self._offset)
        if len(starts) == 0:
            return None
        chunk = RawChunk(self._partition, data, starts, lengths, self._offset + starts)
        self._offset += consumed
        self._event_bytes = consumed // len(starts) + 1
        self._mark = self._digest()
        return chunk

    def position(self) -> Position:
        """See PartitionReader."""
        return {"offset": self._offset, "mark": self._mark}

    def close(self) -> None:
        """See PartitionReader."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self, size: int) -> NDArray[np.uint8]:
        """Up to `size` bytes from the offset on, and PAD more without meaning, which the decoder may look at."""
        if len(self._buffer) < size + PAD:
            # Zeros of the system cost nothing until they are read into; powers of two, so that it rarely grows.
            self._buffer = np.zeros(1 << (size + PAD).bit_length(), np.uint8)
        count = os.preadv(self._file, [self._buffer[:size].data], self._offset)
        return self._buffer[: count + PAD]

    def _size(self) -> int:
        """How long the file is. Raises ResumeError if it is no longer the one that was read."""
        size = os.fstat(self._file).st_size
        try:
            same = self._path.stat().st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            same = False
        if not same or size < self._offset or (size > self._offset and self._digest() != self._mark):
            raise ResumeError(
                f"partition file `{self._path}` was replaced or has shrunk while it was read (byte {self._offset} of"
                f" {size}); lines may only be appended: restore it, or start anew with an empty RECOVERY_DIR"
            )
        return size

    def _digest(self) -> str:
        start = max(0, self._offset - _MARK_BYTES)
        before = os.pread(self._file, self._offset - start, start)
        return _mark(before) if len(before) == self._offset - start else "short"

    def _huge_line(self, size: int) -> RawChunk | None:
        """A line of over 64 MiB: its head, long enough to be refused as too large, stands for it."""
        at = self._offset + _LINE_BYTES_MAX
        while at < size:
            block = os.pread(self._file, _READ_BYTES, at)
            end = block.find(b"\n")
            if end >= 0:
                head = self._read(self._event_bytes_max + 1)[:-PAD].copy()
                offsets = np.array([self._offset], np.int64)
                self._offset = at + end + 1
                self._mark = self._digest()
                return RawChunk(self._partition, head, np.zeros(1, np.int64), np.array([len(head)]), offsets)
            at += len(block)
        return None


def _mark(before: bytes) -> str:
    """Digest of the last _MARK_BYTES before a position."""
    return hashlib.blake2b(before, digest_size=8).hexdigest()
