"""The source of the signal path: slots that read partitions, as Bytewax sees them.

A slot is what Bytewax calls a partition; it owns the bus partitions whose names fall to it, so that
partitions can appear without a restart and workers can be added without moving positions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import orjson
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from dataflows.alignment import SLOTS, Alignment, slot_of
from dataflows.archiving import ARCHIVE, SlotArchive
from dataflows.epoch_sync import EpochSync
from dataflows.observability.events import Failed, PartitionStatus, PieceRead, tell
from dataflows.released import RELEASED, ReleasedEvents
from operators.decode import Decoder
from operators.intake import Intake, Piece
from operators.records import NO_WATERMARK
from operators.watermark import Status
from stores.writers import EPOCHS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Event

    from dataflows.archiving import OpenWriter
    from dataflows.buses.port import Bus, PartitionReader
    from operators.feature_sets import FeatureSets
    from operators.forgotten import Forgotten
    from operators.records import RawChunk
    from operators.retained import Lateness
    from stores.holding.port import Holding

_FIRST_EVENTS_MAX = 4096
_LISTING_S = 1.0
_IDLE_POLL = timedelta(milliseconds=20)
_WAITING_POLL = timedelta(milliseconds=2)
_EPOCHS_TO_SETTLE = EPOCHS_MAX + 2
"""Epochs of silence in which ticks go on, so that the writers' last rows are staged and then published."""

_AHEAD_EVENTS_MAX = 1 << 18
_STRETCH_EVENTS_MAX = 1 << 20
"""Events of one call that EpochSync stretches: a bound of memory."""


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """What every slot needs to know.

    bound_us, idle_s: see WATERMARK_SECONDS, WATERMARK_IDLE_SECONDS. max_future_us: see MAX_FUTURE_SECONDS.
    lateness: what late events may still change, None under LATE_EVENT_POLICY=drop. holding: under `hold`.
    until_end: follow the log, but stop once everything is read that is there; windows stay open. One process only.
    archive: opens writers of the archive, None if it is off. forgotten: whose signals are refused.
    now: a monotonic clock, seconds; it decides when to look for partitions, and which are idle.
    show: hears, for others to see, next offsets by partition: of the last durable snapshot, and of what was read.
    """

    bus: Bus
    topic: str
    sets: FeatureSets
    bound_us: int
    idle_s: float
    batch_size: int
    event_bytes_max: int
    follow: bool
    stop: Event
    epoch_s: float | None
    lateness: Lateness | None = None
    holding: Holding | None = None
    archive: OpenWriter | None = None
    forgotten: Forgotten | None = None
    until_end: bool = False
    now: Callable[[], float] = time.monotonic
    max_future_us: int | None = None
    show: Callable[[Mapping[str, int], Mapping[str, int]], None] | None = None


class Feed:
    """One bus partition being read: reader, intake and status."""

    def __init__(self, plan: SourcePlan, decoder: Decoder, partition: str, state: dict[str, object] | None) -> None:
        """Open the partition where `state` says, or at its beginning."""
        position = None if state is None else cast("dict[str, object]", state["position"])
        self.reader: PartitionReader = plan.bus.reader(plan.topic, partition, position)
        self.intake = Intake(partition, decoder, plan.bound_us, state, plan.lateness, max_future_us=plan.max_future_us)
        self.status = Status.LIVE
        self.caught_up = False
        self.waits = False
        self.silent_since: float | None = None
        self.waiting_events = 0
        self.events_each = 1

    @property
    def offset(self) -> int:
        """Where the reader stands."""
        return int(str(self.reader.position()["offset"]))

    def state(self) -> dict[str, object]:
        """Position and intake, JSON-able."""
        return {"position": self.reader.position(), **self.intake.state()}


