"""Text as both adapters must see it: words of a query, globs over uris, rows of chunks."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from operators.documents import chunk_keys
from stores.metadata.records import Upsert

QUERY_WORDS_MAX = 64
"""Further words of a query are not looked for: each costs a pass over its list of chunks."""

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk as it is kept; text and heading can be written as UTF-8, heading is a JSON array."""

    key: int
    text_hash: str
    ordinal: int
    offset: int
    length: int
    page: int | None
    heading: str
    text: str


def chunk_rows(upsert: Upsert) -> list[ChunkRow]:
    """The rows of the document's chunks, in order."""
    hashes = [chunk.text_hash for chunk in upsert.chunks]
    keys = chunk_keys(upsert.document.doc_id, hashes)
    return [
        ChunkRow(
            key,
            text_hash,
            chunk.ordinal,
            chunk.offset,
            chunk.length,
            chunk.page,
            json_text(chunk.heading),
            valid(chunk.text),
        )
        for key, text_hash, chunk in zip(keys, hashes, upsert.chunks, strict=True)
    ]


def valid(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which UTF-8 cannot hold; its length stays the same."""
    return _SURROGATES.sub("\ufffd", text)


def json_text(value: Mapping[str, object] | tuple[str, ...]) -> str:
    """The value as JSON that can be written as UTF-8. Raises ValueError if it is no JSON."""
    try:
        return valid(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"metadata is no JSON: {exc}") from exc


def query_words(query: str) -> list[str]:
    """The distinct words of a query, as typed: runs of letters, digits and their marks; QUERY_WORDS_MAX at most."""
    text = "".join(c if _in_word(c) else " " for c in unicodedata.normalize("NFC", query))
    return list(dict.fromkeys(text.split()))[:QUERY_WORDS_MAX]


def uri_pattern(glob: str) -> str:
    """The glob in the form that SQLite knows: what `[!…]` says in a shell is `[^…]` there."""
    return valid(glob).replace("[!", "[^")


def uri_regex(pattern: str) -> re.Pattern[str]:
    """What SQLite's GLOB takes, as a regular expression for the whole uri."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "[":
            part, at = _class(pattern, at)
            parts.append(part)
        else:
            parts.append({"*": ".*", "?": "."}.get(char, re.escape(char)))
    return re.compile("".join(parts), re.DOTALL)


def check_limit(limit: int) -> None:
    """Raise ValueError for a limit that would list nothing."""
    if limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The regular expression of the class that begins behind a `[`, and where it ends; an open class takes nothing."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    members: list[str] = []
    if pattern[at : at + 1] == "]":  # first it is a member, so no class is empty
        members.append(r"\]")
        at += 1
    before = ""
    while at < len(pattern) and pattern[at] != "]":
        char, after = pattern[at], pattern[at + 1 : at + 2]
        if char == "-" and before and after not in ("", "]"):
            if before <= after:
                members.append(f"{re.escape(before)}-{re.escape(after)}")
            before = ""
            at += 2
        else:
            members.append(re.escape(char))
            before = char
            at += 1
    if at == len(pattern):
        return "(?!)", at
    return f"[{'^' if negated else ''}{''.join(members)}]", at + 1


def _in_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")
