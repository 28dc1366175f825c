"""One picture of a signal and its features: readings, EWMA and band, anomalies, and what came too late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflows.demo.look import ALARM, LATE, MUTED, PAPER, READING, RULE, STYLE, TREND
from dataflows.demo.readings import Recording
from operators.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANOMALY = 3.0
"""A row whose z-score is farther from zero than this is an anomaly."""

_DAY_US = 86_400_000_000
_BAND = 2.0
_LABELS_MAX = 4


@dataclass(frozen=True, slots=True)
class _Series:
    """Rows of one entity inside the span, in order of time; NaN where undefined. time: int64 microseconds."""

    time: NDArray[np.int64]
    last: NDArray[np.float64]
    ewma: NDArray[np.float64]
    std: NDArray[np.float64]
    zscore: NDArray[np.float64]

    def anomalies(self) -> NDArray[np.int64]:
        """Rows beyond ANOMALY, the strongest first."""
        strength = np.abs(np.nan_to_num(self.zscore))
        order = np.argsort(-strength, kind="stable")
        return order[strength[order] > ANOMALY]


def draw_signal(  # noqa: PLR0913  # one argument for each thing that is drawn or named
    path: Path,
    *,
    recording: Recording,
    late: Recording,
    rows: pa.Table,
    field: str,
    window: str,
    halflife: str,
    days: int = 8,
) -> Path:
    """Draw the `days` days round the strongest anomaly and write a PNG to `path`; return `path`.

    recording: all readings. late: those of them that came too late. rows: feature rows of this entity and one
    tumbling window in any order, with event_time (timestamp, UTC) and the columns `<field>__last`, `__ewma`,
    `__ewm_std` and `__zscore` (float64, null where undefined); at least one row. window, halflife: as declared.
    The same arguments give the same bytes. The folder must exist. Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the picture", "demo") from error
    series = _series(rows, field)
    start, stop = _span(series, days)
    drawn = _within(series, start, stop)
    recording, late = (r.take((r.event_time >= start) & (r.event_time < stop)) for r in (recording, late))
    column = recording.instrument.fields.index(field)
    unit = recording.instrument.units[column]
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 7.6), dpi=150)
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1.0))
        figure.subplots_adjust(left=0.065, right=0.975, top=0.83, bottom=0.085, hspace=0.1)
        _draw_readings(upper, recording, late, column)
        _draw_features(upper, drawn, unit)
        upper.set_ylabel(f"{_words(field)}  [{unit}]")
        _draw_zscore(lower, drawn)
        _dress((upper, lower), start, stop)
        found = len(drawn.anomalies())
        what = {0: "no window stands out", 1: "one window stands out"}.get(found, f"{found} windows stand out")
        title = f"{_words(field)} of {recording.instrument.entity_id}: {what} from the hours before"
        subtitle = (
            f"{_day_name(start)} to {_day_name(stop - 1, year=True)}, UTC. The last value of each {window} window"
            f" against the EWMA (half-life {halflife}) as it was before that value."
        )
        _write(figure, upper, title, subtitle, recording.instrument.credit)
        figure.savefig(path, metadata={"Software": None})
    return path


