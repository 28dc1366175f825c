"""`verify signals`: equal where it is, and where one bit is not, named exactly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dataflows.config import Settings, load_settings
from dataflows.verify_signals import Look, verify_signals
from operators.errors import ConfigError
from stores.features.memory import MemoryFeatures
from stores.features.port import View, views_of
from stores.offline.parquet import ParquetOfflineStore
from stores.offline.port import EVERYTHING, Selection
from tests.flows import SETS, SOAK, Place, dirty_log, until
from tests.late_rows import CORRECT, HOLD, late_log


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Folders for one lineage."""
    with Place(tmp_path / "place") as opened:
        yield opened


def archived(place: Place) -> dict[str, Any]:
    """Settings with the archive on."""
    return {"ARCHIVE_SIGNALS": 1, "ARCHIVE_PATH": place.root / "archive"}


def settings_of(place: Place, **more: object) -> Settings:
    """The settings of the place's runs, read in this process."""
    mine = {n: v for n, v in place.environment(**more).items() if n.lower() in Settings.model_fields}
    return load_settings(**{name.lower(): value for name, value in mine.items()})


def looked(place: Place, selection: Selection = EVERYTHING, **more: Any) -> Look:  # noqa: ANN401  # as above
    """What verify finds."""
    return verify_signals(settings_of(place, **more), selection)


def assert_equal(place: Place, *, bus: bool, **more: Any) -> Look:  # noqa: ANN401  # settings of any kind
    """Assert that verify finds everything equal, and where it read from."""
    look = looked(place, **more)
    assert look.differences == []
    assert look.checked > 0
    assert (look.on_bus > 0, look.archived > 0) == (bus, not bus)
    return look


@pytest.mark.parametrize("policy", [{}, CORRECT])
@pytest.mark.parametrize("bus", [True, False])
def test_a_run_is_equal(place: Place, policy: dict[str, Any], *, bus: bool) -> None:
    """Under `drop` and after corrections, out of the archive and off the bus; late, repeated and broken ones too."""
    log = late_log(11) if policy else dirty_log(11)
    place.write(log)
    more = policy if bus else {**policy, **archived(place)}
    place.quick(STREAM_BATCH_SIZE=50, **more).done()
    look = assert_equal(place, bus=bus, **more)
    assert (look.open_rows, look.waiting, look.online) == (0, 0, None)


@pytest.mark.parametrize("bus", [True, False])
def test_released_events_are_in_and_held_ones_are_not(place: Place, *, bus: bool) -> None:
    """Under `hold` before a release and after it."""
    more = HOLD if bus else {**HOLD, **archived(place)}
    place.write(late_log(12, events=600))
    place.quick(**more).done()
    assert_equal(place, bus=bus, **more)
    place.headrace("late", "release", "--all", **more).done()
    assert_equal(place, bus=bus, **more)
    place.quick(**more).done()
    assert_equal(place, bus=bus, **more)


@pytest.mark.parametrize("seed", range(2 + 10 * SOAK))
def test_equal_at_any_moment_of_a_lineage_of_kills(place: Place, seed: int) -> None:
    """After each kill (-9), with another number of workers each time, all that there must be is there."""
    chance = random.Random(seed)
    more = {**CORRECT, **(archived(place) if seed % 2 else {})}
    for part in late_log(seed + 20).slices(4):
        place.write(part)
        fault = f"steps::before:{chance.randrange(40, 400)}"
        run = place.quick(fault, BUS_FOLLOW=1, STREAM_BATCH_SIZE=30, STREAM_CONCURRENCY=chance.randrange(1, 4), **more)
        until(lambda: run.ended or place.durable_bytes() >= place.whole_bytes(), "the end or a kill")  # noqa: B023  # called at once
        run.kill()
        look = looked(place, **more)
        assert look.differences == []
    place.quick(**more).done()
    assert looked(place, **more).differences == []


