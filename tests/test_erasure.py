"""An entity taken out of snapshots: nothing of it is left, and the others go on as if it had never been there."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.erasure import shard_without
from operators.errors import ResumeError
from operators.messages import Message
from operators.packing import pack, unpack
from operators.retained import Lateness
from operators.windows import Shard
from stores.erased_state import messages_changed, rows_blanked, rows_without
from stores.log_writer import LogWriter, logged
from stores.offline.memory import MemoryOfflineStore
from stores.results_writer import ResultsWriter
from stores.row_states import unpack_rows
from stores.writers import Delivery, OfflineWriter, Rows
from tests.oracles import Event
from tests.strategies import SECOND, logs
from tests.test_corrections import SETS, Run, history, lateness

WHO = "ключ-😀"
POLICIES = [None, lateness(20), lateness(10_000)]


def go_on(out: Run, log: list[Event], until: int, *, erase: bool) -> Run:
    """Run the log; behind event `until` take the entity out of the shard, and let none of its events in from there."""
    for _, group in groupby(enumerate(log), key=lambda pair: (pair[1].partition, pair[0] >= until)):
        events = list(group)
        if erase and events[0][0] >= until:
            forget(out)
            events = [(i, e) for i, e in events if e.entity != WHO]
        if events:
            out.feed([e for _, e in events])
    if erase:
        forget(out)
    out.end()
    return out


def forget(out: Run) -> None:
    """Take the entity out of the shard, by its snapshot."""
    before = out.shard.snapshot()
    after = shard_without(before, WHO)
    if after is None:
        assert WHO.encode() not in before
        return
    assert WHO.encode() not in after
    assert shard_without(after, WHO) is None
    out.shard = Shard(out.sets, after, out.late)


def others(out: Run) -> dict[object, object]:
    """The history of all other entities."""
    return {place: rows for place, rows in history(out).items() if place[2] != WHO}


@pytest.mark.parametrize("late", POLICIES)
@given(log=logs(), until=st.integers(0, 60))
@settings(max_examples=25)
def test_the_others_go_on_as_before(late: Lateness | None, log: list[Event], until: int) -> None:
    """Rows and revisions of all others are the same, bit for bit, wherever the entity is taken out."""
    mine = Run(tuple(sorted({e.partition for e in log})), late)
    whole = Run(mine.partitions, late)
    # Both let the entity's events move the watermark until then, and not afterwards.
    kept = [e for i, e in enumerate(log) if i < until or e.entity != WHO]
    assert others(go_on(mine, log, until, erase=True)) == others(go_on(whole, kept, until, erase=False))


@given(log=logs(), until=st.integers(0, 60))
@settings(max_examples=25)
def test_counts_stay_whole(log: list[Event], until: int) -> None:
    """Events that waited count as used, so what was read is still the sum of what became of it."""
    out = Run(tuple(sorted({e.partition for e in log})), lateness(20))
    for _, group in groupby(log[:until], key=lambda e: e.partition):
        out.feed(list(group))
    forget(out)
    out.check_conservation()


def test_no_row_is_made_of_what_was_erased() -> None:
    """An open window, a waiting event and a pending correction of the entity come to nothing."""
    out = Run(("p-0",), lateness(20))
    line = [(0, WHO), (1, "x"), (3, WHO), (4, "x")]
    out.feed([Event("p-0", n, who, n * SECOND, n, (("a", float(n)),), None) for n, who in line])
    out.feed([Event("p-0", 9, WHO, 0, 9, (("a", 9.0),), None)])
    forget(out)
    out.blocks.clear()
    out.end()
    assert {place[2] for place in history(out)} == {"x"}


def test_what_is_not_known_is_refused() -> None:
    """A state that holds more than this version can look through is not taken for erased."""
    meta, arrays = unpack(Shard(SETS).snapshot())
    with pytest.raises(ResumeError, match="friends"):
        shard_without(pack(meta, {**arrays, "friends.entity": np.zeros(1)}), WHO)


def test_waiting_rows_leave_a_writer() -> None:
    """Rows of the entity, revisions included, leave the snapshot; the others are staged as they would have been."""
    log = [Event("p-0", n, WHO if n % 3 else "x", n * SECOND, n, (("a", 1.0),), None) for n in range(60)]
    log.insert(40, Event("p-0", 99, "x", 20 * SECOND, 99, (("a", 5.0),), None))
    log.insert(41, Event("p-0", 98, WHO, 21 * SECOND, 98, (("a", 5.0),), None))
    out = go_on(Run(("p-0",), lateness(10_000)), log, 99, erase=False)
    writer = OfflineWriter(MemoryOfflineStore(), SETS, "aa.0", None, Delivery(durable=True, staged=True))
    writer.write(Rows(tuple(out.blocks)))
    state = writer.snapshot()
    after = rows_without(state, WHO)
    assert after is not None
    assert WHO.encode() in state
    assert WHO.encode() not in after
    assert rows_without(after, WHO) is None
    out.blocks = unpack_rows(state)[1]
    wanted = others(out)
    out.blocks = unpack_rows(after)[1]
    assert history(out) == wanted
    assert any(rows[-1].revision for rows in wanted.values())  # type: ignore[index]  # revisions of a row


def test_rows_on_their_way_to_a_log_keep_their_places() -> None:
    """They may have been told already: with fewer, the next ones would be taken for repeats, or the run refused."""
    log = [Event("p-0", n, WHO if n % 3 else "x", n * SECOND, n, (("a", 1.0),), None) for n in range(60)]
    rows = Rows(tuple(go_on(Run(("p-0",), lateness(10_000)), log, 99, erase=False).blocks))
    writer = ResultsWriter(lambda messages, at: at + len(messages), SETS, None, durable=True)
    writer.write(rows)
    state = writer.snapshot()
    after = rows_blanked(state, WHO)
    assert after is not None
    assert WHO.encode() not in after
    assert rows_blanked(after, WHO) is None
    told, blank = (events_told(some) for some in (state, after))
    assert [e["time"] for e in blank] == [e["time"] for e in told]
    assert [e for e in blank if e["data"]["entity_id"]] == [e for e in told if e["data"]["entity_id"] != WHO]
    empty = [e["data"] for e in blank if not e["data"]["entity_id"]]
    assert 0 < len(empty) < len(blank)
    assert all(data[column] in (None, 0) for data in empty for column in SETS.sets[0].columns)


def events_told(state: bytes) -> list[dict[str, Any]]:
    """What a ResultsWriter tells that goes on from this snapshot."""
    out: list[Message] = []

    def append(messages: list[Message], at: int) -> int:
        out.extend(messages)
        return at + len(messages)

    ResultsWriter(append, SETS, state, durable=True)
    return [orjson.loads(message.value) for message in out]


def test_waiting_messages_keep_their_places() -> None:
    """A message is replaced by one as long, without its key, so that a log that has it goes on at the same places."""
    writer = LogWriter(lambda messages, at: at + len(messages), None, durable=True)
    headers = (("content-type", "application/json"),)
    writer.write([Message(b"one", b"1", headers), Message(b"two", b"2", headers), Message(b"six")])
    state = writer.snapshot()
    changed = messages_changed(state, lambda m: b"---" if m == b"two" else None)
    assert changed is not None
    assert logged(changed) == (
        0,
        [Message(b"one", b"1", headers), Message(b"---", None, headers), Message(b"six")],
    )
    assert messages_changed(state, lambda _: None) is None
