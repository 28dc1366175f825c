"""The list of forgotten names in memory: the whole contract without a disk, for tests and trials."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from operators.forgotten import SALT_BYTES, Forgotten, Kind, name_hash, quick_hash
from stores.forgotten.port import MARK_DIGITS, ForgottenName


class MemoryForgotten:
    """`ForgottenNames` that live as long as the object."""

    def __init__(self) -> None:
        """Know of nothing."""
        self._salt = os.urandom(SALT_BYTES)
        self._entries: dict[bytes, tuple[ForgottenName, int]] = {}

    def add(self, kind: Kind, name: str, *, now_us: int) -> None:
        """Put the name on the list; see `ForgottenNames.add`."""
        key = name_hash(self._salt, kind, name)
        entry = ForgottenName(key.hex()[:MARK_DIGITS], kind, now_us, done=False)
        since = self._entries[key][0].since_us if key in self._entries else now_us
        self._entries[key] = replace(entry, since_us=since), quick_hash(self._salt, name)

    def finish(self, kind: Kind, name: str) -> None:
        """Note that nothing is left; see `ForgottenNames.finish`."""
        key = name_hash(self._salt, kind, name)
        if key in self._entries:
            entry, quick = self._entries[key]
            self._entries[key] = replace(entry, done=True), quick

    def lift(self, name: str) -> int:
        """Take the name off the list; see `ForgottenNames.lift`."""
        named = {name_hash(self._salt, "entity", name), name_hash(self._salt, "document", name)}
        gone = [key for key, (entry, _) in self._entries.items() if key in named or entry.mark == name]
        for key in gone:
            del self._entries[key]
        return len(gone)

    def list(self) -> Sequence[ForgottenName]:
        """Return all entries; see `ForgottenNames.list`."""
        return sorted((entry for entry, _ in self._entries.values()), key=lambda e: (e.since_us, e.mark))

    def load(self) -> Forgotten | None:
        """Return the list as it is asked; see `ForgottenNames.load`."""
        quick = sorted(quick for entry, quick in self._entries.values() if entry.kind == "entity")
        names = frozenset(self._entries)
        return Forgotten(self._salt, np.array(quick, np.uint64), names) if names else None

    def close(self) -> None:
        """Do nothing."""
