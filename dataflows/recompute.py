"""Rows computed anew from events, with nothing late: what the history must hold in the end.

The rows that a run comes to, corrections and releases included, are those of a batch over all events that were not
refused. So whoever wants to know what must be there feeds those events through the same operators, with a watermark
that waits for the latest of them. Partitions are decoded and shards advanced in parallel threads, since the compiled
loops hold no lock; no row is written anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from operators.decode import Decoder
from operators.future import without_future
from operators.hashes import murmur3_bytes
from operators.records import NO_WATERMARK, RawChunk
from operators.shard import split
from operators.watermark import PartitionWatermark, Status, Tick
from operators.windows import Shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from operators.feature_sets import FeatureSets
    from operators.forgotten import Forgotten
    from operators.records import Decoded, RowBlock, SignalBatch

_FIRST_EVENTS_MAX = 4096
_AHEAD_US_MIN = 60_000_000

Judge = Callable[["Decoded"], "NDArray[np.bool_]"]
"""Says which signals of a partition count, bool (n,); hears all of them, in the order of the log."""


class Messages(Protocol):
    """A partition's messages, read forwards; inputs of batch runs and readers of a bus are such."""

    def poll(self, events_max: int) -> RawChunk | None:
        """Return the next messages, at most `events_max`, or None at the end; valid until the next call."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


@dataclass(frozen=True, slots=True)
class Feed:
    """One partition to compute from.

    open: gives its messages from the first on; called anew for every attempt. judge: makes what tells which of them
    count; None: all that are signals do. until: the offset that is read to, exclusive; None: to the end.
    max_future_us: see `without_future`.
    """

    partition: str
    open: Callable[[], Messages]
    judge: Callable[[], Judge] | None = None
    until: int | None = None
    max_future_us: int | None = None


class Sink(Protocol):
    """Takes the rows that come out."""

    def begin(self) -> None:
        """Forget everything: rows come from the beginning, since more disorder was found than was waited for."""
        ...

    def take(self, shard: int, blocks: list[RowBlock]) -> None:
        """Take rows of one shard: from one thread at a time for each shard, and from several for different ones."""
        ...


class Recomputed(NamedTuple):
    """What was computed from. seen: signals and refused messages or rows of each partition.

    used, duplicate, conflict: events that count.
    """

    seen: dict[str, int]
    used: int
    duplicate: int
    conflict: int


@dataclass(frozen=True, slots=True)
class Options:
    """How to compute; but for `entity` and `shards` nothing of it changes a row.

    shards: how many, which `Sink.take` numbers as the flow does. bound_us: disorder to begin with; if there is more,
    all is computed again with a larger one. entity: only this entity's events count. threads: None: one a core.
    forgotten: whose events do not count, as in the flow.
    """

    shards: int
    bound_us: int
    batch_size: int = 1 << 16
    event_bytes_max: int = 1 << 20
    entity: str | None = None
    threads: int | None = None
    forgotten: Forgotten | None = None


def recompute(sets: FeatureSets, feeds: Sequence[Feed], options: Options, sink: Sink) -> Recomputed:
    """Feed all events that count through the operators, close all windows and give the rows to `sink`.

    Every row comes exactly once and is final: revision 0 of a history in which nothing came late. Which rows, to the
    bit, depends on nothing but the events: not on threads, sizes or the order of the feeds. Memory: the events within
    the bound, and a piece of each partition. Raises what feeds and sink raise.
    """
    bound_us = options.bound_us
    while True:
        sink.begin()
        with ThreadPoolExecutor(options.threads or os.cpu_count() or 1, "recompute") as pool:
            run = _Run(sets, feeds, options, sink, pool, bound_us)
            try:
                return run.finish()
            except _MoreDisorderError as found:
                bound_us = max(2 * bound_us, found.found_us)
            finally:
                run.close()


class _MoreDisorderError(Exception):
    """An event came later than was waited for: by so much behind its partition's newest."""

    def __init__(self, found_us: int) -> None:
        super().__init__(found_us)
        self.found_us = found_us


class _Part(NamedTuple):
    """A piece of a partition: its events by shard (None: none), and how far it has come."""

    shards: list[SignalBatch] | None
    tick: Tick


