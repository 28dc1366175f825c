"""Dead letters: `open_dead_letters` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from operators.errors import ConfigError
from stores.deadletters.port import DeadLetters


def open_dead_letters(url: str) -> DeadLetters:
    """Open `memory:` or `sqlite:///<file>` (relative; four slashes for an absolute path).

    Raises ConfigError for anything else, and what the adapter raises on opening.
    """
    match url.partition(":")[0]:
        case "memory":
            from stores.deadletters.memory import MemoryDeadLetters

            return MemoryDeadLetters()
        case "sqlite":
            from stores.deadletters.sqlite import SqliteDeadLetters
            from stores.sqlite import sqlite_path

            path = sqlite_path(url)
            if path is None:
                raise ConfigError(f"dead letters `{url}` name no file; write sqlite:///data/deadletters.db, or memory:")
            return SqliteDeadLetters(path)
        case _:
            raise ConfigError(f"dead letters `{url}`: the scheme is not one of memory, sqlite")
