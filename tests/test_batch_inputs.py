"""Batch over files: the same rows from every format, repeats without effect, and nothing left of a killed run."""

from __future__ import annotations

import json
import math
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflows.batch import find_inputs
from dataflows.inputs import open_input
from operators.errors import ConfigError
from stores.offline.parquet import ParquetOfflineStore
from stores.offline.port import Staged
from tests.commands import Done, headrace
from tests.flows import Place, digests
from tests.offline_rows import KEY, rows
from tests.signal_files import WRITERS, events, write_jsonl, write_parquet

EVENT_BYTES_MAX = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty place."""
    with Place(tmp_path / "place") as made:
        yield made


def backfill(place: Place, *paths: object, **settings: object) -> Done:
    """Run the batch over these files."""
    inputs = [word for path in paths for word in ("--input", str(path))]
    return headrace(place, "backfill", "signals", "--json", *inputs, **settings)


def visible(place: Place) -> int:
    """Rows that readers see."""
    return sum(len(table) for _, table in ParquetOfflineStore(place.offline).scan())


def staged_files(place: Place) -> list[str]:
    """Names of files of rows in the staging area."""
    return sorted(p.name for p in (place.offline / "_staging").rglob("*.parquet"))


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    """The same signals as JSON lines, CSV, Parquet and Arrow, flat or with a struct: the same counts and digest."""
    rows = events()
    found = []
    with ExitStack() as opened:
        for name, write in WRITERS.items():
            place = opened.enter_context(Place(tmp_path / name))
            path = tmp_path / f"p-0.{'parquet' if name == 'struct' else name}"
            write(path, rows)
            (summary,) = backfill(place, path).records
            found.append((summary, digests(place.offline)))
    assert found[0][0]["used"] > 350
    assert found[0][0]["dead"] == 0
    assert all(each == found[0] for each in found)


def test_bad_rows_are_refused_and_their_neighbours_used(place: Place, tmp_path: Path) -> None:
    """A CSV cell or row that no signal can be made of becomes a dead letter with the row's number."""
    path = tmp_path / "p-0.csv"
    lines = [
        b"entity_id,event_time,sequence,a,b",
        b"pump,2026-03-01T12:00:00Z,1,1.5,2",
        b"pump,2026-03-01T12:00:00Z,2,hot,2",
        b"pump,2026-03-01T12:00:00,3,1,2",
        b",2026-03-01T12:00:00Z,4,1,2",
        b"pump,2026-03-01T12:00:00Z,5,1,2,3",
        b"pu\xffmp,2026-03-01T12:00:00Z,6,1,2",
        b"pump,2026-03-01T12:00:00Z,7,NaN,2",
        b"pump,2026-03-01T12:00:00Z,1.0,1,2",
        b"pump,2026-03-01T12:00:01Z,9,2.5",
    ]
    path.write_bytes(b"\r\n".join(lines) + b"\r\n")
    (summary,) = backfill(place, path).records
    assert (summary["in"], summary["used"], summary["dead"]) == (9, 2, 7)
    letters = headrace(place, "dlq", "list", "--json").records
    reasons = ["field", "event_time", "entity_id", "payload", "not_utf8", "field", "sequence"]
    assert [(each["offset"], each["reason"]) for each in letters] == list(enumerate(reasons, 1))
    assert {each["source"] for each in letters} == {str(path)}


def test_parquet_values_that_json_has_no_word_for(place: Place, tmp_path: Path) -> None:
    """Infinity is refused, NaN is a missing value, a time without zone is refused, an integer stays exact."""
    path = tmp_path / "p-0.parquet"
    table = pa.table(
        {
            "entity_id": ["x", "x", "x", "y"],
            "event_time": [datetime(2026, 3, 1, tzinfo=UTC)] * 4,
            "sequence": [1, 2, 3, 4],
            "a": [math.inf, math.nan, 1.5, 2.0],
            "b": pa.array([1, 1, 2**53, 2**53 + 1], pa.int64()),
        }
    )
    pq.write_table(table, path)
    (summary,) = backfill(place, path).records
    assert (summary["used"], summary["dead"]) == (2, 2)
    letters = headrace(place, "dlq", "list", "--json").records
    assert [(each["offset"], each["reason"]) for each in letters] == [(0, "field"), (3, "field")]
    pq.write_table(table.set_column(1, "event_time", pa.array([datetime(2026, 3, 1)] * 4)), path)  # noqa: DTZ001  # no zone on purpose
    (summary,) = backfill(place, path).records
    assert (summary["used"], summary["dead"]) == (0, 4)


def test_a_repeat_adds_nothing(place: Place, tmp_path: Path) -> None:
    """The same files once more: every row is repeated, none is added, and the exit code is 0."""
    write_jsonl(tmp_path / "p-0.jsonl", events(seed=1))
    (first,) = backfill(place, tmp_path / "*.jsonl").records
    before = digests(place.offline)
    (again,) = backfill(place, tmp_path / "*.jsonl").records
    assert (first["repeated"], first["different"]) == (0, 0)
    assert (again["rows"], again["repeated"], again["different"]) == (first["rows"], first["rows"], 0)
    assert digests(place.offline) == before


