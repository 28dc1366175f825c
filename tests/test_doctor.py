"""The doctor without a broker: what it looks at, what it says of each thing, and that it changes nothing."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from dataflows.doctor import Check, Finding, Findings, outcome
from operators.errors import ConfigError
from tests.commands import Done, headrace
from tests.feature_rows import feature_repository
from tests.flows import ROOT, Place, clean_log, half_way
from tests.outcomes import fingerprint

CHECKS = ["python", "packages", "settings", "files", "feature sets", "disk", "recovery", "online", "bus"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty place."""
    with Place(tmp_path / "place") as made:
        yield made


def told(done: Done) -> list[dict[str, Any]]:
    """What was found, without the counts at the end."""
    records = [orjson.loads(line) for line in done.out.splitlines()]
    counts = records.pop()
    assert list(counts) == ["ok", "wrong", "skipped"]
    assert sum(counts.values()) == len(records)
    assert done.code == (1 if counts["wrong"] else 0)
    return records


def wrong(done: Done) -> dict[str, str]:
    """Check → what is said of it, of those that are wrong."""
    return {record["check"]: record["says"] for record in told(done) if record["state"] == "wrong"}


def test_all_is_well(place: Place) -> None:
    """Every check is ok before the first run and after it, under fixed names, and nothing is changed."""
    place.write(clean_log(events=20))
    before = fingerprint(place.root)
    done = headrace(place, "doctor", "--json")
    assert fingerprint(place.root) == before
    assert (done.code, done.err) == (0, "")
    assert list(dict.fromkeys(record["check"] for record in told(done))) == CHECKS
    assert {record["check"] for record in told(done) if record["state"] != "ok"} == {"online"}
    place.signals().done()
    before = fingerprint(place.root)
    done = headrace(place, "doctor", "--json")
    assert done.code == 0
    assert "belongs to these settings" in done.text
    assert "no run holds it" in done.text
    assert fingerprint(place.root) == before


def test_for_people(place: Place) -> None:
    """A line a check with a mark; what is wrong is counted in the end, in one sentence."""
    done = headrace(place, "doctor", COLUMNS=200)
    assert done.code == 0
    assert [line.split()[0] for line in done.text.splitlines()].count("✓") == len(CHECKS) - 1 + 2
    done = headrace(place, "doctor", COLUMNS=200, FEATURE_SETS_PATH="nowhere.toml")
    assert (done.code, done.err) == (1, "headrace: 1 of 11 checks found what is wrong\n")
    assert "✗  feature sets  FEATURE_SETS_PATH `nowhere.toml` cannot be read" in done.text


def test_it_is_light(place: Place) -> None:
    """As long as Feast's registry is a file, neither Feast nor pandas is imported."""
    repository = feature_repository(place.root, sets=(place.root / "sets.toml").read_text("utf-8"))
    code = "import sys; from dataflows.cli import run; print(run(['doctor']), {'feast', 'pandas'} & set(sys.modules))"
    environment = place.environment(ONLINE_STORE="feast", FEAST_REPO_PATH=repository)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.stdout.decode().splitlines()[-1] == "0 set()", done.stderr


class Wrong(NamedTuple):
    """Settings, the check that finds it, and what it says."""

    settings: dict[str, str]
    check: str
    says: str


@pytest.mark.parametrize(
    "case",
    [
        Wrong({"WATERMARK_SECONDS": "abc"}, "settings", "WATERMARK_SECONDS is `abc`"),
        Wrong({"FEATURE_SETS_PATH": "nowhere.toml"}, "feature sets", "cannot be read"),
        Wrong({"OFFLINE_DATA_PATH": "FILE"}, "disk", "OFFLINE_DATA_PATH"),
        Wrong({"OFFLINE_DATA_PATH": "FILE/below"}, "disk", "cannot be made in"),
        Wrong({"ARCHIVE_PATH": "FILE", "ARCHIVE_SIGNALS": "1"}, "disk", "ARCHIVE_PATH"),
        Wrong({"INGEST_SOURCES": ".", "METADATA_DB_URL": "sqlite:///FILE/m.db"}, "disk", "METADATA_DB_URL"),
        Wrong({"ONLINE_STORE": "feast", "FEAST_REPO_PATH": "nowhere"}, "online", "holds no feature_store.yaml"),
        Wrong({"RECOVERY_DIR": "FOREIGN"}, "recovery", "was not made by Headrace"),
    ],
    ids=lambda case: " ".join(f"{n}={v}" for n, v in case.settings.items()),
)
def test_what_is_wrong_is_named(place: Place, case: Wrong) -> None:
    """One check finds it, names the setting, and the exit code is 1."""
    (place.root / "foreign").mkdir()
    (place.root / "foreign" / "thesis.txt").touch()
    names = {"FILE": str(place.root / "sets.toml"), "FOREIGN": str(place.root / "foreign")}
    settings = dict(case.settings)
    for name, path in names.items():
        settings = {key: value.replace(name, path) for key, value in settings.items()}
    found = wrong(headrace(place, "doctor", "--json", **settings))
    assert list(found) == [case.check]
    assert case.says in found[case.check]


