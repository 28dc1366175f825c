"""Chunk: a text into pieces that fit the model, cut where the text itself is cut, with their exact places. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from operators.documents import Chunk, Text
from operators.errors import ConfigError
from operators.extract import MARKDOWN
from operators.normalise import mark_code

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

CHUNKER = "1"
"""Raised whenever the same text is cut otherwise."""

Unit = Literal["chars", "tokens"]

_SPECIAL_TOKENS = 2  # [CLS] and [SEP], which the model puts round every text
_PART_LEAST, _PART_MOST = 50_000, 100_000
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_NO_PARAGRAPH = re.compile(r"[ \t]*(?:$|[-*+>|#=`~]|\d{1,9}[.)][ \t])| {4}|\t")
_HEADING_CHARS = 200


class Chunker:
    """Cuts texts into chunks of at most `size` units, neighbours sharing at most `overlap` (blanks at its ends apart).

    Markdown is cut at its headings, blocks and sentences, other text at blank lines, lines and sentences; within a word
    only where one word is larger than a chunk. Threads may share a chunker.
    """

    def __init__(self, size: int, overlap: int = 0, unit: Unit = "chars", tokenizer: Tokenizer | None = None) -> None:
        """Count characters, or tokens of `tokenizer`, of which two are kept for the model's own.

        The tokenizer is copied without its truncation and padding, which would make all texts the same size.
        Raises ConfigError if the sizes leave no room or tokens are asked for without a tokenizer.
        """
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        room = size - (_SPECIAL_TOKENS if unit == "tokens" else 0)
        if room < 1 or not 0 <= overlap < room:
            raise ConfigError(
                f"CHUNK_SIZE `{size}` and CHUNK_OVERLAP `{overlap}` ({unit}) leave no room: "
                f"the overlap must be at least 0 and below {max(room, 1)}"
            )
        self.shape = f"chunk-{CHUNKER}/{unit}-{size}-{overlap}/splitter-{version('semantic-text-splitter')}"
        self._markdown: MarkdownSplitter
        self._plain: TextSplitter
        if unit == "chars":
            self._markdown = MarkdownSplitter(room, overlap=overlap)
            self._plain = TextSplitter(room, overlap=overlap)
            return
        if tokenizer is None:
            raise ConfigError(
                "CHUNK_UNIT `tokens` needs the tokenizer of an embedder; take `chars` or another embedder"
            )
        counter = _counting(tokenizer)
        self.shape += f"/tokenizer-{blake2b(counter.to_str().encode(), digest_size=8).hexdigest()}"
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(counter, room, overlap=overlap)
        self._plain = TextSplitter.from_huggingface_tokenizer(counter, room, overlap=overlap)

    def chunks(self, text: Text) -> list[Chunk]:
        """The chunks of a normalised text, in order; none for a blank one.

        text[offset:offset + length] is the chunk's text, exactly; every character that is not blank is in a chunk; no
        chunk is blank at either end.
        """
        body = text.text
        markdown = text.media_type == MARKDOWN
        headings = list(_headings(body)) if markdown else []
        splitter = self._markdown if markdown else self._plain
        chunks: list[Chunk] = []
        above = _Above(headings)
        for begin, end in _parts(body, [heading.offset for heading in headings]):
            for place, piece in splitter.chunk_indices(body[begin:end]):
                shown = piece.strip()  # Markdown may begin with a blank
                if not shown:
                    continue
                offset = begin + place + len(piece) - len(piece.lstrip())
                page = bisect_right(text.page_starts, offset) or None
                chunks.append(Chunk(len(chunks), offset, shown, page, above.at(offset)))
        return chunks


def _counting(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that counts all tokens of a text and no others."""
    from tokenizers import Tokenizer as Tokenizers

    copy = Tokenizers.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _parts(text: str, headings: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of a long text that are cut one by one: the splitter's time grows with the square.

    A part ends before a heading if there is one in reach, else after a blank line, a line, a word.
    """
    begin = 0
    while len(text) - begin > _PART_MOST:
        least, most = begin + _PART_LEAST, begin + _PART_MOST
        place = bisect_right(headings, least)
        end = headings[place] if place < len(headings) and headings[place] < most else -1
        for mark in ("\n\n", "\n", " "):
            if end < 0:
                found = text.find(mark, least, most)
                end = found + len(mark) if found >= 0 else -1
        end = end if end >= 0 else most
        yield begin, end
        begin = end
    yield begin, len(text)


@dataclass(frozen=True, slots=True)
class _Heading:
    """A heading of Markdown. level: from 1, the outermost."""

    offset: int
    level: int
    title: str


class _Above:
    """The headings above a place; asked at rising places."""

    def __init__(self, headings: Sequence[_Heading]) -> None:
        self._coming = iter(headings)
        self._next = next(self._coming, None)
        self._open: list[_Heading] = []

    def at(self, offset: int) -> tuple[str, ...]:
        """Titles, outermost first; a heading at the place itself is not above it."""
        while self._next is not None and self._next.offset < offset:
            self._open = [heading for heading in self._open if heading.level < self._next.level] + [self._next]
            self._next = next(self._coming, None)
        return tuple(heading.title for heading in self._open if heading.title)


def _headings(text: str) -> Iterator[_Heading]:
    """The headings of Markdown outside of code: `# so`, and those underlined with = or -."""
    offset = 0
    before: str | None = None  # the line before, if it can be a heading that is underlined
    before_offset = 0
    for line, code in mark_code(text.split("\n")):
        found = None if code else _ATX.match(line)
        underline = None if code or before is None else _UNDERLINE.fullmatch(line)
        if found:
            yield _Heading(offset, len(found[1]), _title(_unhashed(line[found.end() :])))
        elif underline and before is not None:
            yield _Heading(before_offset, 1 if underline[1][0] == "=" else 2, _title(before))
        before = None if code or found or underline or _NO_PARAGRAPH.match(line) else line
        before_offset = offset
        offset += len(line) + 1


def _unhashed(title: str) -> str:
    """A title without the hashes that may close it."""
    bare = title.rstrip(" \t").rstrip("#")
    return bare if not bare or bare[-1] in " \t" else title


def _title(line: str) -> str:
    return " ".join(line.split())[:_HEADING_CHARS]
