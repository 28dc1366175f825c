"""Feature history: `open_offline` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from operators.errors import ConfigError
from stores.offline.port import OfflineStore


def open_offline(url: str) -> OfflineStore:
    """Open `memory:` or `parquet:///<folder>` (relative; four slashes for an absolute path).

    Raises ConfigError for anything else. A folder that does not exist is an empty store.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "memory":
            from stores.offline.memory import MemoryOfflineStore

            return MemoryOfflineStore()
        case "parquet":
            from stores.offline.parquet import ParquetOfflineStore

            path = unquote(rest.removeprefix("///"))
            if not rest.startswith("///") or not path:
                raise ConfigError(f"offline store `{url}` names no folder; write parquet:///data/offline")
            return ParquetOfflineStore(Path(path))
        case _:
            raise ConfigError(f"offline store `{url}`: the scheme is not one of memory, parquet")
