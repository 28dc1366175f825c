"""Feature rows as snapshots hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from operators.packing import pack, unpack
from operators.records import Revisions, RowBlock
from operators.revisions import NAMES as REVISION_COLUMNS
from operators.rows import join

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COLUMNS = ("entity_data", "entity_offsets", "place", "values")
"""Of a RowBlock, as they are called in snapshots."""


def pack_rows(meta: dict[str, object], blocks: list[RowBlock]) -> bytes:
    """Snapshot of meta and of rows, which may wait for long: one block a set."""
    of_set = {index: join([b for b in blocks if b.set_index == index]) for index in {b.set_index for b in blocks}}
    arrays: dict[str, NDArray[np.generic]] = {}
    for index, b in sorted(of_set.items()):
        start, stop = b.entity_offsets[[0, -1]]
        columns = (b.entity_data[start:stop], b.entity_offsets - start, b.place, b.values)
        arrays |= {f"{index}.{column}": array for column, array in zip(_COLUMNS, columns, strict=True)}
        if b.revisions is not None:
            arrays |= {f"{index}.{name}": getattr(b.revisions, name) for name in REVISION_COLUMNS}
    return pack({**meta, "sets": sorted(of_set)}, arrays)


def unpack_rows(state: bytes) -> tuple[dict[str, object], list[RowBlock]]:
    """What `pack_rows` was given; meta has `sets` besides. Raises ResumeError for another version."""
    meta, arrays = unpack(state)
    found = cast("list[int]", meta["sets"])
    return meta, [_unpacked(i, arrays) for i in found]


def _unpacked(index: int, arrays: dict[str, NDArray[np.generic]]) -> RowBlock:
    revisions = None
    if f"{index}.{REVISION_COLUMNS[0]}" in arrays:
        revisions = Revisions(*(arrays[f"{index}.{name}"] for name in REVISION_COLUMNS))  # type: ignore[arg-type]  # as packed
    entities, offsets, place, values = (arrays[f"{index}.{column}"] for column in _COLUMNS)
    return RowBlock(index, entities, offsets, place, values, revisions)  # type: ignore[arg-type]  # as packed
