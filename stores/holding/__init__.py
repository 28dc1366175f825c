"""Held events: `open_holding` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from operators.errors import ConfigError
from stores.holding.port import Holding


def open_holding(url: str) -> Holding:
    """Open `memory:` or `sqlite:///<file>` (relative; four slashes for an absolute path).

    Raises ConfigError for anything else, and what the adapter raises on opening.
    """
    match url.partition(":")[0]:
        case "memory":
            from stores.holding.memory import MemoryHolding

            return MemoryHolding()
        case "sqlite":
            from stores.holding.sqlite import SqliteHolding
            from stores.sqlite import sqlite_path

            path = sqlite_path(url)
            if path is None:
                raise ConfigError(f"held events `{url}` name no file; write sqlite:///data/holding.db, or memory:")
            return SqliteHolding(path)
        case _:
            raise ConfigError(f"held events `{url}`: the scheme is not one of memory, sqlite")
