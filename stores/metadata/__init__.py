"""PORT metadata: what is known of documents and chunks; `open_metadata` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from operators.errors import ConfigError
from stores.metadata.port import MetadataStore

__all__ = ["MetadataStore", "open_metadata"]


def open_metadata(url: str) -> MetadataStore:
    """Open `memory:` or `sqlite:///<file>` (relative; four slashes for an absolute path).

    Raises ConfigError for anything else, and what the adapter raises on opening.
    """
    match url.partition(":")[0]:
        case "memory":
            from stores.metadata.memory import MemoryMetadata

            return MemoryMetadata()
        case "sqlite":
            from stores.metadata.sqlite import SqliteMetadata
            from stores.sqlite import sqlite_path

            path = sqlite_path(url)
            if path is None:
                raise ConfigError(f"METADATA_DB_URL `{url}` names no file; write sqlite:///data/metadata.db or memory:")
            return SqliteMetadata(path)
        case _:
            raise ConfigError(f"METADATA_DB_URL `{url}`: the scheme is not one of memory, sqlite")
