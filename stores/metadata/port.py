"""What a metadata store promises: a document's change is visible whole or not at all.

Six small protocols, so that a function asks for what it needs; `MetadataStore` is all of them. All methods
raise ValueError once the store is closed and for a space that was never added, RetryableError when others
hold the store locked for too long, CorruptStoreError when it is damaged, FatalError when the disk is full or
fails. Several threads and processes may use one store: many read while one writes, other writers wait.
Text that is no valid Unicode is kept with replacement characters, a character for a character.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from stores.metadata.records import (
    Change,
    ChunkRecord,
    DatasetVersion,
    Document,
    Known,
    Run,
    Space,
    StoredChunk,
    TextHit,
)


class Ledger(Protocol):
    """Which documents there are, and their changes."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes, in their order, all or none; durable when it returns.

        May be repeated: the same changes again leave the store as it is. An unchanged chunk is not written
        again. Empty input is a no-op. Raises ValueError, with nothing changed, if a space was never added.
        """
        ...

    def ledger(self, source: str | None = None) -> Iterator[Known]:
        """Yield what is known of every document (of the source), by rising uri.

        A document that changes while the iterator is read may be shown as it was or as it is.
        """
        ...

    def document(self, doc_id: str) -> Document | None:
        """Return the document, or None if it is not known."""
        ...

    def incomplete(self, space: str, limit: int = 1000) -> Sequence[str]:
        """Return the uris of up to `limit` ready documents whose latest state is not in the space, sorted."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Return the number of documents by state: `ready` and `dead`."""
        ...


class Chunks(Protocol):
    """The chunks of a space, by document, key, text and words. Keys are those of `operators.documents.chunk_keys`."""

    def chunks_of(self, doc_id: str, space: str) -> Sequence[StoredChunk]:
        """Return the document's chunks in the space by rising ordinal; empty if it has none."""
        ...

    def find_by_text_hash(self, space: str, text_hashes: Sequence[str]) -> Mapping[str, int]:
        """Return, for each text that the space holds, the lowest key of a chunk with it; others are left out."""
        ...

    def chunks(self, space: str, keys: Sequence[int]) -> Mapping[int, ChunkRecord]:
        """Return the chunks with these keys; keys that are not in the space are left out."""
        ...

    def keys(self, space: str, *, after: int | None = None, limit: int = 10_000) -> Sequence[int]:
        """Return up to `limit` (at least 1) keys of the space that are above `after`, rising; empty at the end."""
        ...

    def search_text(self, space: str, query: str, *, limit: int, uri_glob: str | None = None) -> Sequence[TextHit]:
        """Return up to `limit` (at least 1) chunks with any word of the query, best first (BM25), ties by key.

        The query is plain text; no character of it is an operator, and a query without words finds nothing.
        Words are compared without case and accents. uri_glob: `*` is any run of characters (also of slashes),
        `?` one, `[a-z]` one of these, `[^a-z]` or `[!a-z]` none of these; it must fit the whole uri.
        """
        ...


class Spaces(Protocol):
    """The spaces of chunks: one for each embedder that was ever used and not dropped."""

    def add_space(self, space: str) -> None:
        """Make sure that the space is there: `active` if no other is, else `building`, also if it was retired."""
        ...

    def spaces(self) -> Sequence[Space]:
        """Return all spaces by name."""
        ...

    def active_space(self) -> str | None:
        """Return the space that search answers from; None before the first one is added."""
        ...

    def activate(self, space: str) -> bool:
        """Answer searches from this space and retire the one before; False, with nothing changed, if it is incomplete.

        Check and switch are one transaction. Safe to repeat.
        """
        ...

    def drop_space(self, space: str) -> None:
        """Forget the space and its chunks. Safe to repeat, also after a crash midway.

        Raises ValueError if it is active.
        """
        ...


class Runs(Protocol):
    """What ran, and what it left behind for others."""

    def start_run(self, run: str, *, started_us: int, shape: str) -> None:
        """Note that a run has begun; nothing if it is noted already."""
        ...

    def end_run(self, run: str, *, ended_us: int, counts: Mapping[str, int]) -> None:
        """Note how the run ended; the last call wins. Nothing if it was never started."""
        ...

    def runs(self, limit: int = 100) -> Sequence[Run]:
        """Return up to `limit` (at least 1) runs, latest start first."""
        ...

    def add_version(self, version: DatasetVersion) -> DatasetVersion:
        """Keep a dataset version under the next number of its name and return it as kept.

        If the newest version of the name has the same format, path, rows and digest, that one is returned
        and nothing is kept. The number in the argument does not matter.
        """
        ...

    def versions(self, name: str | None = None) -> Sequence[DatasetVersion]:
        """Return all versions (of the name) by name and number."""
        ...


class Positions(Protocol):
    """How far topics that tell of documents have been read, beside the documents themselves."""

    def positions(self, topic: str) -> Mapping[str, Mapping[str, object]]:
        """Return the position in each partition of the topic that one was noted for."""
        ...

    def note_positions(self, topic: str, positions: Mapping[str, Mapping[str, object]]) -> None:
        """Note how far these partitions (by name) have been read, all or none; durable when it returns.

        A position is JSON-able. Others of the topic stay as they are. Empty input is a no-op.
        """
        ...


class Upkeep(Protocol):
    """Whether the store is whole; a healthy one needs none of it."""

    def check(self) -> Sequence[str]:
        """Read everything but the full text and return a sentence for each damage; none means whole."""
        ...

    def text_is_whole(self) -> bool:
        """Whether `search_text` finds every chunk by exactly the words that it has."""
        ...

    def mend_text(self) -> None:
        """Make anew what `search_text` looks into, from the chunks. Safe to repeat."""
        ...

    def scrub(self) -> None:
        """Leave no byte of what was deleted or replaced, words of the full text included. Safe to repeat.

        Costs what writing the store anew costs. Raises RetryableError while another process reads or writes.
        """
        ...


class MetadataStore(Ledger, Chunks, Spaces, Runs, Positions, Upkeep, Protocol):
    """All of it, over one database."""

    def close(self) -> None:
        """Let go of the store; what was written stays where it is durable. Safe to repeat."""
        ...