def _series(rows: pa.Table, field: str) -> _Series:
    table = rows.sort_by("event_time")
    time = table["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    names = [f"{field}__{statistic}" for statistic in ("last", "ewma", "ewm_std", "zscore")]
    last, ewma, std, zscore = (table[name].cast(pa.float64()).to_numpy() for name in names)
    return _Series(time, last, ewma, std, zscore)


def _span(series: _Series, days: int) -> tuple[int, int]:
    """First and last moment of the whole days round the strongest z-score, kept inside the rows' own days."""
    first, final = int(series.time[0]) // _DAY_US, int(series.time[-1] - 1) // _DAY_US
    centre = int(series.time[np.argmax(np.abs(np.nan_to_num(series.zscore)))]) // _DAY_US
    start = max(first, min(centre - days // 2, final + 1 - days))
    return start * _DAY_US, (start + days) * _DAY_US


def _within(series: _Series, start: int, stop: int) -> _Series:
    """Rows of the span, with a row of NaN in every gap, so that no line is drawn where nothing was known."""
    keep = (series.time > start) & (series.time <= stop)
    time = series.time[keep]
    steps = np.diff(time)
    gaps = np.flatnonzero(steps > steps.min(initial=_DAY_US)) + 1
    columns = (np.insert(c[keep], gaps, np.nan) for c in (series.last, series.ewma, series.std, series.zscore))
    return _Series(np.insert(time, gaps, time[gaps - 1] + 1), *columns)


def _moments(time: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return time.astype("datetime64[us]")


def _draw_readings(axes: Axes, recording: Recording, late: Recording, column: int) -> None:
    values = recording.values[:, column]
    axes.plot(_moments(recording.event_time), values, ".", ms=4, mew=0, color=READING, label="reading", zorder=2)
    label = f"came too late, left out ({len(late)})"
    when = _moments(late.event_time)
    axes.plot(when, late.values[:, column], "D", ms=6.5, mfc=PAPER, mec=LATE, mew=1.6, label=label, zorder=5)


def _draw_features(axes: Axes, series: _Series, unit: str) -> None:
    from matplotlib.patheffects import withStroke

    when = _moments(series.time)
    low, high = series.ewma - _BAND * series.std, series.ewma + _BAND * series.std
    axes.plot(when, series.ewma, color=TREND, lw=1.8, label="EWMA", zorder=3)
    axes.fill_between(when, low, high, color=TREND, alpha=0.14, lw=0, label=f"± {_BAND:g} ewm_std", zorder=1)
    found = series.anomalies()
    label = f"anomaly, |zscore| > {ANOMALY:g} ({len(found)})"
    axes.plot(when[found], series.last[found], "o", ms=11, mfc="none", mec=ALARM, mew=2, label=label, zorder=6)
    for row in found[:_LABELS_MAX]:
        text = f"{series.last[row]:g} {unit}\nz = {series.zscore[row]:+.1f}".replace("-", "−")
        right = series.time[row] > series.time[0] + 0.9 * (series.time[-1] - series.time[0])
        note = axes.annotate(text, (when[row], series.last[row]), xytext=(-11 if right else 11, 6), zorder=7)
        note.set(anncoords="offset points", ha="right" if right else "left", va="bottom", ma="left", linespacing=1.3)
        note.set(color=ALARM, weight="bold", size=10)
        note.set_path_effects([withStroke(linewidth=3.5, foreground=PAPER)])


def _draw_zscore(axes: Axes, series: _Series) -> None:
    when = _moments(series.time)
    outside = np.abs(np.nan_to_num(series.zscore)) > ANOMALY
    for threshold in (-ANOMALY, ANOMALY):
        axes.axhline(threshold, color=ALARM, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.axhline(0, color=MUTED, lw=0.8, zorder=1)
    for rows, colour, width in ((~outside, TREND, 1.2), (outside, ALARM, 2.4)):
        axes.vlines(when[rows], 0, series.zscore[rows], color=colour, lw=width, zorder=2)
    reach = max(4.0, float(np.abs(np.nan_to_num(series.zscore)).max(initial=0.0)) + 0.6)
    axes.set(ylim=(-reach, reach), yticks=(-3, 0, 3), yticklabels=("−3", "0", "+3"), ylabel="z-score")


def _dress(panels: Sequence[Axes], start: int, stop: int) -> None:
    """Days on the time axis, named in the middle of the day; light rules at midnight."""
    days = np.arange(start, stop + 1, _DAY_US)
    for axes in panels:
        axes.set_xlim(*_moments(days[[0, -1]]))
        axes.set_xticks(_moments(days), labels=[])
        axes.grid(axis="both", color=RULE, lw=0.8)
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_label_coords(-0.045, 0.5)
    panels[-1].set_xticks(_moments(days[:-1] + _DAY_US // 2), labels=[_day_name(int(d)) for d in days[:-1]], minor=True)
    panels[0].tick_params(axis="x", which="minor", length=0, labelbottom=False)
    panels[-1].tick_params(axis="x", which="minor", length=0, pad=6)


def _words(field: str) -> str:
    return field.replace("_", " ").capitalize()


def _day_name(moment: int, *, year: bool = False) -> str:
    """`4 Sep`, in English whatever the locale."""
    iso = str(np.datetime64(moment, "us").astype("datetime64[D]"))
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    return f"{int(iso[8:])} {months[int(iso[5:7]) - 1]}" + (f" {iso[:4]}" if year else "")


def _write(figure: Figure, axes: Axes, title: str, subtitle: str, credit: str) -> None:
    figure.text(0.03, 0.95, title, size=17, weight="bold", va="center")
    figure.text(0.03, 0.908, subtitle, size=10.5, color=MUTED, va="center")
    figure.text(0.03, 0.022, credit, size=8, color=MUTED, va="center")
    reading, late, ewma, band, anomaly = axes.get_legend_handles_labels()[0]
    figure.legend(
        handles=[reading, ewma, band, anomaly, late],
        loc="center left",
        bbox_to_anchor=(0.022, 0.862),
        ncols=5,
        frameon=False,
        handletextpad=0.6,
        columnspacing=2.2,
        markerscale=1.0,
    )
