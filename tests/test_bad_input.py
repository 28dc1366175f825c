"""Bad input through the whole path: what is said of it, where its bytes are kept, and that its neighbours are used."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from operators.decode import ENTITY_BYTES_MAX, Decoder
from operators.records import DeadLetter
from stores.deadletters import open_dead_letters
from stores.offline.parquet import ParquetOfflineStore
from tests.commands import headrace
from tests.flows import SETS, Log, Place, dirty_log
from tests.messages import chunk_of

NOON = 1_772_366_400_000


def signal(**members: object) -> bytes:
    """A good signal with some members changed; `...` removes one."""
    whole = {"entity_id": "pump", "event_time": NOON, "sequence": 1, "payload": {"a": 1.5}, "source": "lab"} | members
    return json.dumps({key: value for key, value in whole.items() if value is not ...}, ensure_ascii=False).encode()


def field(text: str) -> bytes:
    """A good signal whose field `a` is written as this text."""
    return signal(payload={"a": "@"}).replace(b'"@"', text.encode())


BAD = {
    "not JSON": (b"hello", "not_json", "not JSON"),
    "cut short": (signal()[:-3], "not_json", "not JSON"),
    "not UTF-8": (signal().replace(b"pump", b"pu\xff\xfemp"), "not_utf8", "not UTF-8"),
    "empty line": (b"", "empty", "empty"),
    "blank line": (b"  \t ", "empty", "empty"),
    "line of 10 MB": (signal(payload={"a": 1, "note": "x" * 10_000_000}), "too_large", "bytes"),
    "no object": (b"[1, 2]", "not_object", "an array"),
    "no entity_id": (signal(entity_id=...), "entity_id", "missing"),
    "no event_time": (signal(event_time=...), "event_time", "missing"),
    "no sequence": (signal(sequence=...), "sequence", "missing"),
    "no payload": (signal(payload=...), "payload", "missing"),
    "entity_id a number": (signal(entity_id=7), "entity_id", "an integer"),
    "entity_id empty": (signal(entity_id=""), "entity_id", "empty"),
    "entity_id of 10 kB": (signal(entity_id="x" * 10_240), "entity_id", "10240"),
    "sequence a string": (signal(sequence="1"), "sequence", "a string"),
    "sequence a float": (signal(sequence=1.0), "sequence", "a float"),
    "number as string": (signal(payload={"a": "1.5"}), "field", "a string"),
    "boolean for a number": (signal(payload={"a": True}), "field", "a boolean"),
    "NaN": (field("NaN"), "not_json", "not JSON"),
    "Infinity": (field("-Infinity"), "not_json", "not JSON"),
    "float beyond float64": (field("1e400"), "not_json", "not JSON"),
    "integer over 2^53": (field(str(2**53 + 1)), "field", "2^53"),
    "event_time without zone": (signal(event_time="2026-03-01T12:00:00"), "event_time", "no zone"),
    "event_time before 1970": (signal(event_time="1969-12-31T23:59:59Z"), "event_time", "before 1970"),
    "event_time in year 9999": (signal(event_time="9999-12-31T23:59:59Z"), "event_time", "after 2261"),
    "event_time as float": (signal(event_time=NOON + 0.5), "event_time", "a float"),
    "event_time no time": (signal(event_time="noon"), "event_time", "no such time"),
    "payload not an object": (signal(payload=[1.5]), "payload", "an array"),
    "payload nested": (signal(payload={"a": {"b": 1}}), "payload", "an object"),
    "payload nested where nobody looks": (signal(payload={"a": 1, "z": [1]}), "payload", "an array"),
    "source a number": (signal(source=1), "source", "an integer"),
    "envelope without data": (b'{"specversion": "1.0", "id": "1", "source": "s", "type": "t"}', "envelope", "data"),
}
"""What must be refused: message, reason, a part of the sentence."""

ODD = {
    "payload empty": signal(payload={}),
    "payload with unknown fields": signal(payload={"a": 1, "unknown": 2, "text": "x", "flag": True}),
    "field null": signal(payload={"a": None}),
    "integer of 2^53": field(str(2**53)),
    "event_time at the epoch of the log, with zone": signal(event_time="2026-03-01T13:00:00+01:00"),
    "emoji": signal(entity_id="Pumpe-😀-ключ"),
    "quotes": signal(entity_id='say "hi" it\'s `me`'),
    "newlines": signal(entity_id="a\nb\r\nc\t\0d"),
    "slashes and dots": signal(entity_id="../../etc/passwd/..//."),
    "backslashes and percents": signal(entity_id="C:\\x\\..\\%2e%2e$HOME"),
    "entity_id as long as may be": signal(entity_id="é" * (ENTITY_BYTES_MAX // 2)),
    "envelope": b'{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": ' + signal() + b"}",
}
"""What looks odd and is good."""


def good(number: int) -> bytes:
    """A neighbour that nothing may happen to."""
    return signal(entity_id="neighbour", event_time=NOON + number, sequence=number, payload={"a": float(number)})


def between_neighbours(messages: Sequence[bytes]) -> list[bytes]:
    """A good one before each message, and one after the last."""
    return [m for i, message in enumerate(messages) for m in (good(i), message)] + [good(len(messages))]


@dataclass(frozen=True)
class Ran:
    """A log that was run once, and what it left."""

    place: Place
    summary: dict[str, Any]
    letters: dict[int, DeadLetter]
    offsets: dict[bytes, int]


def letters_by_offset(place: Place) -> dict[int, DeadLetter]:
    """All dead letters of a place with one partition."""
    with closing(open_dead_letters(f"sqlite:///{place.root}/bus/dlq/deadletters.db")) as store:
        found = [store.get(head.letter_id) for head in store.list(limit=1000)]
    return {letter.offset: letter for letter in found if letter is not None}


def rows_of(place: Place, entity: str, *, feature_set: str = "fast", window: str = "5s") -> list[dict[str, Any]]:
    """The rows that a reader of the Parquet files finds for an entity."""
    out = []
    for key, table in ParquetOfflineStore(place.offline).scan():
        if (key.feature_set, key.window) == (feature_set, window):
            out += [row for row in table.to_pylist() if row["entity_id"] == entity]
    return sorted(out, key=lambda row: row["window_start"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Every bad message between good neighbours, then every odd one, run live once."""
    messages = between_neighbours([message for message, _, _ in BAD.values()]) + list(ODD.values())
    log = Log(tuple(("p-0", message) for message in messages))
    with Place(tmp_path_factory.mktemp("bad") / "place") as place:
        place.write(log)
        summary = headrace(place, "signals", "--json").records[-1]
        yield Ran(place, summary, letters_by_offset(place), {line: at for _, at, line in log._placed})


