"""Compiled kernels that are older than their source are thrown away.

numba keeps a compiled function beside its source and looks at that one file alone: after an upgrade
that changed a function which it calls, it would go on with the old code.
"""

from __future__ import annotations

from pathlib import Path

_KERNELS = Path(__file__).parents[1] / "operators"


def drop_stale_kernels(package: Path = _KERNELS) -> int:
    """Delete the cached kernels of a package that are older than its newest source; return how many.

    Call it before the first kernel runs. Safe with several processes; a cache that cannot be written
    to is left alone, since numba does not use it then.
    """
    newest = max(source.stat().st_mtime_ns for source in package.glob("*.py"))
    dropped = 0
    for cached in (package / "__pycache__").glob("*.nb[ci]"):
        try:
            if cached.stat().st_mtime_ns < newest:
                cached.unlink()
                dropped += 1
        except (FileNotFoundError, PermissionError):
            continue
    return dropped
