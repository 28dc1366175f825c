"""The archive's writer: takes messages at the speed of the flow and writes them beside it, exactly once.

The flow's thread copies the bytes of a chunk, since its reader uses its buffer again, and goes on. A thread
that all writers of a process share lays them out, compresses and writes them, all without Python's lock: row groups go
into open files that no reader sees. A snapshot waits until they are durable and holds their tokens; the next one
publishes them (see `stores.writers`). So no message ever stands in a snapshot. Small files wait, staged, until some
more have come and are merged: a snapshot knows either the small ones or the one that was made of them, and a restart
throws away what its snapshot does not know.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from operators.packing import pack, unpack_meta
from operators.spans import SPARE
from stores.archive.columns import (
    DAY_US,
    Messages,
    Verdicts,
    by_day,
    chosen,
    date_of,
    in_log_order,
    message_table,
    owned,
    verdict_table,
)
from stores.archive.port import ArchiveKey
from stores.offline.port import Withheld
from stores.writers import EPOCHS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from stores.archive.port import Archive, StagedFile

GROUP_ROWS = 1 << 15
"""Messages that are read at once, at most …"""

GROUP_BYTES = 8 << 20
"""… and about how many bytes."""

FILE_ROWS = 1 << 15
"""A file of fewer rows than this waits for company, but for no more than EPOCHS_MAX snapshots."""

_SHARED_ROWS = 1 << 12
"""Partitions with fewer messages than this at the end of an epoch share a row group."""

_WAITING_BYTES_MAX = 32 << 20
"""Of one writer, before a row group is full: with many partitions or dates the largest are written early."""

_FILES_MAX = 64
"""Open files of one writer: events of that many dates at once."""

_MESSAGE_BYTES = 64
"""What a message takes beside its own bytes, about."""

_KEPT_BYTES_MIN = 1 << 20
_KEPT_BYTES_MAX = 64 << 20
"""Of memory that is kept to be used again."""

_Piece = Messages | Verdicts
_Group = tuple[ArchiveKey, str]


class Buffers:
    """Memory that is used again: into pages that nobody has touched yet a copy takes three times as long."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._free: list[NDArray[np.uint8]] = []
        self._lock = Lock()

    def take(self, size_bytes: int) -> NDArray[np.uint8]:
        """A buffer of at least so many bytes, and of twice that at most, uint8 (n,), that nobody else has."""
        with self._lock:
            for place, buffer in enumerate(self._free):
                if size_bytes <= len(buffer) <= 2 * size_bytes:
                    return self._free.pop(place)
        large = size_bytes >= _KEPT_BYTES_MIN
        return np.empty(1 << size_bytes.bit_length() if large else size_bytes, np.uint8)

    def give(self, buffer: NDArray[np.uint8]) -> None:
        """Take back a buffer that nobody looks at any more."""
        with self._lock:
            if len(buffer) >= _KEPT_BYTES_MIN and sum(map(len, self._free)) + len(buffer) <= _KEPT_BYTES_MAX:
                self._free.append(buffer)


