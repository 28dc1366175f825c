"""Every row is explained by the events that made it: what they give is the row that is stored, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflows.config import load_settings
from dataflows.explain import Explainer, Explanation, Place, Row
from dataflows.explain_command import Question, dead_of, explain_row, open_explainer
from operators.errors import ConfigError
from operators.records import DeadLetter
from stores.archive.memory import MemoryArchive
from stores.deadletters import open_dead_letters
from stores.offline.parquet import ParquetOfflineStore
from tests import flows
from tests.flows import SETS, Log, dirty_log
from tests.late_rows import CORRECT, HOLD, late_log

ARCHIVED = {"ARCHIVE_SIGNALS": 1}
POLICIES: dict[str, dict[str, Any]] = {"drop": {}, "correct": CORRECT, "hold": HOLD}
ROWS = 1000


@pytest.fixture(scope="module", params=sorted(POLICIES))
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A log that was run under a policy, its late events released if they were held, in two runs."""
    policy = POLICIES[request.param]
    with flows.Place(tmp_path_factory.mktemp("explain") / "place") as place:
        log = dirty_log(7) if request.param == "drop" else late_log(7)
        first, second = log.slices(2)
        place.write(first)
        run = place.quick(BUS_FOLLOW=1, **policy, **ARCHIVED)
        place.wait_until_read(run)
        run.stop()
        place.write(second)
        place.quick(**policy, **ARCHIVED).done()
        if request.param == "hold":
            assert place.headrace("late", "release", "--all", "--json", **policy).wait() == 0
            place.quick(**policy, **ARCHIVED).done()
        yield Ran(place, log, policy)


class Ran:
    """Where a log was run, and how."""

    def __init__(self, place: flows.Place, log: Log, policy: dict[str, Any]) -> None:
        """policy: the settings of the runs."""
        self.place = place
        self.log = log
        self.settings = load_settings(
            bus_dir=place.topic.parent,
            offline_data_path=place.offline,
            archive_path=place.root / "data" / "archive",
            feature_sets_path=place.root / "sets.toml",
            recovery_dir=place.recovery,
            **{name.lower(): value for name, value in policy.items()},
        )

    def rows(self, count: int) -> list[Row]:
        """Random rows of every set and window, revised and retracted ones among them."""
        windows = {(s.name, w.folder): Place(s, w) for s in SETS.sets for w in s.windows}
        found = set()
        for key, table in ParquetOfflineStore(self.place.offline).scan():
            ends = table["event_time"].cast(pa.int64()).to_pylist()
            place = windows[key.feature_set, key.window]
            found |= {Row(place, entity, end) for entity, end in zip(table["entity_id"].to_pylist(), ends, strict=True)}
        ordered = sorted(found, key=lambda row: (row.place.text, row.entity, row.end))
        return random.Random(0).sample(ordered, min(count, len(ordered)))


def check(told: Explanation) -> None:
    """The row comes out again, and the events shown are those that it counts."""
    assert told.equal, told.row
    if told.stored["retracted"]:
        return  # what stands in its window now belongs to another session
    for name in told.row.place.declared.fields:
        values = [event["values"][name] for event in told.events]  # type: ignore[index]  # a dict
        assert told.stored[f"{name}__count"] == sum(value is not None for value in values)
    assert len({(e["event_time"], e["sequence"]) for e in told.events}) == len(told.events)


def test_a_thousand_random_rows_come_out_again(ran: Ran) -> None:
    """Tumbling, sliding and session windows, corrected rows too: out of the archive the stored hash, each time."""
    rows = ran.rows(ROWS)
    assert len(rows) == ROWS
    assert {row.place.window.text for row in rows} == {w.text for s in SETS.sets for w in s.windows}
    with ExitStack() as opened:
        told = list(open_explainer(ran.settings, opened).explain(rows))
    assert [one.row for one in told] == rows
    for one in told:
        check(one)
    assert {one.source for one in told} == {"archive"}
    if ran.settings.late_event_policy != "drop":
        assert any(len(one.revisions) > 1 for one in told)
        assert any(e["known_at"] for one in told for e in one.events)
    else:
        assert any(e["reason"] == "late" for one in told for e in one.refused)
    assert {"duplicate", "conflict"} <= {e["verdict"] for one in told for e in one.refused}


def test_without_an_archive_the_bus_tells_the_same(ran: Ran) -> None:
    """The whole log is read: the same rows, of the same events, with the same of them refused."""
    rows = ran.rows(300)
    with ExitStack() as opened:
        explainer = open_explainer(ran.settings, opened)
        archived = list(explainer.explain(rows))
        bare = Explainer(explainer.offline, MemoryArchive(), explainer.log)
        told = list(bare.explain(rows))
    for one, other in zip(told, archived, strict=True):
        check(one)
        assert one.source == "bus"
        assert [(e["partition"], e["offset"]) for e in one.events] == [
            (e["partition"], e["offset"]) for e in other.events
        ]
        assert [(e["offset"], e["verdict"]) for e in one.refused] == [
            (e["offset"], e["verdict"]) for e in other.refused
        ]


