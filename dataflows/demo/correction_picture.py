"""A picture of one corrected window: its events by event time, and what was known of it as the watermark moved on.

headrace explain ENTITY --at T --window W --field F --json > row.json
python -m dataflows.demo.correction_picture row.json OUT.png
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataflows.demo.look import ALARM, LATE, MUTED, PAPER, READING, RULE, STYLE, TREND
from operators.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (READING, LATE, ALARM, TREND)
"""Of revisions 0, 1, 2 and all later ones, and of the events that they are the first to know."""


_Axes = Any
"""Axes of matplotlib, whose annotations know no times of numpy."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. revision: the first that knows it, None for one that came too late for all. value: null is None."""

    event_time: np.datetime64
    value: float | None
    revision: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """A revision: from known_at on the statistic was `value` (None: undefined, or the row retracted)."""

    known_at: np.datetime64
    value: float | None
    count: int


@dataclass(frozen=True, slots=True)
class CorrectedWindow:
    """What is drawn: a window of an entity, its events by event_time, and its revisions, oldest first."""

    entity_id: str
    field: str
    statistic: str
    start: np.datetime64
    end: np.datetime64
    watermark_seconds: float
    events: tuple[Event, ...]
    steps: tuple[Step, ...]


def corrected_window(record: Mapping[str, Any], statistic: str = "mean") -> CorrectedWindow:
    """Take what is to be drawn out of an explanation, as `headrace explain --field F --json` prints it.

    Raises ConfigError for an explanation of several fields, or without that statistic or any value of it.
    """
    fields = {column.rpartition("__")[0] for column in record["values"]}
    if len(fields) != 1:
        raise ConfigError("the explanation is of several fields: choose one with --field")
    (field,) = fields
    if f"{field}__{statistic}" not in record["values"]:
        raise ConfigError(f"the explanation has no statistic `{statistic}`")
    revisions = record["revisions"]
    known = [r["known_at"] for r in revisions]

    def event(told: Mapping[str, Any], *, counts: bool) -> Event:
        known_at = told["known_at"]
        first = 0 if known_at is None else min(bisect_left(known, known_at), len(known) - 1)
        return Event(_moment(told["event_time"]), told["values"][field], first if counts else None)

    events = [event(e, counts=True) for e in record["events"]]
    events += [event(e, counts=False) for e in record["refused"] if e["verdict"] == "late"]
    if all(r["values"][f"{field}__{statistic}"] is None for r in revisions):
        raise ConfigError(f"no revision of the row has a {statistic}: there is nothing to draw")
    return CorrectedWindow(
        record["entity_id"],
        field,
        statistic,
        _moment(record["window_start"]),
        _moment(record["event_time"]),
        record["watermark_seconds"],
        tuple(sorted(events, key=lambda e: e.event_time)),
        tuple(
            Step(
                _moment(r["known_at"]),
                None if r["retracted"] else r["values"][f"{field}__{statistic}"],
                r["values"].get(f"{field}__count", 0),
            )
            for r in revisions
        ),
    )


def description(window: CorrectedWindow) -> str:
    """What the picture shows, in words: a line for the window, for each revision, and for what came too late."""

    def readings(revision: int | None) -> str:
        mine = (e for e in window.events if e.revision == revision and e.value is not None)
        return ", ".join(f"{_clock(e.event_time)} {e.value:g}" for e in mine)

    lines = [f"{window.entity_id}, {window.field}, {window.start.astype('datetime64[m]')} to {_clock(window.end)}"]
    for number, step in enumerate(window.steps):
        value = "none" if step.value is None else f"{step.value:.6g}"
        knows = f"{step.count} events, new: {readings(number) or 'none'}"
        lines.append(f"revision {number} from {_clock(step.known_at)}: {window.statistic} {value} of {knows}")
    return "\n".join([*lines, f"too late: {readings(None) or 'none'}"])


