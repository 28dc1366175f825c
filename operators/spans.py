"""Byte strings that lie apart in one array, brought together: how messages leave the buffer they were read into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from operators.compiled import kernel
from operators.simd import copy_vector

_VECTOR = 32

SPARE = _VECTOR
"""Bytes behind the strings that `gather_spans` may write to."""


def gather_spans(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the strings data[starts[i]:starts[i] + lengths[i]] end to end, and int64 (n + 1,), where each begins.

    out: where they are put, with room for SPARE bytes more; None: in memory of their own.
    """
    ends = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    size = int(ends[-1])
    out = np.empty(size + SPARE, np.uint8) if out is None else out
    view = np.ascontiguousarray(data).view()
    view.flags.writeable = False  # the one kind of array that the kernel is compiled for
    _gather(view, np.ascontiguousarray(starts, np.int64), ends, out)
    return out[:size], ends


@kernel
def _gather(data, starts, ends, out):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Whole vectors are copied: what is too much of one string is written over by the next."""
    for i in range(len(starts)):
        start = starts[i]
        at = ends[i]
        length = ends[i + 1] - at
        if start + length + _VECTOR <= len(data):
            for b in range(0, length, _VECTOR):
                copy_vector(out, at + b, data, start + b)
        else:
            for b in range(length):
                out[at + b] = data[start + b]
