"""What a store of dead letters promises: a refused input is never lost, and never there twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from operators.records import DeadLetter


@dataclass(frozen=True, slots=True)
class LetterHead:
    """A dead letter without its original, as listings show it. size_bytes: length of the original."""

    letter_id: str
    time_us: int
    stage: str
    reason: str
    detail: str
    source: str
    partition: str
    offset: int
    trace_id: str | None
    size_bytes: int

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands in the order of a listing; `list(after=…)` goes on behind it."""
        return self.time_us, self.letter_id


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant; None takes all."""

    stage: str | None = None
    reason: str | None = None
    source: str | None = None
    partition: str | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether the letter is meant."""
        return (
            self.stage in (None, letter.stage)
            and self.reason in (None, letter.reason)
            and self.source in (None, letter.source)
            and self.partition in (None, letter.partition)
        )


EVERY_LETTER = LetterFilter()
"""Takes all letters."""


class DeadLetters(Protocol):
    """Refused inputs with their original bytes, to look at, mend and replay.

    Methods raise ValueError once the store is closed, RetryableError when it is locked by others for
    too long, CorruptStoreError when it is damaged, FatalError when the disk is full or fails. Several
    threads and processes may use one store.
    """

    def put(self, letters: Sequence[DeadLetter]) -> int:
        """Keep the letters, all or none; durable when it returns. Return how many were new.

        Of letters with the same letter_id, in the call or in the store, the first one stays, so the
        call may be repeated. Empty input is a no-op. Text that is no valid Unicode is kept with
        replacement characters; originals are kept to the byte.
        """
        ...

    def list(
        self, which: LetterFilter = EVERY_LETTER, *, limit: int = 100, after: tuple[int, str] | None = None
    ) -> Sequence[LetterHead]:
        """Return up to `limit` (at least 1) letters, ordered by time_us, then letter_id.

        after: the `place` behind which to go on, whether that letter still exists or not; None starts
        with the oldest. An empty result is the end.
        """
        ...

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the letter with its original, or None if there is none."""
        ...

    def drop(self, letter_ids: Sequence[str]) -> int:
        """Forget these letters, all or none; return how many there were. Safe to repeat."""
        ...

    def count(self, which: LetterFilter = EVERY_LETTER) -> int:
        """Return how many letters there are."""
        ...

    def forget(self, takes: Callable[[DeadLetter], bool]) -> int:
        """Leave no byte of the letters for which `takes` says yes; return how many there were. Safe to repeat."""
        ...

    def close(self) -> None:
        """Let go of the store; letters stay where they are durable. Safe to repeat."""
        ...


def letter_id(topic: str, partition: str, offset: int, stage: str) -> str:
    """Name the letter for the input at that place, refused by that stage: 32 hexadecimal digits.

    A function of its arguments alone, so a replay of the log names the same letter.
    """
    place = json.dumps([topic, partition, offset, stage])
    return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()


def storable(letter: DeadLetter) -> DeadLetter:
    """The letter with text that can be written as UTF-8: lone surrogates become U+FFFD.

    They come from broken JSON escapes, and a letter about broken input must not fail on it.
    """
    return replace(
        letter,
        stage=_valid(letter.stage),
        reason=_valid(letter.reason),
        detail=_valid(letter.detail),
        source=_valid(letter.source),
        partition=_valid(letter.partition),
        trace_id=None if letter.trace_id is None else _valid(letter.trace_id),
    )


def head_of(letter: DeadLetter) -> LetterHead:
    """The letter as a listing shows it."""
    return LetterHead(
        letter.letter_id,
        letter.time_us,
        letter.stage,
        letter.reason,
        letter.detail,
        letter.source,
        letter.partition,
        letter.offset,
        letter.trace_id,
        len(letter.original),
    )


def check_limit(limit: int) -> None:
    """Raise ValueError for a limit that would list nothing."""
    if limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")


def _valid(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
