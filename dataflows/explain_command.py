"""What `headrace explain` does, apart from parsing and printing."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataflows.buses.archived import ArchivedBus
from dataflows.entity_events import LogPlan
from dataflows.explain import Explainer, Place, utc_text
from dataflows.explain_record import record_of
from dataflows.kernel_cache import drop_stale_kernels
from dataflows.wiring import archive_to_read, bus_of, dead_letters_of, holding_of, offline_to_read
from operators.errors import ConfigError, SkippableError
from operators.rfc3339 import parse_time
from operators.signal_rules import open_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dataflows.config import Settings
    from dataflows.explain import Explanation
    from operators.feature_sets import FeatureSets
    from stores.deadletters.port import DeadLetters

_LETTERS = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """Which row is meant. at: a time in its window, or its end, as text. field: only this one's values are wanted."""

    entity: str
    at: str
    window: str
    feature_set: str | None = None
    version: int | None = None
    field: str | None = None


def explain_row(settings: Settings, asked: Question) -> dict[str, object]:
    """Explain one row: `record_of` it, with the dead letters of its entity and window among the refused.

    Raises ConfigError for a row that does not exist, with the nearest one.
    """
    drop_stale_kernels()
    place = _place(settings.feature_sets(), asked)
    if asked.field is not None and asked.field not in place.declared.fields:
        raise ConfigError(
            f"`{asked.field}` is no field of {place.text}; its fields are {', '.join(place.declared.fields)}"
        )
    try:
        time = parse_time(asked.at)
    except ValueError as error:
        raise ConfigError(f"--at `{asked.at}` is not understood ({error}); write it as 2026-03-01T12:00:00Z") from error
    with ExitStack() as opened:
        explainer = open_explainer(settings, opened)
        row = explainer.find(place, asked.entity, time)
        explanation = next(explainer.explain([row]))
        dead = opened.enter_context(closing(dead_letters_of(settings)))
        record = record_of(explanation, asked.field)
        refused = record["refused"]
        assert isinstance(refused, list)  # as record_of gives it
        refused += dead_of(dead, settings.topic_signals, explanation)
        return record


def open_explainer(settings: Settings, opened: ExitStack) -> Explainer:
    """Open everything that explaining needs; `opened` closes it. Nothing is written anywhere."""
    archive = opened.enter_context(closing(archive_to_read(settings)))
    bus = opened.enter_context(closing(ArchivedBus(bus_of(settings), archive, passes_gaps=True)))
    holds = settings.late_event_policy == "hold"
    log = LogPlan(
        bus=bus,
        topic=settings.topic_signals,
        sets=settings.feature_sets(),
        bound_us=settings.watermark_us,
        lateness=settings.lateness,
        event_bytes_max=settings.event_bytes_max,
        late_bus=opened.enter_context(closing(bus_of(settings))),
        max_future_us=settings.max_future_us,
        topic_late=settings.topic_late,
        holding=opened.enter_context(closing(holding_of(settings))) if holds else None,
    )
    return Explainer(opened.enter_context(closing(offline_to_read(settings))), archive, log)


def _place(sets: FeatureSets, asked: Question) -> Place:
    """The one window that is meant. Raises ConfigError with those that there are if it is none or several."""
    every = [Place(s, w) for s in sets.sets for w in s.windows]
    named = [
        p for p in every if asked.feature_set in (None, p.declared.name) and asked.version in (None, p.declared.version)
    ]
    mine = [p for p in named if asked.window in (p.window.text, p.window.folder)]
    if not mine:
        there = "; ".join(p.text for p in named or every)
        raise ConfigError(f"no declared feature set is that one with the window `{asked.window}`; there are: {there}")
    if len({p.declared.name for p in mine}) > 1:
        names = ", ".join(f"`{n}`" for n in sorted({p.declared.name for p in mine}))
        raise ConfigError(
            f"the window `{asked.window}` is that of several feature sets: name one of {names} as --feature-set"
        )
    return max(mine, key=lambda p: p.declared.version)


def dead_of(store: DeadLetters, topic: str, explanation: Explanation) -> Iterator[dict[str, object]]:
    """Refused messages that name the entity and a time in the window, or no time but stand among its events."""
    row = explanation.row
    among = _spans(explanation)
    start = explanation.start_us
    needle = row.entity.encode()
    after: tuple[int, str] | None = None
    while heads := store.list(limit=_LETTERS, after=after):
        after = heads[-1].place
        for head in heads:
            letter = store.get(head.letter_id) if head.source == topic else None
            if letter is None or needle not in letter.original:
                continue
            entity, time = _named(letter.original)
            first, last = among.get(letter.partition, (1, 0))
            if entity == row.entity and (first <= letter.offset <= last if time is None else start <= time < row.end):
                yield {
                    "partition": letter.partition,
                    "offset": letter.offset,
                    "event_time": None if time is None else utc_text(time),
                    "sequence": None,
                    "verdict": "dead",
                    "reason": letter.reason,
                    "known_at": None,
                    "values": {},
                }


def _spans(explanation: Explanation) -> dict[str, tuple[int, int]]:
    """Of each partition the first and the last offset of the row's events."""
    spans: dict[str, tuple[int, int]] = {}
    for event in (*explanation.events, *explanation.refused):
        partition, offset = str(event["partition"]), int(str(event["offset"]))
        first, last = spans.get(partition, (offset, offset))
        spans[partition] = min(first, offset), max(last, offset)
    return spans


def _named(original: bytes) -> tuple[object, int | None]:
    """entity_id and event_time of a refused message, as far as they can be read."""
    try:
        members = open_document(original).members
    except SkippableError:
        return None, None
    time = members.get("event_time")
    try:
        if isinstance(time, str):
            return members.get("entity_id"), parse_time(time)
    except ValueError:
        return members.get("entity_id"), None
    if isinstance(time, int) and abs(time) < 1 << 50:
        return members.get("entity_id"), time * 1000
    return members.get("entity_id"), None
