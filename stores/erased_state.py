"""An entity taken out of what writers keep in their snapshots. Pure: bytes in, bytes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from operators.messages import Message, pack_messages
from operators.packing import pack, unpack
from operators.rows import take_rows
from stores.log_writer import logged
from stores.row_states import pack_rows, unpack_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from operators.records import RowBlock


def rows_without(state: bytes, entity_id: str) -> bytes | None:
    """Return the snapshot of an OfflineWriter or OnlineWriter without the entity's rows; None if it has none."""
    meta, blocks = unpack_rows(state)
    keeps = [_others(block, entity_id.encode("utf-8", "surrogatepass")) for block in blocks]
    if all(len(keep) == len(block) for keep, block in zip(keeps, blocks, strict=True)):
        return None
    kept = [take_rows(block, keep) for keep, block in zip(keeps, blocks, strict=True) if len(keep)]
    return pack_rows(meta, kept)


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


def _others(block: RowBlock, name: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which rows are of another entity."""
    starts, ends = block.entity_offsets[:-1], block.entity_offsets[1:]
    mine = ends - starts == len(name)
    near = np.flatnonzero(mine)
    wanted = np.frombuffer(name, np.uint8)
    mine[near] = (block.entity_data[starts[near, None] + np.arange(len(name))] == wanted).all(axis=1)
    return np.flatnonzero(~mine)
