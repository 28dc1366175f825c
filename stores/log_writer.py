"""Messages to a log, each once over an engine that replays: what one snapshot holds is appended at the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from operators.messages import Message, pack_messages, unpack_messages
from operators.packing import pack, unpack

Append = Callable[[list[Message], int], int]
"""(messages, at) → the place after them; repeating it changes nothing, and no messages are no work."""

APPENDED_MAX = 16_384
"""Messages of one append, which bounds memory and the time that a transaction takes."""


class LogWriter:
    """Appends messages to a log at one snapshot later than they came; owns its partition of the log."""

    def __init__(self, append: Append, resume: bytes | None, *, durable: bool, at_once: bool = False) -> None:
        """Append what the resumed snapshot held. durable: see Delivery.

        at_once: append at the snapshot itself, for a log that cannot tell a repeat: only a crash repeats anything.
        """
        self._append = append
        self._durable = durable
        self._at_once = at_once
        self._at, self._ready = (0, []) if resume is None else logged(resume)
        self._waiting: list[Message] = []
        self._flush()

    def write(self, messages: list[Message]) -> None:
        """Take messages."""
        self._waiting += messages

    def snapshot(self) -> bytes:
        """Append what the last snapshot held; hold what has come since."""
        self._flush()
        self._ready, self._waiting = self._waiting, []
        if self._at_once:
            self._flush()
        return pack({"at": self._at}, pack_messages(self._ready))

    def close(self) -> None:
        """Without durable snapshots: append everything now."""
        if not self._durable:
            self._flush()
            self._ready, self._waiting = self._waiting, []
            self._flush()

    def _flush(self) -> None:
        for begin in range(0, max(1, len(self._ready)), APPENDED_MAX):
            self._at = self._append(self._ready[begin : begin + APPENDED_MAX], self._at)
        self._ready = []


def logged(state: bytes) -> tuple[int, list[Message]]:
    """(place, messages) that a committed snapshot of a LogWriter holds, ready to be appended."""
    meta, arrays = unpack(state)
    return cast("int", meta["at"]), unpack_messages(arrays)
