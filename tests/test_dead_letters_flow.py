"""Dead letters from end to end: refused by a run, looked at, mended and sent again, or dropped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from operators.records import DeadLetter
from stores.deadletters import open_dead_letters
from stores.deadletters.port import letter_id
from tests.commands import Done, headrace
from tests.flows import Log, Place

NOON = 1_772_366_400_000
NAMES = ["id", "time", "stage", "reason", "source", "partition", "offset"]


def signal(sequence: int, **payload: object) -> bytes:
    """A signal whose payload may be good or bad."""
    event = {"entity_id": "pump", "event_time": NOON + sequence, "sequence": sequence, "trace_id": f"t{sequence}"}
    return json.dumps(event | {"payload": payload}).encode()


LINES = [
    signal(0, a=1.0),
    signal(1, a="hot"),
    b'{"entity_id": "pu\xffmp"}',
    b"",
    b'["\x1b[2J\xe2\x80\xae", "\\\\xff"]',
    signal(5, a=2.0),
]
"""Offsets of the bad ones: 1 to 4."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place where one run has refused four of six messages."""
    with Place(tmp_path / "place") as made:
        made.write(Log(tuple(("p-0", line) for line in LINES)))
        assert run(made)["dead"] == 4
        yield made


def run(place: Place, **settings: object) -> dict[str, Any]:
    """Run the flow to the end of its log and return its summary."""
    return headrace(place, "signals", "--json", **settings).records[-1]


def listed(place: Place, *options: str) -> list[dict[str, Any]]:
    """What `dlq list --json` says."""
    return headrace(place, "dlq", "list", "--json", *options).records


def dlq(place: Place, *words: str) -> Done:
    """Run a command on dead letters."""
    return headrace(place, "dlq", *words)


def replayed(place: Place) -> bytes:
    """The partition that replays are appended to."""
    path = place.topic / "replayed-0.jsonl"
    return path.read_bytes() if path.exists() else b""


def test_list_names_every_letter_in_the_order_of_the_log(place: Place) -> None:
    """The first fields are those that programs rely on; the sentence and the size follow; no content is shown."""
    letters = listed(place)
    assert all(list(letter)[:7] == NAMES for letter in letters)
    assert [letter["reason"] for letter in letters] == ["field", "not_utf8", "empty", "not_json"]
    offsets = [sum(len(line) + 1 for line in LINES[:i]) for i in range(1, 5)]
    assert [(letter["partition"], letter["offset"]) for letter in letters] == [("p-0", at) for at in offsets]
    assert {(letter["stage"], letter["source"]) for letter in letters} == {("decode", "signals")}
    assert [letter["size_bytes"] for letter in letters] == [len(line) for line in LINES[1:5]]
    assert letters[0]["id"] == letter_id("signals", "p-0", offsets[0], "decode")
    assert all(letter["time"].endswith("+00:00") for letter in letters)
    assert b"hot" not in dlq(place, "list").out + dlq(place, "list", "--json").out


def test_list_chooses_and_limits(place: Place) -> None:
    """--reason and --limit choose; people are told how many there are in all, and when there are none."""
    assert [letter["reason"] for letter in listed(place, "--reason", "empty")] == ["empty"]
    assert len(listed(place, "--limit", "3")) == 3
    text = dlq(place, "list", "--limit", "1").text
    assert "1 of 4 dead letters" in text
    assert listed(place)[0]["id"] in text
    assert listed(place, "--reason", "nonsense") == []
    assert dlq(place, "list", "--reason", "nonsense").text == "no dead letters\n"


def test_show_gives_the_original_to_the_byte(place: Place) -> None:
    """As JSON with base64 where it is not text, raw as it came, and for people without what a terminal would obey."""
    for letter, original in zip(listed(place), LINES[1:5], strict=True):
        (shown,) = headrace(place, "dlq", "show", letter["id"], "--json").records
        assert {name: shown[name] for name in NAMES} == {name: letter[name] for name in NAMES}
        encoded = shown["original_base64"]
        assert (shown["original"].encode() if encoded is None else base64.b64decode(encoded)) == original
        assert dlq(place, "show", letter["id"], "--raw").out == original
        text = dlq(place, "show", letter["id"]).text
        assert letter["detail"] in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    (first, *_) = listed(place)
    (shown,) = headrace(place, "dlq", "show", first["id"], "--json").records
    assert (shown["trace_id"], shown["original"]) == ("t1", LINES[1].decode())


@pytest.mark.parametrize("command", ["show", "replay", "drop"])
def test_an_unknown_id_is_refused(place: Place, command: str) -> None:
    """Exit code 2 and one sentence; of several ids none is touched if one is unknown."""
    known = [letter["id"] for letter in listed(place)]
    done = dlq(place, command, *([] if command == "show" else known[:1]), "feed")
    assert (done.code, done.out) == (2, b"")
    assert done.err == "headrace: there is no dead letter `feed`; `headrace dlq list` shows the ids\n"
    assert len(listed(place)) == 4
    assert replayed(place) == b""


@pytest.mark.parametrize("command", ["replay", "drop"])
def test_none_named_is_not_all(place: Place, command: str) -> None:
    """Neither no id nor an id with --all does anything."""
    some = listed(place)[0]["id"]
    for words in ([], [some, "--all"]):
        done = dlq(place, command, *words)
        assert (done.code, done.out) == (2, b"")
        assert "--all" in done.err
    assert len(listed(place)) == 4


