"""What the stores behind Feast raise, in the words of the project's own error tree."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from operators.errors import ConfigError, UnavailableError

_AWAY = {
    "psycopg": ("OperationalError",),
    "psycopg_pool": ("PoolTimeout",),
    "redis.exceptions": ("BusyLoadingError", "ConnectionError", "TimeoutError"),
}
"""Errors after which the same call may succeed later, by the module that defines them."""

_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
}

_UNDECLARED = {
    "feast.errors": ("FeatureViewNotFoundException", "ProjectNotFoundException", "ProjectObjectNotFoundException"),
    "psycopg.errors": ("UndefinedTable",),
}
"""Errors that `feast apply` mends."""


@contextmanager
def translated(command: str) -> Iterator[None]:
    """Raise UnavailableError or ConfigError for what the stores behind Feast raise; `command` applies the repository.

    Anything else passes as it is: it is nobody's weather but a defect.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        primary = error.sqlite_errorcode & 0xFF
        if primary in _SQLITE_AWAY:
            raise UnavailableError(f"Feast's SQLite store does not answer: {error}") from error
        raise ConfigError(f"Feast's SQLite store refuses ({error}); type: {command}") from error
    except (ConnectionError, TimeoutError) as error:
        raise UnavailableError(f"Feast's online store does not answer ({type(error).__name__})") from error
    except _loaded(_AWAY) as error:
        # The message of a driver may hold the address with its password; the class is enough.
        raise UnavailableError(f"Feast's online store does not answer ({type(error).__name__})") from error
    except _loaded(_UNDECLARED) as error:
        raise ConfigError(f"Feast does not know a view ({error}); type: {command}") from error


def _loaded(table: dict[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    """The classes of the table whose module is loaded: the others cannot have been raised."""
    modules = ((sys.modules.get(module), names) for module, names in table.items())
    return tuple(getattr(module, name) for module, names in modules for name in names if hasattr(module, name))
