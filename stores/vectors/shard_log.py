"""The log of a shard: one checksummed record a commit, appended and fsynced.

::

    file    magic 16 | format u32 | dim u32 | element 8       header, then records
    record  "CMIT" | puts u32 | deletes u32 | 0 u32 | sequence u64 | digest 16
            deleted keys u64 … | put keys u64 … | vectors, row by row

All numbers are little-endian. The digest covers the record without itself. Only the last record of the last log can
be torn, by a crash in the middle of a commit that nobody was told of; it is passed over. A record
that does not fit, with a whole one behind it, is damage.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from operators.errors import CorruptStoreError
from stores.offline.disk import fsync
from stores.vectors.elements import DTYPES, Stored, encode
from stores.vectors.port import Element

_MAGIC = b"HeadraceVectors\n"
_FORMAT = 1
_FILE = struct.Struct("<16sII8s")
_RECORD = struct.Struct("<4sIIIQ16s")
_MARK = b"CMIT"
_DIGEST = 16
_KEY = np.dtype("<u8")

Changes = Mapping[int, NDArray[np.float32] | None]
"""What a commit does: the vector of each key that is put, None for one that is deleted."""


@dataclass(frozen=True, slots=True)
class Record:
    """One commit. deleted: uint64 (d,). keys: uint64 (p,). rows: stored vectors (p, dim). No key is in it twice."""

    sequence: int
    deleted: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    rows: Stored


@dataclass(frozen=True, slots=True)
class LogFormat:
    """What vectors of a log look like."""

    dim: int
    element: Element

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored vector."""
        return self.dim * DTYPES[self.element].itemsize

    @property
    def header(self) -> bytes:
        """The first bytes of every log file."""
        return _FILE.pack(_MAGIC, _FORMAT, self.dim, self.element.encode())

    def pack(self, sequence: int, changes: Changes) -> bytes:
        """The record of a commit."""
        deleted = np.array([key for key, vector in changes.items() if vector is None], _KEY)
        puts = {key: vector for key, vector in changes.items() if vector is not None}
        rows = np.stack(list(puts.values())) if puts else np.empty((0, self.dim), np.float32)
        body = deleted.tobytes() + np.array(list(puts), _KEY).tobytes() + encode(rows, self.element).tobytes()
        return _head(len(puts), deleted.size, sequence, body) + body

    def unpack(self, data: memoryview, start: int) -> tuple[Record, int] | None:
        """The record at `start` and where it ends; None if no whole record stands there."""
        if len(data) - start < _RECORD.size:
            return None
        mark, puts, deletes, _, sequence, _ = _RECORD.unpack_from(data, start)
        at = start + _RECORD.size
        end = at + _KEY.itemsize * (deletes + puts) + puts * self.row_bytes
        if mark != _MARK or end > len(data) or _head(puts, deletes, sequence, data[at:end]) != data[start:at]:
            return None
        keys = np.frombuffer(data, _KEY, deletes + puts, at)
        rows = np.frombuffer(data, DTYPES[self.element], puts * self.dim, end - puts * self.row_bytes)
        return Record(sequence, keys[:deletes], keys[deletes:], rows.reshape(puts, self.dim)), end


def _head(puts: int, deletes: int, sequence: int, body: bytes | memoryview) -> bytes:
    bare = _RECORD.pack(_MARK, puts, deletes, 0, sequence, b"")[:-_DIGEST]
    return bare + blake2b(body, digest_size=_DIGEST, key=bare).digest()


class LogReader:
    """Reads the records of one log file as they are appended; keeps the file open, so it may be removed meanwhile."""

    def __init__(self, path: Path, log_format: LogFormat, sequence: int) -> None:
        """Open the file whose first record has that sequence number. Raises FileNotFoundError if there is none."""
        self.path = path
        self._format = log_format
        self._next = sequence
        self._file = os.open(path, os.O_RDONLY)
        self.end = 0
        """Bytes that are header and whole records."""

    def read(self) -> Iterator[Record]:
        """Give every whole record behind those given before. Raises CorruptStoreError for damage."""
        size = os.fstat(self._file).st_size - self.end
        if size == 0 and self.end:
            return
        data = memoryview(_pread(self._file, size, self.end))
        at = 0
        if self.end == 0:
            if data[: _FILE.size] != self._format.header:
                raise CorruptStoreError(f"`{self.path}` is no log of vectors of this kind; restore or remove the store")
            at = self.end = _FILE.size
        start = self.end - at
        while (found := self._format.unpack(data, at)) is not None:
            record, at = found
            if record.sequence != self._next:
                raise CorruptStoreError(f"`{self.path}` holds commit {record.sequence} in the place of {self._next}")
            self._next += 1
            self.end = start + at
            yield record
        self._check_tail(data, at)

    def torn_bytes(self) -> int:
        """Bytes behind the last whole record."""
        return max(os.fstat(self._file).st_size - self.end, 0)

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next record will have."""
        return self._next

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _check_tail(self, data: memoryview, at: int) -> None:
        """Raise CorruptStoreError if a whole record of ours stands anywhere behind the first that is not whole."""
        rest = bytes(data[at:])
        place = rest.find(_MARK, 1)
        while place >= 0:
            found = self._format.unpack(memoryview(rest), place)
            if found is not None and found[0].sequence > self._next:
                raise CorruptStoreError(
                    f"`{self.path}` is damaged at byte {self.end}, before its last commit; restore the store from"
                    " a copy, or remove it and run `headrace verify documents --repair`"
                )
            place = rest.find(_MARK, place + 1)


class LogWriter:
    """Appends records to one log file."""

    def __init__(self, path: Path, end: int) -> None:
        """Open the file to append at that byte; what stands behind it is cut off."""
        self._file = os.open(path, os.O_WRONLY)
        self._end = end
        if os.fstat(self._file).st_size > end:
            os.ftruncate(self._file, end)
        os.fsync(self._file)  # what a killed writer has appended counts from now on, so it must be durable

    def append(self, record: bytes) -> None:
        """Write the record and make it durable."""
        left = memoryview(record)
        while left:
            written = os.pwrite(self._file, left, self._end)
            self._end += written
            left = left[written:]
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def create_log(path: Path, log_format: LogFormat) -> None:
    """Make an empty log, durable but for its name. A file of that name is replaced."""
    path.write_bytes(log_format.header)
    fsync(path)


def _pread(file: int, size: int, at: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(file, size, at)):
        parts.append(part)
        size -= len(part)
        at += len(part)
    return b"".join(parts)
