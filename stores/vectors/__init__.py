"""Vectors of chunks: `open_vectors` chooses the adapter by the scheme of a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from operators.errors import ConfigError
from stores.vectors.port import DIM_MAX, SHARDS_MAX, Element, VectorStore

SHARDS = 4
"""Shards of a store unless told otherwise: fixed when it is made."""


def open_vectors(
    url: str, space: str, dim: int, *, shards: int = SHARDS, element: Element = "f16", compact_rows: int = 2048
) -> VectorStore:
    """Open the vectors of a space in `memory:` or `usearch:///<folder>` (relative; four slashes: absolute).

    dim: numbers of a vector. shards, element: fixed once something was written. compact_rows: changes in the log of a
    shard from which on it is compacted (then from a tenth of its size). A folder that does not exist is an empty store.
    Raises ConfigError for anything else, and for a store that was made otherwise.
    """
    if not space.strip(". ") or not 1 <= dim <= DIM_MAX or not 1 <= shards <= SHARDS_MAX:
        raise ConfigError(
            f"vectors of `{space}` with {dim} numbers in {shards} shards: a space needs a name,"
            f" 1 to {DIM_MAX} numbers and 1 to {SHARDS_MAX} shards"
        )
    match url.partition(":")[0]:
        case "memory":
            from stores.vectors.memory import MemoryVectorStore

            return MemoryVectorStore(space, dim, shards=shards)
        case "usearch":
            from stores.vectors.compaction import Compaction
            from stores.vectors.usearch import UsearchVectorStore

            rule = Compaction(rows_min=compact_rows)
            return UsearchVectorStore(_folder(url), space, dim, shards=shards, element=element, compaction=rule)
        case _:
            raise _unknown(url)


def list_spaces(url: str) -> list[str]:
    """Names of the spaces that something was written to, sorted; memory keeps none."""
    if url.partition(":")[0] == "memory":
        return []
    from stores.vectors.usearch import spaces_in

    return spaces_in(_folder(url))


def open_space(url: str, space: str, *, compact_rows: int = 2048) -> VectorStore:
    """Open a space that something was written to, as it was made. Raises ConfigError if nothing was."""
    from stores.vectors.usearch import facts_of

    facts = facts_of(_folder(url), space)
    dim, shards, element = facts["dim"], facts["shards"], facts["element"]
    return open_vectors(url, space, dim, shards=shards, element=element, compact_rows=compact_rows)


def drop_vectors(url: str, space: str) -> None:
    """Remove a space with all its vectors. Safe to repeat. Raises ConfigError while it has a writer."""
    if url.partition(":")[0] != "memory":
        from stores.vectors.usearch import drop_space

        drop_space(_folder(url), space)


def _folder(url: str) -> Path:
    scheme, _, rest = url.partition(":")
    path = unquote(rest.removeprefix("///"))
    if scheme != "usearch":
        raise _unknown(url)
    if not rest.startswith("///") or not path:
        raise ConfigError(f"vectors `{url}` name no folder; write usearch:///data/vectors")
    return Path(path)


def _unknown(url: str) -> ConfigError:
    return ConfigError(f"vectors `{url}`: the scheme is not one of memory, usearch")
