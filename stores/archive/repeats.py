"""Which messages has another lineage published already."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stores.archive.port import Segment
from stores.offline.port import Withheld, lineage_of

COLUMNS = ("partition", "offset", "value")
"""What is read of published messages."""


def foreign(mine: Segment, published: Iterable[Segment]) -> list[Segment]:
    """Those segments of other lineages that can hold a message of this one."""
    return [s for s in published if lineage_of(s.writer) != lineage_of(mine.writer) and _overlap(mine, s)]


def withhold(rows: pa.Table, published: Iterable[pa.Table]) -> tuple[pa.Table, Withheld]:
    """Return the messages that are not in the published tables, in their order, and the count of those that are."""
    known = pa.concat_tables([table.select(COLUMNS) for table in published])
    places = pc.index_in(_keys(rows), value_set=_keys(known))
    found = pc.is_valid(places)
    there = known["value"].take(pc.drop_null(places)).combine_chunks()
    offered = rows["value"].filter(found).combine_chunks()
    repeated = pc.sum(pc.equal(there, offered)).as_py() or 0
    kept = rows.filter(pc.invert(found))
    return kept, Withheld(repeated, rows.num_rows - kept.num_rows - repeated)


def segment_of(rows: pa.Table, segment: Segment) -> Segment:
    """The segment with the bounds of these rows, at least one."""
    names = pc.unique(rows["partition"].cast(pa.string())).to_pylist()
    offsets: NDArray[np.int64] = rows["offset"].to_numpy()
    bounds = (min(names), max(names), int(offsets.min()), int(offsets.max()))
    return Segment(segment.key, segment.writer, segment.sequence, segment.index, rows.num_rows, *bounds)


def _overlap(one: Segment, other: Segment) -> bool:
    return (
        one.key == other.key
        and one.partition_first <= other.partition_last
        and other.partition_first <= one.partition_last
        and one.offset_first <= other.offset_last
        and other.offset_first <= one.offset_last
    )


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """Partition, then 8 bytes of offset: equal if and only if the message is the same."""
    offsets = table["offset"].to_numpy().astype("<i8")
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(offsets), [None, pa.py_buffer(offsets)])
    names = table["partition"].cast(pa.string()).cast(pa.large_binary()).combine_chunks()
    return pc.binary_join_element_wise(names, fixed.cast(pa.large_binary()), pa.scalar(b"", pa.large_binary()))
