"""feature_sets.toml: what it may say, and what is said of it when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import ConfigError
from operators.feature_sets import STATISTICS, FeatureSets, parse_duration, parse_feature_sets, parse_window
from tests.commands import headrace
from tests.flows import Place

GOOD = """\
# what a room tells
[[feature_set]]
name = "room"
version = 2
fields = ["heat", "co2"]
windows = ["5s", "1m/10s", "session:30s"]
halflife = "30s"

[[feature_set]]
name = "door"
version = 1
fields = ["open"]
windows = ["1h"]
halflife = "500ms"
statistics = ["last", "count"]
sources = ["door/*", "gate"]
"""


def parse(text: str, **overrides: object) -> FeatureSets:
    """The feature sets of a file named sets.toml."""
    return parse_feature_sets(text, where="sets.toml", **overrides)  # type: ignore[arg-type]  # windows, version


def test_every_key_is_read() -> None:
    """Sets come in the order of the file; statistics in that of the columns, whatever order they were named in."""
    room, door = parse(GOOD).sets
    assert (room.name, room.version, room.halflife_us) == ("room", 2, 30_000_000)
    assert [(w.size_us, w.slide_us, w.session) for w in room.windows] == [
        (5_000_000, 5_000_000, False),
        (60_000_000, 10_000_000, False),
        (30_000_000, 30_000_000, True),
    ]
    assert room.statistics == STATISTICS
    assert len(room.columns) == 2 * len(STATISTICS)
    assert door.columns == ("open__count", "open__last")
    assert parse(GOOD).fields == ("heat", "co2", "open")


def test_sources_choose_the_sets_that_a_signal_feeds() -> None:
    """A set without globs takes every source and none; one with globs only what they match, case and all."""
    sets = parse(GOOD)
    assert [sets.mask(s) for s in (None, "", "door/1", "gate", "Gate", "gate/1")] == [1, 1, 3, 3, 1, 1]


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "says"),
    [
        ('name = "room"', 'nmae = "room"', 3, "nmae", "unknown key `nmae`; known are name, version"),
        ("version = 2", "", 2, "version", "lacks `version`"),
        ("version = 2", 'version = "2"', 4, "version", "a whole number above 0"),
        ("version = 2", "version = true", 4, "version", "a whole number above 0"),
        ("version = 1", "version = 0", 11, "version", "a whole number above 0"),
        ('name = "door"', 'name = "The Door"', 10, "name", "lower-case letters"),
        ('name = "door"', 'name = "../door"', 10, "name", "lower-case letters"),
        ('fields = ["open"]', 'fields = "open"', 12, "fields", "a list of strings"),
        ('fields = ["open"]', "fields = []", 12, "fields", "at least one"),
        ('fields = ["open"]', 'fields = ["open", "open"]', 12, "fields", "twice"),
        ('fields = ["open"]', 'fields = ["is__open"]', 12, "fields", "single _"),
        ('fields = ["open"]', 'fields = ["a b"]', 12, "fields", "letters, digits"),
        ('windows = ["1h"]', 'windows = ["1 h"]', 13, "windows", "`1 h` is not understood"),
        ('windows = ["1h"]', 'windows = ["1h", "60m"]', 13, "windows", "two specs mean the same"),
        ('halflife = "500ms"', "halflife = 500", 14, "halflife", "a duration in quotes"),
        ('halflife = "500ms"', 'halflife = "0s"', 14, "halflife", "is not a duration"),
        ('"last", "count"', '"last", "median"', 15, "statistics", "`median` is unknown; known are count"),
        ('sources = ["door/*", "gate"]', "sources = [1]", 16, "sources", "a list of strings"),
        ('name = "door"\nversion = 1', 'name = "room"\nversion = 2', 10, "name", "declared twice"),
        ("# what", "halflife = 1\n# what", 1, "halflife", "only [[feature_set]] belongs here"),
        ("# what", "[feature_sets]\n# what", 1, "feature_sets", "only [[feature_set]] belongs here"),
    ],
)
def test_a_fault_is_named_with_its_line_and_key(old: str, new: str, line: int, key: str, says: str) -> None:
    """Whoever made the typo is led to the line and the key, and told what may stand there."""
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new))
    assert f"`sets.toml` line {line}, key `{key}`" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[feature_set]\nname = 1", "line 1"),
        (GOOD.replace("version = 2", "version = two"), "line 4"),
        (GOOD.replace('"5s",', '"5s'), "line 6"),
        (GOOD + '\nhalflife = "1s"', "`sets.toml` is not valid TOML"),
        ("", "declares no [[feature_set]]"),
        ("[feature_set]\nname = 'x'", "declares no [[feature_set]]"),
        ("feature_set = [1]", "declares no [[feature_set]]"),
        (GOOD + "".join(GOOD[20:].replace('"room"', f'"r{i}"').replace('"door"', f'"d{i}"') for i in range(40)), "64"),
    ],
)
def test_a_file_that_is_no_declaration_is_refused(text: str, says: str) -> None:
    """Broken TOML is named with its line; a file without sets, or with too many, says so."""
    with pytest.raises(ConfigError, match=r"sets\.toml") as caught:
        parse(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("0s", "above 0"),
        ("-5s", "above 0"),
        ("5", "and a unit"),
        ("5x", "and a unit"),
        ("", "and a unit"),
        ("1.5s", "whole number"),
        ("05s", "whole number"),
        ("٥s", "whole number"),
        ("400d", "longer than 366 days"),
        ("1m/0s", "above 0"),
        ("1m/-10s", "above 0"),
        ("1m/7s", "the slide must divide the size"),
        ("10s/1m", "the slide must divide the size"),
        ("1m/10s/5s", "not understood"),
        ("1h/1ms", "at most 1024 slides"),
        ("session:0s", "above 0"),
        ("session:", "and a unit"),
        ("session:1m/10s", "not understood"),
        ("hop:5s", "kind `hop` is unknown"),
        ("5s\n", "not understood"),
    ],
)
def test_a_bad_window_is_refused_with_what_may_be_written(spec: str, says: str) -> None:
    """Unknown forms, sizes that are not above zero and slides that do not divide the size are all named."""
    with pytest.raises(ConfigError) as caught:
        parse_window(spec)
    assert f"`{spec}`" in str(caught.value)
    assert says in str(caught.value)


@given(st.integers(1, 366 * 86_400), st.sampled_from(["ms", "s"]))
def test_durations_are_exact(number: int, unit: str) -> None:
    """A duration is its number times its unit, in whole microseconds."""
    assert parse_duration(f"{number}{unit}") == number * {"ms": 1_000, "s": 1_000_000}[unit]


def test_settings_override_every_set() -> None:
    """FEATURE_WINDOWS and FEATURE_SET_VERSION replace what the file says; their faults are named as theirs."""
    sets = parse(GOOD, windows=" 2s , session:1m", version=7)
    assert [[w.text for w in s.windows] for s in sets.sets] == [["2s", "session:1m"]] * 2
    assert [s.version for s in sets.sets] == [7, 7]
    with pytest.raises(ConfigError, match=r"FEATURE_WINDOWS: window `5x`"):
        parse(GOOD, windows="5x")
    with pytest.raises(ConfigError, match=r"FEATURE_WINDOWS: two specs"):
        parse(GOOD, windows="5s,5s")


@pytest.mark.parametrize("command", [("signals",), ("backfill", "signals", "--input", "PLACE/sets.toml")])
def test_a_typo_stops_a_command_before_it_touches_anything(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Exit code 2 and one sentence with file, line and key; no folder is made."""
    with Place(tmp_path / "place") as place:
        path = place.root / "sets.toml"
        path.write_text(GOOD.replace("halflife", "half_life", 1), "utf-8")
        done = headrace(place, *(c.replace("PLACE", str(place.root)) for c in command))
        assert (done.code, done.out) == (2, b"")
        assert done.err.startswith(f"headrace: `{path}` line 7, key `half_life`: unknown key")
        assert done.err.count("\n") == 1
        assert sorted(p.name for p in place.root.iterdir()) == ["bus", "sets.toml"]


def test_a_bad_override_stops_a_command(tmp_path: Path) -> None:
    """FEATURE_WINDOWS with a slide that does not divide: exit code 2 and the setting's name."""
    with Place(tmp_path / "place") as place:
        done = headrace(place, "signals", FEATURE_WINDOWS="1m/7s")
        assert done.code == 2
        assert "FEATURE_WINDOWS: window `1m/7s`: the slide must divide the size" in done.err
