"""What is done to one document, and what becomes of it on its way: values that the steps hand on. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from operators.documents import doc_id
from operators.errors import ResumeError
from operators.packing import pack, unpack

TaskKind = Literal["added", "updated", "renamed", "deleted", "relisted", "refused"]
"""relisted: unchanged, but another source lists it. refused: a message that names no document, for its letter only."""

DOCUMENT_STAGES = ("fetch", "extract", "embed")
"""Stages that refuse documents."""

EVENT_STAGE = "event"
"""Stage that refuses messages about documents; all other stages of dead letters are those of signals."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do to one document. source, fingerprint, size_bytes: as it was listed.

    turn: number of the look at the sources that found it, rising for ever. old_uri: of a renamed one.
    """

    turn: int
    kind: TaskKind
    uri: str
    source: str
    fingerprint: str
    size_bytes: int
    old_uri: str | None = None

    @property
    def doc_id(self) -> str:
        """Name of the document."""
        return doc_id(self.uri)


@dataclass(frozen=True, slots=True)
class Passed:
    """The newest task of each document of a shard that was handed on, so that a repeat or an older word is not.

    Whoever delivers tasks may deliver one twice, or late. A task is new if its turn is above that of the last one
    of its document; what was deleted is remembered no longer, but no turn before `turn_least` is new.
    """

    turns: dict[str, int] = field(default_factory=dict)
    turn_least: int = 0

    def take(self, task: Task) -> tuple[bool, Passed]:
        """Whether the task is new, and what is remembered after it. Changes `turns` in place: there is one holder."""
        if task.turn < self.turn_least or task.turn <= self.turns.get(task.doc_id, -1):
            return False, self
        if task.kind == "refused":
            return True, self
        if task.kind != "deleted":
            self.turns[task.doc_id] = task.turn
            return True, self
        self.turns.pop(task.doc_id, None)
        return True, replace(self, turn_least=max(self.turn_least, task.turn))

    def snapshot(self) -> bytes:
        """Versioned bytes, the same for the same state: 24 bytes a document."""
        names = sorted(self.turns)
        ids = np.frombuffer(bytes.fromhex("".join(names)), np.uint8)
        turns = np.array([self.turns[name] for name in names], np.int64)
        return pack({"turn_least": self.turn_least}, {"ids": ids, "turns": turns})

    @staticmethod
    def restored(state: bytes) -> Passed:
        """What `snapshot` described. Raises ResumeError for bytes of another version."""
        meta, arrays = unpack(state)
        ids: NDArray[np.generic] = arrays["ids"]
        data, least = ids.tobytes(), meta["turn_least"]
        if not isinstance(least, int):
            raise ResumeError("a snapshot of documents is damaged; start anew with an empty RECOVERY_DIR")
        names = [data[at : at + 16].hex() for at in range(0, len(data), 16)]
        return Passed(dict(zip(names, arrays["turns"].tolist(), strict=True)), least)