class SignalSlot(StatefulSourcePartition[Piece, bytes]):
    """Reads the partitions of one slot, the one furthest behind first; never blocks."""

    def __init__(self, plan: SourcePlan, alignment: Alignment, slot: int, resume: bytes | None) -> None:
        """resume: what `snapshot` returned. Raises ResumeError if a log is not the one that was read."""
        self._plan = plan
        self._alignment = alignment
        self._slot = slot
        self._decoder = Decoder(plan.sets, event_bytes_max=plan.event_bytes_max, forgotten=plan.forgotten)
        self._feeds: dict[str, Feed] = {}
        self._known: tuple[str, ...] = ()
        self._listed_at = plan.now() - _LISTING_S
        self._epochs_silent = 0
        self._tick_due = True
        self._sync = None if plan.epoch_s is None else EpochSync(plan.epoch_s, plan.now)
        self._at: Feed | None = None
        saved = {} if resume is None else cast("dict[str, dict[str, object]]", orjson.loads(resume))
        state = saved.pop(RELEASED, None)
        self._archive = SlotArchive(plan.archive, slot, saved.pop(ARCHIVE, None))
        mine = plan.holding if slot == 0 else None
        self._released = None if mine is None else ReleasedEvents(mine, self._decoder, state)
        self._released_at = plan.now() - _LISTING_S
        for partition, state in saved.items():
            self._open(partition, state)
        self._durable = self._offsets()
        self._discover()

    def next_batch(self) -> list[Piece]:
        """Return the next pieces; [] if there is nothing now. StopIteration at the end."""
        until = 0.0 if self._sync is None else self._sync.call()
        if self._plan.stop.is_set():
            raise StopIteration
        try:
            if self._plan.follow:
                self._discover()
            pieces = self._take_released() or self._fetch_until(until)
            if not pieces:
                pieces = self._quiet()
        except StopIteration:
            raise
        except Exception as error:
            at = self._at
            partition, offset = (f"slot-{self._slot}", None) if at is None else (at.intake.partition, at.offset)
            tell(Failed("read", partition, offset, error))
            raise
        if self._sync is not None:
            self._sync.done()
        return pieces

    def next_awake(self) -> datetime | None:
        """Come back at once while there is something to read, else soon."""
        behind = [f for f in self._feeds.values() if not f.caught_up]
        if self._tick_due or not all(f.waits for f in behind):
            return None
        return datetime.now(UTC) + (_WAITING_POLL if behind else _IDLE_POLL)

    def snapshot(self) -> bytes:
        """Positions and watermarks of all partitions of the slot."""
        if self._sync is not None:
            self._sync.snapped()
        self._epochs_silent += 1
        self._tick_due = self._epochs_silent <= _EPOCHS_TO_SETTLE
        offsets = self._offsets()
        if self._plan.show is not None:
            self._plan.show(self._durable, offsets)  # the epoch before this one is durable, or this one could not end
        self._durable = offsets
        states = {p: f.state() for p, f in sorted(self._feeds.items())}
        if self._released is not None:
            states[RELEASED] = self._released.state()
        return orjson.dumps({**states, **self._archive.states()})

    def close(self) -> None:
        """Close the files."""
        self._archive.close()
        for feed in self._feeds.values():
            self._alignment.leave(feed.intake.partition)
            feed.reader.close()

    def _offsets(self) -> dict[str, int]:
        return {partition: feed.offset for partition, feed in self._feeds.items()}

    def _open(self, partition: str, state: dict[str, object] | None) -> None:
        self._feeds[partition] = Feed(self._plan, self._decoder, partition, state)
        self._alignment.note(partition, self._feeds[partition].intake.newest)
        tell(PartitionStatus(partition, "found" if state is None else "resumed"))

    def _discover(self) -> None:
        """Look for partitions that have appeared; each slot takes those whose names fall to it."""
        now = self._plan.now()
        if now - self._listed_at < _LISTING_S:
            return
        self._listed_at = now
        known = self._plan.bus.partitions(self._plan.topic)
        beside = () if self._plan.holding is None else (RELEASED,)
        if (*known, *beside) == self._known:
            return
        self._known = (*sorted({*known, *self._feeds}), *beside)
        for partition in known:
            if partition not in self._feeds and slot_of(partition) == self._slot:
                self._open(partition, None)
                self._tick_due = True

    def _take_released(self) -> list[Piece]:
        """What was released since the last look, once in a while."""
        now = self._plan.now()
        if self._released is None or now - self._released_at < _LISTING_S:
            return []
        self._released_at = now
        pieces = self._released.take(self._known, follow=self._plan.follow)
        if pieces:
            self._epochs_silent = 0
        return pieces

    def _fetch_until(self, until: float) -> list[Piece]:
        """Read one chunk, and more as long as it is not yet `until` and there is more."""
        pieces = more = self._fetch()
        events = 0
        while more and self._plan.now() < until and not self._plan.stop.is_set():
            events += more[0].messages
            if events >= _STRETCH_EVENTS_MAX:
                break
            more = self._fetch()
            pieces += more
        return pieces

    def _fetch(self) -> list[Piece]:
        """Read one chunk of the partition that is furthest behind and may go on."""
        for feed in sorted(self._feeds.values(), key=lambda f: (f.intake.newest, f.intake.partition)):
            allowed = self._allowed(feed)
            if allowed == 0 or feed.status is Status.ENDED:
                continue
            self._at = feed
            chunk = feed.reader.poll(max(1, allowed // feed.events_each))
            feed.caught_up = chunk is None
            feed.waits = chunk is not None and len(chunk.lengths) == 0
            if feed.waits:
                feed.silent_since = None  # nobody knows whether it is silent
                continue
            if chunk is None and not self._plan.follow:
                return self._turn([feed], Status.ENDED, "ended")
            pieces = [] if chunk is None else [self._take(feed, chunk)]
            if not any(p.signals for p in pieces) and self._is_silent(feed):
                pieces += self._turn([feed], Status.IDLE, "idle")
            if pieces:
                self._at = None
                return pieces
        self._at = None
        return []

    def _is_silent(self, feed: Feed) -> bool:
        """A feed was just looked at and had no signal: whether that makes it idle."""
        now = self._plan.now()
        if feed.silent_since is None:
            feed.silent_since = now
        idle_s = self._plan.idle_s
        return feed.status is Status.LIVE and 0 < idle_s <= now - feed.silent_since

    def _allowed(self, feed: Feed) -> int:
        """Events that the feed may read now, 0 if it has to wait for the others."""
        if feed.intake.newest == NO_WATERMARK:
            return min(_FIRST_EVENTS_MAX, self._plan.batch_size)
        if not self._alignment.is_ahead(feed.intake.newest):
            feed.waiting_events = 0
        allowed = min(self._plan.batch_size, _AHEAD_EVENTS_MAX - feed.waiting_events)
        if allowed <= 0:
            feed.caught_up = False  # there may be more: it waits for the others, it is not idle
            feed.silent_since = None
        return max(0, allowed)

    def _take(self, feed: Feed, chunk: RawChunk) -> Piece:
        newest, decoded = feed.intake.newest, feed.intake.decode(chunk)
        piece = feed.intake.take(chunk, self._known, decoded)
        self._archive.write(chunk, decoded, piece, newest)
        feed.events_each = max(1, piece.messages // len(chunk.lengths))  # messages may be of many signals each
        if piece.signals > 0:
            if feed.status is Status.IDLE:
                tell(PartitionStatus(feed.intake.partition, "awake"))
            feed.status = Status.LIVE
            feed.silent_since = None
            feed.waiting_events += piece.signals - len(piece.originals)
            self._alignment.note(feed.intake.partition, feed.intake.newest)
        else:
            piece = replace(piece, tick=feed.intake.tick(feed.status))
        self._epochs_silent = 0
        self._tell(piece)
        return piece

    def _quiet(self) -> list[Piece]:
        """Nothing to read: end, or let time be seen to pass."""
        if not self._plan.follow:
            if all(f.status is Status.ENDED for f in self._feeds.values()) and not self._overlooked():
                raise StopIteration
            return []
        if self._plan.until_end and not self._alignment.reads(self._slot, more=self._has_more()):
            raise StopIteration
        if self._tick_due:
            self._tick_due = False
            return [Piece(f.intake.tick(f.status), self._known) for f in self._feeds.values()]
        return []

    def _has_more(self) -> bool:
        """Nothing could be read just now: whether that can change without new messages."""
        held = [f for f in self._feeds.values() if not f.caught_up]
        return any(f.waits for f in held) or (bool(held) and self._plan.idle_s > 0)

    def _overlooked(self) -> bool:
        """Open what another slot may have announced since this one listed the topic; whether there was any."""
        mine = [p for p in self._plan.bus.partitions(self._plan.topic) if slot_of(p) == self._slot]
        found = [p for p in mine if p not in self._feeds]
        for partition in found:
            self._open(partition, None)
        return bool(found)

    def _turn(self, feeds: list[Feed], status: Status, word: str) -> list[Piece]:
        for feed in feeds:
            feed.status = status
            self._alignment.leave(feed.intake.partition)
            tell(PartitionStatus(feed.intake.partition, word))
        self._epochs_silent = 0
        return [Piece(f.intake.tick(status), self._known) for f in feeds]

    def _tell(self, piece: Piece) -> None:
        lag_s = None if piece.tick.newest == NO_WATERMARK else time.time() - piece.tick.newest / 1e6
        tell(PieceRead(piece.tick.partition, piece.messages, len(piece.originals), len(piece.rejects), lag_s))


class SignalSource(FixedPartitionedSource[Piece, bytes]):
    """All slots of a topic. Exactly-once together with recovery: the snapshot is (offset, newest event)."""

    def __init__(self, plan: SourcePlan) -> None:
        """plan: shared by the slots of this process."""
        self._plan = plan
        self._alignment = Alignment(plan.bound_us)

    def list_parts(self) -> list[str]:
        """Every slot, wherever its partitions are."""
        return [f"slot-{s:02d}" for s in range(SLOTS)]

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> SignalSlot:
        """Open one slot."""
        slot = int(for_part.removeprefix("slot-"))
        try:
            return SignalSlot(self._plan, self._alignment, slot, resume_state)
        except Exception as error:
            tell(Failed(step_id.rpartition(".")[2], for_part, None, error))
            raise
