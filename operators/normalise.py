"""Normalise: one form for texts that mean the same, so that chunks change only where words did. Pure, idempotent."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from operators.documents import Text
from operators.extract import MARKDOWN, PDF, sound

NORMALISER = "1"
"""Raised whenever the same text gives another."""

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\ufeff\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff]")
_BLANKS = " \t\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_FENCE_END = re.compile(r"[ \t>]*(`{3,}|~{3,})[ \t]*")
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(`{3,}|~{3,})(.*)")
_INDENTED = re.compile(r"(?: {4}| {0,3}\t)")
_BROKEN = re.compile(r"(?:^|(?<=[\s(\[{“‘\"']))([\w'’-]*\w)-$")
_REST = re.compile(r"([^\W_][\w'’]*)([^\s\w-]*)(?:[ \t]+|$)")
_HYPHENATED = re.compile(r"\w+-\w+")
_NUMBER = re.compile(r"\d{1,5}")
_ROMAN = re.compile(r"[ivxlc]{1,8}", re.IGNORECASE)
_ROMAN_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}

_NEAR_PAGES = 4
_REPEATS = 3
_FURNITURE_LINES = 3
_FURNITURE_CHARS = 200


def normalise(text: Text) -> Text:
    """The text in normal form, its page starts moved along; normal texts are left as they are.

    Everywhere: NFC; every line end a line feed; no control characters but tabs, no soft hyphens, no byte order marks;
    no blanks at line ends; at most one blank line in a row and none at either end. In Markdown, code keeps its blanks
    and blank lines. In a PDF, lines at the edge of a page that repeat on nearby pages (with a page number that counts
    along, or the same) are gone, no blank lines stand at a page's edges, and a word hyphenated across lines is whole
    again, at the place where it began. Strings in the metadata are cleaned of control characters, too.
    """
    pages = [_lines(_clean(page)) for page in _split_pages(text)]
    tidy = _tidy_markdown if text.media_type == MARKDOWN else _tidy
    pages = [tidy(page) for page in pages]
    if text.media_type == PDF:
        pages = _mend_pages(pages)
    body, starts = _join_pages(pages)
    metadata = {_clean(key): _clean_value(value) for key, value in text.metadata.items()}
    return replace(text, text=body, page_starts=starts if text.page_starts else (), metadata=metadata)


def _clean(text: str) -> str:
    text = _LINE_ENDS.sub("\n", text)
    if text.isascii():
        return _UNSEEN.sub("", text)
    return unicodedata.normalize("NFC", _UNSEEN.sub("", sound(text)))


def _clean_value(value: object) -> object:
    match value:
        case str():
            return _clean(value)
        case dict():
            return {_clean(str(key)): _clean_value(item) for key, item in value.items()}
        case list():
            return [_clean_value(item) for item in value]
    return value


def _split_pages(text: Text) -> list[str]:
    if not text.page_starts:
        return [text.text]
    bounds = [0, *text.page_starts[1:], len(text.text)]
    return [text.text[start:end] for start, end in pairwise(bounds)]


def _lines(page: str) -> list[str]:
    """The lines of a page; the line feed that ends it begins no further line."""
    return page.removesuffix("\n").split("\n") if page else []


def _join_pages(pages: Sequence[Sequence[str]]) -> tuple[str, tuple[int, ...]]:
    """The text, and where each page begins in it; a page without lines begins where the next with lines does."""
    lengths = [sum(len(line) + 1 for line in page) for page in pages]
    body = "\n".join(line for page in pages for line in page)
    return body, tuple(min(start, len(body)) for start in accumulate(lengths[:-1], initial=0))


def _tidy(lines: Sequence[str]) -> list[str]:
    """No blanks at line ends, at most one blank line in a row, none at the edges."""
    kept: list[str] = []
    for line in (line.rstrip(_BLANKS) for line in lines):
        if line or (kept and kept[-1]):
            kept.append(line)
    return kept[:-1] if kept and not kept[-1] else kept


def _tidy_markdown(lines: Sequence[str]) -> list[str]:
    """As `_tidy`, but code between fences and indented code stay to the blank."""
    kept: list[str] = []
    gap: list[str] = []
    for line, code in mark_code(lines):
        if not code and not line.strip(_BLANKS):
            gap.append(line)
            continue
        indented = bool(_INDENTED.match(line))
        if gap and kept:
            inside = indented and bool(_INDENTED.match(kept[-1]))
            kept += gap if inside else [""]
        gap = []
        kept.append(line if code or indented else line.rstrip(_BLANKS))
    while kept and not kept[-1].strip(_BLANKS):
        kept.pop()
    return kept


def mark_code(lines: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each line of Markdown, and whether it is code between fences; the fences themselves are not."""
    fence = ""
    for line in lines:
        if fence:
            end = _FENCE_END.fullmatch(line)
            ends = end is not None and end[1].startswith(fence)
            yield line, not ends
            fence = "" if ends else fence
        else:
            begin = _FENCE.match(line)
            yield line, False
            fence = begin[1] if begin and not (begin[1][0] == "`" and "`" in begin[2]) else ""


