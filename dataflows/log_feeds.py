"""The log as it is computed from again: out of the archive or off the bus, and which of its events count."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from dataflows.buses.archived import ArchivedBus
from dataflows.forget_late import is_forgotten
from dataflows.late_log import read_messages, row_of
from dataflows.recompute import Feed
from dataflows.wiring import bus_of, holding_of
from operators.records import NO_WATERMARK
from operators.watermark import PartitionWatermark
from stores.archive.port import ALL, ArchiveSelection
from stores.archive.reading import PartitionInput, count_before, partitions, refused, refused_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dataflows.buses.port import BoundedBus, PartitionReader
    from dataflows.config import Settings
    from dataflows.recompute import Judge, Messages
    from dataflows.run_state import RunState
    from operators.records import Decoded
    from stores.archive.port import Archive

_PAGE = 1000
_NONE = np.empty(0, np.int64)
_NO_ROWS = np.empty((0, 2), np.int64)
_Place = tuple[str, int, int]
"""Partition, offset, and row in a message of many signals or -1."""


class Places(NamedTuple):
    """Events of one partition. offsets: int64, rising, of messages. rows: (offset, row) in messages of many signals."""

    offsets: NDArray[np.int64] = _NONE
    rows: frozenset[tuple[int, int]] = frozenset()

    def among(self, decoded: Decoded) -> NDArray[np.bool_]:
        """Which signals of a chunk these are, bool (n,)."""
        found = _among(decoded.batch.offset, self.offsets)
        if decoded.rows is None or not self.rows:
            return found
        for i in np.flatnonzero(decoded.rows >= 0).tolist():
            found[i] = found[i] or (int(decoded.batch.offset[i]), int(decoded.rows[i])) in self.rows
        return found


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
    verdicts = _refused(settings, archive, state) if archive is not None and whole else {}
    aside = _set_aside(settings, state) if set(known) - whole else ({}, None)
    chain = bus if archive is None or not partitions(archive) else ArchivedBus(bus, archive)
    feeds = []
    for name in known:
        until = None if ends is None else ends[name]
        refusals = (verdicts if name in whole else aside[0]).get(name, Places())
        left_out = Places(np.union1d(state.pending.get(name, _NONE), refusals.offsets), refusals.rows)
        if name in whole and archive is not None:
            chosen = ALL if entity is None else ArchiveSelection(entity_id=entity)
            feeds.append(Feed(name, _archived(archive, name, chosen), _without(left_out), until))
        else:
            released = None if aside[1] is None else aside[1].get(name, Places())
            judge = _as_the_run_did(settings, left_out, released)
            opened = _on_bus(chain, settings.topic_signals, name)
            feeds.append(Feed(name, opened, judge, until, settings.max_future_us))
    return LogFeeds(feeds, whole)


def _refused(settings: Settings, archive: Archive, state: RunState) -> dict[str, Places]:
    """What counts for nothing as the archive says, which hears of no release of a row."""
    offsets, rows = refused(archive), refused_rows(archive)
    came = _held(settings, state)[1] if rows and settings.late_event_policy == "hold" else {}
    return {
        name: Places(
            offsets.get(name, _NONE),
            frozenset((o, r) for o, r in rows.get(name, _NO_ROWS).tolist()) - came.get(name, Places()).rows,
        )
        for name in {*offsets, *rows}
    }


def _archived(archive: Archive, name: str, selection: ArchiveSelection) -> Callable[[], Messages]:
    return lambda: PartitionInput(archive, name, selection)


def _on_bus(bus: BoundedBus | ArchivedBus, topic: str, name: str) -> Callable[[], PartitionReader]:
    return lambda: bus.reader(topic, name, None)


def _without(places: Places) -> Callable[[], Judge] | None:
    if len(places.offsets) == 0 and not places.rows:
        return None
    return lambda: lambda decoded: ~places.among(decoded)


def _as_the_run_did(settings: Settings, left_out: Places, released: Places | None) -> Callable[[], Judge]:
    """released: of a run that holds late events; None of any other."""
    lateness = settings.lateness

    def judge() -> Judge:
        watermark = PartitionWatermark(settings.watermark_us)

        def counts(decoded: Decoded) -> NDArray[np.bool_]:
            batch = decoded.batch
            if lateness is not None and lateness.corrects:
                late, due = watermark.mark_due(batch.event_time, lateness.allowed_us, lateness.grain_us)
                late &= due == NO_WATERMARK
            else:
                late = watermark.mark(batch.event_time)
            if released is not None:
                late &= ~released.among(decoded)
            return ~(late | left_out.among(decoded))

        return counts

    return judge


def _among(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    if len(offsets) == 0:
        return np.zeros(len(values), np.bool_)
    place = np.minimum(np.searchsorted(offsets, values), len(offsets) - 1)
    found: NDArray[np.bool_] = offsets[place] == values
    return found


def _set_aside(settings: Settings, state: RunState) -> tuple[dict[str, Places], dict[str, Places] | None]:
    """What shards have refused or what is held; and what was released, of a run that holds events."""
    gone: list[_Place] = []
    with closing(bus_of(settings)) as bus:
        for message in read_messages(bus, settings.topic_late):
            if is_forgotten(message):
                continue
            event = orjson.loads(message)
            if event["reason"] != "late":
                gone.append((event["partition"], int(event["offset"]), row_of(event)))
    if settings.late_event_policy != "hold":
        return _by_partition(gone), None
    held, came = _held(settings, state)
    return _by_partition(gone, held), came


def _held(settings: Settings, state: RunState) -> tuple[dict[str, Places], dict[str, Places]]:
    """What is held, and what was released by then."""
    gone: list[_Place] = []
    came: list[_Place] = []
    with closing(holding_of(settings)) as holding:
        gone += [(e.partition, e.offset, e.row) for e in holding.list(limit=max(1, holding.count()))]
        last, until = 0, state.released
        while page := holding.released(last, limit=_PAGE):
            came += [(e.partition, e.offset, e.row) for number, e in page if until is None or number <= until]
            gone += [(e.partition, e.offset, e.row) for number, e in page if until is not None and number > until]
            last = page[-1][0]
    return _by_partition(gone), _by_partition(came)


def _by_partition(places: Iterable[_Place], more: Mapping[str, Places] | None = None) -> dict[str, Places]:
    offsets: dict[str, list[int]] = {name: some.offsets.tolist() for name, some in (more or {}).items()}
    rows: dict[str, set[tuple[int, int]]] = {name: set(some.rows) for name, some in (more or {}).items()}
    for name, offset, row in places:
        if row < 0:
            offsets.setdefault(name, []).append(offset)
        else:
            rows.setdefault(name, set()).add((offset, row))
    return {
        name: Places(np.unique(np.array(offsets.get(name, []), np.int64)), frozenset(rows.get(name, ())))
        for name in {*offsets, *rows}
    }
