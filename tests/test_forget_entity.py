"""`headrace forget --entity`: nothing of it is left, the others are as if it had never been, and it stays away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dataflows.recovery import Recovery
from stores.offline.parquet import ParquetOfflineStore
from tests.commands import headrace
from tests.contracts.test_forgetting import left_in
from tests.flows import BOUND, START, Log, Place, dirty_log
from tests.strategies import SECOND

WHO = "zyxq-unmistakable-7"
FORGET = ("forget", "--entity", WHO, "--yes", "--json")
WHOLE: dict[str, Any] = {"ARCHIVE_SIGNALS": 1, "ALLOWED_LATENESS_SECONDS": 600, "WATERMARK_SECONDS": BOUND // SECOND}
POLICIES = ("drop", "hold", "correct")


def planted(seed: int = 1, events: int = 700) -> Log:
    """A log in which one entity has an unmistakable name, comes late once, and is named by refused messages."""
    lines = [(p, line.replace(b'"s3"', b'"%s"' % WHO.encode())) for p, line in dirty_log(seed, events=events).lines]
    dead = [
        orjson.dumps({"entity_id": WHO, "event_time": "never", "sequence": 1, "payload": {}, "source": None}),
        b'{"entity_id":"%s","event_ti' % WHO.encode(),
    ]
    late = {
        "entity_id": WHO,
        "event_time": START // 1000 - 20_000,
        "sequence": 9,
        "payload": {"a": 1.5},
        "source": None,
    }
    dead.append(orjson.dumps(late))
    half = len(lines) // 3
    return Log((*lines[:half], *(("p-0", line) for line in dead), *lines[half:]))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


def left(place: Place) -> list[str]:
    """Files that hold the name, other than the log of the signals and what runs print."""
    return [name for name in left_in(place.root, WHO) if not name.startswith(("bus/signals/", "run-"))]


def rows_of(place: Place) -> dict[tuple[object, ...], bytes]:
    """Content hash of each row of the others, by place and revision."""
    out = {}
    for key, table in ParquetOfflineStore(place.offline).scan():
        names = ("entity_id", "event_time", "revision", "content_hash")
        for entity, end, revision, content in zip(*(table[n].to_pylist() for n in names), strict=True):
            assert (key, entity, end, revision) not in out
            out[key, entity, end, revision] = content
    return {place: content for place, content in out.items() if place[1] != WHO}


def half_run(place: Place, log: Log, **settings: Any) -> None:  # noqa: ANN401  # settings of any kind
    """Read the first half and stop, so that much is pending."""
    place.write(log.slices(2)[0])
    run = place.quick(BUS_FOLLOW=1, ARCHIVE_PATH=place.root / "archive", **settings)
    place.wait_until_read(run)
    run.stop()


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_left_and_the_others_go_on(place: Place, policy: str, tmp_path: Path) -> None:
    """Forgotten half-way with windows open, then the log goes on: others' rows are those of a log without it."""
    log = planted()
    settings = {**WHOLE, "LATE_EVENT_POLICY": policy, "ARCHIVE_PATH": place.root / "archive"}
    half_run(place, log, **{k: v for k, v in settings.items() if k != "ARCHIVE_PATH"})
    assert {name.partition("/")[0] for name in left(place)} >= {"recovery", "offline", "bus"}
    *places, summary = headrace(place, *FORGET, **settings).records
    assert left(place) == []
    assert summary["left"] == 0
    assert summary["kept"] == sum(WHO.encode() in line for _, line in log.slices(2)[0].lines)
    removed = {p["place"].split()[0]: p["removed"] for p in places}
    assert all(removed[name] for name in ("recovery", "history", "archive", "dead"))
    assert policy == "correct" or removed["held" if policy == "hold" else "late"] == 1
    place.write(log.slices(2)[1])
    done = place.quick(**settings).done()
    assert done["in"] == done["used"] + done["duplicate"] + done["conflict"] + done["late"] + done["dead"]
    assert left(place) == []
    with Place(tmp_path / "twin") as twin:
        first, second = log.slices(2)
        twin.write(first)
        twin.write(Log(tuple((p, line) for p, line in second.lines if WHO.encode() not in line)))
        twin.quick(**{**settings, "ARCHIVE_PATH": twin.root / "archive"}).done()
        assert rows_of(place) == rows_of(twin)
    again = headrace(place, *FORGET, **settings).records[-1]
    assert (again["removed"], again["left"]) == (0, 0)