def test_while_a_run_goes_on_what_is_final_is_equal(place: Place) -> None:
    """With windows open and more to come, what can change no more is compared."""
    place.write(dirty_log(13))
    run = place.quick(BUS_FOLLOW=1, **archived(place))
    place.wait_until_read(run)
    seen: list[Look] = []

    def checked() -> int:
        seen.append(looked(place, **archived(place)))
        return seen[-1].checked

    until(checked, "rows to be published")
    assert all(look.live and look.differences == [] for look in seen)
    assert seen[-1].open_rows > 0
    run.stop()
    assert looked(place, **archived(place)).differences == []


# --- planted defects --------------------------------------------------------------------------------------------------


Change = Callable[[pa.Table, int], pa.Table]


def pairs(rows: pa.Table) -> list[tuple[object, object]]:
    """What the revisions of each row share."""
    return list(zip(rows["entity_id"].to_pylist(), rows["event_time"].to_pylist(), strict=True))


def plant(place: Place, change: Change) -> dict[str, object]:
    """Change one row of one file of window 5s; return what names it."""
    path = max((place.offline / "features").rglob("window=5s/date=*/*.parquet"), key=lambda p: p.stat().st_size)
    rows = pq.ParquetFile(path).read()
    there = Counter(pair for file in path.parent.glob("*.parquet") for pair in pairs(pq.ParquetFile(file).read()))
    at = next(i for i, pair in enumerate(pairs(rows)) if i >= rows.num_rows // 2 and there[pair] == 1)
    pq.write_table(change(rows, at), path)
    parts = dict(part.split("=") for part in path.parts if "=" in part)
    row = rows.slice(at, 1).to_pylist()[0]
    return {
        "feature_set": path.parts[-5],
        "window": parts["window"],
        "date": parts["date"],
        "entity_id": row["entity_id"],
        "event_time": row["event_time"].isoformat(),
    }


def with_value(rows: pa.Table, at: int, column: str, value: object) -> pa.Table:
    """The rows with one value changed."""
    values = rows[column].to_pylist()
    values[at] = value
    field = rows.schema.field(column)
    return rows.set_column(rows.schema.get_field_index(column), field, pa.array(values, field.type))


def flipped(rows: pa.Table, at: int) -> pa.Table:
    """One bit of one value is another."""
    bits = np.array([rows["a__sum"][at].as_py() or 0.0]).view(np.int64) ^ 1
    return with_value(rows, at, "a__sum", bits.view(np.float64)[0])


def without(rows: pa.Table, at: int) -> pa.Table:
    """One row is gone."""
    return pa.concat_tables([rows.slice(0, at), rows.slice(at + 1)])


def doubled(rows: pa.Table, at: int) -> pa.Table:
    """One row is there twice."""
    return pa.concat_tables([rows, rows.slice(at, 1)])


def with_wrong_hash(rows: pa.Table, at: int) -> pa.Table:
    """One hash is another."""
    return with_value(rows, at, "content_hash", bytes(16))


def moved(rows: pa.Table, at: int) -> pa.Table:
    """One row is another entity's."""
    return with_value(rows, at, "entity_id", "nobody")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (flipped, [("value", "a__sum")]),
        (without, [("missing", None)]),
        (doubled, [("doubled", None)]),
        (with_wrong_hash, [("hash", "content_hash")]),
        (moved, [("extra", None), ("missing", None)]),
    ],
)
@pytest.mark.parametrize("policy", [{}, CORRECT])
def test_a_planted_defect_is_found_and_named(
    place: Place, change: Change, found: list[tuple[str, str | None]], policy: dict[str, Any]
) -> None:
    """One flipped bit, one row gone, doubled, with a wrong hash or another name: exactly that, and no more."""
    place.write(late_log(14, events=500))
    place.quick(**policy).done()
    assert looked(place, **policy).differences == []
    where = plant(place, change)
    records = [difference.record() for difference in looked(place, **policy).differences]
    assert sorted((r["difference"], r["field"]) for r in records) == found
    named = [r for r in records if r["difference"] != "extra"]
    assert [{name: r[name] for name in where} for r in named] == [where]


