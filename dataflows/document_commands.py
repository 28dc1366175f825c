"""What the commands of the document path do, apart from parsing and printing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from dataflows.document_wiring import cores, metadata_as_it_is, server_of, vectors_of
from dataflows.search import open_for_search, search

if TYPE_CHECKING:
    from dataflows.config import Settings


def find_chunks(settings: Settings, query: str, *, limit: int, uri_glob: str | None) -> list[dict[str, object]]:
    """The chunks that answer best, as `search --json` prints them; none if nothing was indexed yet."""
    with closing(metadata_as_it_is(settings)) as metadata:
        space = metadata.active_space()
        if space is None:
            return []
        opened = open_for_search(space, settings.embeddings, server=server_of(settings), threads=cores())
        with closing(opened) as embedder, closing(vectors_of(settings, space, embedder.dim).read()) as reader:
            return [asdict(hit) for hit in search(metadata, reader, embedder, query, limit=limit, uri_glob=uri_glob)]
