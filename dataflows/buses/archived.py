"""A bus whose past is in the archive: what was archived comes first, then what the bus holds, each message once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataflows.observability.events import PartitionReset, tell
from operators.errors import ResumeError
from operators.records import RawChunk
from stores.archive.port import ArchiveSelection
from stores.archive.reading import messages_of_partition, partitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dataflows.buses.port import BoundedBus, PartitionReader, Position
    from stores.archive.port import Archive


class ArchivedBus:
    """A Bus that reads on where the archive ends.

    The archive may lack what was read last, or some of it: from the first message on that it lacks, the bus is read.
    """

    def __init__(
        self,
        bus: BoundedBus,
        archive: Archive,
        *,
        passes_gaps: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """archive: of the topic that is read. passes_gaps: go on without what neither has any more.

        progress: hears by how much a reader's offset has grown.
        """
        self._bus = bus
        self._archive = archive
        self._passes_gaps = passes_gaps
        self._progress = progress
        self._archived = partitions(archive)

    def partitions(self, topic: str) -> tuple[str, ...]:
        """See Bus. One that the bus has forgotten is what the archive has of it."""
        return tuple(sorted({*self._archived, *self._bus.partitions(topic)}))

    def reader(self, topic: str, partition: str, position: Mapping[str, object] | None) -> PartitionReader:
        """See Bus. Raises ResumeError, here or in `poll`, for messages that neither has (any more)."""
        reader = ArchivedReader(self._bus, self._archive, topic, partition, passes_gaps=self._passes_gaps)
        reader.start(position)
        return _Watched(reader, self._progress)

    def fetch(self, topic: str, partition: str, offset: int) -> bytes:
        """See Bus."""
        one = ArchiveSelection(offset_first=offset, offset_last=offset)
        for chunk in messages_of_partition(self._archive, partition, one):
            return chunk.message(0)
        return self._bus.fetch(topic, partition, offset)

    def end(self, topic: str, partition: str) -> int:
        """See Bus."""
        return self._bus.end(topic, partition)

    def close(self) -> None:
        """See Bus. The archive belongs to whoever opened it."""
        self._bus.close()


class ArchivedReader:
    """A PartitionReader over both. Behind the archive its positions are those of the bus."""

    def __init__(
        self, bus: BoundedBus, archive: Archive, topic: str, partition: str, *, passes_gaps: bool = False
    ) -> None:
        """See ArchivedBus. To be started before anything else."""
        self._bus = bus
        self._archive = archive
        self._topic = topic
        self._partition = partition
        self._passes_gaps = passes_gaps
        self._reader: PartitionReader | None = None
        self._chunks: Iterator[RawChunk] = iter(())
        self._chunk: RawChunk | None = None
        self._next: int | None = None
        self._last: tuple[int, bytes] | None = None
        self._open_end = False
        self._forgotten = False

    def start(self, position: Mapping[str, object] | None) -> None:
        """Stand at the position, or at the beginning of whichever of both goes back further."""
        if position is not None and "archived" not in position:
            self._reader = self._bus.reader(self._topic, self._partition, position)
            return
        offset = -1 if position is None else int(str(position["offset"]))
        self._next = None if offset < 0 else offset
        self._open_end = position is not None and bool(position.get("open_end"))
        self._chunks = messages_of_partition(self._archive, self._partition, ArchiveSelection(offset_first=self._next))
        self._chunk = next(self._chunks, None)
        if self._next is not None:
            return
        held = self._partition in self._bus.partitions(self._topic)
        if self._chunk is None or (held and self._bus.first(self._topic, self._partition) < self._chunk.offsets[0]):
            self._reader = self._bus.reader(self._topic, self._partition, None)
        else:
            self._next = 0 if self._bus.counts_bytes else int(self._chunk.offsets[0])

    def poll(self, events_max: int) -> RawChunk | None:
        """See PartitionReader."""
        if self._reader is None and not self._forgotten:
            chunk = self._of_archive(events_max)
            if chunk is not None:
                return chunk
        return None if self._reader is None else self._reader.poll(events_max)

    def position(self) -> Position:
        """See PartitionReader."""
        if self._reader is not None:
            return self._reader.position()
        return {"offset": -1 if self._next is None else self._next, "archived": True, "open_end": self._open_end}

    def close(self) -> None:
        """See PartitionReader."""
        if self._reader is not None:
            self._reader.close()

    def _of_archive(self, events_max: int) -> RawChunk | None:
        """The archive's next messages, as far as each follows the one before; None if the bus is to be read."""
        while self._chunk is not None and len(self._chunk.offsets) == 0:
            self._chunk = next(self._chunks, None)
        if self._chunk is None:
            self._go_over()
            return None
        chunk = _part(self._chunk, 0, events_max)
        count = self._following(chunk)
        if count == 0 and not self._pass_gap(int(chunk.offsets[0])):
            return None
        count = count or self._following(chunk)
        self._chunk = _part(self._chunk, count, len(self._chunk.offsets))
        chunk = _part(chunk, 0, count)
        self._next = int(self._ends(chunk)[-1])
        self._last = int(chunk.offsets[-1]), chunk.message(count - 1)
        self._open_end = self._bus.counts_bytes and not self._last[1]
        return chunk

    def _ends(self, chunk: RawChunk) -> NDArray[np.int64]:
        """Where the next message begins behind each one, at the least."""
        if not self._bus.counts_bytes:
            return chunk.offsets + 1
        ends = chunk.offsets + chunk.lengths + 1
        for i in np.flatnonzero(chunk.lengths == 0).tolist():  # empty, or one whose bytes were forgotten
            following = int(chunk.offsets[i + 1]) if i + 1 < len(ends) else None
            if following is None or following - ends[i] not in (0, 1):
                ends[i] = self._end_of(int(chunk.offsets[i]), following)
        return ends

    def _end_of(self, offset: int, following: int | None) -> int:
        """Where the message ends on the bus; if that is unknown, where the next one begins, if there is one."""
        try:
            return offset + len(self._bus.fetch(self._topic, self._partition, offset)) + 1
        except ResumeError:
            return offset + 1 if following is None else following

    def _following(self, chunk: RawChunk) -> int:
        """How many messages follow the last one without a gap."""
        wanted = np.append(np.int64(self._next or 0), self._ends(chunk)[:-1])
        beyond = chunk.offsets - wanted
        gaps = (beyond != 0) & ((beyond != 1) if self._bus.counts_bytes else True)  # a line may end with \r\n
        return int(np.argmax(gaps)) if gaps.any() else len(gaps)

    def _pass_gap(self, until: int) -> bool:
        """Messages before `until` are not archived: read the bus, and return False, unless they are gone there too."""
        assert self._next is not None  # something was read before the gap, or would have to be
        self._check_same()
        try:
            position = self._bus.position_at(self._topic, self._partition, self._next)
        except ResumeError as error:
            if self._open_end:
                self._next = until  # nobody knows any more where the message ended whose bytes were forgotten
                return True
            if not self._passes_gaps:
                raise self._gap(f"offsets {self._next} to {until - 1}") from error
            tell(PartitionReset(self._partition, self._next, until))
            self._next = until
            return True
        self._reader = self._bus.reader(self._topic, self._partition, position)
        return False

    def _go_over(self) -> None:
        """The archive has no more: read the bus, if it still knows the partition."""
        assert self._next is not None  # else the bus is read from the beginning
        if self._partition not in self._bus.partitions(self._topic):
            self._forgotten = True
            return
        self._check_same()
        try:
            position: Position | None = self._bus.position_at(self._topic, self._partition, self._next)
        except ResumeError as error:
            first = self._bus.first(self._topic, self._partition)
            if not self._passes_gaps or first < self._next:
                raise self._gap(f"what follows offset {self._next - 1}") from error
            tell(PartitionReset(self._partition, self._next, first))
            position = None
        self._reader = self._bus.reader(self._topic, self._partition, position)

    def _check_same(self) -> None:
        """Raise ResumeError if the bus has another message where the archive's last one stood."""
        if self._last is None or not self._last[1]:
            return
        offset, message = self._last
        try:
            found = self._bus.fetch(self._topic, self._partition, offset)
        except ResumeError:
            return  # gone by now
        if found != message:
            raise ResumeError(
                f"partition `{self._partition}` of topic `{self._topic}` has another message at offset {offset} than"
                " the archive: they are of two logs; name the archive of this one as ARCHIVE_PATH, or an empty folder"
            )

    def _gap(self, what: str) -> ResumeError:
        return ResumeError(
            f"partition `{self._partition}` of topic `{self._topic}`: {what} is neither in the archive nor on the"
            " bus (any more), so history has a gap there; restore one of them"
            + ("" if self._bus.counts_bytes else ", or set KAFKA_OFFSET_RESET=earliest to go on without")
        )


class _Watched:
    """A reader that tells how far it goes."""

    def __init__(self, reader: PartitionReader, progress: Callable[[int], None]) -> None:
        self._reader = reader
        self._progress = progress
        self._at = 0

    def poll(self, events_max: int) -> RawChunk | None:
        chunk = self._reader.poll(events_max)
        at = int(str(self._reader.position()["offset"]))
        if at > self._at:
            self._progress(at - self._at)
            self._at = at
        return chunk

    def position(self) -> Position:
        return self._reader.position()

    def close(self) -> None:
        self._reader.close()


def _part(chunk: RawChunk, begin: int, end: int) -> RawChunk:
    some = slice(begin, end)
    taken = None if chunk.timestamps is None else chunk.timestamps[some]
    return RawChunk(chunk.partition, chunk.data, chunk.starts[some], chunk.lengths[some], chunk.offsets[some], taken)