def test_what_is_not_archived_yet_is_read_from_the_bus(ran: Ran, tmp_path: Path) -> None:
    """Half of the archive is missing: what it lacks comes from the bus, and every row comes out again."""
    half = tmp_path / "archive"
    files = sorted((ran.settings.archive_path / "signals").rglob("*.parquet"))
    assert files
    for path in files:
        target = half / path.relative_to(ran.settings.archive_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = pq.read_table(path)
        pq.write_table(whole.slice(0, whole.num_rows // 2), target)
    settings = ran.settings.model_copy(update={"archive_path": half})
    with ExitStack() as opened:
        for one in open_explainer(settings, opened).explain(ran.rows(200)):
            check(one)


def test_a_row_is_found_by_its_end_or_by_a_time_in_it(ran: Ran) -> None:
    """Its end names it; a time inside does too; where there is none, the sentence names the nearest."""
    row = next(r for r in ran.rows(50) if r.place.window.text == "5s")
    from dataflows.commands import time_text

    for at in (row.end, row.end - 1, row.end - 5_000_000 + 1):
        record = explain_row(ran.settings, Question(row.entity, time_text(at), "5s"))
        assert record["event_time"] == time_text(row.end).replace("+00:00", "Z")
    with pytest.raises(ConfigError, match=r"the nearest window ends at .*Z: --at"):
        explain_row(ran.settings, Question(row.entity, "2031-01-01T00:00:00Z", "5s"))
    with pytest.raises(ConfigError, match="`nobody` has no row of `fast` version 1, window 5s"):
        explain_row(ran.settings, Question("nobody", "2031-01-01T00:00:00Z", "5s"))
    with pytest.raises(ConfigError, match=r"--at `yesterday` is not understood"):
        explain_row(ran.settings, Question("s1", "yesterday", "5s"))
    with pytest.raises(ConfigError, match="`c` is no field of `fast`"):
        explain_row(ran.settings, Question("s1", "2031-01-01T00:00:00Z", "5s", field="c"))
    with pytest.raises(ConfigError, match="with the window `7s`; there are: `fast` version 1, window 5s"):
        explain_row(ran.settings, Question("s1", "2031-01-01T00:00:00Z", "7s"))


def test_refused_messages_of_its_entity_and_window_are_shown(ran: Ran) -> None:
    """Dead letters that name the entity and a time in the window, or no time but stand among its events; no others."""
    row = next(r for r in ran.rows(200) if r.place.window.text == "12s/3s")
    with ExitStack() as opened:
        told = next(open_explainer(ran.settings, opened).explain([row]))
    at = told.events[0]
    inside, outside = told.start_us // 1000, row.end // 1000

    def letter(offset: int, entity: str, time: object, partition: object = "elsewhere") -> DeadLetter:
        original = orjson.dumps({"entity_id": entity, "event_time": time})
        place = ("decode", "sequence", "no", "signals", str(partition), offset, original)
        return DeadLetter(f"{offset:032x}", offset, *place)

    store = open_dead_letters("memory:")
    found = [letter(1, row.entity, inside), letter(int(str(at["offset"])), row.entity, "soon", at["partition"])]
    others = [letter(3, row.entity, outside), letter(4, "another", inside), letter(5, row.entity, "soon")]
    store.put([*found, *others])
    shown = list(dead_of(store, "signals", told))
    assert sorted(e["offset"] for e in shown) == sorted(one.offset for one in found)  # type: ignore[type-var]  # ints
    assert {(e["verdict"], e["reason"]) for e in shown} == {("dead", "sequence")}


def test_the_command_shows_people_and_programs_the_same(ran: Ran, tmp_path: Path) -> None:
    """Text with every offset, one JSON object with --json; exit code 1 once a value of the row has a flipped bit."""
    row = next(r for r in ran.rows(200) if r.place.window.text == "6s/2s")
    from dataflows.commands import time_text

    command = ("explain", row.entity, "--at", time_text(row.end), "--window", "6s/2s", "--field", "b")
    run = ran.place.headrace(*command, **POLICIES[ran.settings.late_event_policy])
    assert run.wait() == 0, run.errors
    shown = run._out.read_text("utf-8")
    told: dict[str, Any] = ran.place.headrace(*command, "--json", **POLICIES[ran.settings.late_event_policy]).done()
    assert told["recomputed"] == "equal"
    assert all(str(event["offset"]) in shown for event in told["events"])
    assert told["content_hash"] in shown
    assert set(told["values"]) == {f"b__{s}" for s in SETS.sets[0].statistics}
    broken = tmp_path / "offline"
    flip(ran.place.offline, broken, row)
    run = ran.place.headrace(*command, OFFLINE_DATA_PATH=broken, **POLICIES[ran.settings.late_event_policy])
    assert run.wait() == 1
    assert "differs from the one that is stored" in run.errors
    assert "b__last: stored" in run._out.read_text("utf-8")


def flip(whole: Path, broken: Path, row: Row) -> None:
    """A copy of the history in which the row's newest revision has another `b__last`."""
    import shutil

    shutil.copytree(whole, broken)
    for path in broken.rglob("*.parquet"):
        if f"window={row.place.window.folder}" not in str(path) or "_staging" in str(path):
            continue
        table = pq.ParquetFile(path).read()
        lines = table.to_pylist()
        mine = [
            line
            for line in lines
            if line["entity_id"] == row.entity and pa.scalar(line["event_time"], pa.timestamp("us")).value == row.end
        ]
        for line in mine:
            line["b__last"] = (line["b__last"] or 0.0) + 1.0
        if mine:
            path.unlink()
            pq.write_table(pa.Table.from_pylist(lines, schema=table.schema), path)