def test_only_missing_rows_are_added(place: Place, tmp_path: Path) -> None:
    """A history that holds some entities gets the others, and is then what one backfill of all would have made."""
    rows = events(seed=2)
    write_jsonl(tmp_path / "p-0.jsonl", rows)
    (whole,) = backfill(place, tmp_path / "p-0.jsonl").records
    with Place(tmp_path / "grown") as grown:
        write_jsonl(tmp_path / "p-1.jsonl", [row for row in rows if row["entity_id"] in ("7", "ключ-😀")])
        (part,) = backfill(grown, tmp_path / "p-1.jsonl").records
        (rest,) = backfill(grown, tmp_path / "p-0.jsonl").records
        assert 0 < part["rows"] < whole["rows"]
        assert (rest["repeated"], rest["different"]) == (part["rows"], 0)
        assert digests(grown.offline) == digests(place.offline)


def test_different_content_is_kept_back(place: Place, tmp_path: Path) -> None:
    """Rows that the history holds otherwise stay, are counted, and make the command fail with one sentence."""
    rows = events(seed=3)
    write_jsonl(tmp_path / "p-0.jsonl", rows)
    assert backfill(place, tmp_path / "p-0.jsonl").code == 0
    before = digests(place.offline)
    rows[7]["payload"]["a"] = 123.0
    write_jsonl(tmp_path / "p-0.jsonl", rows)
    done = backfill(place, tmp_path / "p-0.jsonl")
    summary = json.loads(done.out)
    assert done.code == 1
    assert summary["different"] > 0
    assert summary["repeated"] + summary["different"] == summary["rows"]
    assert done.err.startswith(f"headrace: {summary['different']} rows differ from those that the history holds")
    assert digests(place.offline) == before


def test_batch_equals_live(place: Place) -> None:
    """A backfill of the topic's own files finds every row of the live run there already."""
    write_jsonl(place.topic / "p-0.jsonl", events(seed=4))
    place.append("p-0", b"\n")
    live = headrace(place, "signals", "--json").records[-1]
    (batch,) = backfill(place, place.topic / "*.jsonl", STREAM_BATCH_SIZE=7).records
    assert {k: batch[k] for k in live} == live
    assert batch["repeated"] == live["rows"]


def test_inputs_are_found_once_each(tmp_path: Path) -> None:
    """Patterns may overlap and reach into folders; what they find is sorted, and a file is read once."""
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([f"{tmp_path}/**/*.jsonl", f"{tmp_path}/a.*"])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl"]


def test_inputs_that_cannot_be_used(place: Place, tmp_path: Path) -> None:
    """No match, one name twice, another ending, a missing column, a damaged file: exit code 2, one sentence, no row."""
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "p-0.jsonl", events(5))
    write_jsonl(tmp_path / "deep" / "p-0.jsonl", events(5))
    (tmp_path / "x.json").touch()
    (tmp_path / "x.csv").write_text("entity_id,sequence,a\nx,1,2\n")
    for name in ("bad.parquet", "bad.arrow", "bad.arrows"):
        (tmp_path / name).write_bytes(b"PAR1 no more")
    write_parquet(tmp_path / "cut.parquet", events())
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:200] + bytes(800) + whole[1000:])
    pq.write_table(pa.table({"entity_id": ["x"], "event_time": [1]}), tmp_path / "lacks.parquet")
    for pattern, says in {
        "nothing-*.jsonl": "no file matches",
        "**/p-0.jsonl": "have one name, which names the partition",
        "x.json": "must end in .jsonl, .csv, .parquet, .arrow or .arrows",
        "x.csv": "has no column `event_time`; needed are entity_id, event_time, sequence",
        "lacks.parquet": "has no column `sequence`",
        "bad.parquet": "is not a readable Parquet file",
        "bad.arrow": "is not a readable file of Arrow IPC",
        "bad.arrows": "is not a readable file of Arrow IPC",
        "cut.parquet": "is not a readable Parquet file",
    }.items():
        done = backfill(place, tmp_path / pattern)
        assert (done.code, done.out) == (2, b""), pattern
        assert says in done.err, pattern
        assert done.err.count("\n") == 1, done.err
    assert visible(place) == 0


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_progress_adds_up_to_the_size(tmp_path: Path, name: str, count: int) -> None:
    """What an input reports as read comes to the size of its file, whatever its format."""
    path = tmp_path / name
    rows = events(count) or events(1)
    WRITERS[path.suffix[1:]](path, rows)
    source = open_input(path, EVENT_BYTES_MAX)
    read = messages = 0
    while (chunk := source.poll(7)) is not None:
        messages += len(chunk.lengths)
        read += source.advanced()
    read += source.advanced()
    source.close()
    assert (messages, read) == (len(rows), path.stat().st_size)


