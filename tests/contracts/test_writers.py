"""What the writers of rows and logs do is there once, wherever the engine is killed and whatever it replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.buses.memory import MemoryBus
from operators.messages import Message
from stores import log_writer, writers
from stores.log_writer import LogWriter, append_all, logged
from stores.offline.memory import MemoryOfflineStore
from stores.writers import EPOCHS_MAX, Delivery, OfflineWriter, Rows, staged_tokens
from tests.epochs import PLANS, SETS, Engine, hour_rows
from tests.offline_rows import published


def seen(store: MemoryOfflineStore) -> list[int]:
    """The numbers of the visible rows, sorted; one that is there twice is in the list twice."""
    return sorted(number for _, table in store.scan() for number in table["heat__count"].to_pylist())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of three rows are large enough."""
    monkeypatch.setattr(writers, "ROWS_MIN", 3)


class AtOnce(Executor):
    """Threads that are done before anything else happens."""

    def submit(self, work: Callable[..., Any], /, *args: object, **named: object) -> Future[Any]:
        """Do the work."""
        done: Future[Any] = Future()
        done.set_result(work(*args, **named))
        return done


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("beside", [None, AtOnce()], ids=["at snapshots", "beside the flow"])
@given(plan=PLANS, finals=st.sets(st.integers(0, 40)))
def test_offline_rows_are_visible_once(beside: Executor | None, plan: Sequence[str], finals: set[int]) -> None:
    """At every moment each row is visible at most once and only if its epoch is durable; in the end all are."""
    store = MemoryOfflineStore()
    engine = Engine(
        lambda resume: OfflineWriter(store, SETS, "aa.w0", resume, Delivery(durable=True, staged=True, beside=beside)),
        lambda number: hour_rows(number, final=number in finals),
    )
    for step in plan:
        engine.do(step)
        visible = seen(store)
        assert len(visible) == len(set(visible))
        assert set(visible) <= set(range(engine.durable[1]))
    engine.finish()
    assert seen(store) == list(range(engine.furthest))


@pytest.mark.usefixtures("small")
@given(plan=PLANS)
def test_what_a_durable_snapshot_has_staged_can_be_published_by_others(plan: Sequence[str]) -> None:
    """After the last run `staged_tokens` of its snapshot publish the rest, and doing so again changes nothing."""
    store = MemoryOfflineStore()
    engine = Engine(
        lambda resume: OfflineWriter(store, SETS, "aa.w0", resume, Delivery(durable=True, staged=True)), hour_rows
    )
    for step in plan:
        engine.do(step)
    engine.writer.write(Rows(final=True))
    engine.do("epoch")
    engine._commit()
    state, position = engine.durable
    assert state is not None
    for _ in range(2):
        store.publish(staged_tokens(state))
        assert seen(store) == list(range(position))


@pytest.mark.usefixtures("small")
@given(plan=PLANS)
def test_unstaged_offline_rows_are_never_lost(plan: Sequence[str]) -> None:
    """With EXACTLY_ONCE_SINK=0 rows are visible with their snapshot; after a kill some come again, none is missing."""
    store = MemoryOfflineStore()
    engine = Engine(
        lambda resume: OfflineWriter(store, SETS, "aa.w0", resume, Delivery(durable=True, staged=False)), hour_rows
    )
    for step in plan:
        engine.do(step)
    engine.finish()
    assert set(seen(store)) == set(range(engine.furthest))
    if "killed" not in plan:
        assert seen(store) == list(range(engine.furthest))


@pytest.mark.usefixtures("small")
@given(plan=st.lists(st.sampled_from(["write", "epoch"]), max_size=20))
def test_without_durable_snapshots_closing_publishes(plan: Sequence[str]) -> None:
    """A run that remembers nothing has everything visible once it has ended well."""
    store = MemoryOfflineStore()
    engine = Engine(
        lambda resume: OfflineWriter(store, SETS, "aa.w0", resume, Delivery(durable=False, staged=True)), hour_rows
    )
    for step in plan:
        engine.do(step)
    engine.writer.close()
    assert seen(store) == list(range(engine.furthest))


def test_small_files_wait_for_company() -> None:
    """Few rows wait for EPOCHS_MAX snapshots, many or final ones do not; meanwhile they are in the snapshot."""
    store = MemoryOfflineStore()
    writer = OfflineWriter(store, SETS, "aa.w0", None, Delivery(durable=True, staged=True))
    writer.write(hour_rows(0))
    states = [writer.snapshot() for _ in range(EPOCHS_MAX)]
    assert [len(staged_tokens(state)) for state in states] == [0] * (EPOCHS_MAX - 1) + [1]
    writer.write(hour_rows(1, final=True))
    assert len(staged_tokens(writer.snapshot())) == 1
    assert len(published(store)) == 1


def test_rows_of_two_writers_do_not_mix() -> None:
    """Each writer publishes and discards its own; a restart of one leaves what the other has staged."""
    store = MemoryOfflineStore()
    one, two = (OfflineWriter(store, SETS, f"aa.w{i}", None, Delivery(durable=True, staged=True)) for i in range(2))
    one.write(hour_rows(0, final=True))
    two.write(hour_rows(1, final=True))
    state = one.snapshot(), two.snapshot()
    OfflineWriter(store, SETS, "aa.w0", None, Delivery(durable=True, staged=True))
    two.snapshot()
    assert seen(store) == [1]
    assert staged_tokens(state[0]) != staged_tokens(state[1])