def test_another_flows_recovery_folder(tmp_path: Path) -> None:
    """With other shards the folder does not fit, and the sentence is the one of a run."""
    place = half_way(tmp_path / "place", clean_log(events=60))
    found = wrong(headrace(place, "doctor", "--json", SIGNAL_SHARDS=3))
    assert "another SIGNAL_SHARDS (there `12`, here `3`)" in found["recovery"]


def test_who_holds_the_recovery_folder(place: Place) -> None:
    """A run in progress is named by its process; it is not disturbed, and all is well."""
    place.write(clean_log(events=60))
    run = place.quick(BUS_FOLLOW=1)
    place.wait_until_read(run)
    done = headrace(place, "doctor", "--json")
    (recovery,) = (record for record in told(done) if record["check"] == "recovery")
    assert f"held by process {run.process.pid}" in recovery["says"]
    assert done.code == 0
    run.stop()


def test_views_in_a_local_registry(place: Place) -> None:
    """Views that the registry lacks are told, and those that a run has put there are found, without importing Feast."""
    repository = feature_repository(place.root, sets=(place.root / "sets.toml").read_text("utf-8"))
    feast = {
        "ONLINE_STORE": "feast",
        "FEAST_REPO_PATH": repository,
        "FEATURE_SETS_PATH": repository / "feature_sets.toml",
    }
    place.write(clean_log(events=5))
    before = headrace(place, "doctor", "--json", **feast)
    assert "views are not in Feast's registry" in before.text
    place.signals(**feast).done()
    after = headrace(place, "doctor", "--json", **feast)
    assert "views are in Feast's registry" in after.text
    assert wrong(after) == {}
    assert "views are not" in headrace(place, "doctor", "--json", **feast, FEATURE_SET_VERSION=9).text


def test_a_small_limit_of_files(place: Place) -> None:
    """Too few open files are told with the command that raises the limit."""
    command = f"ulimit -n 300; exec {sys.executable} -m dataflows doctor --json"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=place.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "may open 300 files" in done.stdout
    assert "ulimit -n 512" in done.stdout


def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a gigabyte is told for each folder."""
    usage = shutil.disk_usage(place.root)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "only 0.0 GiB are free at" in wrong(headrace(place, "doctor", "--json"))["disk"]


@pytest.mark.parametrize("version", ["0.20.1", None])
def test_a_package_of_another_version(place: Place, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A package that is missing or does not fit is named."""
    real = importlib.metadata.version

    def asked(name: str) -> str:
        if name == "bytewax" and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "bytewax" and version else real(name)

    monkeypatch.setattr(importlib.metadata, "version", asked)
    said = wrong(headrace(place, "doctor", "--json"))["packages"]
    assert ("`bytewax` is not installed" if version is None else "`bytewax` is 0.20.1, needed is ==0.21.1") in said


def raises(error: Exception) -> Callable[[], Any]:
    """A look that fails."""

    def look() -> Any:  # noqa: ANN401  # it returns nothing at all
        raise error

    return look


def test_a_check_that_never_ends() -> None:
    """It is given up, what gives no answer is named, and the next one has its turn."""
    never = threading.Event()

    def look() -> Findings:
        never.wait()
        return []

    check = Check("disk", "BUS_DIR `/mnt/away`", look, limit_s=0.05)
    assert outcome(check) == [Finding("disk", "wrong", "BUS_DIR `/mnt/away` gives no answer in 0.05 seconds")]
    never.set()


def test_errors_of_a_check() -> None:
    """An error of ours is what is wrong; any other is a defect and not hidden."""
    assert outcome(Check("x", "", raises(ConfigError("set it back")))) == [Finding("x", "wrong", "set it back")]
    with pytest.raises(KeyError):
        outcome(Check("x", "", raises(KeyError("defect"))))
