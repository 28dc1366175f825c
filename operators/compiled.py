"""How the loops are compiled: without counting references, without fastmath, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

# Its declared type does not know `_nrt`.
_njit: Callable[..., Callable[[Callable[..., Any]], Any]] = numba.njit

# None of these functions makes or keeps an array, so none has to count references to one; counting would be most of
# the time of a function that looks at a few bytes or numbers.
kernel = _njit(cache=True, nogil=True, _nrt=False)
"""Compile a function on its own; it may be called from Python, and must not make an array."""

piece = _njit(forceinline=True, _nrt=False)
"""Compile a function into each of its callers; it must not make an array."""

part = _njit(_nrt=False)
"""Compile a function for its callers, one copy for all; it must not make an array."""
