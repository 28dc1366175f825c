"""Feature sets: what is computed, parsed from the text of `feature_sets.toml`.

Pure: text in, frozen dataclasses out. Every complaint names the line and the key.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from operators.errors import ConfigError

STATISTICS = (
    "count",
    "sum",
    "mean",
    "std",
    "min",
    "max",
    "first",
    "last",
    "ewma",
    "ewm_std",
    "zscore",
)
"""Every statistic, in the order of the columns."""

SETS_MAX = 64
"""Feature sets a flow can hold: an event carries one bit for each that it feeds."""

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h|d)")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_KEYS = ("name", "version", "fields", "windows", "halflife", "statistics", "sources")
_DURATION_US_MAX = 366 * _UNITS_US["d"]
_PANES_MAX = 1024


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """One window of a feature set, aligned to the Unix epoch.

    text: as declared: `5s` tumbling, `1m/10s` sliding (size/slide), `session:30s` gap.
    size_us: length in microseconds; for a session the gap.
    slide_us: distance of two starts in microseconds; equal to size_us unless sliding.
    """

    text: str
    size_us: int
    slide_us: int
    session: bool

    @property
    def folder(self) -> str:
        """The spec as it stands in paths and names of views: `/` becomes `_`."""
        return self.text.replace("/", "_")

    @property
    def panes(self) -> int:
        """Slides that one window spans; 1 for tumbling and session windows."""
        return self.size_us // self.slide_us


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """One `[[feature_set]]`: fields × windows × statistics under a name and a version.

    halflife_us: halflife of the EW family in microseconds.
    sources: globs on the signal's `source`; empty means every source, a missing one too.
    """

    name: str
    version: int
    fields: tuple[str, ...]
    windows: tuple[WindowSpec, ...]
    halflife_us: int
    statistics: tuple[str, ...] = STATISTICS
    sources: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the value columns, `<field>__<statistic>`, field by field."""
        return tuple(f"{f}__{s}" for f in self.fields for s in self.statistics)

    def takes(self, source: str | None) -> bool:
        """Whether a signal of this source feeds the set."""
        if not self.sources:
            return True
        return source is not None and any(fnmatchcase(source, glob) for glob in self.sources)


