"""Messages of which nothing may be kept but that they were there, in the tables of the archive."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.forgotten import REASON
from stores.archive.port import MESSAGES, ArchiveKey, Mends, Takes, nothing


class Blanks:
    """Blanks messages and remembers their places, so that verdicts on them can be taken out afterwards."""

    def __init__(self, takes: Takes, mends: Mends = nothing) -> None:
        """takes, mends: see `Archive.blank`."""
        self.count = 0
        self._takes = takes
        self._mends = mends
        self._places: dict[str, set[int]] = {}

    def found(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Which messages are to be changed and are not yet; places of blanked ones are remembered, blanked or not."""
        many = pc.is_valid(rows["rows"]).to_numpy()
        mine = self._takes(rows) & ~many
        done = pc.fill_null(pc.equal(rows["reason"], REASON), False).to_numpy()  # noqa: FBT003  # a value
        for row in np.flatnonzero(mine).tolist():
            self._places.setdefault(rows["partition"][row].as_py(), set()).add(rows["offset"][row].as_py())
        todo: NDArray[np.bool_] = mine & ~done
        for row in np.flatnonzero(many).tolist():
            todo[row] = self._mends(rows["value"][row].as_py()) is not None
        return todo

    def applied(self, key: ArchiveKey, rows: pa.Table) -> pa.Table:
        """The rows of a segment as they are to be."""
        if key.kind == "verdicts":
            keep = ~self.judged(rows)
            return rows if keep.all() else rows.filter(pa.array(keep))
        todo = self.found(rows)
        self.count += int(np.count_nonzero(todo))
        many = pc.is_valid(rows["rows"]).to_numpy()
        mended = [self._mends(rows["value"][row].as_py()) for row in np.flatnonzero(todo & many).tolist()]
        if mended:
            fresh = pa.array(mended, MESSAGES.field("value").type)
            rows = _put(rows, "value", pc.replace_with_mask(rows["value"], pa.array(todo & many), fresh))
        return blank(rows, todo & ~many) if (todo & ~many).any() else rows

    def judged(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Which verdicts are on messages whose places are remembered."""
        mine = np.zeros(rows.num_rows, np.bool_)
        names = rows["partition"].cast(pa.string())
        for partition, offsets in self._places.items():
            here = pc.is_in(rows["offset"], value_set=pa.array(sorted(offsets), pa.int64()))
            mine |= pc.and_(pc.equal(names, partition), here).to_numpy()
        return mine


def blank(rows: pa.Table, todo: NDArray[np.bool_]) -> pa.Table:
    """The messages with those in `todo` blanked, in their order."""
    mask = pa.array(todo)
    for name, value in (("event_time", None), ("entity_id", None), ("reason", REASON), ("value", b"")):
        kind = MESSAGES.field(name).type
        rows = _put(rows, name, pc.if_else(mask, pa.scalar(value, kind), rows[name]))
    words = pc.if_else(mask, pa.scalar("dead"), rows["verdict"].cast(pa.string()))
    return _put(rows, "verdict", words.cast(pa.string()).dictionary_encode()).cast(MESSAGES)


def _put(rows: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), MESSAGES.field(name), column)
