"""The picture of a corrected window: made anew from the real readings it shows what README.md says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataflows.config import load_settings
from dataflows.demo import night
from dataflows.demo.correction_picture import Step, corrected_window, description, draw_correction
from dataflows.demo.readings import GLUCOSE_SENSOR
from dataflows.engine import Cluster
from dataflows.explain_command import Question, explain_row
from dataflows.runner import run_signals
from operators.errors import ConfigError
from tests.readme_tables import README, ROOT

PICTURE = ROOT / "dataflows" / "demo" / "corrected_window.png"
SHOWN = """\
patient-1, glucose, 2016-09-14T01:00 to 02:00
revision 0 from 02:00: mean 92.75 of 4 events, new: 01:01 110, 01:06 101, 01:11 80, 01:56 80
revision 1 from 02:20: mean 69 of 8 events, new: 01:36 43, 01:41 43, 01:46 42, 01:51 53
revision 2 from 02:40: mean 63.5455 of 11 events, new: 01:21 54, 01:26 48, 01:31 45
too late: 01:16 63"""


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The hour of the night that README.md tells of, explained."""
    root = tmp_path_factory.mktemp("night")
    night.main(root / "bus" / "signals")
    settings = load_settings(
        bus_dir=root / "bus",
        bus_follow=False,
        recovery_dir=root / "recovery",
        archive_signals=True,
        archive_path=root / "archive",
        offline_data_path=root / "offline",
        online_store="none",
        feature_sets_path=ROOT / "feature_repo" / "feature_sets.toml",
        late_event_policy="correct",
        watermark_seconds=600,
        allowed_lateness_seconds=5400,
        log_level="error",
    )
    run_signals(settings, Cluster(1))
    return explain_row(settings, Question("patient-1", "2016-09-14T02:00:00Z", "1h", field="glucose"))


def text_in(picture: Path) -> str:
    """The description that a PNG carries."""
    from PIL import Image

    with Image.open(picture) as image:
        return str(image.info["Description"])


def test_the_picture_of_the_page_shows_the_real_readings(explained: dict[str, Any], tmp_path: Path) -> None:
    """Drawn anew it shows which readings each revision knew and what that gave; so does the one in README."""
    window = corrected_window(explained)
    assert description(window) == SHOWN
    unit = GLUCOSE_SENSOR.units[0]
    first = draw_correction(tmp_path / "a.png", window, unit=unit, credit=GLUCOSE_SENSOR.credit)
    again = draw_correction(tmp_path / "b.png", window, unit=unit, credit=GLUCOSE_SENSOR.credit)
    assert first.read_bytes() == again.read_bytes()
    assert text_in(first) == text_in(PICTURE) == SHOWN
    assert PICTURE.stat().st_size < 150_000
    assert f"]({PICTURE.relative_to(ROOT)})" in README.read_text("utf-8")


def test_the_events_of_the_window_are_all_in_it(explained: dict[str, Any]) -> None:
    """Counts grow by the events that each revision is the first to know; the mean is theirs."""
    window = corrected_window(explained)
    for number, step in enumerate(window.steps):
        known = [e.value for e in window.events if e.revision is not None and e.revision <= number and e.value]
        assert len(known) == step.count
        assert step.value == pytest.approx(sum(known) / len(known))


def test_a_retracted_revision_has_no_value(explained: dict[str, Any], tmp_path: Path) -> None:
    """It is drawn as a gap, not as a number."""
    *before, last = explained["revisions"]
    empty = dict.fromkeys(last["values"]) | {"glucose__count": 0}
    window = corrected_window({**explained, "revisions": [*before, {**last, "retracted": True, "values": empty}]})
    assert window.steps[-1] == Step(window.steps[-1].known_at, None, 0)
    assert "revision 2 from 02:40: mean none of 0 events" in text_in(draw_correction(tmp_path / "gap.png", window))


@pytest.mark.parametrize(
    ("values", "statistic", "said"),
    [
        ({"glucose__mean": 1.0, "isig__mean": 1.0}, "mean", "--field"),
        ({"glucose__mean": 1.0}, "median", "no statistic `median`"),
        ({"glucose__mean": None}, "mean", "nothing to draw"),
    ],
)
def test_what_cannot_be_drawn(explained: dict[str, Any], values: dict[str, Any], statistic: str, said: str) -> None:
    """Several fields, a statistic that is not there, a row without a value: one sentence each."""
    revisions = [{**r, "values": values} for r in explained["revisions"]]
    with pytest.raises(ConfigError, match=said):
        corrected_window({**explained, "values": values, "revisions": revisions}, statistic)
