"""What every bus keeps to that can be written to: appends that may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dataflows.buses import open_writable_bus
from dataflows.buses.port import WritableBus
from operators.errors import ResumeError
from tests.buses import read_all

BUSES: dict[str, Callable[[Path], WritableBus]] = {
    "memory": lambda _: open_writable_bus("memory:", event_bytes_max=1 << 20),
    "folder": lambda path: open_writable_bus(f"folder:{path}", event_bytes_max=1 << 20),
}
"""One line an adapter."""


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> WritableBus:
    """Each adapter, empty."""
    return BUSES[request.param](tmp_path / "bus")


def test_repeating_an_append_changes_nothing(bus: WritableBus) -> None:
    """The same messages at the same offset, again and again: the log holds them once."""
    at = bus.append("t", "p", [b"a", b"bb"], at=0)
    for _ in range(2):
        end = bus.append("t", "p", [b"c", b"dd"], at=at)
    assert bus.append("t", "p", [], at=end) == end
    assert [message for _, message in read_all(bus, "t", "p")] == [b"a", b"bb", b"c", b"dd"]


def test_an_append_beyond_the_end_is_refused(bus: WritableBus) -> None:
    """A log that has lost its end is not continued with a hole in it."""
    at = bus.append("t", "p", [b"a", b"b"], at=0)
    with pytest.raises(ResumeError):
        bus.append("t", "p", [b"c"], at=at + 1)
    assert [message for _, message in read_all(bus, "t", "p")] == [b"a", b"b"]


def test_the_end_is_where_an_append_goes(bus: WritableBus) -> None:
    """`end` of a new partition is 0, and then what the last append returned."""
    assert bus.end("t", "p") == 0
    end = bus.append("t", "p", [b"a", b"bb"], at=0)
    assert bus.end("t", "p") == end
