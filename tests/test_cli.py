"""The command line as people and programs meet it: help, mistakes, settings, JSON, pipes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dataflows.cli import run
from dataflows.config import settings_table
from operators.feature_sets import FeatureSets
from operators.records import feature_row_schema
from stores.features import View, views_of
from stores.features.memory import MemoryFeatures
from tests.commands import headrace
from tests.feature_rows import feature_repository, feature_rows
from tests.flows import ROOT, SETS, Log, Place, clean_log, dirty_log

COMMANDS = {
    (): (
        "documents",
        "search",
        "doctor",
        "produce",
        "demo",
        "signals",
        "explain",
        "features",
        "compact",
        "backfill",
        "dlq",
        "late",
        "verify",
        "topics",
        "forget",
    ),
    ("backfill",): ("signals", "documents"),
    ("dlq",): ("list", "show", "replay", "drop"),
    ("late",): ("list", "release", "drop"),
    ("verify",): ("documents", "signals"),
    ("topics",): ("create", "list"),
}
LEAVES = [("forget", "list"), ("forget", "lift")] + [
    (*group, name) for group, names in COMMANDS.items() for name in names if (name,) not in COMMANDS
]
COUNTS = ["in", "used", "duplicate", "conflict", "late", "dead", "rows"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty place."""
    with Place(tmp_path / "place") as made:
        yield made


@pytest.mark.parametrize("words", [*COMMANDS, *LEAVES], ids=lambda words: " ".join(words) or "headrace")
def test_every_help_reads_well(place: Place, words: tuple[str, ...]) -> None:
    """Help fits 80 columns, cuts no sentence, shows no markup, and explains every argument and option."""
    done = headrace(place, *words, "--help", COLUMNS=80)
    lines = done.text.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0].startswith(f"Usage: headrace {' '.join(words)}".rstrip())
    assert all(len(line) <= 80 for line in lines)
    assert "..." not in "\n".join(lines[1:])
    assert not re.search(r"\\b|<bool>|\[/?(bold|dim|red)", done.text)
    for line in lines:
        assert not re.fullmatch(r"  (-\S+(, --\S+)?|[A-Z]+)( <\S+>| [A-Z]+)?", line), f"{line} is not explained"


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "headrace")
def test_a_group_alone_shows_its_commands(place: Place, words: tuple[str, ...]) -> None:
    """Without a command the help is shown, with each command that there is, and nothing is done."""
    done = headrace(place, *words)
    assert done.code == 2
    assert done.text == headrace(place, *words, "--help").text
    assert re.findall(r"^  ([a-z]+) {2,}\S", done.text.partition("Commands:")[2], re.MULTILINE) == list(COMMANDS[words])


def test_help_of_signals_tells_real_defaults(place: Place) -> None:
    """The settings that the help names exist, with the defaults that it tells."""
    told = re.findall(r"^ {4}([A-Z_]+) +.*\[(.*)\]$", headrace(place, "signals", "--help").text, re.MULTILINE)
    table = {name: default for name, default, _ in settings_table()}
    assert len(told) > 5
    assert {name: table[name] for name, _ in told} == dict(told)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("dlq nonsense", "No such command 'nonsense'"),
        ("signals --nonsense", "No such option: --nonsense"),
        ("signals extra", "unexpected extra argument"),
        ("explain pump", "Missing option '--at'"),
        ("backfill signals --input", "requires an argument"),
        ("dlq show", "Missing argument 'ID'"),
        ("dlq list --limit 0", "'--limit'"),
        ("dlq list --limit many", "'--limit'"),
        ("features", "Missing argument 'ENTITY'"),
        ("produce", "Missing option '--rate'"),
        ("produce --rate 0", "'--rate'"),
        ("produce --rate 1 --late 2", "'--late'"),
        ("topics create --partitions 0", "'--partitions'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(place: Place, words: str, says: str) -> None:
    """Whoever mistypes is told what is wrong and where help is; nothing goes to stdout."""
    done = headrace(place, *words.split())
    assert (done.code, done.out) == (2, b"")
    assert says in done.err
    assert done.err.startswith("headrace: ")
    assert done.err.count("\n") == 1
    assert "--help" in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("backfill signals", "name either files with --input or a version"),
        ("late release nothing", "LATE_EVENT_POLICY is `drop`"),
        ("forget", "name one: --entity ID or --document URI"),
    ],
)
def test_words_that_do_not_go_together_are_one_sentence(place: Place, words: str, says: str) -> None:
    """Exit code 2, and what to write instead."""
    done = headrace(place, *words.split())
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert says in done.err


def a_file(place: Place) -> str:
    """A file where a folder should be."""
    return str(place.root / "sets.toml")


