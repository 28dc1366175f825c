"""Redact: what is personal in a text becomes a tag of its kind, before anything is cut, stored or shown. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any, Literal

from operators.documents import Text
from operators.errors import MissingExtraError
from operators.redact_rules import RULES, Kind, Personal, find, without_overlaps

Mode = Literal["off", "regex", "presidio"]
"""regex: this project's own rules. presidio: those and Microsoft Presidio's, some 50 to 100 times slower."""

_Find = Callable[[str], list[Personal]]

_PRESIDIO_KINDS: dict[str, Kind] = {  # not IP_ADDRESS, which takes every version number of four parts for one
    "CREDIT_CARD": "CARD",
    "ES_NIE": "NATIONAL_ID",
    "ES_NIF": "NATIONAL_ID",
    "IBAN_CODE": "IBAN",
    "IT_FISCAL_CODE": "NATIONAL_ID",
    "PHONE_NUMBER": "PHONE",
    "UK_NINO": "NATIONAL_ID",
    "US_ITIN": "NATIONAL_ID",
    "US_PASSPORT": "NATIONAL_ID",
    "US_SSN": "NATIONAL_ID",
}
_PRESIDIO_UNUSED = ("SpacyRecognizer", "EmailRecognizer", "UrlRecognizer")
"""The first needs a language model; the others ask the network for a list of top-level domains."""
_PRESIDIO_SCORE = 0.5
_NEAR_LINES = 4


def redaction_shape(mode: Mode) -> str:
    """What shapes a redacted text: mode and version of the rules. Raises MissingExtraError without Presidio."""
    if mode == "off":
        return "redact-off"
    if mode == "regex":
        return f"redact-{RULES}/regex"
    try:
        return f"redact-{RULES}/presidio-{version('presidio-analyzer')}"
    except PackageNotFoundError as error:
        raise MissingExtraError("PII_REDACTION=presidio", "presidio") from error


def redact(text: Text, mode: Mode) -> tuple[Text, dict[str, int]]:
    """The text with tags such as `[EMAIL]` in place of what is personal, and how many of each kind.

    Kinds: EMAIL, PHONE, IP, CARD, IBAN, NATIONAL_ID. Names of people are none of them.
    Page starts move along; one within something personal moves behind its tag. Strings and numbers of the metadata
    are redacted and counted, too, read together with their names. A redacted text stays as it is. What was found is
    neither logged nor kept. Raises MissingExtraError if Presidio is asked for and not installed.
    """
    if mode == "off":
        return text, {}
    look = find if mode == "regex" else _find_with_presidio()
    counts = Counter[str]()
    body, starts = text.text, text.page_starts
    found = look(body)
    while found:
        counts.update(one.kind for one in found)
        body, starts, places = _replaced(body, found), _moved(starts, found), _places(found)
        found = _look_again(body, places, look)
    metadata = _redact_value(text.metadata, "", look, counts)
    assert isinstance(metadata, dict)
    return replace(text, text=body, page_starts=starts, metadata=metadata), dict(sorted(counts.items()))


def _tag(one: Personal) -> str:
    return f"[{one.kind}]"


def _replaced(text: str, found: Sequence[Personal]) -> str:
    pieces: list[str] = []
    done = 0
    for one in found:
        pieces += [text[done : one.start], _tag(one)]
        done = one.end
    return "".join([*pieces, text[done:]])


def _places(found: Sequence[Personal]) -> list[int]:
    """Where the tags stand in the text after all replacements."""
    grown = accumulate((len(_tag(one)) - (one.end - one.start) for one in found), initial=0)
    return [one.start + more for one, more in zip(found, grown, strict=False)]


def _look_again(text: str, places: Sequence[int], look: _Find) -> list[Personal]:
    """What is personal on the lines near the tags, for one number may have masked another; the rest is as it was."""
    windows: list[tuple[int, int]] = []
    for place in places:
        begin, end = place, place
        for _ in range(_NEAR_LINES):
            begin = text.rfind("\n", 0, max(begin, 0))
            end = text.find("\n", end + 1) if end < len(text) else end
            end = end if end >= 0 else len(text)
        if windows and begin <= windows[-1][1]:
            windows[-1] = windows[-1][0], end
        else:
            windows.append((begin + 1, end))
    return [
        replace(one, start=one.start + begin, end=one.end + begin)
        for begin, end in windows
        for one in look(text[begin:end])
    ]


def _moved(offsets: Sequence[int], found: Sequence[Personal]) -> tuple[int, ...]:
    """Offsets in the text as they are after all replacements."""
    starts = [one.start for one in found]
    grown = list(accumulate((len(_tag(one)) - (one.end - one.start) for one in found), initial=0))
    moved = []
    for offset in offsets:
        before = bisect_right(starts, offset - 1)
        end = found[before - 1].end if before else 0
        moved.append(max(offset, end) + grown[before])
    return tuple(moved)


def _redact_value(value: object, name: str, look: _Find, counts: Counter[str]) -> object:
    """A value of the metadata without what is personal. A name such as `phone` counts as words before its value."""
    match value:
        case dict():
            return {
                str(_redact_value(str(key), "", look, counts)): _redact_value(item, str(key), look, counts)
                for key, item in value.items()
            }
        case list():
            return [_redact_value(item, name, look, counts) for item in value]
        case bool() | None:
            return value
        case str() | int() | float():
            head = f"{name}: " if name else ""
            shown = head + str(value)
            while found := [one for one in look(shown) if one.start >= len(head)]:
                counts.update(one.kind for one in found)
                shown = _replaced(shown, found)
            return value if shown == head + str(value) else shown[len(head) :]
    return value


@cache
def _find_with_presidio() -> _Find:
    """Our rules, and what Presidio finds beyond them. Loads Presidio (seconds) once a process."""
    try:
        analyser: Any = _presidio_analyser()
    except ImportError as error:
        raise MissingExtraError("PII_REDACTION=presidio", "presidio") from error

    def look(text: str) -> list[Personal]:
        results = analyser.analyze(text, language="en", entities=list(_PRESIDIO_KINDS), score_threshold=_PRESIDIO_SCORE)
        more = [Personal(_PRESIDIO_KINDS[one.entity_type], one.start, one.end) for one in results]
        more.sort(key=lambda one: (one.start, -one.end, one.kind))
        return without_overlaps([*find(text), *more])

    return look


def _presidio_analyser() -> Any:  # noqa: ANN401  # Presidio carries no types where it is not installed
    """Presidio's engine with its pattern recognisers and a blank language model."""
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": spacy.blank("en")}
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=engine)
    for name in _PRESIDIO_UNUSED:
        registry.remove_recognizer(name)
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])
