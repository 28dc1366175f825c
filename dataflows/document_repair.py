"""`verify documents --repair`: what differs is forgotten, and one ordinary run of the document path makes it anew.

Vectors that are there are used again, so that mending embeds only the texts whose vectors are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dataflows.document_check import Look, folder_of, look_at_documents
from dataflows.document_runner import run_documents
from dataflows.document_wiring import DocumentParts, open_parts, vectors_of, vectors_url
from dataflows.engine import Cluster
from dataflows.preparing import stored_chunks
from dataflows.sources.discovery import discover
from dataflows.sources.topic import TOPIC_SCHEME
from operators.documents import doc_id
from operators.errors import CorruptStoreError
from stores.metadata.records import Change, Delete, Upsert
from stores.vectors import drop_vectors

if TYPE_CHECKING:
    from dataflows.config import Settings
    from stores.metadata.port import MetadataStore

FORGOTTEN = frozenset(
    {
        "altered",
        "chunk_hash",
        "chunk_key",
        "chunk_length",
        "chunk_order",
        "chunk_text",
        "chunks",
        "incomplete",
        "vector_length",
        "vector_missing",
    }
)
"""Differences of a document that no ordinary run would see: it must be forgotten to be made anew."""


def mend_documents(
    settings: Settings,
    look: Look,
    *,
    allow_mass_delete: bool,
    advanced: Callable[[int, int], None] = lambda _done, _of: None,
) -> Look:
    """Mend what the look has found, by one run of the document path, and look again.

    advanced: hears of the run. Raises MassDeleteError, with nothing changed, as a run would, and what a run raises.
    """
    mend = _mender(settings, look)
    with open_parts(
        settings, make=False
    ) as parts:  # asked before anything is changed: a run would refuse in the middle
        discover(
            parts.sources,
            parts.metadata.ledger(),
            parts.stages.shape,
            limit_bytes=settings.document_bytes_max,
            allow_mass_delete=allow_mass_delete,
        )
    run_documents(
        settings,
        Cluster(settings.stream_concurrency),
        once=True,
        allow_mass_delete=allow_mass_delete,
        advanced=advanced,
        mend=mend,
    )
    return look_at_documents(settings)


def _mender(settings: Settings, look: Look) -> Callable[[DocumentParts], DocumentParts]:
    """What must be done before an ordinary run, so that it mends what the look has found. May be repeated.

    Raises CorruptStoreError, before anything is changed, if vectors are damaged and not every document is within reach:
    without their documents they could not be made anew.
    """
    words = {difference.word for difference in look.differences}
    if "vector_damage" in words and look.out_of_reach:
        raise CorruptStoreError(
            f"vectors are damaged, and the sources of {look.out_of_reach} documents cannot be listed or are not named"
            " in INGEST_SOURCES, so that these could not be embedded anew; make the sources reachable, or restore"
            f" `{folder_of(settings, None)}` from a copy"
        )

    def mend(parts: DocumentParts) -> DocumentParts:
        metadata, vectors = parts.metadata, parts.vectors
        if "text_index" in words:
            metadata.mend_text()
        uris = {d.uri for d in look.differences if d.uri is not None and d.word in FORGOTTEN}
        if "vector_damage" in words:
            uris = {known.uri for known in metadata.ledger() if known.state == "ready"}
        metadata.add_space(vectors.space)
        for uri in sorted(uris & look.listed):
            metadata.apply(_forgotten(metadata, doc_id(uri), vectors.space))
        if "vector_damage" in words:
            drop_vectors(vectors_url(settings), vectors.space)
            return replace(parts, vectors=vectors_of(settings, vectors.space, vectors.dim))
        _remove(parts, [d.key for d in look.differences if d.key is not None and d.word == "vector_length"])
        return parts

    return mend


def _forgotten(metadata: MetadataStore, name: str, space: str) -> list[Change]:
    """What makes a run take the document for one that has changed: it stays in the ledger, with nothing of it done.

    One that came in a message keeps its chunks for now: its message may be gone, and then they are all there is of it.
    """
    document = metadata.document(name)
    if document is None:
        return []
    came = document.source.startswith(TOPIC_SCHEME)
    chunks = stored_chunks(metadata, name, space) if came else None
    return [Delete(document.uri), Upsert(replace(document, memo_key="", shape=""), space, chunks or ())]


def _remove(parts: DocumentParts, keys: Sequence[int]) -> None:
    """Take out vectors that must not be used again. A key does not tell its shard."""
    if not keys:
        return
    for shard in range(parts.vectors.shards):
        with closing(parts.vectors.write(shard)) as writer:
            writer.delete(np.array(keys, np.uint64))
            writer.commit()
