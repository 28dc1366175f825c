"""What a killed backfill has staged is removed by the next one: no snapshot knows of it, so nobody else could tell.

A backfill holds the lock `_staging/<writer>.lock` from its first `stage` until its process ends. A lock that
can be taken therefore belongs to a dead one, or to one that is done.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress

from stores.offline.disk import locked, remove_folder
from stores.offline.layout import Layout
from stores.offline.port import BATCH_PART, part_of


class BatchClaims:
    """The backfill writers of one store object."""

    def __init__(self, layout: Layout) -> None:
        """Claim nothing yet."""
        self._layout = layout
        self._held: dict[str, ExitStack] = {}

    def take(self, writer: str) -> None:
        """Mark a backfill's writer as alive and remove what dead ones have left; for other writers do nothing."""
        if part_of(writer) != BATCH_PART or writer in self._held:
            return
        # Under one lock, so that no other backfill meets a claim that is made but not yet held.
        with locked(self._layout.lock("publish")):
            claim = ExitStack()
            claim.enter_context(locked(self._layout.lock(writer)))
            self._held[writer] = claim
            for path in sorted(self._layout.lock(writer).parent.glob(f"*.{BATCH_PART}.lock")):
                with suppress(BlockingIOError), locked(path, wait=False):
                    remove_folder(self._layout.staging(path.name.removesuffix(".lock")))
                    path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go: whatever is still staged may be removed. Safe to repeat."""
        for claim in self._held.values():
            claim.close()
        self._held.clear()
