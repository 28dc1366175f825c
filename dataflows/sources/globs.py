"""Globs over paths below a folder, as INGEST_SOURCES, SOURCE_INCLUDE and SOURCE_EXCLUDE hold them. Pure.

`*` is any run of characters within a name, `?` one, `[a-z]` one of these, `[!a-z]` none of these, `**` any number
of folders. Case does not matter: `README.MD` and `Report.PDF` are what people write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from operators.errors import ConfigError

_ANY_FOLDERS = "(?:[^/]+/)*"
_BELOW = "(?:/.+)?"


class Globs:
    """A set of globs: one without a slash fits a name at any depth, `name/` and `name/**` a folder and all in it."""

    def __init__(self, patterns: Sequence[str], setting: str) -> None:
        """Understand the patterns; blank ones are left out. Raises ConfigError naming the setting."""
        wanted = [pattern for pattern in map(str.strip, patterns) if pattern.strip("/")]
        for pattern in wanted:
            _compiled(_regex(pattern), pattern, setting)
        self._fits = re.compile("|".join(map(_regex, wanted)) or "(?!)", re.IGNORECASE | re.DOTALL).fullmatch

    def fit(self, path: str) -> bool:
        """Whether one of the globs fits the path, which is relative to its source's root."""
        return self._fits(path) is not None


class FolderGlob:
    """One glob that names files and folders, of which all below is meant."""

    def __init__(self, pattern: str, setting: str) -> None:
        """Understand the pattern. Raises ConfigError naming the setting."""
        parts = pattern.strip("/").split("/")
        self._takes = _compiled(_joined(parts) + _BELOW, pattern, setting).fullmatch
        fixed = parts[: parts.index("**")] if "**" in parts else parts
        leads = [_joined(parts[:count]) for count in range(1, len(fixed) + 1)]
        if "**" in parts:
            leads.append(_joined([*fixed, "**"]))
        self._leads = _compiled("|".join(leads), pattern, setting).fullmatch

    def takes(self, path: str) -> bool:
        """Whether it fits the path or a folder above it."""
        return self._takes(path) is not None

    def leads_to(self, folder: str) -> bool:
        """Whether something below the folder may be taken."""
        return self._leads(folder) is not None or self.takes(folder)


def _regex(pattern: str) -> str:
    core = pattern.removeprefix("./").strip("/")
    core = core if "/" in core else f"**/{core}"
    return _joined((f"{core}/**" if pattern.endswith("/") else core).split("/"))


def _joined(parts: Sequence[str]) -> str:
    """The regular expression of a whole path; `**` at the end takes the folder before it too."""
    *folders, last = parts
    regex = "".join(_ANY_FOLDERS if part == "**" else f"{_name(part)}/" for part in folders)
    if last != "**":
        return f"{regex}{_name(last)}"
    return regex.removesuffix("/") + _BELOW if regex.endswith("/") else f"{regex}.+"


def _name(part: str) -> str:
    """The regular expression of one name."""
    return "".join(map(_piece, re.findall(r"\*+|\[!?\]?[^\]]*\]|.", part, re.DOTALL)))


def _piece(text: str) -> str:
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if len(text) > 1:
        negated = text.startswith("[!")
        members = re.sub(r"([\\\[\]^&~|])", r"\\\1", text[1 + negated : -1])
        return f"[{'^' if negated else ''}{members}]"
    return re.escape(text)


def _compiled(regex: str, pattern: str, setting: str) -> re.Pattern[str]:
    try:
        return re.compile(regex, re.IGNORECASE | re.DOTALL)
    except re.error as exc:
        raise ConfigError(f"{setting} holds the glob `{pattern}`, which cannot be understood: {exc}") from exc