def test_a_file_that_could_not_be_written_beside_the_flow_stops_it() -> None:
    """What goes wrong in a writing thread is raised by the next snapshot, which then does not happen."""
    store = MemoryOfflineStore()
    with ThreadPoolExecutor(1) as beside:
        writer = OfflineWriter(store, SETS, "aa.w0", None, Delivery(durable=True, staged=True, beside=beside))
        store.close()
        for number in range(2 * writers.ROWS_MIN):
            writer.write(hour_rows(number))
        with pytest.raises(ValueError, match="closed"):
            writer.snapshot()


def test_a_log_that_cannot_tell_repeats_gets_none_between_clean_runs() -> None:
    """Sent at once, a snapshot holds nothing that the next run would send again."""
    sent: list[Message] = []

    def append(messages: list[Message], at: int) -> int:
        sent.extend(messages)
        return at + len(messages)

    writer = LogWriter(append, None, durable=True, at_once=True)
    writer.write([Message(b"one"), Message(b"two")])
    state = writer.snapshot()
    LogWriter(append, state, durable=True, at_once=True).snapshot()
    assert [m.value for m in sent] == [b"one", b"two"]
    assert logged(state) == (2, [])


def test_what_was_appended_in_part_is_gone_on_with_whoever_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two appends of one snapshot: the end of a run and the next writer both find their way."""
    monkeypatch.setattr(log_writer, "APPENDED_MAX", 2)
    sent: list[Message] = []

    def append(messages: list[Message], at: int) -> int:
        """As Kafka's writer: what is whole already changes nothing, what is in part is refused."""
        after = at + len(messages)
        if len(sent) < after:
            assert len(sent) == at, "the writer is elsewhere"
            sent.extend(messages)
        return after

    messages = [Message(b"%d" % number) for number in range(5)]
    writer = LogWriter(append, None, durable=True)
    writer.write(messages)
    state = writer.snapshot()
    append(messages[:2], 0)  # and then it was killed
    at, ready = logged(state)
    assert append_all(append, ready, at) == 5
    LogWriter(append, state, durable=True)
    assert sent == messages


def message(number: int) -> list[Message]:
    """None, one or some messages of any bytes that a line can hold, some with keys and headers."""
    values = [b"%d-%d \xff\x00\xc3\xa4" % (number, i) for i in range(number % 3)]
    key, headers = (None, ()) if number % 5 == 0 else ([b"", b"k\xff"][number % 2], (("a", "ü"), ("a", "")))
    return [Message(value, key, headers) for value in values]


def log_of(bus: MemoryBus) -> list[bytes]:
    """All messages of the late topic."""
    reader = bus.reader("late", "aa", None)
    chunk = reader.poll(10_000)
    return [] if chunk is None else [chunk.message(i) for i in range(len(chunk.lengths))]


def writer_of(bus: MemoryBus, resume: bytes | None, *, durable: bool = True) -> LogWriter:
    """A writer that owns the partition `aa` of the late topic."""
    return LogWriter(lambda messages, at: bus.append("late", "aa", messages, at=at), resume, durable=durable)


def messages_until(position: int) -> list[bytes]:
    """What the items before the position hold."""
    return [m.value for number in range(position) for m in message(number)]


@given(plan=PLANS)
def test_messages_are_in_the_log_once_and_in_order(plan: Sequence[str]) -> None:
    """At every moment the log is a beginning of what durable epochs hold; in the end it is all, byte for byte."""
    bus = MemoryBus()
    engine = Engine(lambda resume: writer_of(bus, resume), message)
    for step in plan:
        engine.do(step)
        durable = messages_until(engine.durable[1])
        assert log_of(bus) == durable[: len(log_of(bus))]
    engine.finish(epochs=2)
    assert log_of(bus) == messages_until(engine.furthest)


@given(plan=PLANS)
def test_what_a_durable_snapshot_has_of_a_log_can_be_appended_by_others(plan: Sequence[str]) -> None:
    """After the last run `logged` of its snapshot tells what is missing and where; appending it twice is once."""
    bus = MemoryBus()
    engine = Engine(lambda resume: writer_of(bus, resume), message)
    for step in [*plan, "epoch"]:
        engine.do(step)
    engine._commit()
    state, position = engine.durable
    assert state is not None
    at, missing = logged(state)
    for _ in range(2):
        bus.append("late", "aa", missing, at=at)
        assert log_of(bus) == messages_until(position)


def test_a_log_without_durable_snapshots_is_complete_when_closed() -> None:
    """A run that remembers nothing has appended everything once it has ended well."""
    bus = MemoryBus()
    writer = writer_of(bus, None, durable=False)
    writer.write([Message(b"a")])
    writer.snapshot()
    writer.write([Message(b"b")])
    writer.close()
    assert log_of(bus) == [b"a", b"b"]


def test_a_log_keeps_what_others_wrote_before() -> None:
    """A log writer with a durable snapshot goes on at its own place only."""
    bus = MemoryBus()
    writer = writer_of(bus, None)
    writer.write([Message(b"a")])
    writer.snapshot()
    state = writer.snapshot()
    assert logged(state) == (1, [])
    resumed = writer_of(bus, state)
    resumed.write([Message(b"b")])
    resumed.snapshot()
    resumed.snapshot()
    assert log_of(bus) == [b"a", b"b"]