@dataclass(frozen=True, slots=True)
class FeatureSets:
    """All the sets of one flow, in the order of declaration."""

    sets: tuple[FeatureSet, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Union of the sets' fields, in order of first mention: the columns to decode."""
        return tuple(dict.fromkeys(f for s in self.sets for f in s.fields))

    def mask(self, source: str | None) -> int:
        """Bits of the sets that a signal of this source feeds; bit i is set i."""
        return sum(1 << i for i, s in enumerate(self.sets) if s.takes(source))


def parse_duration(text: str) -> int:
    """Turn `500ms`, `5s`, `1m`, `2h` or `7d` into microseconds.

    Raises ConfigError for anything else, for zero, and for more than 366 days.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        message = f"`{text}` is not a duration; write a whole number above 0 and a unit, as 500ms, 5s, 1m, 2h or 7d"
        raise ConfigError(message)
    duration_us = int(match[1]) * _UNITS_US[match[2]]
    if duration_us > _DURATION_US_MAX:
        raise ConfigError(f"`{text}` is longer than 366 days")
    return duration_us


def parse_window(text: str) -> WindowSpec:
    """Turn a window spec (`5s`, `1m/10s`, `session:30s`) into a WindowSpec.

    Raises ConfigError for an unknown form, a size or slide that is not above 0, a slide that does
    not divide the size, and for more than 1024 slides a window.
    """
    kind, colon, gap = text.partition(":")
    try:
        if colon:
            if kind != "session":
                raise ConfigError(f"kind `{kind}` is unknown")
            gap_us = parse_duration(gap)
            return WindowSpec(text, gap_us, gap_us, session=True)
        size, slash, slide = text.partition("/")
        size_us = parse_duration(size)
        slide_us = parse_duration(slide) if slash else size_us
    except ConfigError as error:
        message = (
            f"window `{text}` is not understood ({error}); write `5s` for tumbling,"
            " `1m/10s` for sliding (size/slide) or `session:30s` for sessions (gap)"
        )
        raise ConfigError(message) from error
    if slide_us > size_us or size_us % slide_us:
        raise ConfigError(f"window `{text}`: the slide must divide the size")
    if size_us // slide_us > _PANES_MAX:
        raise ConfigError(f"window `{text}`: at most {_PANES_MAX} slides fit a window")
    return WindowSpec(text, size_us, slide_us, session=False)


def parse_feature_sets(
    text: str,
    *,
    where: str,
    windows: str | None = None,
    version: int | None = None,
) -> FeatureSets:
    """Parse the text of `feature_sets.toml`; `where` names the file in complaints.

    windows: comma-separated specs that replace those of every set (FEATURE_WINDOWS), or None.
    version: replaces the version of every set (FEATURE_SET_VERSION), or None.
    Raises ConfigError naming the line and the key for a syntax error, an unknown or missing key, a
    wrong type, a bad name, a bad or repeated window, and a repeated (name, version).
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"`{where}` is not valid TOML: {error}") from error
    lines = _Lines(text, where)
    for key in document:
        if key != "feature_set":
            raise ConfigError(f"{lines.at(None, key)}: unknown key `{key}`; only [[feature_set]] belongs here")
    tables = document.get("feature_set", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise ConfigError(f"`{where}` declares no [[feature_set]]; add one with {', '.join(_KEYS[:5])}")
    if len(tables) > SETS_MAX:
        raise ConfigError(f"`{where}` declares {len(tables)} feature sets; at most {SETS_MAX} fit one flow")
    override = None if windows is None else _windows([w.strip() for w in windows.split(",")], "FEATURE_WINDOWS")
    sets: list[FeatureSet] = []
    for index, table in enumerate(tables):
        declared = _feature_set(table, lines, index)
        if override is not None:
            declared = replace(declared, windows=override)
        if version is not None:
            declared = replace(declared, version=version)
        if any((s.name, s.version) == (declared.name, declared.version) for s in sets):
            at = lines.at(index, "name")
            raise ConfigError(f"{at}: feature set `{declared.name}` version {declared.version} is declared twice")
        sets.append(declared)
    return FeatureSets(tuple(sets))


@dataclass(frozen=True, slots=True)
class _Lines:
    """Finds the line on which a key of the n-th [[feature_set]] stands; tomllib does not tell."""

    text: str
    where: str

    def at(self, index: int | None, key: str) -> str:
        declared = rf"\s*\[?\[?\s*[\"']?{re.escape(key)}[\"']?\s*[\]=.]"
        seen = -1
        header = 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if re.match(r"\s*\[\[\s*feature_set\s*\]\]", line):
                seen += 1
                header = number if seen == index else header
            elif (index is None or seen == index) and re.match(declared, line):
                return f"`{self.where}` line {number}, key `{key}`"
        return f"`{self.where}` line {header or 1}, key `{key}`"


def _feature_set(table: dict[str, object], lines: _Lines, index: int) -> FeatureSet:
    for key in table:
        if key not in _KEYS:
            message = f"{lines.at(index, key)}: unknown key `{key}`; known are {', '.join(_KEYS)}"
            raise ConfigError(message)
    for key in _KEYS[:5]:
        if key not in table:
            raise ConfigError(f"{lines.at(index, key)}: the feature set lacks `{key}`")
    name, version, halflife = table["name"], table["version"], table["halflife"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{lines.at(index, 'name')}: `{name}` must be lower-case letters, digits and _, letter first")
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version < 1 << 31:
        raise ConfigError(f"{lines.at(index, 'version')}: `{version}` must be a whole number above 0")
    if not isinstance(halflife, str):
        raise ConfigError(f'{lines.at(index, "halflife")}: `{halflife}` must be a duration in quotes, as "30s"')
    fields = _strings(table, "fields", lines, index)
    for field in fields:
        if not _FIELD.fullmatch(field) or "__" in field:
            at = lines.at(index, "fields")
            raise ConfigError(f"{at}: `{field}` must be letters, digits and single _, not starting with a digit")
    statistics = _strings(table, "statistics", lines, index) if "statistics" in table else STATISTICS
    for statistic in statistics:
        if statistic not in STATISTICS:
            message = f"{lines.at(index, 'statistics')}: `{statistic}` is unknown; known are {', '.join(STATISTICS)}"
            raise ConfigError(message)
    try:
        halflife_us = parse_duration(halflife)
    except ConfigError as error:
        raise ConfigError(f"{lines.at(index, 'halflife')}: {error}") from error
    return FeatureSet(
        name,
        version,
        fields,
        _windows(_strings(table, "windows", lines, index), lines.at(index, "windows")),
        halflife_us,
        tuple(s for s in STATISTICS if s in statistics),
        _strings(table, "sources", lines, index) if "sources" in table else (),
    )


def _strings(table: dict[str, object], key: str, lines: _Lines, index: int) -> tuple[str, ...]:
    value = table[key]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{lines.at(index, key)}: must be a list of strings with at least one entry")
    if len(set(value)) != len(value):
        raise ConfigError(f"{lines.at(index, key)}: an entry stands there twice")
    return tuple(value)


def _windows(texts: list[str] | tuple[str, ...], at: str) -> tuple[WindowSpec, ...]:
    try:
        specs = tuple(parse_window(text) for text in texts)
    except ConfigError as error:
        raise ConfigError(f"{at}: {error}") from error
    if len({(s.size_us, s.slide_us, s.session) for s in specs}) != len(specs):
        raise ConfigError(f"{at}: two specs mean the same window")
    return specs
