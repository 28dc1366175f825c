"""The list of what was forgotten, and how events of an entity on it are refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.decode import Decoder
from operators.forgotten import REASON, Forgotten, name_hash
from operators.naming import Named
from operators.records import NO_WATERMARK
from stores.archive.columns import message_table, messages_of, owned
from stores.forgotten import open_forgotten
from stores.forgotten.memory import MemoryForgotten
from tests.archive_rows import event, raw_chunk
from tests.messages import feature_sets

NAMES = ["pump", "ключ-😀", "a/../b", "", "x" * 40]


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_a_name_is_known_until_it_is_lifted(scheme: str, tmp_path: Path) -> None:
    """By kind; added twice it is there once; finished, added again and lifted by name or mark; also after reopening."""
    url = f"{scheme}:///{tmp_path}/forgotten.db"
    with closing(open_forgotten(url)) as names:
        assert names.load() is None
        names.add("entity", "ключ-😀", now_us=5)
        names.add("entity", "ключ-😀", now_us=9)
        names.add("document", "file:///a", now_us=7)
        names.finish("entity", "ключ-😀")
        names.finish("entity", "nobody")
        assert [(n.kind, n.since_us, n.done) for n in names.list()] == [("entity", 5, True), ("document", 7, False)]
        known = names.load()
        assert known is not None
        asked = [known.has("entity", "ключ-😀"), known.has("document", "ключ-😀"), known.has("document", "file:///a")]
        assert asked == [True, False, True]
        names.add("entity", "ключ-😀", now_us=11)
        assert not names.list()[0].done
    if scheme == "sqlite":
        assert "ключ".encode() not in (tmp_path / "forgotten.db").read_bytes()
        with closing(open_forgotten(url)) as names:
            assert len(names.list()) == 2
            assert names.lift(names.list()[1].mark) == 1
            assert (names.lift("ключ-😀"), names.lift("ключ-😀"), names.load()) == (1, 0, None)


def test_two_lists_have_nothing_in_common() -> None:
    """The same name has another hash in each, so that lists cannot be joined."""
    lists = [MemoryForgotten(), MemoryForgotten()]
    for names in lists:
        names.add("entity", "pump", now_us=0)
    one, other = (names.load() for names in lists)
    assert one is not None
    assert other is not None
    assert one.names.isdisjoint(other.names)
    assert one.quick.tolist() != other.quick.tolist()


@given(st.lists(st.sampled_from([*NAMES, "broken"]), max_size=30), st.sets(st.sampled_from(NAMES[:3]), min_size=1))
def test_exactly_their_events_are_refused(log: list[str], gone: set[str]) -> None:
    """The others are decoded as ever; theirs are rejects at their places, without bytes; the log's order is kept."""
    names = MemoryForgotten()
    for name in gone:
        names.add("entity", name, now_us=0)
    messages = [b"{" if who == "broken" else event(n, entity=who) for n, who in enumerate(log)]
    raw = raw_chunk(messages)
    plain = Decoder(feature_sets()).decode(raw)
    sieved = Decoder(feature_sets(), forgotten=names.load()).decode(raw)
    mine = [plain.batch.entity(i) in gone for i in range(len(plain.batch))]
    assert sieved.index.tolist() == plain.index[~np.array(mine, np.bool_)].tolist()
    assert [sieved.batch.entity(i) for i in range(len(sieved.batch))] == [
        w for w in log if w not in (*gone, "broken", "")
    ]
    assert [r.index for r in sieved.rejects] == sorted(r.index for r in sieved.rejects)
    refused = {r.index: (r.offset, r.original) for r in sieved.rejects if r.reason == REASON}
    assert refused == {i: (int(raw.offsets[i]), b"") for i, who in enumerate(log) if who in gone}
    assert [r for r in sieved.rejects if r.reason != REASON] == list(plain.rejects)


def test_a_broken_message_that_names_them_is_not_kept() -> None:
    """Neither whole nor cut short; one that names nobody, or another, is kept as ever."""
    names = MemoryForgotten()
    names.add("entity", "ключ-😀", now_us=0)
    kept = [b'{"entity_id": "other", "event_ti', b"{", b'{"\xd0": 1']
    bad = [
        '{"entity_id": "ключ-😀", "event_time": "never"}'.encode(),
        b'{"entity_id":"\\u043a\\u043b\\u044e\\u0447-\\ud83d\\ude00","ev',
    ]
    decoded = Decoder(feature_sets(), forgotten=names.load()).decode(raw_chunk([*kept, *bad]))
    assert [r.original for r in decoded.rejects] == [*kept, b"", b""]
    assert [r.reason for r in decoded.rejects[3:]] == [REASON, REASON]


def test_an_alike_hash_is_no_match() -> None:
    """What only the quick hash takes for forgotten is not refused."""
    names = MemoryForgotten()
    names.add("entity", "pump", now_us=0)
    known = names.load()
    assert known is not None
    alike = Forgotten(known.salt, known.quick, frozenset({name_hash(known.salt, "entity", "other")}))
    decoded = Decoder(feature_sets(), forgotten=alike).decode(raw_chunk([event(1)]))
    assert (len(decoded.batch), decoded.rejects) == (1, ())


def test_the_archive_takes_no_byte_of_them() -> None:
    """Their messages are archived as dead and forgotten, with nothing in them."""
    names = MemoryForgotten()
    names.add("entity", "pump", now_us=0)
    raw = raw_chunk([event(0, entity="other"), event(1), event(2)])
    decoded = Decoder(feature_sets(), forgotten=names.load()).decode(raw)
    table = message_table(owned(messages_of(raw, decoded, [], NO_WATERMARK)))
    assert table["value"].to_pylist() == [event(0, entity="other"), b"", b""]
    assert table["entity_id"].to_pylist() == ["other", None, None]
    assert table["verdict"].to_pylist() == ["accepted", "dead", "dead"]
    assert table["reason"].to_pylist() == [None, REASON, REASON]


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (b'{"entity_id": "a\\u00e9b", "x', True),
        ('{"entity_id": "aéb", "x'.encode(), True),
        (b'{"entity_id": "\\u0061\\u00e9b", "event_time": 1, "sequence": 0, "payload": {}}', True),
        ('{"payload": {"aéb": 1'.encode(), False),
        ('{"entity_id": "aébc"'.encode(), False),
        ('{"subject": "x", "note": "aéb"}'.encode(), True),
        (b"\xff\xfe", False),
    ],
)
def test_a_broken_message_names_whom_it_names(message: bytes, found: bool) -> None:  # noqa: FBT001  # a test's parameter
    """As a string in it, however it is escaped, but not as a key and not as a part of another name."""
    assert Named("aéb").in_message(message) is found