WRONG_SETTINGS = [
    ("WATERMARK_SECONDS", "abc", "WATERMARK_SECONDS is `abc`"),
    ("STREAM_BATCH_SIZE", "0", "STREAM_BATCH_SIZE is `0`"),
    ("LATE_EVENT_POLICY", "ignore", "'drop'"),
    ("ONLINE_STORE", "redis", "'feast' or 'none'"),
    ("FEATURE_SETS_PATH", "nowhere.toml", "FEATURE_SETS_PATH `nowhere.toml` cannot be read: No such file"),
    ("OFFLINE_DATA_PATH", "FILE", "cannot be written to"),
    ("BUS_DIR", "FILE", "Not a directory"),
]


@pytest.mark.parametrize(("name", "value", "says"), [*WRONG_SETTINGS, ("RECOVERY_DIR", "FILE", "cannot be made")])
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(place: Place, name: str, value: str, says: str) -> None:
    """The setting is named, nothing is printed on stdout, and no event is read."""
    place.write(clean_log(events=3))
    done = headrace(place, "signals", "--json", **{name: value.replace("FILE", a_file(place))})
    assert (done.code, done.out) == (2, b"")
    assert says in done.err
    assert done.err.count("\n") == 1
    assert headrace(place, "signals", "--json").records[-1]["in"] == len(clean_log(events=3).lines)


@pytest.mark.parametrize(("name", "value", "says"), [WRONG_SETTINGS[0], WRONG_SETTINGS[5]])
def test_a_wrong_setting_of_a_bare_run(place: Place, name: str, value: str, says: str) -> None:
    """`python -m bytewax.run dataflows.signals` ends in the same sentence and exit code, not in a traceback."""
    place.write(clean_log(events=3))
    bare = place.bare(**{name: value.replace("FILE", a_file(place))})
    assert bare.wait() == 2
    assert says in bare.errors
    assert bare.errors.startswith("headrace: ")
    assert bare.errors.count("\n") == 1


@pytest.mark.parametrize("words", [("backfill", "signals", "--input", "FILE"), ("dlq", "list"), ("late", "list")])
def test_every_command_reads_the_settings(place: Place, words: tuple[str, ...]) -> None:
    """A wrong setting stops whatever needs settings, with exit code 2."""
    done = headrace(place, *(w.replace("FILE", a_file(place)) for w in words), STREAM_CONCURRENCY="none")
    assert (done.code, done.out) == (2, b"")
    assert "STREAM_CONCURRENCY is `none`" in done.err


def test_a_recovery_folder_of_another_flow_is_refused(place: Place) -> None:
    """Other shards, another watermark, other feature sets or a foreign folder: exit code 2, nothing touched."""
    place.write(clean_log(events=20))
    assert headrace(place, "signals", "--json").code == 0
    before = {path: path.read_bytes() for path in place.recovery.iterdir()}
    changes = {
        "SIGNAL_SHARDS": ("3", "another SIGNAL_SHARDS (there `12`, here `3`)"),
        "WATERMARK_SECONDS": ("6", "another WATERMARK_SECONDS"),
        "FEATURE_SET_VERSION": ("9", "another feature set"),
    }
    for name, (value, says) in changes.items():
        done = headrace(place, "signals", **{name: value})
        assert (done.code, done.out) == (2, b"")
        assert says in done.err
        assert {path: path.read_bytes() for path in place.recovery.iterdir()} == before
    (place.root / "mine").mkdir()
    (place.root / "mine" / "thesis.txt").touch()
    done = headrace(place, "signals", RECOVERY_DIR=place.root / "mine")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "was not made by Headrace" in done.err
    assert [path.name for path in (place.root / "mine").iterdir() if path.suffix != ".lock"] == ["thesis.txt"]


def test_json_of_a_run(place: Place) -> None:
    """`signals --json` and `backfill signals --json` print their counts under fixed names, and they add up."""
    log = dirty_log(events=300)
    place.write(log)
    live = headrace(place, "signals", "--json")
    batch = headrace(place, "backfill", "signals", "--json", "--input", f"{place.topic}/*.jsonl")
    (counts,), (repeat,) = live.records, batch.records
    assert list(counts) == COUNTS
    assert list(repeat) == [*COUNTS, "repeated", "different"]
    assert counts == log.summary.record()
    assert {name: repeat[name] for name in COUNTS} == counts
    assert counts["in"] == sum(counts[n] for n in ("used", "duplicate", "conflict", "late", "dead"))
    assert headrace(place, "signals", "--json").records == [dict.fromkeys(COUNTS, 0)]


def test_text_of_a_run(place: Place) -> None:
    """For people each count has its meaning beside it."""
    place.write(clean_log(events=20))
    lines = headrace(place, "signals").text.splitlines()
    assert [line.split()[0] for line in lines] == COUNTS
    assert "events read" in lines[0]


