"""The contract of held events, over every adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from operators.errors import ConfigError
from stores.holding import open_holding
from stores.holding.port import HeldEvent, Holding

Open = Callable[[], Holding]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holding]:
    """A store of each kind."""
    url = "memory:" if request.param == "memory" else f"sqlite:////{tmp_path}/late/holding.db"
    with closing(open_holding(url)) as opened:
        yield opened


def event(offset: int, partition: str = "p-0", reason: str = "late") -> HeldEvent:
    """A late event at that place."""
    return HeldEvent("signals", partition, offset, reason, 9_000_000, "pump-1", 1_000_000, offset, b'{"n":%d}' % offset)


def offsets(store: Holding) -> list[int]:
    """Of what is held, in order."""
    return [e.offset for e in store.list()]


def test_events_come_back_as_they_were_put(store: Holding) -> None:
    """Every column and every byte; the order is that in which they came."""
    events = [event(7), event(3), event(5, "p-1", "idle")]
    assert store.put(events) == 3
    assert list(store.list()) == events
    assert list(store.list(limit=1)) == events[:1]
    assert list(store.list(reason="idle")) == events[2:]
    assert (store.count(), store.count(reason="late")) == (3, 2)
    assert events[0].event_id == "signals/p-0/7"


def test_putting_again_changes_nothing(store: Holding) -> None:
    """A replay of the log neither doubles what is held nor brings back what was released or dropped."""
    store.put([event(1), event(2), event(3), event(1)])
    store.release(["signals/p-0/1"])
    store.drop(["signals/p-0/2"])
    assert store.put([event(1), event(2), event(3, reason="idle")]) == 0
    assert [(e.offset, e.reason) for e in store.list()] == [(3, "late")]
    assert [(n, e.offset) for n, e in store.released(0)] == [(1, 1)]


def test_released_events_have_rising_numbers(store: Holding) -> None:
    """Of one release in the order of the log; a later one goes on behind; each number once, whatever is dropped."""
    store.put([event(n, p) for n in (9, 10, 2) for p in ("p-1", "p-0")])
    assert store.release(["signals/p-1/9"]) == 1
    assert store.drop(["signals/p-0/2"]) == 1
    assert store.release(None) == 4
    assert store.release(None) == 0
    found = [(n, e.partition, e.offset) for n, e in store.released(0)]
    assert found == [(1, "p-1", 9), (2, "p-0", 9), (3, "p-0", 10), (4, "p-1", 2), (5, "p-1", 10)]
    assert [n for n, _ in store.released(2, limit=2)] == [3, 4]
    assert offsets(store) == []


def test_events_of_one_message_are_each_their_own(store: Holding) -> None:
    """Rows of a message of many signals share its place: each has its name, and they are released in their order."""
    rows = [replace(event(7), row=row) for row in (10, 2, 0)]
    assert store.put([*rows, event(7)]) == 4
    assert store.put(rows) == 0
    assert [e.event_id for e in store.list()] == [
        *(f"signals/p-0/7/{row}" for row in (10, 2, 0)),
        "signals/p-0/7",
    ]
    assert store.drop(["signals/p-0/7/2"]) == 1
    assert store.release(["signals/p-0/7/10", "signals/p-0/7/0", "signals/p-0/7"]) == 3
    assert [e.row for _, e in store.released(0)] == [-1, 0, 10]


def test_unknown_released_and_dropped_events_are_left_alone(store: Holding) -> None:
    """Only what is held is released or dropped, and once."""
    store.put([event(1)])
    assert store.release(["signals/p-0/1", "signals/p-0/1", "nothing"]) == 1
    assert store.drop(["signals/p-0/1"]) == 0
    assert store.drop(None) == 0
    assert store.put([]) == 0


def test_a_closed_store_says_so(store: Holding) -> None:
    """Use after close is a mistake of the program's own."""
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.put([event(1)])


def test_events_are_there_again_after_reopening(tmp_path: Path) -> None:
    """What was put, released and dropped is durable."""
    url = f"sqlite:////{tmp_path}/holding.db"
    with closing(open_holding(url)) as first:
        first.put([event(1), event(2), event(3)])
        first.release(["signals/p-0/2"])
        first.drop(["signals/p-0/3"])
    with closing(open_holding(url)) as again:
        assert offsets(again) == [1]
        assert [(n, e) for n, e in again.released(0)] == [(1, event(2))]
        assert again.release(None) == 1
        assert [n for n, _ in again.released(0)] == [1, 2]
    assert event(3).original not in (tmp_path / "holding.db").read_bytes()


@pytest.mark.parametrize("url", ["sqlite:", "postgres://x", "nothing"])
def test_an_unknown_url_is_refused(url: str) -> None:
    """With one sentence."""
    with pytest.raises(ConfigError, match="held events"):
        open_holding(url)
