"""What Kafka is told of inputs that were refused fits into its messages, whatever the input holds."""

from __future__ import annotations

from pathlib import Path

from dataflows.announcing import dead_letter, replayed, signal_failed
from dataflows.engine import _one_error
from operators.errors import FatalError
from operators.records import DeadLetter


def letter(original: bytes, trace_id: str | None = None) -> DeadLetter:
    """A refused signal."""
    return DeadLetter("ab", 0, "decode", "entity_id", "it is too long", "signals", "0", 7, original, trace_id)


def test_an_endless_entity_is_no_key() -> None:
    """An entity_id longer than any may be is neither key nor subject: the message stays as small as its original."""
    original = b'{"entity_id": "' + b"x" * 600_000 + b'"}'
    for told in (dead_letter(letter(original), 1 << 20), replayed(letter(original))):
        assert told.key is None
        assert sum(len(name) + len(text) for name, text in told.headers) < 2_000
    assert len(signal_failed(letter(original)).value) < 2_000


def test_an_endless_trace_is_cut() -> None:
    """What a sender wrote as trace_id does not fill the headers."""
    told = dead_letter(letter(b"{}", "t" * 500_000), 1 << 20)
    assert sum(len(name) + len(text) for name, text in told.headers) < 2_000
    assert len(signal_failed(letter(b"{}", "t" * 500_000)).value) < 2_000


def test_an_error_that_is_its_own_cause_has_an_end() -> None:
    """The engine's error is looked through once: a circle of causes once ate all memory."""
    error = FatalError("refused")
    error.__cause__ = error
    assert _one_error(error, [], Path("recovery")) is error
