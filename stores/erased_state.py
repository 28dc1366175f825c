"""An entity taken out of what writers keep in their snapshots. Pure: bytes in, bytes out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from operators.feature_sets import STATISTICS
from operators.messages import Message, pack_messages
from operators.packing import pack, unpack
from operators.rows import take_rows
from stores.log_writer import logged
from stores.row_states import pack_rows, unpack_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from operators.records import RowBlock


def rows_without(state: bytes, entity_id: str) -> bytes | None:
    """Return the snapshot of an OfflineWriter or OnlineWriter without the entity's rows; None if it has none."""
    return _changed(state, entity_id, lambda block, mine: take_rows(block, np.flatnonzero(~mine)))


def rows_blanked(state: bytes, entity_id: str) -> bytes | None:
    """Return the snapshot of a ResultsWriter with the entity's rows without name and values; None if it has none.

    They may have been told, and a log counts what it was told: one row less, and the next would be taken for a repeat.
    """
    return _changed(state, entity_id, _blanked)


def messages_changed(state: bytes, change: Callable[[bytes], bytes | None]) -> bytes | None:
    """Return the snapshot of a LogWriter with each value as `change` gives it, which is as long; None: as it is.

    A message that changes loses its key, which may be a name. None if none changes.
    """
    meta, _ = unpack(state)
    _, messages = logged(state)
    values = [change(message.value) for message in messages]
    if all(value is None for value in values):
        return None
    found = zip(messages, values, strict=True)
    changed = [old if new is None else Message(new, None, old.headers) for old, new in found]
    assert [len(m.value) for m in changed] == [len(m.value) for m in messages]
    return pack(meta, pack_messages(changed))


def _changed(state: bytes, entity_id: str, change: Callable[[RowBlock, NDArray[np.bool_]], RowBlock]) -> bytes | None:
    """The snapshot with each block as `change` gives it, told which rows are the entity's; None if none is."""
    meta, blocks = unpack_rows(state)
    mine = [_is_of(block, entity_id) for block in blocks]
    if not any(some.any() for some in mine):
        return None
    changed = (change(block, some) for block, some in zip(blocks, mine, strict=True))
    return pack_rows(meta, [block for block in changed if len(block)])


def _is_of(block: RowBlock, entity_id: str) -> NDArray[np.bool_]:
    """Which rows are the entity's."""
    name = entity_id.encode("utf-8", "surrogatepass")
    starts, ends = block.entity_offsets[:-1], block.entity_offsets[1:]
    mine: NDArray[np.bool_] = ends - starts == len(name)
    near = np.flatnonzero(mine)
    wanted = np.frombuffer(name, np.uint8)
    mine[near] = (block.entity_data[starts[near, None] + np.arange(len(name))] == wanted).all(axis=1)
    return mine


def _blanked(block: RowBlock, mine: NDArray[np.bool_]) -> RowBlock:
    lengths = np.diff(block.entity_offsets)
    nothing = np.full(len(STATISTICS), np.nan)
    nothing[STATISTICS.index("count")] = 0  # the one that is never null
    first, last = block.entity_offsets[[0, -1]]
    return replace(
        block,
        entity_data=block.entity_data[first:last][np.repeat(~mine, lengths)],
        entity_offsets=np.append(0, np.cumsum(np.where(mine, 0, lengths))),
        values=np.where(mine[:, None], np.tile(nothing, block.values.shape[1] // len(STATISTICS)), block.values),
        hashes=None,
    )