class Background:
    """One thread beside the flow for all writers of a process. Work is done in the order it came.

    Who brings work waits while more than `bytes_max` are on their way: memory stays bounded.
    """

    def __init__(self, bytes_max: int = 96 << 20) -> None:
        """bytes_max: of all work that is not done, but for one piece, which may be larger."""
        self.buffers = Buffers()
        self._bytes_max = bytes_max
        self._held = 0
        self._changed = Condition()
        self._thread = ThreadPoolExecutor(1, "archive")

    def submit(self, work: Callable[[], None], size_bytes: int = 0) -> Future[None]:
        """Take work that holds so many bytes until it is done; waits until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size_bytes <= self._bytes_max)
            self._held += size_bytes
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._release(size_bytes))
        return future

    def close(self) -> None:
        """Wait until all work is done and end the thread. Safe to repeat."""
        self._thread.shutdown()

    def _release(self, size_bytes: int) -> None:
        with self._changed:
            self._held -= size_bytes
            self._changed.notify_all()


@dataclass(slots=True)
class _Waiting:
    """Pieces that will be one or more row groups. buffers: those that hold their bytes."""

    pieces: list[_Piece] = field(default_factory=list)
    buffers: list[NDArray[np.uint8]] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class _Small:
    """Staged files of one key that wait for company, since so many snapshots."""

    tokens: list[str] = field(default_factory=list)
    rows: int = 0
    age: int = 0


class ArchiveWriter:
    """Stages messages and verdicts while an epoch lasts and publishes them at the snapshot after.

    A failure of the disk is raised by the next `write` or `snapshot`.
    """

    def __init__(
        self, archive: Archive, background: Background, writer: str, resume: bytes | None, *, durable: bool
    ) -> None:
        """Publish what the resumed snapshot had staged; discard the rest.

        durable: snapshots are kept, so that an unpublished file can be found again; else `close` publishes.
        """
        self._archive = archive
        self._background = background
        self._writer = writer
        self._durable = durable
        self._sequence = 0
        self._ready: list[str] = []  # staged, and due to be published once a snapshot that holds them is durable
        self._small: dict[ArchiveKey, _Small] = {}
        self._merged = False
        self.withheld = Withheld()
        self._waiting: dict[_Group, _Waiting] = {}
        self._waiting_bytes = 0
        self._work: deque[Future[None]] = deque()
        # The next two belong to the thread beside, and to this one while that has nothing to do for this writer.
        self._files: dict[ArchiveKey, tuple[StagedFile, int]] = {}  # with their rows
        self._finished: list[tuple[ArchiveKey, str, int]] = []
        if resume is not None:
            meta = unpack_meta(resume)
            self._sequence = cast("int", meta["sequence"])
            self.withheld = Withheld(*cast("list[int]", meta["withheld"]))
            self._ready = cast("list[str]", meta["tokens"])
            self._publish()
        archive.discard(writer, keep=())

    def write(self, messages: Messages) -> None:
        """Take the next messages of a partition, in the order of its log; the caller may use its buffer again."""
        self._check()
        for day, index in by_day(messages.day):
            lengths = messages.raw.lengths if index is None else messages.raw.lengths[index]
            buffer = self._background.buffers.take(int(lengths.sum()) + SPARE)
            group = ArchiveKey("signals", date_of(day)), messages.raw.partition
            self._add(group, owned(messages, index, buffer), buffer)

    def judge(self, verdicts: Verdicts) -> None:
        """Take what was found out about messages, of this writer or of others, read in this epoch or earlier."""
        self._check()
        for day, index in by_day(verdicts.event_time // DAY_US):
            mine = chosen(verdicts, index)
            self._add((ArchiveKey("verdicts", date_of(day)), ""), mine)

    def snapshot(self) -> bytes:
        """Publish what the last snapshot staged, make durable what came since, and return the state."""
        self._stage()
        self._publish()
        self._gather(EPOCHS_MAX)
        meta: dict[str, object] = {
            "sequence": self._sequence,
            "tokens": [*self._ready, *self._small_tokens()],
            "withheld": [self.withheld.repeated, self.withheld.different],
        }
        return pack(meta, {})

    def close(self) -> None:
        """Without durable snapshots nobody will come back for what is staged: publish it now."""
        if self._durable:
            self._waiting.clear()
            self._background.submit(self._abandon).result()
            return
        self._stage()
        self._gather(0)
        self._publish()

    def _add(self, group: _Group, piece: _Piece, buffer: NDArray[np.uint8] | None = None) -> None:
        size_bytes = _MESSAGE_BYTES * len(piece) + (len(piece.raw.data) if isinstance(piece, Messages) else 0)
        waiting = self._waiting.setdefault(group, _Waiting())
        waiting.pieces.append(piece)
        if buffer is not None:
            waiting.buffers.append(buffer)
        waiting.rows += len(piece)
        waiting.size_bytes += size_bytes
        self._waiting_bytes += size_bytes
        if waiting.rows >= GROUP_ROWS or waiting.size_bytes >= GROUP_BYTES:
            self._flush([group])
        while self._waiting_bytes > _WAITING_BYTES_MAX:
            self._flush([max(self._waiting, key=lambda g: self._waiting[g].size_bytes)])

    def _flush(self, groups: list[_Group]) -> None:
        """Hand what waits for these groups, all of one key, over to be written together."""
        taken = [self._waiting.pop(group) for group in groups]
        pieces = [piece for waiting in taken for piece in waiting.pieces]
        buffers = [buffer for waiting in taken for buffer in waiting.buffers]
        size_bytes = sum(waiting.size_bytes for waiting in taken)
        self._waiting_bytes -= size_bytes
        key = groups[0][0]
        self._work.append(self._background.submit(lambda: self._append(key, pieces, buffers), size_bytes))

    def _stage(self) -> None:
        """Have everything that was taken durable in finished files."""
        small: dict[ArchiveKey, list[_Group]] = {}
        for group in sorted(self._waiting):
            if self._waiting[group].rows < _SHARED_ROWS:
                small.setdefault(group[0], []).append(group)
            else:
                self._flush([group])
        for groups in small.values():
            self._flush(groups)
        self._work.append(self._background.submit(self._finish))
        while self._work:
            self._work.popleft().result()

    def _publish(self) -> None:
        if self._merged:
            fresh = [token for _, token, _ in self._finished]
            self._archive.discard(self._writer, keep=[*self._ready, *self._small_tokens(), *fresh])
            self._merged = False
        if self._ready:
            self.withheld += self._archive.publish(self._ready)
            self._ready = []

    def _small_tokens(self) -> list[str]:
        return [token for small in self._small.values() for token in small.tokens]

    def _gather(self, epochs_max: int) -> None:
        """Decide which of the finished files are ready; small ones that have waited that long are, merged."""
        for key, token, rows in self._finished:
            if rows >= FILE_ROWS:
                self._ready.append(token)
                continue
            small = self._small.setdefault(key, _Small())
            small.tokens.append(token)
            small.rows += rows
        self._finished = []
        for key, small in list(self._small.items()):
            small.age += 1
            if small.rows < FILE_ROWS and small.age < epochs_max:
                continue
            if len(small.tokens) > 1:
                small.tokens = [self._archive.merge(small.tokens, self._sequence)]
                self._sequence += 1
                self._merged = True
            self._ready += small.tokens
            del self._small[key]

    def _check(self) -> None:
        while self._work and self._work[0].done():
            self._work.popleft().result()

    def _append(self, key: ArchiveKey, pieces: Iterable[_Piece], buffers: Iterable[NDArray[np.uint8]]) -> None:
        """Beside: write the pieces as row groups of the key's open file; then nobody looks at the buffers any more."""
        tables = [_table(piece) for piece in pieces]
        rows = pa.concat_tables(tables) if key.kind == "signals" else in_log_order(tables)
        file, before = self._files.pop(key, (None, 0))
        if file is None:
            while len(self._files) >= _FILES_MAX:
                self._finish_file(next(iter(self._files)))
            file = self._archive.stage(self._writer, self._sequence, key)
            self._sequence += 1
        self._files[key] = file, before + rows.num_rows  # the last in order is the one used last
        for begin in range(0, rows.num_rows, GROUP_ROWS):
            file.write(rows.slice(begin, GROUP_ROWS))
        for buffer in buffers:
            self._background.buffers.give(buffer)

    def _finish(self) -> None:
        """Beside: finish all open files."""
        for key in list(self._files):
            self._finish_file(key)

    def _finish_file(self, key: ArchiveKey) -> None:
        file, rows = self._files[key]
        self._finished.append((key, file.finish(), rows))
        del self._files[key]

    def _abandon(self) -> None:
        """Beside: let go of all open files."""
        while self._files:
            self._files.popitem()[1][0].abandon()


def _table(taken: _Piece) -> pa.Table:
    return message_table(taken) if isinstance(taken, Messages) else verdict_table(taken)
