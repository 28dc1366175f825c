"""The columns that tell one revision of a row from another, for blocks of rows of either kind."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from operators.entities import gather_bytes
from operators.records import TIMESTAMP, Revisions, RowBlock
from operators.window_loops import ROW_END

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NAMES = tuple(field.name for field in fields(Revisions))
"""Of the columns, in their order."""


def of_block(block: RowBlock) -> Revisions:
    """The block's revisions; rows that closed when their time came are revision 0 and replace nothing."""
    if block.revisions is not None:
        return block.revisions
    n = len(block)
    return Revisions(
        np.zeros(n, np.int32),
        block.place[:, ROW_END],
        np.zeros((n, 2), np.uint64),
        np.zeros(n, np.bool_),
        np.zeros(n, np.bool_),
        np.empty(0, np.uint8),
        np.zeros(n + 1, np.int64),
    )


def join_revisions(blocks: Sequence[RowBlock]) -> Revisions | None:
    """The revisions of the blocks, at least one, end to end; None if none has any."""
    if all(b.revisions is None for b in blocks):
        return None
    parts = [of_block(b) for b in blocks]
    if len(parts) == 1:
        return parts[0]
    data = [p.cause_data[p.cause_offsets[0] : p.cause_offsets[-1]] for p in parts]
    offsets = np.concatenate([np.zeros(1, np.int64), *(np.diff(p.cause_offsets) for p in parts)])
    columns = ("revision", "known_at", "supersedes", "replaces", "retracted")
    revision, known_at, supersedes, replaces, retracted = (
        np.concatenate([getattr(p, name) for p in parts]) for name in columns
    )
    causes = np.concatenate(data), np.cumsum(offsets)
    return Revisions(revision, known_at, supersedes, replaces, retracted, *causes)


def take_revisions(revisions: Revisions, pick: NDArray[np.int64]) -> Revisions:
    """Return those of the rows `pick`, int64 (m,)."""
    data, offsets = gather_bytes(revisions.cause_data, revisions.cause_offsets, pick)
    return Revisions(
        revisions.revision[pick],
        revisions.known_at[pick],
        revisions.supersedes[pick],
        revisions.replaces[pick],
        revisions.retracted[pick],
        data,
        offsets,
    )


def slice_revisions(revisions: Revisions, begin: int, end: int) -> Revisions:
    """Return those of rows begin to end (exclusive), as a view."""
    return Revisions(
        revisions.revision[begin:end],
        revisions.known_at[begin:end],
        revisions.supersedes[begin:end],
        revisions.replaces[begin:end],
        revisions.retracted[begin:end],
        revisions.cause_data,
        revisions.cause_offsets[begin : end + 1],
    )


def revision_columns(blocks: Sequence[RowBlock], to: NDArray[np.int64], ends: NDArray[np.int64]) -> list[pa.Array]:
    """Return revision, created_at, known_at, supersedes, cause and retracted as columns of a table.

    to: int64 (n,), line of row i of all blocks together. ends: int64 (n,), event_time of each line.
    """
    n = len(to)
    revisions = join_revisions(blocks)
    if revisions is None:
        end = column(TIMESTAMP, ends)
        zero, no = pa.repeat(pa.scalar(0, pa.int32()), n), pa.repeat(False, n)  # noqa: FBT003  # a value
        return [zero, end, end, pa.nulls(n, pa.binary(16)), pa.nulls(n, pa.string()), no]
    lines = np.empty(n, np.int64)
    lines[to] = np.arange(n)
    r = take_revisions(revisions, lines)
    named = np.diff(r.cause_offsets) > 0
    causes = [pa.py_buffer(_bits(named)), pa.py_buffer(r.cause_offsets.astype(np.int32)), pa.py_buffer(r.cause_data)]
    return [
        column(pa.int32(), r.revision),
        column(TIMESTAMP, ends + r.revision),
        column(TIMESTAMP, r.known_at),
        column(pa.binary(16), r.supersedes.astype("<u8", copy=False), _bits(r.replaces)),
        pa.Array.from_buffers(pa.string(), n, causes),
        column(pa.bool_(), _bits(r.retracted), length=n),
    ]


def column(
    kind: pa.DataType,
    values: NDArray[np.generic],
    valid: NDArray[np.uint8] | None = None,
    length: int | None = None,
) -> pa.Array:
    """An Arrow column over the arrays, nothing copied. pa.array would do too, but imports pandas first.

    valid: a bit a value, LSB first, or None. length: of values that are bits.
    """
    bitmap = None if valid is None else pa.py_buffer(valid)
    count = len(values) if length is None else length
    return pa.Array.from_buffers(kind, count, [bitmap, pa.py_buffer(values)])


def _bits(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(flags, bitorder="little")
