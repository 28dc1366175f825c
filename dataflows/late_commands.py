"""What the commands on late events do, apart from parsing and printing."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import orjson

from dataflows.commands import time_text
from dataflows.forget_late import is_forgotten
from dataflows.late_log import read_messages
from dataflows.wiring import bus_of, holding_of
from operators.errors import ConfigError, CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dataflows.config import Settings
    from stores.holding.port import Holding


def release_held(settings: Settings, ids: Sequence[str] | None) -> int:
    """Release held events (None: all), so that the flow applies them; return how many."""
    with closing(_holding(settings)) as store:
        _check(store, ids)
        return store.release(ids)


def drop_held(settings: Settings, ids: Sequence[str] | None) -> int:
    """Drop held events (None: all) for good; return how many."""
    with closing(_holding(settings)) as store:
        _check(store, ids)
        return store.drop(ids)


def _holding(settings: Settings) -> Holding:
    if settings.late_event_policy != "hold":
        raise ConfigError(
            f"LATE_EVENT_POLICY is `{settings.late_event_policy}`: no events are held; only with `hold` there are some"
            " to release or drop"
        )
    return holding_of(settings)


def _check(store: Holding, ids: Sequence[str] | None) -> None:
    """Raise ConfigError for an event that is not held."""
    held = {event.event_id for event in store.list(limit=max(1, store.count()))} if ids else set()
    missing = [i for i in ids or () if i not in held]
    if missing:
        raise ConfigError(f"there is no held event `{missing[0]}`; `headrace late list` shows the ids")


def _held(settings: Settings, limit: int, reason: str | None) -> tuple[list[dict[str, object]], int]:
    with closing(holding_of(settings)) as store:
        found = [
            {
                "id": event.event_id,
                "reason": event.reason,
                "partition": event.partition,
                "offset": event.offset,
                "entity_id": event.entity_id,
                "event_time": time_text(event.event_time_us),
                "sequence": event.sequence,
                "watermark": time_text(event.watermark_us),
            }
            for event in store.list(reason=reason, limit=limit)
        ]
        return found, store.count(reason=reason)


def late_events(settings: Settings, *, limit: int, reason: str | None = None) -> tuple[list[dict[str, object]], int]:
    """The first late events, without their payloads, and how many there are in all; under `hold` those held.

    A run that started anew has set the same ones aside again: each is told once.
    Raises CorruptStoreError if the late topic holds anything else.
    """
    if settings.late_event_policy == "hold":
        return _held(settings, limit, reason)
    found: list[dict[str, object]] = []
    seen: set[object] = set()
    with closing(bus_of(settings)) as bus:
        for message in read_messages(bus, settings.topic_late):
            if is_forgotten(message):
                continue
            event = _late_event(message, settings.topic_late)
            if reason not in (None, event["reason"]):
                continue
            if event["id"] not in seen and len(found) < limit:
                found.append(event)
            seen.add(event["id"])
    return found, len(seen)


def _late_event(message: bytes, topic: str) -> dict[str, object]:
    try:
        event = orjson.loads(message)
        signal = event["data"]
        return {
            "id": str(event["id"]),
            "reason": event["reason"],
            "partition": event["partition"],
            "offset": int(event["offset"]),
            "entity_id": signal["entity_id"],
            "event_time": signal["event_time"],
            "sequence": signal["sequence"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStoreError(
            f"topic `{topic}` holds a message that is no late event; move what others wrote away from it"
        ) from error
