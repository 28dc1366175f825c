"""What the commands of the document path do, apart from parsing and printing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from dataflows.document_wiring import cores, metadata_as_it_is, server_for_search, vectors_of
from dataflows.search import check_query, open_for_search, search
from operators.errors import HeadraceError

if TYPE_CHECKING:
    from dataflows.config import Settings


def find_chunks(settings: Settings, query: str, *, limit: int, uri_glob: str | None) -> list[dict[str, object]]:
    """The chunks that answer best, as `search --json` prints them; none if nothing was indexed yet."""
    check_query(query)
    with closing(metadata_as_it_is(settings)) as metadata:
        while (space := metadata.active_space()) is not None:
            server = server_for_search(settings)
            opened = open_for_search(space, settings.embeddings, server=server, threads=cores())
            with closing(opened) as embedder, closing(vectors_of(settings, space, embedder.dim).read()) as reader:
                try:
                    hits = search(metadata, reader, embedder, query, limit=limit, uri_glob=uri_glob)
                except (ValueError, HeadraceError):
                    if metadata.active_space() == space:
                        raise
                    continue  # another model's space became complete meanwhile: that one answers
                return [asdict(hit) for hit in hits]
        return []