@pytest.mark.parametrize("name", BAD)
def test_bad_message_becomes_a_dead_letter(ran: Ran, name: str) -> None:
    """It has its reason, its place and one sentence, and `dlq show --raw` gives its bytes as they came."""
    message, reason, says = BAD[name]
    letter = ran.letters[ran.offsets[message]]
    assert (letter.stage, letter.reason, letter.source, letter.partition) == ("decode", reason, "signals", "p-0")
    assert says in letter.detail
    assert "\n" not in letter.detail
    assert letter.original == message
    shown = headrace(ran.place, "dlq", "show", letter.letter_id, "--raw")
    assert (shown.code, shown.out) == (0, message)


def test_neighbours_of_bad_messages_are_used(ran: Ran) -> None:
    """Nothing is lost beside a bad message, nothing is counted twice, and all that is odd but good is used."""
    neighbours = len(BAD) + 1
    rows = rows_of(ran.place, "neighbour")
    assert sum(row["a__count"] for row in rows) == neighbours
    assert sum(row["a__sum"] for row in rows) == sum(range(neighbours))
    assert ran.summary["dead"] == len(BAD) == len(ran.letters)
    # All odd messages of the entity `pump` have one key: the last one wins.
    conflicts = sum(b'"pump"' in message for message in ODD.values()) - 1
    counts = {"in": 2 * len(BAD) + 1 + len(ODD), "used": neighbours + len(ODD) - conflicts, "dead": len(BAD)}
    assert {name: ran.summary[name] for name in counts} == counts
    assert ran.summary["duplicate"] + ran.summary["conflict"] == conflicts
    assert ran.summary["late"] == 0


@pytest.mark.parametrize("name", [n for n in ODD if b'"pump"' not in ODD[n]])
def test_odd_entity_ids_go_through_to_parquet_and_back(ran: Ran, name: str) -> None:
    """Whatever an entity is called, its row is found under exactly that name, and nothing stands outside the store."""
    entity = json.loads(ODD[name])["entity_id"]
    (row,) = rows_of(ran.place, entity)
    assert row["a__last"] == 1.5
    assert {path.name for path in ran.place.root.iterdir()} >= {"bus", "offline", "recovery"}
    assert not (ran.place.root / "etc").exists()


