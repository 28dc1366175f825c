"""A document is taken out of everything that the document path keeps; at its source it stays, and is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataflows.artifacts import NAME, take_out
from dataflows.document_flow import FLOW
from dataflows.document_wiring import metadata_as_it_is, metadata_of, vectors_url
from dataflows.forget import ByteSearch, Erased, Receipt, Step, beside, carry_out, held
from dataflows.wiring import dead_letters_of
from operators.documents import doc_id
from operators.erasure import passed_without
from operators.naming import Named
from stores.metadata.records import Delete
from stores.sqlite import sqlite_path
from stores.vectors import list_spaces, open_space
from stores.vectors.port import shard_of

if TYPE_CHECKING:
    from dataflows.config import Settings
    from dataflows.recovery import Recovery
    from operators.records import DeadLetter

_WORDS = 32
"""Of the document, that the full text is asked for afterwards."""

_HITS = 1000


def forget_document(settings: Settings, uri: str) -> Receipt:
    """Take the document out of every place, and have it passed over until it is lifted. Safe to repeat.

    Raises ConfigError, with nothing changed, while a run is on.
    """
    search = ByteSearch(uri)
    with held([settings.recovery_dir / FLOW]) as recoveries:
        facts = _facts(settings, uri)
        steps = [
            *(_snapshots(recovery, uri, search) for recovery in recoveries),
            *_vectors(settings, uri, facts),
            *_artifacts(settings, uri, facts, search),
            *_metadata(settings, uri, facts, search),
            *_letters(settings, uri, search),
        ]
        note = "the document itself is not touched; looks at its source pass it over"
        return carry_out(settings, "document", uri, steps, [Erased(f"source {uri}", "documents", note=note)])


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of the document before it goes. keys: uint64 (n,) of its chunks, by space. words: of its text."""

    keys: dict[str, np.ndarray[tuple[int], np.dtype[np.uint64]]]
    words: tuple[str, ...]


def _facts(settings: Settings, uri: str) -> _Facts:
    keys: dict[str, np.ndarray[tuple[int], np.dtype[np.uint64]]] = {}
    words: dict[str, None] = {}
    with closing(metadata_as_it_is(settings)) as metadata:
        for space in metadata.spaces():
            stored = [chunk.key for chunk in metadata.chunks_of(doc_id(uri), space.name)]
            keys[space.name] = np.array(stored, np.uint64)
            for record in metadata.chunks(space.name, stored[:_WORDS]).values():
                words |= dict.fromkeys(word for word in record.text.split() if word.isalnum())
    return _Facts(keys, tuple(sorted(words, key=len, reverse=True)[:_WORDS]))


def _snapshots(recovery: Recovery, uri: str, search: ByteSearch) -> Step:
    def change(step: str, state: bytes) -> bytes | None:
        return passed_without(state, doc_id(uri)) if step == f"{FLOW}.documents" else None

    erase = partial(recovery.rewrite, change)
    look = lambda: erase() + len(search.files(recovery.folder))  # noqa: E731  # read beside what it follows
    return Step(f"recovery {recovery.folder}", "snapshots", erase, look)


def _vectors(settings: Settings, uri: str, facts: _Facts) -> Iterator[Step]:
    """Before the metadata, which alone tells the keys: a kill in between loses none of them."""
    url = vectors_url(settings)
    for space in list_spaces(url):
        keys = facts.keys.get(space, np.empty(0, np.uint64))

        def erase(space: str = space, keys: np.ndarray[tuple[int], np.dtype[np.uint64]] = keys) -> int:
            store = open_space(url, space)
            with closing(store.read()) as reader:
                there = int(reader.get(keys)[1].sum())
            with closing(store.write(shard_of(doc_id(uri), store.shards))) as writer:
                writer.erase(keys)
            return there

        def look(space: str = space, keys: np.ndarray[tuple[int], np.dtype[np.uint64]] = keys) -> int:
            with closing(open_space(url, space).read()) as reader:
                return int(reader.get(keys)[1].sum())

        yield Step(f"vectors {settings.vectorstore_path}, space {space}", "vectors", erase, look)


def _artifacts(settings: Settings, uri: str, facts: _Facts, search: ByteSearch) -> Iterator[Step]:
    """Files that `backfill documents` wrote where they still are; a changed one is a new version."""
    del facts
    with closing(metadata_as_it_is(settings)) as metadata:
        newest = {version.path: version for version in metadata.versions(NAME)}
    for path, version in sorted(newest.items()):

        def erase(version: object = version) -> int:
            from stores.metadata.records import DatasetVersion

            assert isinstance(version, DatasetVersion)
            changed = take_out(version, uri)
            if changed is None:
                return 0
            with closing(metadata_of(settings)) as metadata:
                metadata.add_version(changed)
            return version.rows - changed.rows

        def look(path: Path = Path(path)) -> int:
            return len(search.files(path)) if path.exists() else 0

        yield Step(f"artifact {path}", "chunks", erase, look)


def _metadata(settings: Settings, uri: str, facts: _Facts, search: ByteSearch) -> Iterator[Step]:
    path = sqlite_path(settings.metadata_db_url) if settings.metadata_db_url.startswith("sqlite:") else None
    if path is not None and not path.exists():
        return

    def erase() -> int:
        with closing(metadata_of(settings)) as metadata:
            known = metadata.document(doc_id(uri)) is not None
            metadata.apply([Delete(uri)])
            metadata.scrub()
        return int(known) + sum(map(len, facts.keys.values()))

    def look() -> int:
        with closing(metadata_of(settings)) as metadata:
            left = int(metadata.document(doc_id(uri)) is not None)
            for space, keys in facts.keys.items():
                left += len(metadata.chunks(space, keys.tolist()))
                hits = metadata.search_text(space, " ".join(facts.words), limit=_HITS)
                records = metadata.chunks(space, [hit.key for hit in hits])
                left += sum(record.uri == uri for record in records.values())
        return left + (0 if path is None else len(search.files(*beside(path))))

    yield Step(f"metadata {settings.metadata_db_url}", "documents and chunks", erase, look)


def _letters(settings: Settings, uri: str, search: ByteSearch) -> Iterator[Step]:
    path = settings.bus_dir / settings.topic_dlq / "deadletters.db"
    if not path.exists():
        return
    named = Named(uri)

    def takes(letter: DeadLetter) -> bool:
        return letter.partition == uri or named.in_message(letter.original) or f"`{uri}`" in letter.detail

    def erase() -> int:
        with closing(dead_letters_of(settings)) as store:
            return store.forget(takes)

    yield Step(f"dead letters {path}", "letters", erase, lambda: erase() + len(search.files(*beside(path))))