def test_empty_files_give_nothing(place: Place, tmp_path: Path) -> None:
    """Files without a row are complete and hold no event."""
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.csv").touch()
    (tmp_path / "c.csv").write_text("entity_id,event_time,sequence,a\n")
    columns = {"entity_id": pa.string(), "event_time": pa.int64(), "sequence": pa.int64(), "a": pa.float64()}
    pq.write_table(pa.schema(columns.items()).empty_table(), tmp_path / "d.parquet")
    (summary,) = backfill(place, tmp_path / "*.*").records
    assert set(summary.values()) == {0}


def test_damaged_csv_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that is never closed makes one huge cell: the run stops with the file and the line."""
    monkeypatch.setattr("dataflows.inputs._CELL_BYTES_MAX", 1000)
    path = tmp_path / "p.csv"
    path.write_text("entity_id,event_time,sequence,a\nx,1,1,1\n" + '"' + "y" * 2000)
    source = open_input(path, EVENT_BYTES_MAX)
    with pytest.raises(ConfigError, match=r"p\.csv` is not CSV near line 2"):
        source.poll(10)


_KILLED_BEFORE_PUBLISHING = """
import os, signal, sys
from stores.offline.parquet import ParquetOfflineStore
from stores.offline.port import Staged
ParquetOfflineStore.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from dataflows.cli import run
run(sys.argv[1:])
"""


def test_a_killed_backfill_leaves_nothing(place: Place, tmp_path: Path) -> None:
    """Kill -9 with rows staged: no reader sees one, the next run gives all rows, and removes what was staged."""
    path = tmp_path / "p-0.jsonl"
    write_jsonl(path, events(seed=5))
    run = place._start(["-c", _KILLED_BEFORE_PUBLISHING, "backfill", "signals", "--input", str(path)], {})
    assert run.wait() == -signal.SIGKILL
    assert len(staged_files(place)) > 0
    assert visible(place) == 0
    (summary,) = backfill(place, path).records
    assert (visible(place), summary["repeated"]) == (summary["rows"], 0)
    assert staged_files(place) == []
    assert backfill(place, path).code == 0
    assert len(list((place.offline / "_staging" / "writers").iterdir())) == 1


def test_a_living_backfill_is_left_alone(place: Place, tmp_path: Path) -> None:
    """Two backfills at once: neither removes what the other has staged, nor what a flow has."""
    path = tmp_path / "p-0.jsonl"
    write_jsonl(path, events(seed=6))
    with closing(ParquetOfflineStore(place.offline)) as store:
        tokens = [t for w in ("aa.batch", "bb.w0") for t in store.stage(w, 0, {KEY: rows(["one"])}).tokens]
        assert backfill(place, path).code == 0
        assert len(staged_files(place)) == 2
        store.publish(tokens[:1])
    assert backfill(place, path).code == 0
    assert [name.partition("~bb")[1] for name in staged_files(place)] == ["~bb"]


def test_a_full_disk_leaves_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full while rows are staged: exit code 1, one sentence, no row visible, and a repeat works."""
    path = tmp_path / "p-0.jsonl"
    write_jsonl(path, events(seed=7))
    real = ParquetOfflineStore.stage

    def on_full_disk(*arguments: Any) -> Staged:  # noqa: ANN401  # as stage
        with file_size_limit(4096):
            return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ParquetOfflineStore, "stage", on_full_disk)
        done = backfill(place, path)
    assert (done.code, done.out) == (1, b"")
    assert "the disk is full" in done.err
    assert done.err.count("\n") == 1
    assert (visible(place), staged_files(place)) == (0, [])
    assert backfill(place, path).code == 0


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond that; to a program that is what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_bar_is_for_terminals_only(place: Place, tmp_path: Path) -> None:
    """A progress bar is drawn on stderr where that is a terminal, and never with --json; stdout has the summary."""
    path = tmp_path / "p-0.jsonl"
    write_jsonl(path, events(seed=8))
    assert headrace(place, "backfill", "signals", "--input", str(path)).err == ""
    for words, drawn in ((), True), (("--json",), False):
        done, shown = on_terminal(place, "backfill", "signals", *words, "--input", str(path))
        assert ("backfill" in shown) is drawn
        assert (b"in " in done) is drawn


def on_terminal(place: Place, *arguments: str) -> tuple[bytes, str]:
    """Run a command whose stderr is a terminal; return its stdout and what the terminal got."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dataflows", *arguments]
    environment = place.environment(TERM="xterm", LOG_LEVEL="error")
    done = subprocess.run(command, cwd=place.root, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.set_blocking(ours, False)
    try:
        shown = os.read(ours, 1 << 16).decode()
    except BlockingIOError:
        shown = ""
    os.close(ours)
    os.close(theirs)
    return done.stdout, shown
