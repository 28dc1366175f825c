"""Pieces of JSON that the fast lane steps over: blanks, strings, values of unknown keys; compiled.

Each takes a place and the end of the message and returns the place behind the piece, or FAILED if it
is not plain, valid JSON: these pieces flag a message, they never say what is wrong with it.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64

from operators.floats import FAILED, number_shape
from operators.simd import differ_mask, high_mask, load_word, stop_mask, trailing_zeros

_DEPTH_MAX = 64
_VECTOR = 32
_NULL = np.uint64(int.from_bytes(b"null", "little"))
_TRUE = np.uint64(int.from_bytes(b"true", "little"))
_FALSE = np.uint64(int.from_bytes(b"false", "little"))
