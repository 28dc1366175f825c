"""Dead letters in memory: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

from operators.records import DeadLetter
from stores.deadletters.port import EVERY_LETTER, LetterFilter, LetterHead, check_limit, head_of, storable


class MemoryDeadLetters:
    """`DeadLetters` that live as long as the object; "durable" means no more than that."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._letters: dict[str, DeadLetter] = {}
        self._lock = Lock()
        self._closed = False

    def put(self, letters: Sequence[DeadLetter]) -> int:
        """Keep the letters; see `DeadLetters.put`."""
        with self._lock:
            self._check_open()
            before = len(self._letters)
            for letter in letters:
                self._letters.setdefault(letter.letter_id, storable(letter))
            return len(self._letters) - before

    def list(
        self, which: LetterFilter = EVERY_LETTER, *, limit: int = 100, after: tuple[int, str] | None = None
    ) -> Sequence[LetterHead]:
        """Return one page of letters; see `DeadLetters.list`."""
        check_limit(limit)
        with self._lock:
            self._check_open()
            heads = sorted(
                (head_of(letter) for letter in self._letters.values() if which.takes(letter)),
                key=lambda head: head.place,
            )
        return [head for head in heads if after is None or head.place > after][:limit]

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the letter; see `DeadLetters.get`."""
        with self._lock:
            self._check_open()
            return self._letters.get(letter_id)

    def drop(self, letter_ids: Sequence[str]) -> int:
        """Forget the letters; see `DeadLetters.drop`."""
        with self._lock:
            self._check_open()
            return sum(self._letters.pop(name, None) is not None for name in letter_ids)

    def count(self, which: LetterFilter = EVERY_LETTER) -> int:
        """Return how many there are; see `DeadLetters.count`."""
        with self._lock:
            self._check_open()
            return sum(which.takes(letter) for letter in self._letters.values())

    def forget(self, takes: Callable[[DeadLetter], bool]) -> int:
        """Forget those letters; see `DeadLetters.forget`."""
        with self._lock:
            self._check_open()
            gone = [name for name, letter in self._letters.items() if takes(letter)]
            for name in gone:
                del self._letters[name]
            return len(gone)

    def close(self) -> None:
        """Let go of all letters."""
        self._closed = True
        self._letters.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the dead letters are closed")