def test_compact_tells_what_it_did(place: Place) -> None:
    """Small files of two runs become one a folder; a second time there is nothing to do."""
    for entity in ("x", "y"):
        path = place.root / f"{entity}.jsonl"
        path.write_bytes(
            b"".join(line.replace(b"pump", entity.encode()) + b"\n" for _, line in clean_log(events=50).lines)
        )
        assert headrace(place, "backfill", "signals", "--input", str(path)).code in (0, 1)
    (done,) = headrace(place, "compact", "--json").records
    assert list(done) == ["partitions", "files_before", "files_after", "bytes_before", "bytes_after", "rows"]
    assert "partitions" in headrace(place, "compact").text
    assert headrace(place, "compact", "--json").records[0]["partitions"] == 0


def served(sets: FeatureSets) -> MemoryFeatures:
    """An online store that serves the entity `pump-😀` in the first view."""
    features = MemoryFeatures()
    features.prepare(views_of(sets))
    view = views_of(sets)[0]
    row: dict[str, Any] = {
        "entity_id": "pump-😀",
        "event_time": 1_772_366_405_000_000,
        "a__count": 2,
        "a__mean": 0.1 + 0.2,
    }
    features.write(view, feature_rows(view, [row]))
    return features


def test_features_of_an_entity(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON a line a view with the columns' names and exact values; for people a table; none is exit code 1."""
    monkeypatch.setattr("dataflows.commands.features_of", lambda _settings, sets: served(sets))
    (row,) = headrace(place, "features", "pump-😀", "--json", ONLINE_STORE="feast").records
    view: View = views_of(SETS)[0]
    assert list(row)[:5] == ["entity_id", "feature_set", "version", "window", "event_time"]
    assert set(row) - {"window", "event_time"} <= {*feature_row_schema(view.feature_set).names}
    assert (row["entity_id"], row["window"], row["event_time"]) == ("pump-😀", "5s", "2026-03-01T12:00:05+00:00")
    assert (row["a__count"], row["a__mean"], row["b__last"]) == (2, 0.1 + 0.2, None)
    text = headrace(place, "features", "pump-😀", ONLINE_STORE="feast").text
    assert "fast v1 · window 5s ending 2026-03-01T12:00:05" in text
    assert re.search(r"count +2 +1", text)
    assert re.search(r"mean +0\.3 +–", text)
    done = headrace(place, "features", "nobody", "--json", ONLINE_STORE="feast")
    assert (done.code, done.out) == (1, b"")
    assert "no online features of `nobody`" in done.err
    done = headrace(place, "features", "pump-😀")
    assert (done.code, "ONLINE_STORE is `none`" in done.err) == (2, True)


def test_features_served_by_feast(place: Place) -> None:
    """After a run with ONLINE_STORE=feast, `features` shows the newest row of an entity in every view."""
    repository = feature_repository(place.root, sets=(place.root / "sets.toml").read_text("utf-8"))
    feast = {
        "ONLINE_STORE": "feast",
        "FEAST_REPO_PATH": repository,
        "FEATURE_SETS_PATH": repository / "feature_sets.toml",
    }
    place.write(Log((("p-0", b'{"entity_id":"x/..","event_time":1772366400000,"sequence":1,"payload":{"a":1.5}}'),)))
    assert place.signals(**feast).done()["used"] == 1
    shown = place.headrace("features", "x/..", "--json", **feast)
    assert shown.wait() == 0
    rows = [orjson.loads(line) for line in shown._out.read_bytes().splitlines()]
    assert {row["window"]: row["a__last"] for row in rows if row["feature_set"] == "fast"} == {
        "5s": 1.5,
        "6s/2s": 1.5,
        "session:3s": 1.5,
    }


@pytest.mark.parametrize("options", [("--json",), ()])
def test_a_reader_that_has_read_enough(place: Place, options: tuple[str, ...]) -> None:
    """`headrace dlq list | head -1` ends quietly: no traceback, whoever closed the pipe."""
    place.write(Log(tuple(("p-0", b"broken %d" % i) for i in range(5000))))
    assert headrace(place, "signals", "--json").records[0]["dead"] == 5000
    command = [sys.executable, "-m", "dataflows", "dlq", "list", "--limit", "5000", *options]
    with subprocess.Popen(
        command, env=place.environment(), cwd=place.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == b""
    assert process.returncode in (0, 1)


def test_what_nobody_foresaw_is_a_sentence_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours is told as such, with its place, and exit code 1."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr("dataflows.commands.letters", broken)
    done = headrace(place, "dlq", "list")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "a defect of Headrace" in done.err
    assert "test_cli.py` line" in done.err


def test_ctrl_c_is_no_traceback(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted command ends with the code that shells expect."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dataflows.commands.letters", interrupted)
    done = headrace(place, "dlq", "list")
    assert (done.code, done.out, done.err) == (130, b"", "")


def test_module_and_script_are_the_same() -> None:
    """`python -m dataflows` calls itself headrace, as the console script does."""
    done = subprocess.run([sys.executable, "-m", "dataflows", "--help"], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.startswith(b"Usage: headrace [OPTIONS] COMMAND")
    assert run(["--help"]) == 0
