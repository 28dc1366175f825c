"""Feature rows told to whoever listens: at one snapshot later than they came, so that none is told that may be lost.

A row is told once its snapshot is durable. Its file may become visible a little before or, where few rows wait for
company, some snapshots after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from operators.feature_events import feature_events
from operators.rows import join, to_tables
from stores.log_writer import APPENDED_MAX, Append, OneLater
from stores.row_states import pack_rows, unpack_rows
from stores.writers import Rows, by_set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operators.feature_sets import FeatureSets
    from operators.messages import Message
    from operators.records import RowBlock

_ENCODED_ROWS = 2048


class ResultsWriter:
    """Appends an event for each row; owns its name on the bus. Repeats are told by the bus, not twice."""

    def __init__(
        self, append: Append, sets: FeatureSets, resume: bytes | None, *, durable: bool, at_once: bool = False
    ) -> None:
        """Tell of what the resumed snapshot held. durable, at_once: see OneLater."""
        self._sets = sets
        resumed = (0, []) if resume is None else untold(resume)
        told = lambda blocks, at: tell_rows(append, at, blocks, sets)  # noqa: E731  # the order of arguments alone
        self._later = OneLater(told, resumed, durable=durable, at_once=at_once)

    def write(self, rows: Rows) -> None:
        """Take rows of any shard."""
        self._later.take(rows.blocks)

    def snapshot(self) -> bytes:
        """Tell of what the last snapshot held; hold what has come since."""
        at, blocks = self._later.turn(lambda blocks: [join(mine) for _, mine in by_set(blocks, self._sets)])
        return pack_rows({"at": at}, blocks)

    def close(self) -> None:
        """Without durable snapshots: tell of everything now."""
        self._later.close()


def untold(state: bytes) -> tuple[int, list[RowBlock]]:
    """(place, rows) that a committed snapshot of a ResultsWriter holds, ready to be told."""
    meta, blocks = unpack_rows(state)
    return cast("int", meta["at"]), blocks


def tell_rows(append: Append, at: int, blocks: list[RowBlock], sets: FeatureSets) -> int:
    """Append an event for each row, in an order that follows from the blocks; return the place after them."""
    messages: list[Message] = []
    for some in _events(blocks, sets):
        messages += some
        if len(messages) >= APPENDED_MAX:
            at = append(messages, at)
            messages = []
    return append(messages, at)


def _events(blocks: list[RowBlock], sets: FeatureSets) -> Iterator[list[Message]]:
    for declared, mine in by_set(blocks, sets):
        for spec, _, table in to_tables(mine, declared):
            for begin in range(0, len(table), _ENCODED_ROWS):
                yield feature_events(table.slice(begin, _ENCODED_ROWS), declared, declared.windows[spec])
