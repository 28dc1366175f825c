"""Every message as it came, with what became of it: `open_archive` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from operators.errors import ConfigError
from stores.archive.port import Archive


def open_archive(url: str) -> Archive:
    """Open `memory:` or `parquet:///<folder>` (relative; four slashes for an absolute path).

    Raises ConfigError for anything else. A folder that does not exist is an empty archive.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "memory":
            from stores.archive.memory import MemoryArchive

            return MemoryArchive()
        case "parquet":
            from stores.archive.parquet import ParquetArchive

            path = unquote(rest.removeprefix("///"))
            if not rest.startswith("///") or not path:
                raise ConfigError(f"archive `{url}` names no folder; write parquet:///data/archive")
            return ParquetArchive(Path(path))
        case _:
            raise ConfigError(f"archive `{url}`: the scheme is not one of memory, parquet")
