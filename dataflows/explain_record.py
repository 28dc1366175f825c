"""An explanation as one JSON-able record: what `headrace explain --json` prints and its display reads."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

from dataflows.explain import micros, utc_text

if TYPE_CHECKING:
    from dataflows.explain import Explanation


def code_version() -> str:
    """The version of Headrace that computes now."""
    return version_of("headrace")


def record_of(explanation: Explanation, wanted: str | None = None) -> dict[str, object]:
    """The explanation as one JSON-able record, names as those of the columns. wanted: only this field's values."""
    declared, stored = explanation.row.place.declared, explanation.stored
    fields = declared.fields if wanted is None else (wanted,)
    columns = [c for c in declared.columns if c.rpartition("__")[0] in fields]
    computed = explanation.computed

    def events(some: tuple[dict[str, object], ...]) -> list[dict[str, object]]:
        return [{**e, "values": {f: v for f, v in dict(e["values"]).items() if f in fields}} for e in some]  # type: ignore[call-overload]  # a dict

    return {
        "entity_id": explanation.row.entity,
        "feature_set": declared.name,
        "version": declared.version,
        "window": explanation.row.place.window.text,
        "window_start": utc_text(micros(stored["window_start"])),
        "event_time": utc_text(explanation.row.end),
        "revision": stored["revision"],
        "retracted": stored["retracted"],
        "known_at": utc_text(micros(stored["known_at"])),
        "values": {c: stored[c] for c in columns},
        "revisions": [_revision(r, columns) for r in explanation.revisions],
        "events": events(explanation.events),
        "refused": events(explanation.refused),
        "earlier": explanation.earlier,
        "closed_at_watermark": utc_text(explanation.row.end),
        "watermark_seconds": explanation.bound_us / 1e6,
        "halflife_seconds": declared.halflife_us / 1e6,
        "events_from": explanation.source,
        "code_version": code_version(),
        "content_hash": _hex(stored["content_hash"]),
        "recomputed_hash": None if computed is None else _hex(computed["content_hash"]),
        "different": explanation.different,
        "recomputed": "equal" if explanation.equal else "different",
    }


def _revision(record: dict[str, object], columns: list[str]) -> dict[str, object]:
    return {
        "revision": record["revision"],
        "known_at": utc_text(micros(record["known_at"])),
        "cause": record["cause"],
        "retracted": record["retracted"],
        "supersedes": None if record["supersedes"] is None else _hex(record["supersedes"]),
        "content_hash": _hex(record["content_hash"]),
        "values": {c: record[c] for c in columns},
    }


def _hex(value: object) -> str:
    assert isinstance(value, bytes)  # the type of the column
    return value.hex()
