"""The vocabulary of the document path: documents, their text and their chunks. Pure values and names."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

_SEPARATOR = b"\0"


@dataclass(frozen=True, slots=True)
class Found:
    """A document as a listing shows it, unread.

    uri: `file:///…` for files; percent-encoded. fingerprint: changes whenever the content may have
    changed (size, modification time, inode); equal fingerprints mean that nothing need be read.
    """

    uri: str
    fingerprint: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a document. page_starts: offset of each page in the text, rising; () = no pages.

    metadata: front matter, title, author …, JSON-able. media_type: `text/markdown`, `text/plain`, `application/pdf`.
    """

    text: str
    media_type: str
    page_starts: tuple[int, ...] = ()
    metadata: dict[str, object] = field(default_factory=dict)

    def page(self, offset: int) -> int | None:
        """The page (from 1) on which a character stands; None for a document without pages."""
        number = sum(1 for start in self.page_starts if start <= offset)
        return number or None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document's normalised, redacted text: text[offset:offset + length] == self.text.

    ordinal: from 0. page: where it begins. heading: the Markdown headings above it, outermost first.
    """

    ordinal: int
    offset: int
    text: str
    page: int | None = None
    heading: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Characters."""
        return len(self.text)

    @property
    def text_hash(self) -> str:
        """32 hexadecimal digits of BLAKE2b over the text."""
        return blake2b(self.text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def doc_id(uri: str) -> str:
    """Name of the document at a uri: 32 hexadecimal digits."""
    return blake2b(uri.encode(), digest_size=16).hexdigest()


def content_hash(content: bytes) -> str:
    """32 hexadecimal digits of BLAKE2b over a document's bytes."""
    return blake2b(content, digest_size=16).hexdigest()


def memo_key(content: str, shape: str) -> str:
    """Name what these contents (their hash) become under this shape: 32 hexadecimal digits."""
    return blake2b(f"{content}\0{shape}".encode(), digest_size=16).hexdigest()


def chunk_keys(document: str, text_hashes: Iterable[str]) -> tuple[int, ...]:
    """Vector keys (uint64) of a document's chunks, in order; equal texts are told apart by their count."""
    seen: dict[str, int] = {}
    keys: list[int] = []
    for text_hash in text_hashes:
        seen[text_hash] = seen.get(text_hash, -1) + 1
        name = _SEPARATOR.join((document.encode(), text_hash.encode(), str(seen[text_hash]).encode()))
        keys.append(int.from_bytes(blake2b(name, digest_size=8).digest(), "little"))
    return tuple(keys)


def rebuilt_text(chunks: Sequence[Chunk], media_type: str, metadata: dict[str, object]) -> Text:
    """The text that was cut into these chunks, in their order.

    What stood between them was blank, and becomes line feeds. A page begins with the first chunk
    that began on it or on a later one.
    """
    parts: list[str] = []
    end = 0
    for chunk in chunks:
        parts += ["\n" * (chunk.offset - end), chunk.text[max(0, end - chunk.offset) :]]
        end = max(end, chunk.offset + chunk.length)
    pages = [chunk.page for chunk in chunks if chunk.page is not None]
    begins = [chunk.offset for chunk in chunks if chunk.page is not None]
    later = [begins[bisect_left(pages, page)] for page in range(2, max(pages, default=0) + 1)]
    return Text("".join(parts), media_type, (0, *later) if pages else (), metadata)
