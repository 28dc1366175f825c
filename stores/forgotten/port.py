"""What the list of forgotten names promises: it knows a name when it hears it, and nobody can read one from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from operators.forgotten import Forgotten, Kind

MARK_DIGITS = 12
"""Hexadecimal digits of a salted hash by which an entry is shown and named."""


@dataclass(frozen=True, slots=True)
class ForgottenName:
    """An entry. mark: the first digits of the salted hash. since_us: microseconds since the epoch, UTC.

    done: whether all that could be removed was, and was looked for again in vain.
    """

    mark: str
    kind: Kind
    since_us: int
    done: bool


class ForgottenNames(Protocol):
    """Entities and documents that must not come back until they are lifted, by salted hashes.

    Every change is durable when it returns and safe to repeat. Methods raise RetryableError when others hold the list
    locked for too long, CorruptStoreError when it is damaged, FatalError when the disk is full or fails.
    """

    def add(self, kind: Kind, name: str, *, now_us: int) -> None:
        """Put the name on the list, not done; one that is there keeps its time."""
        ...

    def finish(self, kind: Kind, name: str) -> None:
        """Note that nothing of it is left; nothing if it is not on the list."""
        ...

    def lift(self, name: str) -> int:
        """Take the name, or the entry of that mark, off the list; return how many entries that were."""
        ...

    def list(self) -> Sequence[ForgottenName]:
        """Return all entries, the oldest first."""
        ...

    def load(self) -> Forgotten | None:
        """Return the list as it is asked; None if it is empty."""
        ...

    def close(self) -> None:
        """Let go of the list. Safe to repeat."""
        ...