def test_what_it_prints(place: Place) -> None:
    """--json: a line a difference, then equal, checked, differences; exit 0 or 1."""
    place.write(dirty_log(15, events=400))
    place.quick().done()
    told = place.headrace("verify", "signals", "--json").done()
    assert told["equal"] is True
    assert (told["differences"], told["checked"] > 0) == (0, True)
    plant(place, flipped)
    run = place.headrace("verify", "signals", "--json")
    assert run.wait() == 1
    line, summary = map(orjson.loads, run._out.read_bytes().splitlines())
    assert (line["difference"], line["field"]) == ("value", "a__sum")
    assert float.fromhex(line["stored_hex"]) != float.fromhex(line["recomputed_hex"])
    assert (summary["equal"], summary["differences"]) == (False, 1)
    assert "not equal, 1 differ" in run.errors


def test_a_selection_sees_nothing_else(place: Place) -> None:
    """A defect in another window, set or day is not seen; what is not declared is refused."""
    place.write(dirty_log(16, events=400))
    place.quick().done()
    where = plant(place, flipped)
    name = str(where["feature_set"])
    assert len(looked(place, Selection(name, 1, "5s")).differences) == 1
    assert looked(place, Selection(name, 1, "session:3s")).differences == []
    assert looked(place, Selection(date_last="2001-01-01")).differences == []
    with pytest.raises(ConfigError, match="no declared feature set"):
        looked(place, Selection("nobody"))


# --- online -----------------------------------------------------------------------------------------------------------


def served(place: Place, change: Callable[[View, pa.Table], pa.Table]) -> MemoryFeatures:
    """An online store that serves the newest rows of the history, as `change` leaves them."""
    store = MemoryFeatures()
    store.prepare(views_of(SETS))
    for key, rows in ParquetOfflineStore(place.offline).scan():
        view = next(v for v in views_of(SETS) if (v.feature_set.name, v.window.folder) == (key.feature_set, key.window))
        alive = change(view, rows).filter(pc.invert(pc.field("retracted")))
        for batch in alive.to_batches():
            store.write(view, batch)
    return store


def test_what_is_served_is_compared_with_the_newest_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale row, a wrong value and one that is not served are named; the rest is equal."""
    place.write(dirty_log(17, events=600))
    place.quick().done()
    views = [v for v in views_of(SETS) if v.window.text == "5s"]
    rows = pa.concat_tables([t for k, t in ParquetOfflineStore(place.offline).scan(Selection("fast", 1, "5s"))])
    newest = {r["entity_id"]: r["event_time"] for r in sorted(rows.to_pylist(), key=lambda r: r["event_time"])}

    def as_it_is(view: View, table: pa.Table) -> pa.Table:
        del view
        return table

    def spoiled(view: View, table: pa.Table) -> pa.Table:
        if view not in views:
            return table
        out = []
        for row in table.to_pylist():
            last = row["event_time"] == newest[row["entity_id"]]
            if row["entity_id"] == "s2" or (row["entity_id"] == "s1" and last):
                continue
            if row["entity_id"] == "s3" and last:
                row["b__count"] += 1
            out.append(row)
        return pa.Table.from_pylist(out, table.schema)

    monkeypatch.setattr("dataflows.verify_online.features_of", lambda *_: served(place, as_it_is))
    look = looked(place, ONLINE_STORE="feast")
    assert look.differences == []
    assert look.online == sum(len(set(t["entity_id"].to_pylist())) for t in by_view(place))
    monkeypatch.setattr("dataflows.verify_online.features_of", lambda *_: served(place, spoiled))
    found = {(d.word, d.entity_id, d.field, d.key.window) for d in looked(place, ONLINE_STORE="feast").differences}
    assert found == {
        ("stale", "s1", "event_time", "5s"),
        ("not online", "s2", None, "5s"),
        ("online value", "s3", "b__count", "5s"),
    }


def by_view(place: Place) -> list[pa.Table]:
    """The entities of each view's rows."""
    tables: dict[tuple[str, str], list[pa.Table]] = {}
    for key, rows in ParquetOfflineStore(place.offline).scan(columns=["entity_id"]):
        tables.setdefault((key.feature_set, key.window), []).append(rows)
    return [pa.concat_tables(some) for some in tables.values()]
