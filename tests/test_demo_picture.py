from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dataflows.demo import picture
from dataflows.demo.picture import draw_signal
from dataflows.demo.readings import BUOY, Recording
from operators.errors import MissingExtraError

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24
START_US = 17_000 * DAY_US


def _recording(hours: int) -> Recording:
    hour = np.arange(hours)
    values = 18.0 + np.sin(hour / 4.0)
    return Recording(BUOY, START_US + hour * HOUR_US, hour + 1, values[:, np.newaxis])


def _rows(recording: Recording, zscore: dict[int, float]) -> pa.Table:
    """A row for each reading, with a z-score of 0.5 but for the hours named; the first row defines nothing yet."""
    last = recording.values[:, 0].tolist()
    scores: list[float | None] = [zscore.get(i, 0.5) for i in range(len(last))]
    spread: list[float | None] = [0.4] * len(last)
    scores[0] = spread[0] = None
    return pa.table(
        {
            "event_time": pa.array(recording.event_time + HOUR_US, pa.timestamp("us", "UTC")),
            "temperature__last": last,
            "temperature__ewma": [18.0] * len(last),
            "temperature__ewm_std": pa.array(spread, pa.float64()),
            "temperature__zscore": pa.array(scores, pa.float64()),
        }
    )


def _draw(path: Path, recording: Recording, rows: pa.Table, late: Recording) -> bytes:
    drawn = draw_signal(
        path, recording=recording, late=late, rows=rows, field="temperature", window="1h", halflife="1d", days=2
    )
    return drawn.read_bytes()


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    """The picture is a PNG and a function of its arguments; the order of the rows does not matter."""
    recording = _recording(96)
    rows = _rows(recording, {30: 4.2, 40: -3.5})
    late = recording.take(np.array([28, 33]))
    first = _draw(tmp_path / "a.png", recording, rows, late)
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    backwards = rows.take(pa.array(range(rows.num_rows - 1, -1, -1)))
    assert _draw(tmp_path / "b.png", recording, backwards, late) == first
    assert _draw(tmp_path / "c.png", recording, rows, late.take(np.array([0]))) != first


def test_little_to_show_is_drawn_too(tmp_path: Path) -> None:
    """One reading, one row without any statistic that needs a past, nothing late: still a picture."""
    recording = _recording(1)
    drawn = _draw(tmp_path / "one.png", recording, _rows(recording, {}), recording.take(np.array([], np.int64)))
    assert drawn.startswith(b"\x89PNG")


def test_span_lies_round_the_strongest_anomaly() -> None:
    """Whole days, the strongest z-score of either sign inside them, never beyond the rows' own days."""
    recording = _recording(240)
    for hour, first_day in ((120, 3), (2, 0), (238, 6)):
        series = picture._series(_rows(recording, {hour: -5.0, 60: 4.0}), "temperature")
        start, stop = picture._span(series, days=4)
        assert ((start - START_US) // DAY_US, stop - start) == (first_day, 4 * DAY_US)
        assert start < recording.event_time[hour] + HOUR_US <= stop


def test_gaps_are_not_bridged() -> None:
    """Where an hour has no row, a row of NaN breaks the line."""
    recording = _recording(10).take(np.array([0, 1, 2, 6, 7, 9]))
    series = picture._within(picture._series(_rows(recording, {}), "temperature"), START_US, START_US + DAY_US)
    assert np.isnan(series.ewma).tolist() == [False, False, False, True, False, False, True, False]
    assert (np.diff(series.time) > 0).all()


def test_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib the error says what to install."""
    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # stands in for __import__
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    recording = _recording(3)
    with pytest.raises(MissingExtraError, match=r"headrace\[demo\]"):
        _draw(tmp_path / "no.png", recording, _rows(recording, {}), recording)
