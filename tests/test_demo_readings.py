from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflows.demo import readings
from dataflows.demo.readings import Recording, load_recordings
from dataflows.demo.story import BREAKS, OUTCOMES, Mishaps, Story, tell_story
from operators.errors import MissingExtraError
from operators.feature_sets import parse_feature_sets

HOUR_US = 3_600_000_000
FEATURE_SETS = Path(__file__).parents[1] / "feature_repo" / "feature_sets.toml"


@pytest.fixture(scope="module")
def recordings() -> tuple[Recording, ...]:
    """All of the demo's readings."""
    return load_recordings()


@pytest.fixture(scope="module")
def story(recordings: tuple[Recording, ...]) -> Story:
    """The demo's story."""
    return tell_story(recordings, seed=7, disorder_us=2 * HOUR_US, watermark_us=3 * HOUR_US)


class TestReadings:
    def test_recordings_run_side_by_side(self, recordings: tuple[Recording, ...]) -> None:
        """All three cover the same weeks in order of time, with a size that a demo runs in seconds."""
        assert [len(r) for r in recordings] == [11_975, 2_160, 1_080]
        for recording in recordings:
            assert (np.diff(recording.event_time) >= 0).all()
            assert (np.diff(recording.sequence) > 0).all()
            days = recording.event_time[[0, -1]].astype("datetime64[us]").astype("datetime64[D]")
            assert days.tolist() == [np.datetime64("2016-08-01").item(), np.datetime64("2016-09-14").item()]

    def test_values_are_those_of_the_files(self, recordings: tuple[Recording, ...]) -> None:
        """A known reading of each instrument stands at its time, unchanged."""
        glucose, sea, weather = recordings
        at = np.datetime64("2016-08-13T06:41:00", "us").astype(np.int64)
        assert glucose.values[glucose.event_time == at].tolist() == [[101.0, 15.7], [104.0, 16.42]]
        assert sea.values[0].tolist() == [20.62]
        assert weather.values[0].tolist() == [22.8, 993.0, 3.6]

    def test_missing_readings_stay_missing(self, recordings: tuple[Recording, ...]) -> None:
        """Where the glucose sensor wrote `nil` there is no value, and none is made up; nothing else is missing."""
        missing = [np.isnan(r.values).sum(axis=0).tolist() for r in recordings]
        assert missing == [[0, 1_061], [0], [0, 0, 0]]

    def test_each_recording_feeds_one_declared_set(self, recordings: tuple[Recording, ...]) -> None:
        """Sources and fields fit the feature sets that the project declares."""
        declared = parse_feature_sets(FEATURE_SETS.read_text(encoding="utf-8"), where=str(FEATURE_SETS))
        fed = [[s for s in declared.sets if s.takes(r.instrument.source)] for r in recordings]
        assert [(s.fields,) for sets in fed for s in sets] == [(r.instrument.fields,) for r in recordings]

    def test_missing_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the packages that hold the readings the error says what to install."""
        monkeypatch.setattr(readings, "find_spec", lambda _: None)
        with pytest.raises(MissingExtraError, match=r"headrace\[demo\]"):
            load_recordings()


def _log(story: Story, name: str) -> list[tuple[int, int, bytes]]:
    """(event_time in µs, sequence, line) of each good line, read as a stranger would."""
    log = []
    for line in story.partitions[name]:
        try:
            signal = orjson.loads(line)
            time = np.datetime64(signal["event_time"].removesuffix("Z"), "us").astype(np.int64)
            good = signal["entity_id"] and signal["event_time"].endswith("Z")
            good = good and all(v is None or isinstance(v, float) for v in signal["payload"].values())
        except (orjson.JSONDecodeError, KeyError, AttributeError):
            continue
        if good:
            log.append((int(time), signal["sequence"], line))
    return log


def _recount(story: Story, watermark_us: int) -> dict[str, int]:
    counts = dict.fromkeys(("in", *OUTCOMES), 0)
    for name, lines in story.partitions.items():
        log = _log(story, name)
        counts["in"] += len(lines)
        counts["dead"] += len(lines) - len(log)
        kept: dict[tuple[int, int], list[bytes]] = {}
        for at, (time, sequence, line) in enumerate(log):
            if time < max((t for t, _, _ in log[:at]), default=time) - watermark_us:
                counts["late"] += 1
            else:
                kept.setdefault((time, sequence), []).append(line)
        counts["used"] += len(kept)
        for same in kept.values():
            counts["duplicate"] += sum(a == b for a, b in pairwise(same))
            counts["conflict"] += sum(a != b for a, b in pairwise(same))
    return counts


class TestStory:
    def test_counts_add_up(self, story: Story) -> None:
        """Every line has one outcome, and the mishaps are as many as asked for."""
        mishaps = Mishaps()
        asked = [mishaps.duplicates, mishaps.conflicts, mishaps.late, mishaps.broken]
        assert [story.expected[outcome] for outcome in OUTCOMES[1:]] == asked
        assert (
            story.expected["in"] == sum(story.expected[o] for o in OUTCOMES) == sum(map(len, story.partitions.values()))
        )

    def test_partitions_are_named_for_their_source(self, story: Story) -> None:
        """One partition file a source, numbered."""
        assert list(story.partitions) == ["cgm-0.jsonl", "buoy-1.jsonl", "station-2.jsonl"]

    def test_same_seed_same_bytes(self, recordings: tuple[Recording, ...], story: Story) -> None:
        """The story is a function of its arguments; another seed tells another one."""
        again, other = (
            tell_story(recordings, seed=seed, disorder_us=2 * HOUR_US, watermark_us=3 * HOUR_US) for seed in (7, 8)
        )
        assert again.partitions == story.partitions
        assert other.partitions != story.partitions

    def test_lines_are_out_of_order(self, story: Story) -> None:
        """The log is really shuffled, not only in name."""
        times = [time for time, _, _ in _log(story, "cgm-0.jsonl")]
        assert (np.diff(times) < 0).mean() > 0.3

    def test_late_readings_are_those_named(self, story: Story) -> None:
        """The readings that the story calls late are in its log and are as many as it counts."""
        assert sum(map(len, story.late)) == story.expected["late"]
        sequences = {sequence for _, sequence, _ in _log(story, "cgm-0.jsonl")}
        assert set(story.late[0].sequence.tolist()) <= sequences

    def test_broken_lines_differ(self) -> None:
        """Each way to break a line gives other bytes, none with a line end inside."""
        line = b'{"entity_id":"a","event_time":"2016-08-01T00:00:00Z","sequence":1,"payload":{"x":1.0}}'
        broken = {make(line) for make in BREAKS}
        assert len(broken) == len(BREAKS)
        assert not any(b"\n" in b or b == line for b in broken)

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 1 << 32),
        rows=st.integers(30, 60),
        watermark_minutes=st.integers(0, 60),
        share=st.floats(0, 1),
        mishaps=st.builds(Mishaps, *[st.integers(0, 4)] * 4),
    )
    def test_a_stranger_counts_the_same(
        self,
        recordings: tuple[Recording, ...],
        seed: int,
        rows: int,
        watermark_minutes: int,
        share: float,
        mishaps: Mishaps,
    ) -> None:
        """For any seed and sizes a recount from the bytes alone agrees with what the story expects."""
        watermark_us = watermark_minutes * HOUR_US // 60
        short = [r.take(np.arange(rows)) for r in recordings]
        disorder_us = int(watermark_us * share)
        told = tell_story(short, seed=seed, disorder_us=disorder_us, watermark_us=watermark_us, mishaps=mishaps)
        assert _recount(told, watermark_us) == told.expected