def test_a_replay_and_a_backfill_bring_nothing_back_until_it_is_lifted(place: Place) -> None:
    """New recovery folders and batch runs refuse its signals, count them as dead and keep no byte of them."""
    log = planted(2, 300)
    place.write(log)
    settings = {**WHOLE, "ARCHIVE_PATH": place.root / "archive"}
    whole = place.quick(**settings).done()
    before = rows_of(place)
    assert headrace(place, *FORGET, **settings).code == 0
    replayed = place.quick(RECOVERY_DIR=place.root / "other", **settings).done()
    mine = sum(event.entity == WHO and isinstance(event.time, int) for event in log.events)
    assert replayed["dead"] == whole["dead"] + mine
    named = len({line for _, line in log.lines if b'"%s"' % WHO.encode() in line}) - mine
    place.backfill()
    assert left(place) == []
    assert rows_of(place) == before
    letters = headrace(place, "dlq", "list", "--json", "--limit", "9999", "--reason", "forgotten").records
    assert (len(letters), {letter["size_bytes"] for letter in letters}) == (mine + named, {0})
    refused = headrace(place, "dlq", "replay", str(letters[0]["id"]))
    assert (refused.code, "not kept" in refused.err) == (2, True)
    [entry] = headrace(place, "forget", "list", "--json").records
    assert (entry["kind"], entry["done"]) == ("entity", True)
    assert headrace(place, "forget", "lift", WHO, "--json").records == [{"lifted": 1}]
    assert headrace(place, "forget", "lift", WHO).code == 2
    place.backfill()
    names = {name for _, t in ParquetOfflineStore(place.offline).scan() for name in t["entity_id"].to_pylist()}
    assert WHO in names


def test_a_run_that_is_on_is_not_disturbed(place: Place) -> None:
    """The command says to stop it, and nothing is changed, not even the list."""
    place.write(planted(3, 100))
    run = place.quick(BUS_FOLLOW=1, **WHOLE, ARCHIVE_PATH=place.root / "archive")
    place.wait_until_read(run)
    refused = headrace(place, *FORGET)
    assert (refused.code, "stop it first" in refused.err) == (2, True)
    assert not (place.root / "bus" / "forgotten.db").exists()
    run.stop()


def test_it_asks_before_it_erases(place: Place) -> None:
    """Without a terminal to answer on, --yes is needed; one thing at a time is named."""
    assert "pass --yes" in headrace(place, "forget", "--entity", WHO).err
    assert headrace(place, "forget", "--yes").code == 2
    assert headrace(place, "forget", "--entity", "a", "--document", "b", "--yes").code == 2


def test_with_no_data_at_all_it_is_put_on_the_list(place: Place) -> None:
    """Whoever never sent anything can be kept from coming."""
    assert headrace(place, *FORGET).records[-1]["left"] == 0
    assert [n["done"] for n in headrace(place, "forget", "list", "--json").records] == [True]


@pytest.mark.parametrize("step", [3, 25, 60, 90, 120, 160])
def test_killed_half_way_it_is_finished_by_doing_it_again(place: Place, step: int) -> None:
    """Killed (-9) at any step that touches a file: the list says it is not done; again, and nothing is left."""
    log = planted(4, 300)
    settings = {**WHOLE, "LATE_EVENT_POLICY": "hold"}
    half_run(place, log, **settings)
    settings["ARCHIVE_PATH"] = place.root / "archive"
    before = rows_of(place)
    run = place.quick(f"steps::before:{step}", "--", *FORGET, **settings)
    assert run.wait() in (0, -signal.SIGKILL)
    assert rows_of(place) == before
    assert headrace(place, *FORGET, **settings).records[-1]["left"] == 0
    assert left(place) == []
    assert rows_of(place) == before
    Recovery(place.recovery).states("signals.windows")
    place.write(log.slices(2)[1])
    place.quick(**settings).done()
    assert left(place) == []
