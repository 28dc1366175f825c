"""The list of what was forgotten: `open_forgotten` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from operators.errors import ConfigError
from stores.forgotten.port import ForgottenNames
from stores.sqlite import sqlite_path


def open_forgotten(url: str) -> ForgottenNames:
    """Open `memory:` or `sqlite:///<file>` (relative; four slashes for an absolute path).

    Raises ConfigError for anything else, and for a file that cannot be opened.
    """
    match url.partition(":")[0]:
        case "memory":
            from stores.forgotten.memory import MemoryForgotten

            return MemoryForgotten()
        case "sqlite":
            from stores.forgotten.sqlite import SqliteForgotten

            path = sqlite_path(url)
            if path is None:
                raise ConfigError(f"the list of what was forgotten `{url}` names no file; write sqlite:///data/x.db")
            return SqliteForgotten(path)
        case _:
            raise ConfigError(f"the list of what was forgotten `{url}`: the scheme is not one of memory, sqlite")
