"""Messages to a log, each once over an engine that replays: what one snapshot holds is appended at the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic, TypeVar, cast

from operators.messages import Message, pack_messages, unpack_messages
from operators.packing import pack, unpack

Item = TypeVar("Item")
Append = Callable[[list[Message], int], int]
"""(messages, at) → the place after them; repeating it changes nothing. No messages: `at` is where the log must be."""

APPENDED_MAX = 16_384
"""Messages of one append, which bounds memory and the time that a transaction takes."""


class OneLater(Generic[Item]):
    """Items that are sent one snapshot later than they came, when that is durable."""

    def __init__(
        self,
        send: Callable[[list[Item], int], int],
        resumed: tuple[int, list[Item]],
        *,
        durable: bool,
        at_once: bool,
    ) -> None:
        """Send what the resumed snapshot held. durable: see Delivery.

        send: (items, at) → the place after them; no items: `at` is where the log must be. resumed: place and items.
        at_once: send at the snapshot itself, for a log that cannot tell a repeat: only a crash repeats anything.
        """
        self._send = send
        self._durable = durable
        self._at_once = at_once
        self._at, self._ready = resumed
        self._waiting: list[Item] = []
        self._flush()
        self._flush()  # with nothing: a log that is further than the snapshot's items says so, now that none is left

    def take(self, items: Iterable[Item]) -> None:
        """Take items."""
        self._waiting += items

    def turn(self, joined: Callable[[list[Item]], list[Item]] = list) -> tuple[int, list[Item]]:
        """Send what the last snapshot held; return place and items of this one. joined: what becomes of them there."""
        self._flush()
        self._ready, self._waiting = joined(self._waiting), []
        if self._at_once:
            self._flush()
        return self._at, self._ready

    def close(self) -> None:
        """Without durable snapshots: send everything now."""
        if not self._durable:
            self._flush()
            self._ready, self._waiting = self._waiting, []
            self._flush()

    def _flush(self) -> None:
        self._at, self._ready = self._send(self._ready, self._at), []


class LogWriter:
    """Appends messages to a log at one snapshot later than they came; owns its partition of the log."""

    def __init__(self, append: Append, resume: bytes | None, *, durable: bool, at_once: bool = False) -> None:
        """Append what the resumed snapshot held. durable, at_once: see OneLater."""
        resumed = (0, []) if resume is None else logged(resume)
        self._later = OneLater(partial(append_all, append), resumed, durable=durable, at_once=at_once)

    def write(self, messages: list[Message]) -> None:
        """Take messages."""
        self._later.take(messages)

    def snapshot(self) -> bytes:
        """Append what the last snapshot held; hold what has come since."""
        at, messages = self._later.turn()
        return pack({"at": at}, pack_messages(messages))

    def close(self) -> None:
        """Without durable snapshots: append everything now."""
        self._later.close()


def append_all(append: Append, messages: list[Message], at: int) -> int:
    """Append the messages that follow `at`, always cut alike: a repeat goes on wherever the first was killed."""
    for begin in range(0, max(1, len(messages)), APPENDED_MAX):
        at = append(messages[begin : begin + APPENDED_MAX], at)
    return at


def logged(state: bytes) -> tuple[int, list[Message]]:
    """(place, messages) that a committed snapshot of a LogWriter holds, ready to be appended."""
    meta, arrays = unpack(state)
    return cast("int", meta["at"]), unpack_messages(arrays)
