from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
import pytest

from tests.commands import headrace
from tests.documents_place import DocumentPlace, serving
from tests.flows import Log
from tests.hostile_pdfs import honest


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """A place where two documents and a signal were refused."""
    with DocumentPlace(tmp_path / "place") as made:
        made.put_all({"long name é.pdf": b"%PDF-1.4 cut short", "dead.pdf": "this is no PDF", "good.txt": "good"})
        assert made.ingest() == {"added": 1, "chunks": 1, "embedded": 1, "dead": 2}
        made.write(Log((("p-0", b"broken"),)))
        assert headrace(made, "signals", "--json").records[-1]["dead"] == 1
        yield made


def listed(place: DocumentPlace) -> dict[str, dict[str, Any]]:
    """What `dlq list --json` says, by partition or the name of the document."""
    letters = headrace(place, "dlq", "list", "--json").records
    return {unquote(letter["partition"].rpartition("/")[2]): letter for letter in letters}


def replay(place: DocumentPlace, *options: str) -> int:
    """Run `dlq replay` and return how many it says."""
    [record] = headrace(place, "dlq", "replay", "--json", *options).records
    return int(record["replayed"])


def test_a_replayed_document_is_tried_again(tmp_path: Path) -> None:
    """A dead document is left alone until it is replayed; then the next look takes it for a new one."""
    with DocumentPlace(tmp_path / "place") as place:
        place.put_all({"no.txt": "a forbidden text", "yes.txt": "an allowed one"})
        with serving(refuse="forbidden") as (_, settings):
            assert place.ingest(**settings) == {"added": 1, "chunks": 1, "embedded": 1, "dead": 1}
        with serving() as (_, settings):
            assert place.ingest(**settings) == {"unchanged": 2}
            [letter] = listed(place).values()
            assert letter["stage"] == "embed"
            assert replay(place, letter["id"]) == 1
            assert listed(place) == {}
            assert place.ingest(**settings) == {"added": 1, "chunks": 1, "embedded": 1, "unchanged": 1}
            assert headrace(place, "verify", "documents", **settings).code == 0


def test_what_is_still_bad_comes_back(place: DocumentPlace) -> None:
    """As a new letter with the same id, since it is the same document; nothing else is touched."""
    before = listed(place)["dead.pdf"]
    assert replay(place, before["id"]) == 1
    assert place.ingest() == {"dead": 1, "unchanged": 2}
    after = listed(place)["dead.pdf"]
    assert (after["id"], after["partition"]) == (before["id"], before["partition"])
    assert after["time"] > before["time"]


def test_documents_and_signals_each_go_their_way(place: DocumentPlace) -> None:
    """With --all, signals are appended to their topic and documents are forgotten; none goes the other's way."""
    assert replay(place, "--all") == 3
    assert listed(place) == {}
    assert (place.topic / "replayed-0.jsonl").read_bytes() == b"broken\n"
    assert place.ingest() == {"dead": 2, "unchanged": 1}
    assert set(listed(place)) == {"dead.pdf", "long name é.pdf"}


def test_only_documents_make_no_partition(place: DocumentPlace) -> None:
    """Where no signal is replayed, nothing is made on the bus."""
    assert replay(place, listed(place)["dead.pdf"]["id"]) == 1
    assert not (place.topic / "replayed-0.jsonl").exists()


def test_the_letter_of_a_document_that_lives_again_is_gone(place: DocumentPlace) -> None:
    """A document that was mended is refused no longer; a replay of the others leaves it as it is."""
    uri = place.put("dead.pdf", honest(["words by now"]))
    assert place.ingest() == {"updated": 1, "chunks": 1, "embedded": 1, "unchanged": 2}
    assert set(listed(place)) == {"long name é.pdf", "p-0"}
    assert replay(place, "--all") == 2
    assert place.held().texts(uri) == ["words by now"]
    assert place.ingest() == {"dead": 1, "unchanged": 2}


def test_a_letter_whose_metadata_are_gone(place: DocumentPlace) -> None:
    """Nothing has to be forgotten, and no metadata are made for it."""
    (place.root / "metadata.db").unlink()
    assert replay(place, "--all") == 3
    assert not (place.root / "metadata.db").exists()


def test_listings_read_well_for_both(place: DocumentPlace) -> None:
    """People see a document by the name of its file, on a wide terminal by its uri; programs see both alike."""
    text = headrace(place, "dlq", "list", COLUMNS=80).text
    assert re.search(r"unreadable +dead\.pdf +–", text)
    assert "long name" in text
    assert re.search(r"not_json +p-0 +0", text)
    assert all(len(line) <= 80 for line in text.splitlines())
    wide = headrace(place, "dlq", "list", COLUMNS=400).text
    assert place.uri("dead.pdf") in wide
    for letter in listed(place).values():
        assert list(letter)[:7] == ["id", "time", "stage", "reason", "source", "partition", "offset"]
    letter = listed(place)["dead.pdf"]
    shown = headrace(place, "dlq", "show", letter["id"]).text
    assert "extract" in shown
    assert place.uri("dead.pdf") in shown
    original = orjson.loads(headrace(place, "dlq", "show", letter["id"], "--raw").out)
    assert (original["uri"], original["size_bytes"]) == (place.uri("dead.pdf"), len("this is no PDF"))


def test_replay_survives_being_killed_half_way(place: DocumentPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between ledger and list the letter is there still, and replaying it again does no harm."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("stores.deadletters.sqlite.SqliteDeadLetters.drop", kill)
        with pytest.raises(Killed):
            headrace(place, "dlq", "replay", listed(place)["long name é.pdf"]["id"])
    assert len(listed(place)) == 3
    assert replay(place, listed(place)["long name é.pdf"]["id"]) == 1
    assert place.ingest() == {"dead": 1, "unchanged": 2}