def test_drop_forgets_what_was_named(place: Place) -> None:
    """Dropped letters are gone, the others stay; --all drops the rest; their number is the summary."""
    first, second, *_ = [letter["id"] for letter in listed(place)]
    assert headrace(place, "dlq", "drop", first, second, first, "--json").records == [{"dropped": 2}]
    assert [letter["reason"] for letter in listed(place)] == ["empty", "not_json"]
    assert headrace(place, "dlq", "drop", "--all", "--json").records == [{"dropped": 2}]
    assert headrace(place, "dlq", "drop", "--all", "--json").records == [{"dropped": 0}]
    assert listed(place) == []


def test_a_replay_of_what_is_still_bad_comes_back(place: Place) -> None:
    """Originals go to a partition of their own, byte for byte, and what is still bad is a new letter from there."""
    before = listed(place)
    assert headrace(place, "dlq", "replay", "--all", "--json").records == [{"replayed": 4}]
    assert listed(place) == []
    assert replayed(place) == b"".join(line + b"\n" for line in LINES[1:5])
    summary = run(place)
    assert (summary["in"], summary["dead"]) == (4, 4)
    after = listed(place)
    assert [letter["reason"] for letter in after] == [letter["reason"] for letter in before]
    assert {letter["partition"] for letter in after} == {"replayed-0"}
    assert {letter["id"] for letter in after}.isdisjoint(letter["id"] for letter in before)


def test_a_mended_feature_set_takes_what_is_replayed(place: Place) -> None:
    """When the declaration was at fault: mend it, replay, and the event becomes a row like any other."""
    (letter,) = listed(place, "--reason", "field")
    sets = place.root / "sets.toml"
    sets.write_text(sets.read_text("utf-8").replace('fields = ["a", "b"]', 'fields = ["b"]'), "utf-8")
    assert headrace(place, "dlq", "replay", letter["id"], letter["id"], "--json").records == [{"replayed": 1}]
    assert replayed(place) == LINES[1] + b"\n"
    fresh = {"RECOVERY_DIR": place.root / "fresh", "FEATURE_SET_VERSION": 2}
    summary = run(place, **fresh)
    # At its old place the event is good now too: the replayed one is its duplicate.
    assert (summary["in"], summary["used"], summary["duplicate"], summary["dead"]) == (7, 3, 1, 3)
    assert run(place, **fresh)["in"] == 0


def test_a_replay_that_was_killed_half_way_is_repeated_safely(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between topic and list, letters stand in both: nothing is lost, and a repeat only adds duplicates."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("stores.deadletters.sqlite.SqliteDeadLetters.drop", kill)
        with pytest.raises(Killed):
            dlq(place, "replay", "--all")
    assert len(listed(place)) == 4
    assert dlq(place, "replay", "--all").code == 0
    assert listed(place) == []
    assert replayed(place) == b"".join(line + b"\n" for line in LINES[1:5]) * 2


def test_replays_at_once_lose_nothing(place: Place) -> None:
    """Two replays wait for each other, so neither writes over what the other has appended."""
    with closing(open_dead_letters(f"sqlite:///{place.root}/bus/dlq/deadletters.db")) as store:
        letter = store.get(listed(place)[0]["id"])
        assert letter is not None
        store.put([_copy(letter, i) for i in range(200)])
    ids = [each["id"] for each in listed(place, "--limit", "1000")]
    runs = [place.headrace("dlq", "replay", *ids[i::2], "--json") for i in range(2)]
    assert [run.done() for run in runs] == [{"replayed": 102}, {"replayed": 102}]
    assert len(replayed(place).splitlines()) == 204
    assert listed(place) == []


def _copy(letter: DeadLetter, number: int) -> DeadLetter:
    name = letter_id("signals", "more", number, "decode")
    return DeadLetter(name, letter.time_us, "decode", "field", "x", "signals", "more", number, letter.original)


def test_late_events_are_listed_without_payloads(place: Place) -> None:
    """`late list` names each late event with its place and reason, limits, and tells how many there are."""
    place.append("p-0", signal(100_000, a=1.0) + b"\n" + signal(7, a=77.5) + b"\n" + signal(8, a=77.5) + b"\n")
    assert run(place)["late"] == 2
    first, second = headrace(place, "late", "list", "--json").records
    assert (first["entity_id"], first["sequence"], first["reason"]) == ("pump", 7, "late")
    assert first["id"] == f"signals/p-0/{first['offset']}"
    assert second["offset"] == first["offset"] + len(signal(7, a=77.5)) + 1
    text = headrace(place, "late", "list", "--limit", "1").text
    assert "1 of 2 late events" in text
    assert "77.5" not in text + str(first)
    assert run(place, RECOVERY_DIR=place.root / "anew")["late"] == 2
    assert headrace(place, "late", "list", "--json").records == [first, second]


def test_a_late_topic_with_foreign_messages(place: Place) -> None:
    """What others wrote to the late topic is named as such, with exit code 1 and without a traceback."""
    (place.root / "bus" / "late").mkdir()
    (place.root / "bus" / "late" / "x.jsonl").write_text("hello\n")
    done = headrace(place, "late", "list")
    assert (done.code, done.out) == (1, b"")
    assert "topic `late` holds a message that is no late event" in done.err
