"""PORT sources: where documents come from; `open_sources` makes one of each entry of INGEST_SOURCES."""

from __future__ import annotations

from collections.abc import Sequence

from dataflows.sources.port import Source
from operators.errors import ConfigError

__all__ = ["DEFAULT_INCLUDE", "Source", "open_sources"]

DEFAULT_INCLUDE = ("**/*.md", "**/*.txt", "**/*.pdf")
"""SOURCE_INCLUDE unless it is set."""


def open_sources(
    entries: Sequence[str], *, include: Sequence[str] = DEFAULT_INCLUDE, exclude: Sequence[str] = ()
) -> tuple[Source, ...]:
    """Open each entry: a folder, a file, a glob, or any of these as a `file://` URL. Nothing is read yet.

    The same entry twice is one source. Raises ConfigError, naming INGEST_SOURCES, if there is no entry, if
    one does not exist, or if its scheme is unknown.
    """
    opened: dict[str, Source] = {}
    for entry in (text.strip() for text in entries):
        scheme, separator, _ = entry.partition("://")
        match scheme if separator else "file":
            case "file" if entry:
                from dataflows.sources.files import FileSource

                source = FileSource(entry, include=include, exclude=exclude)
                opened.setdefault(source.name, source)
            case "file":
                continue
            case _:
                raise ConfigError(f"INGEST_SOURCES names `{entry}`: the scheme `{scheme}` is not one of file")
    if not opened:
        raise ConfigError("INGEST_SOURCES names nothing; write folders, files or globs with commas between them")
    return tuple(opened.values())
