"""What the steps tell to whoever watches: frozen events, and the list of hooks that hear them.

A hook must not raise and must not change a result. No event carries a payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins. what: its name; detail: settings worth knowing, no secrets."""

    what: str
    detail: dict[str, object]


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run has ended cleanly. detail: its summary."""

    what: str
    detail: dict[str, object]


@dataclass(frozen=True, slots=True)
class PieceRead:
    """One piece of a partition was read. lag_s: now − its newest event, seconds of wall clock, or None."""

    partition: str
    events: int
    late: int
    dead: int
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A message became a dead letter. entity: its entity_id, if there was one to read."""

    stage: str
    reason: str
    detail: str
    partition: str
    offset: int
    trace_id: str | None
    entity: str | None = None


@dataclass(frozen=True, slots=True)
class Late:
    """Events came late. entity, offset, trace_id: of the first of them."""

    reason: str
    partition: str
    count: int
    entity: str
    offset: int
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class WindowsClosed:
    """Rows of one window spec were made. latency_ms: now − the newest window's end, milliseconds."""

    window: str
    rows: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """A partition was found, went idle, woke or ended."""

    partition: str
    status: str


@dataclass(frozen=True, slots=True)
class PartitionReset:
    """The messages from `wanted` on are gone, and reading goes on at `chosen`, as a setting says."""

    partition: str
    wanted: int
    chosen: int


@dataclass(frozen=True, slots=True)
class BusAway:
    """The bus does not answer: reading waits, nothing is lost. Told once."""

    bus: str
    reason: str


@dataclass(frozen=True, slots=True)
class BusBack:
    """The bus answers again, away_s seconds after it was first found not to."""

    bus: str
    away_s: float


@dataclass(frozen=True, slots=True)
class PlaceForgotten:
    """Kafka no longer knows how far a writer had come, `place` messages at least: its last ones may come twice."""

    topic: str
    writer: str
    place: int


@dataclass(frozen=True, slots=True)
class Behind:
    """How many messages of a partition were not read yet, a moment ago."""

    partition: str
    messages: int


@dataclass(frozen=True, slots=True)
class OffsetsNotShown:
    """The consumer group that shows others how far this run has come could not be moved; nothing else rests on it."""

    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceAway:
    """A source of documents could not be listed; its documents stay as they are."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class DocumentsWritten:
    """Documents are durable. written: how many by (what was done, source). redacted: places by kind."""

    written: Mapping[tuple[str, str], int]
    redacted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DeadLettersOpened:
    """Dead letters go to a store. count: asks it how many it holds; may be called at any time, in any thread."""

    count: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Failed:
    """A step raised; the engine may swallow what it raised, this is the record of it.

    partition: of the bus, or the part of a sink. offset: the first one that the step had in hand, if any.
    """

    step: str
    partition: str
    offset: int | None
    error: BaseException


Event = (
    Started
    | Stopped
    | PieceRead
    | Refused
    | Late
    | WindowsClosed
    | PartitionStatus
    | PartitionReset
    | BusAway
    | BusBack
    | PlaceForgotten
    | Behind
    | OffsetsNotShown
    | SourceAway
    | DocumentsWritten
    | DeadLettersOpened
    | Failed
)
Hook = Callable[[Event], None]

_hooks: list[Hook] = []


def watch(hook: Hook) -> None:
    """Add a hook; it hears every event from now on. Adding it twice does nothing."""
    if hook not in _hooks:
        _hooks.append(hook)


def tell(event: Event) -> None:
    """Hand the event to every hook."""
    for hook in _hooks:
        hook(event)