def test_batch_refuses_the_same_messages(ran: Ran) -> None:
    """A backfill of the same file adds no row and no letter: both have the same place, reason and id."""
    done = headrace(ran.place, "backfill", "signals", "--json", "--input", f"{ran.place.topic}/p-0.jsonl")
    (summary,) = done.records
    names = ("in", "used", "duplicate", "conflict", "late", "dead", "rows")
    assert [summary[n] for n in names] == [ran.summary[n] for n in names]
    assert (summary["repeated"], summary["different"]) == (summary["rows"], 0)
    assert letters_by_offset(ran.place) == ran.letters


def test_same_key_twice(tmp_path: Path) -> None:
    """Equal content is dropped as a duplicate; of different content the later one wins, as a conflict."""
    messages = [
        signal(sequence=1, payload={"a": 1.0}),
        signal(sequence=1, payload={"a": 1.0, "unknown": 5}),
        signal(sequence=2, payload={"a": 2.0}),
        signal(sequence=2, payload={"a": 20.0}),
    ]
    with Place(tmp_path / "place") as place:
        place.write(Log(tuple(("p-0", m) for m in messages)))
        summary = headrace(place, "signals", "--json").records[-1]
        assert {k: summary[k] for k in ("in", "used", "duplicate", "conflict")} == {
            "in": 4,
            "used": 2,
            "duplicate": 1,
            "conflict": 1,
        }
        (row,) = rows_of(place, "pump")
        assert (row["a__count"], row["a__sum"]) == (2, 21.0)


def test_last_line_without_its_end_waits_live(tmp_path: Path) -> None:
    """A line that is still being written is neither used nor refused, until its end comes."""
    later = signal(event_time=NOON + 60_000)
    with Place(tmp_path / "place") as place:
        place.append("p-0", signal() + b"\n" + later[:20])
        first = headrace(place, "signals", "--json").records[-1]
        assert (first["in"], first["used"], first["dead"]) == (1, 1, 0)
        again = headrace(place, "signals", "--json").records[-1]
        assert again["in"] == 0
        place.append("p-0", later[20:] + b"\n")
        last = headrace(place, "signals", "--json").records[-1]
        assert (last["in"], last["used"], last["dead"]) == (1, 1, 0)


def test_last_line_without_its_end_is_complete_in_a_backfill(tmp_path: Path) -> None:
    """A file that is finished ends where it ends; what was cut short there is refused like any other."""
    with Place(tmp_path / "place") as place:
        whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
        whole.write_bytes(signal(sequence=1) + b"\n" + signal(sequence=2))
        cut.write_bytes(signal(sequence=3) + b"\n" + signal(sequence=4)[:20])
        done = headrace(place, "backfill", "signals", "--json", "--input", str(whole), "--input", str(cut))
        (summary,) = done.records
        assert (summary["in"], summary["used"], summary["dead"]) == (4, 3, 1)
        (letter,) = letters_by_offset(place).values()
        assert (letter.original, letter.source) == (signal(sequence=4)[:20], str(cut))


def test_partition_that_shrinks_stops_the_flow(tmp_path: Path) -> None:
    """A log that was cut is refused with exit code 1 and one sentence; the rows that are there stay."""
    with Place(tmp_path / "place") as place:
        place.write(Log(tuple(("p-0", good(i)) for i in range(10))))
        assert headrace(place, "signals", "--json").code == 0
        before = rows_of(place, "neighbour")
        (place.topic / "p-0.jsonl").write_bytes(good(0) + b"\n")
        done = headrace(place, "signals", "--json")
        assert (done.code, done.out) == (1, b"")
        assert "p-0.jsonl` was replaced or has shrunk" in done.err
        assert rows_of(place, "neighbour") == before


def test_one_broken_event_does_not_slow_its_batch() -> None:
    """Decoding 60,000 good events takes at most half as long again when one more among them is broken."""
    lines = [line for _, line in dirty_log(1, events=2000).lines if line.startswith(b"{") and line.endswith(b"}")]
    messages = (lines * 40)[:60_000]
    clean, broken = chunk_of(messages), chunk_of([*messages[:31_000], b'{"entity_id": "pu', *messages[31_000:]])
    decoder = Decoder(SETS)
    assert not decoder.decode(clean).rejects
    assert len(decoder.decode(broken).rejects) == 1
    taken: dict[bool, list[float]] = {False: [], True: []}
    for number in range(14):
        start = time.perf_counter()
        decoder.decode(broken if number % 2 else clean)
        taken[number % 2 == 1].append(time.perf_counter() - start)
    assert statistics.median(taken[True]) < 1.5 * statistics.median(taken[False])
