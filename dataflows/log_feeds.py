"""The log as it is computed from again: out of the archive or off the bus, and which of its events count."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from dataflows.buses.archived import ArchivedBus
from dataflows.recompute import Feed
from dataflows.wiring import holding_of, local_bus_of
from operators.records import NO_WATERMARK, SignalBatch
from operators.watermark import PartitionWatermark
from stores.archive.port import ALL, ArchiveSelection
from stores.archive.reading import PartitionInput, count_before, partitions, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dataflows.buses.port import BoundedBus, PartitionReader
    from dataflows.config import Settings
    from dataflows.recompute import Judge, Messages
    from dataflows.run_state import RunState
    from stores.archive.port import Archive

_SCAN_EVENTS = 4096
_PAGE = 1000
_NONE = np.empty(0, np.int64)

Offsets = dict[str, NDArray[np.int64]]
"""Offsets, rising, by partition."""


class LogFeeds(NamedTuple):
    """feeds: of every partition. archived: those that come out of the archive; the others' verdicts are judged anew."""

    feeds: list[Feed]
    archived: frozenset[str]


def log_feeds(
    settings: Settings, state: RunState, bus: BoundedBus, archive: Archive | None, entity: str | None = None
) -> LogFeeds:
    """What a run has read, to be computed from again.

    A partition comes out of the archive if all that the run has read of it is there, and its verdicts with it. Else
    it comes out of the archive as far as that goes and then off the bus, and what counts is decided as the run decided:
    by the watermark of the partition, by what was released, and by what shards have put on the late topic.
    """
    ends = state.ends
    known = bus.partitions(settings.topic_signals) if ends is None else tuple(sorted(ends))
    have = {} if archive is None or ends is None else count_before(archive, ends)
    whole = frozenset(p for p in known if archive is not None and ends is not None and have[p] == state.seen[p])
    refusals = refused(archive) if archive is not None and whole else {}
    aside = _set_aside(settings, state) if set(known) - whole else ({}, None)
    chain = bus if archive is None or not partitions(archive) else ArchivedBus(bus, archive)
    feeds = []
    for name in known:
        until = None if ends is None else ends[name]
        left_out = np.union1d(
            state.pending.get(name, _NONE), (refusals if name in whole else aside[0]).get(name, _NONE)
        )
        if name in whole and archive is not None:
            chosen = ALL if entity is None else ArchiveSelection(entity_id=entity)
            feeds.append(Feed(name, _archived(archive, name, chosen), _without(left_out), until))
        else:
            released = None if aside[1] is None else aside[1].get(name, _NONE)
            judge = _as_the_run_did(settings, left_out, released)
            feeds.append(Feed(name, _on_bus(chain, settings.topic_signals, name), judge, until))
    return LogFeeds(feeds, whole)


def _archived(archive: Archive, name: str, selection: ArchiveSelection) -> Callable[[], Messages]:
    return lambda: PartitionInput(archive, name, selection)


def _on_bus(bus: BoundedBus | ArchivedBus, topic: str, name: str) -> Callable[[], PartitionReader]:
    return lambda: bus.reader(topic, name, None)


def _without(offsets: NDArray[np.int64]) -> Callable[[], Judge] | None:
    return None if len(offsets) == 0 else lambda: lambda batch: ~_among(batch.offset, offsets)


def _as_the_run_did(
    settings: Settings, left_out: NDArray[np.int64], released: NDArray[np.int64] | None
) -> Callable[[], Judge]:
    """released: of a run that holds late events; None of any other."""
    lateness = settings.lateness

    def judge() -> Judge:
        watermark = PartitionWatermark(settings.watermark_us)

        def counts(batch: SignalBatch) -> NDArray[np.bool_]:
            if lateness is not None and lateness.corrects:
                late, due = watermark.mark_due(batch.event_time, lateness.allowed_us, lateness.grain_us)
                late &= due == NO_WATERMARK
            else:
                late = watermark.mark(batch.event_time)
            if released is not None:
                late &= ~_among(batch.offset, released)
            return ~(late | _among(batch.offset, left_out))

        return counts

    return judge


def _among(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    if len(offsets) == 0:
        return np.zeros(len(values), np.bool_)
    place = np.minimum(np.searchsorted(offsets, values), len(offsets) - 1)
    found: NDArray[np.bool_] = offsets[place] == values
    return found


def _set_aside(settings: Settings, state: RunState) -> tuple[Offsets, Offsets | None]:
    """Offsets that shards have refused or that are held; and those that were released, of a run that holds events."""
    gone: dict[str, list[int]] = {}
    bus = local_bus_of(settings)
    for lineage in bus.partitions(settings.topic_late):
        with closing(bus.reader(settings.topic_late, lineage, None)) as reader:
            while (chunk := reader.poll(_SCAN_EVENTS)) is not None:
                for event in map(orjson.loads, map(chunk.message, range(len(chunk.lengths)))):
                    if event["reason"] != "late":
                        gone.setdefault(event["partition"], []).append(int(event["offset"]))
    if settings.late_event_policy != "hold":
        return _sorted(gone), None
    came: dict[str, list[int]] = {}
    with closing(holding_of(settings)) as holding:
        for event in holding.list(limit=max(1, holding.count())):
            gone.setdefault(event.partition, []).append(event.offset)
        last, until = 0, state.released
        while page := holding.released(last, limit=_PAGE):
            for number, event in page:
                there = came if until is None or number <= until else gone
                there.setdefault(event.partition, []).append(event.offset)
            last = page[-1][0]
    return _sorted(gone), _sorted(came)


def _sorted(offsets: Mapping[str, list[int]]) -> Offsets:
    return {name: np.unique(np.array(some, np.int64)) for name, some in offsets.items()}