def _mend_pages(pages: list[list[str]]) -> list[list[str]]:
    """Without headers and footers and with whole words; again until nothing changes, for one mend may bare another."""
    while True:
        mended = _join_words(_without_furniture(pages))
        mended = [_tidy(page) for page in mended]
        if mended == pages:
            return pages
        pages = mended


def _without_furniture(pages: list[list[str]]) -> list[list[str]]:
    """Take the lines away that repeat at the upper or the lower edge of nearby pages."""
    for edge in (_Edge(0, 1), _Edge(-1, -1)):
        depths = _furniture_depths(pages, edge)
        pages = [edge.without(page, depth) for page, depth in zip(pages, depths, strict=True)]
    return pages


@dataclass(frozen=True, slots=True)
class _Edge:
    """The upper edge of pages (first=0, step=1) or the lower (first=-1, step=-1)."""

    first: int
    step: int

    def line(self, page: list[str], depth: int) -> str:
        """The line `depth` lines inside the edge."""
        return page[self.first + self.step * depth]

    def without(self, page: list[str], depth: int) -> list[str]:
        """The page without `depth` lines at the edge."""
        return page[depth:] if self.step > 0 else page[: len(page) - depth]


def _furniture_depths(pages: list[list[str]], edge: _Edge) -> list[int]:
    """How many lines at the edge of each page are furniture.

    From the edge inwards, a line is if it stands at the same depth on several of the nearby pages that were furniture
    so far. A page of which more lines repeat than headers have is a page of a form: it keeps them all.
    """
    depths = [0] * len(pages)
    open_pages = set(range(len(pages)))
    for depth in range(_FURNITURE_LINES + 1):
        places: dict[tuple[object, ...], list[int]] = {}
        for number in sorted(open_pages):
            if depth < len(pages[number]):
                for name in _names(edge.line(pages[number], depth), number):
                    places.setdefault(name, []).append(number)
        repeated = {number for numbers in places.values() for number in _near_others(numbers)}
        for number in repeated:
            depths[number] = depth + 1
        open_pages &= repeated
    return [depth if depth <= _FURNITURE_LINES else 0 for depth in depths]


def _near_others(numbers: list[int]) -> Iterator[int]:
    """Those of rising page numbers that have enough others within reach."""
    for number in numbers:
        near = bisect_left(numbers, number + _NEAR_PAGES + 1) - bisect_left(numbers, number - _NEAR_PAGES)
        if near >= _REPEATS:
            yield number


def _names(line: str, page: int) -> Iterator[tuple[object, ...]]:
    """What a line has in common with its like on other pages.

    Its words; its words but for a number that counts pages; or such a number alone, before or after other words.
    """
    words = " ".join(line.split())
    if not words or len(words) > _FURNITURE_CHARS:
        return
    yield (words,)
    for found in _NUMBER.finditer(words):
        yield words[: found.start()], int(found[0]) - page, words[found.end() :]
    tokens = words.split(" ")
    for place in (0, -1):
        number = _page_number(tokens[place])
        if number is not None:
            yield place, number - page


def _page_number(token: str) -> int | None:
    """The number that a word is, in Arabic or Roman digits."""
    if _NUMBER.fullmatch(token):
        return int(token)
    return _roman(token) if _ROMAN.fullmatch(token) else None


def _roman(digits: str) -> int:
    values = [_ROMAN_VALUES[digit] for digit in digits.lower()]
    return sum(-a if a < b else a for a, b in pairwise([*values, 0]))


def _join_words(pages: list[list[str]]) -> list[list[str]]:
    """Words hyphenated across lines, made whole on the line where they began.

    The hyphen stays before a capital or a digit, after a digit, in a word that has another, and where the text has the
    word with it elsewhere.
    """
    known: Counter[str] | None = None
    out: list[list[str]] = [[] for _ in pages]
    last: list[str] | None = None  # the page of the line before
    for page, lines in zip(out, pages, strict=True):
        for line in lines:
            head = _BROKEN.search(last[-1]) if last and last[-1].endswith("-") else None
            rest = _REST.match(line) if head else None
            if last is None or head is None or rest is None:
                page.append(line)
                last = page
                continue
            if known is None:
                known = Counter(word.lower() for page in pages for line in page for word in _HYPHENATED.findall(line))
            last[-1] = last[-1][: head.start(1)] + _whole(head[1], rest[1], known) + rest[2]
            if remaining := line[rest.end() :]:
                page.append(remaining)
                last = page
    return out


def _whole(head: str, rest: str, known: Counter[str]) -> str:
    """The word of two parts."""
    bound = "-" in head or f"{head}-{rest}".lower() in known
    keeps = bound or not rest[0].islower() or not head[-1].isalpha()
    return f"{head}-{rest}" if keeps else head + rest
