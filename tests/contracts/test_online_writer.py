"""The writer of online features: the newest row is served in the end, wherever the engine is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import UnavailableError
from operators.feature_sets import FeatureSets
from stores import writers
from stores.features.memory import MemoryFeatures
from stores.features.port import View
from stores.writers import OnlineWriter, Rows
from tests.epochs import PLANS, SETS, VIEW, Engine, hour_rows
from tests.offline_rows import HOUR, MIDNIGHT


def newest_hours(count: int) -> dict[str, int]:
    """Of each entity the highest hour of the first `count` items."""
    hours: dict[str, int] = {}
    for number in range(count):
        name = f"e{number % 5}"
        hours[name] = max(hours.get(name, 0), number * 7 % 60)
    return hours


def served(store: MemoryFeatures) -> dict[str, int]:
    """Of each entity the hour of the row that is served."""
    found = store.read(VIEW, [f"e{i}" for i in range(5)])
    first = MIDNIGHT + HOUR
    return {row.entity_id: (row.event_time_us - first) // 3_600_000_000 for row in found if row is not None}


def features() -> MemoryFeatures:
    """A store that knows the view."""
    store = MemoryFeatures()
    store.prepare([VIEW])
    return store


@given(plan=PLANS, ends=st.sets(st.integers(0, 40)), rows_max=st.sampled_from([0, 200_000]))
def test_the_newest_row_is_served_and_never_goes_back(plan: Sequence[str], ends: set[int], rows_max: int) -> None:
    """Whatever is killed and replayed, an entity's row only gets newer, and is the newest of all in the end."""
    store = features()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "_ONLINE_ROWS_MAX", rows_max)
        engine = Engine(
            lambda resume: OnlineWriter(store, SETS, resume),
            lambda number: replace(hour_rows(number), ended=number in ends),
        )
        before: dict[str, int] = {}
        for step in plan:
            engine.do(step)
            now = served(store)
            assert all(now[name] >= hour for name, hour in before.items())
            before = now
        engine.finish(epochs=1)
        engine.writer.write(Rows(ended=True))
        engine.writer.close()
    assert served(store) == newest_hours(engine.furthest)


@pytest.mark.parametrize("last_call", ["snapshot", "close"])
def test_at_the_end_of_a_log_all_rows_are_served(last_call: str) -> None:
    """A run over a whole log is not over before its features are online, with snapshots or without."""
    store = features()
    writer = OnlineWriter(store, SETS, None)
    for number in range(20):
        writer.write(hour_rows(number))
    writer.write(Rows(ended=True))
    getattr(writer, last_call)()
    assert served(store) == newest_hours(20)
    writer.close()


class Slow(MemoryFeatures):
    """A store whose writes wait until they are let go."""

    def __init__(self) -> None:
        """Know the view, and hold writes back."""
        super().__init__()
        self.prepare([VIEW])
        self.reached = threading.Event()
        self.go = threading.Event()

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Wait, then write."""
        self.reached.set()
        assert self.go.wait(60)
        super().write(view, rows)


def test_the_snapshot_holds_what_is_not_served_yet() -> None:
    """Rows that wait, and those that are just being written, come again after a restart; writing never blocks."""
    store = Slow()
    writer = OnlineWriter(store, SETS, None)
    writer.write(hour_rows(0))
    assert store.reached.wait(60)
    for number in range(1, 8):
        writer.write(hour_rows(number))
    state = writer.snapshot()
    assert served(store) == {}
    other = features()
    resumed = OnlineWriter(other, SETS, state)
    resumed.drain()
    resumed.close()
    assert served(other) == newest_hours(8)
    store.go.set()
    writer.drain()
    writer.close()
    assert served(store) == newest_hours(8)


def test_a_store_that_hangs_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits a little and gives up: the rows are in the snapshot that was taken before."""
    monkeypatch.setattr(writers, "_CLOSE_S", 0.05)
    store = Slow()
    writer = OnlineWriter(store, SETS, None)
    writer.write(hour_rows(0, final=True))
    assert store.reached.wait(60)
    state = writer.snapshot()
    writer.close()
    assert served(store) == {}
    store.go.set()
    writer._thread.join(60)
    other = features()
    resumed = OnlineWriter(other, SETS, state)
    resumed.drain()
    resumed.close()
    assert served(other) == served(store) == newest_hours(1)


def test_rows_of_a_set_that_is_gone_are_left_out() -> None:
    """A snapshot may hold rows of a set that is not declared any more; the others come again."""
    store = Slow()
    writer = OnlineWriter(store, SETS, None)
    writer.write(hour_rows(0))
    state = writer.snapshot()
    store.go.set()
    writer.close()
    other = features()
    resumed = OnlineWriter(other, FeatureSets(()), state)
    resumed.drain()
    resumed.close()
    assert served(other) == {}


class Away(MemoryFeatures):
    """A store that is not there."""

    def write(self, view: View, rows: pa.RecordBatch) -> None:
        """Fail."""
        raise UnavailableError(f"the store is away: {rows.num_rows} rows of {view.name}")


def test_a_failure_of_the_store_reaches_the_engine() -> None:
    """What the thread met is raised by the next call that the engine makes, and the rows stay in the snapshot."""
    writer = OnlineWriter(Away(), SETS, None)
    writer.write(hour_rows(0))
    with pytest.raises(UnavailableError, match="away"):
        writer.drain()
    with pytest.raises(UnavailableError, match="away"):
        writer.write(hour_rows(1))
    state = writer.snapshot()
    writer.close()
    other = features()
    resumed = OnlineWriter(other, SETS, state)
    resumed.drain()
    resumed.close()
    assert served(other) == newest_hours(1)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Writers that were closed have ended their threads."""
    yield
    assert not [t for t in threading.enumerate() if t.name == "online-writer"]