class _Partition:
    """One partition being read; used by one thread at a time."""

    def __init__(self, sets: FeatureSets, feed: Feed, options: Options, bound_us: int) -> None:
        self.name = feed.partition
        self.seen = 0
        self.newest = NO_WATERMARK
        self._feed = feed
        self._options = options
        self._decoder = Decoder(sets, event_bytes_max=options.event_bytes_max, forgotten=options.forgotten)
        self._judge = None if feed.judge is None else feed.judge()
        self._watermark = PartitionWatermark(bound_us)
        self._messages = feed.open()
        name = None if options.entity is None else options.entity.encode()
        self._entity_hash = None if name is None else int.from_bytes(murmur3_bytes(name)[:8], "little")

    def next(self) -> _Part:
        """Read, decode and cut the next piece. Raises _MoreDisorderError."""
        most = self._options.batch_size
        chunk = self._messages.poll(most if self.seen else min(most, _FIRST_EVENTS_MAX))
        chunk = None if chunk is None else self._before_end(chunk)
        if chunk is None:
            return _Part(None, self._watermark.tick(self.name, Status.ENDED))
        decoded = self._decoder.decode(chunk)
        if self._feed.max_future_us is not None:
            decoded = without_future(decoded, chunk, self._feed.max_future_us)
        batch = decoded.batch
        self.seen += len(batch) + len(decoded.rejects)
        counts = np.ones(len(batch), np.bool_) if self._judge is None else self._judge(decoded)
        self._advance(batch.event_time[counts])
        if self._entity_hash is not None:
            counts = self._of_entity(batch, counts)
        shards = split(batch, ~counts, self._options.shards) if counts.any() else None
        return _Part(shards, self._watermark.tick(self.name, Status.LIVE))

    def close(self) -> None:
        """Close the messages."""
        self._messages.close()

    def _before_end(self, chunk: RawChunk) -> RawChunk | None:
        """The chunk without what stands at the end or behind it; None if nothing is left."""
        until = self._feed.until
        if until is None or len(chunk.offsets) == 0 or int(chunk.offsets[-1]) < until:
            return chunk
        keep = int(np.searchsorted(chunk.offsets, until))
        if keep == 0:
            return None
        taken = None if chunk.timestamps is None else chunk.timestamps[:keep]
        columns = (chunk.starts[:keep], chunk.lengths[:keep], chunk.offsets[:keep])
        return RawChunk(chunk.partition, chunk.data, *columns, taken)

    def _advance(self, times: NDArray[np.int64]) -> None:
        before = self._watermark.newest
        if not self._watermark.mark(times).any():
            self.newest = self._watermark.newest
            return
        newest = np.maximum(np.maximum.accumulate(times), before)
        raise _MoreDisorderError(int((newest - times).max()))

    def _of_entity(self, batch: SignalBatch, counts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        mine = np.zeros(len(batch), np.bool_)
        same = np.flatnonzero(counts & (batch.entity_hash == np.uint64(self._entity_hash or 0)))
        mine[[i for i in same.tolist() if batch.entity(i) == self._options.entity]] = True
        return mine


class _Run:
    """One attempt: partitions are read ahead by a piece each, shards take a round of pieces at once."""

    def __init__(
        self,
        sets: FeatureSets,
        feeds: Sequence[Feed],
        options: Options,
        sink: Sink,
        pool: ThreadPoolExecutor,
        bound_us: int,
    ) -> None:
        self._pool = pool
        self._sink = sink
        self._ahead_us = max(_AHEAD_US_MIN, 4 * bound_us)
        self._partitions = [_Partition(sets, feed, options, bound_us) for feed in feeds]
        self._known = tuple(sorted(feed.partition for feed in feeds))
        self._shards = [Shard(sets) for _ in range(options.shards)]
        self._reading = {p: pool.submit(p.next) for p in self._partitions}

    def finish(self) -> Recomputed:
        """Go to the end."""
        working: list[Future[None]] = []
        while self._reading:
            parts = self._round()
            for done in working:
                done.result()
            working = [self._pool.submit(self._advance, s, parts) for s in range(len(self._shards))]
        for done in working:
            done.result()
        counts = [s.counts for s in self._shards]
        totals = (sum(c.used for c in counts), sum(c.duplicate for c in counts), sum(c.conflict for c in counts))
        return Recomputed({p.name: p.seen for p in self._partitions}, *totals)

    def close(self) -> None:
        """Wait for what is under way, and close the partitions."""
        for future in self._reading.values():
            future.cancel()
        self._pool.shutdown()
        for partition in self._partitions:
            partition.close()

    def _round(self) -> list[_Part]:
        """A piece of every partition that is not ahead of the slowest; the next ones are being read meanwhile."""
        slowest = min(p.newest for p in self._reading)
        parts: list[_Part] = []
        for partition in list(self._reading):
            if NO_WATERMARK != partition.newest > slowest + self._ahead_us:
                continue
            part = self._reading.pop(partition).result()
            parts.append(part)
            if part.tick.status is not Status.ENDED:
                self._reading[partition] = self._pool.submit(partition.next)
        return parts

    def _advance(self, index: int, parts: list[_Part]) -> None:
        shard = self._shards[index]
        for shards, tick in parts:
            late = shard.push(None if shards is None else shards[index], tick, self._known)
            assert late is None, "nothing is late: the bound is that of the disorder"
        blocks = shard.advance()
        if blocks:
            self._sink.take(index, blocks)