def draw_correction(path: Path, window: CorrectedWindow, *, unit: str = "", credit: str = "") -> Path:
    """Draw the window and write a PNG to `path`, with its `description` in it; return `path`.

    The same arguments give the same bytes. The folder must exist. Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the picture", "demo") from error
    with rc_context(STYLE):
        figure = Figure(figsize=(11.5, 5.6), dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.065, right=0.975, top=0.79, bottom=0.145)
        right = window.steps[-1].known_at + (window.end - window.start) * 6 // 10
        _draw_window(axes, window, right)
        _draw_events(axes, window.events)
        _draw_steps(axes, window, right)
        axes.set_ylabel(f"{window.field}  [{unit}]" if unit else window.field)
        _write(figure, axes, window, credit)
        figure.savefig(path, metadata={"Software": None, "Description": description(window)})
    return path


def _draw_window(axes: _Axes, window: CorrectedWindow, right: np.datetime64) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    axes.set_xlim(window.start - (window.end - window.start) // 20, right)
    values = [e.value for e in window.events if e.value is not None]
    values += [s.value for s in window.steps if s.value is not None]
    reach = max(max(values) - min(values), 1e-9)
    axes.set_ylim(min(values) - 0.12 * reach, max(values) + 0.2 * reach)
    axes.axvspan(window.start, window.end, color=TREND, alpha=0.07, lw=0, zorder=0)
    axes.axvline(window.end, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
    locator = AutoDateLocator(minticks=6, maxticks=12)  # type: ignore[no-untyped-call]  # matplotlib's
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    axes.grid(color=RULE, lw=0.8)
    axes.tick_params(axis="x", length=0, pad=6)
    transform = axes.get_xaxis_transform()
    middle = window.start + (window.end - window.start) // 2
    axes.text(middle, 0.955, "events, each at its event_time", transform=transform, ha="center", color=MUTED, size=9.5)
    closes = f" the watermark reaches {_clock(window.end)}:\n the window closes"
    axes.text(window.end, 0.03, closes, transform=transform, color=MUTED, size=9.5, linespacing=1.35)
    later = window.end + (right - window.end) // 2
    text = "the row, as it was known with the watermark there  →"
    axes.text(later, 0.955, text, transform=transform, ha="center", color=MUTED, size=9.5)


def _draw_events(axes: _Axes, events: Sequence[Event]) -> None:
    for revision in sorted({e.revision for e in events if e.revision is not None}):
        mine = [e for e in events if e.revision == revision and e.value is not None]
        label = "came in time" if revision == 0 else f"came late: revision {revision}"
        colour = _COLOURS[min(revision, len(_COLOURS) - 1)]
        axes.plot([e.event_time for e in mine], [e.value for e in mine], "o", ms=9, mew=0, color=colour, label=label)
    lost = [e for e in events if e.revision is None and e.value is not None]
    if lost:
        style = {"ms": 8, "mfc": PAPER, "mec": MUTED, "mew": 1.5, "label": "came too late: set aside"}
        axes.plot([e.event_time for e in lost], [e.value for e in lost], "D", **style)


def _draw_steps(axes: _Axes, window: CorrectedWindow, right: np.datetime64) -> None:
    ends = [*(s.known_at for s in window.steps[1:]), right]
    values = [s.value for s in window.steps]
    for number, (step, end) in enumerate(zip(window.steps, ends, strict=True)):
        if step.value is None:
            continue
        colour = _COLOURS[min(number, len(_COLOURS) - 1)]
        before = values[number - 1] if number else None
        after = values[number + 1] if number + 1 < len(values) else None
        if before is not None:
            axes.vlines(step.known_at, *sorted((before, step.value)), color=colour, lw=1.2, ls=(0, (2, 2)))
        axes.hlines(step.value, step.known_at, end, color=colour, lw=4, zorder=3)
        axes.plot([step.known_at], [step.value], "o", ms=6, mew=0, color=colour, zorder=4)
        below = after > step.value if after is not None else before is not None and step.value < before
        what = f"{window.statistic} {step.value:.4g} of {step.count}"
        text = f"revision {number}, from {_clock(step.known_at)}\n{what}"
        note = axes.annotate(text, (step.known_at, step.value), xytext=(6, -8 if below else 8), zorder=5)
        note.set(anncoords="offset points", va="top" if below else "bottom", color=colour)
        note.set(size=9.5, weight="bold", linespacing=1.35)


def _write(figure: Figure, axes: _Axes, window: CorrectedWindow, credit: str) -> None:
    values = " → ".join("none" if s.value is None else f"{s.value:.4g}" for s in window.steps)
    title = f"{window.statistic.capitalize()} {window.field} of {window.entity_id}: {values}"
    day = window.start.astype("datetime64[D]")
    end = _clock(window.end) if window.end.astype("datetime64[D]") == day else str(window.end.astype("datetime64[s]"))
    subtitle = (
        f"Window {day} {_clock(window.start)} to {end}, UTC. The watermark is the newest event_time minus"
        f" {window.watermark_seconds:g} s."
    )
    figure.text(0.03, 0.945, title, size=15, weight="bold", va="center")
    figure.text(0.03, 0.895, subtitle, size=10, color=MUTED, va="center")
    figure.text(0.03, 0.03, credit, size=8, color=MUTED, va="center")
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="center left",
        bbox_to_anchor=(0.022, 0.84),
        ncols=5,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.8,
    )


def _clock(moment: np.datetime64) -> str:
    """`02:20`, with seconds and parts of them where there are any."""
    text = str(moment.astype("datetime64[us]"))[11:]
    return text[:5] if text.endswith(":00.000000") else text.rstrip("0").rstrip(".")


def _moment(text: str) -> np.datetime64:
    return np.datetime64(text.removesuffix("Z"), "us")


def main(explained: Path, out: Path) -> None:
    """Draw the row that was explained; of the glucose sensor with its unit and whose data it is."""
    from dataflows.demo.readings import GLUCOSE_SENSOR

    window = corrected_window(json.loads(explained.read_text("utf-8")))
    known = window.entity_id == GLUCOSE_SENSOR.entity_id and window.field in GLUCOSE_SENSOR.fields
    unit = GLUCOSE_SENSOR.units[GLUCOSE_SENSOR.fields.index(window.field)] if known else ""
    draw_correction(out, window, unit=unit, credit=GLUCOSE_SENSOR.credit if known else "")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
