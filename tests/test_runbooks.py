"""The runbooks of README.md, walked through on Kafka with three partitions: rescale, upgrade, another version."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from dataflows.recovery import FORMAT
from stores.offline.parquet import ParquetOfflineStore
from tests.commands import headrace
from tests.flows import ROOT, Log, Place, Run, digests, dirty_log, free_ports
from tests.kafka_flows import KafkaLog, KafkaPlace, on_kafka, slices
from tests.outcomes import batch_digests, fingerprint, prove
from tests.test_doctor import told

PARTITIONS = 3
PACKAGES = ("dataflows", "feature_repo", "operators", "stores")


@pytest.fixture
def original() -> Log:
    """What is in the topic, as the folder bus would have it."""
    return dirty_log(seed=11, events=900, partitions=PARTITIONS)


@pytest.fixture
def place(tmp_path: Path, kafka: str) -> Iterator[KafkaPlace]:
    """A lineage on the shared broker; its topic is to be made."""
    with KafkaPlace(tmp_path / "place", address=kafka) as made:
        yield made


def on_topic(place: KafkaPlace, original: Log) -> KafkaLog:
    """The log as it will stand in the place's own topic."""
    log = on_kafka(original, place.address, PARTITIONS)
    place.topic_name = log.topic
    return log


def start(place: Place, processes: int) -> list[Run]:
    """Start so many processes that follow the topic, the last one first; each knows all by their names."""
    if processes == 1:
        return [place.quick(BUS_FOLLOW=1)]
    addresses = ";".join(f"localhost:{port}" for port in free_ports(processes))
    numbers = reversed(range(processes))
    return [place.quick(BUS_FOLLOW=1, BYTEWAX_ADDRESSES=addresses, BYTEWAX_PROCESS_ID=number) for number in numbers]


def stop(runs: list[Run]) -> None:
    """Tell all of them to stop, then wait for each to end well."""
    for run in runs:
        run.process.send_signal(signal.SIGTERM)
    for run in runs:
        run.done()


def what_the_doctor_says(place: KafkaPlace, check: str, **settings: object) -> list[tuple[str, str]]:
    """(state, words) of one check."""
    records = told(headrace(place, "doctor", "--json", **settings))
    return [(record["state"], record["says"]) for record in records if record["check"] == check]


def test_rescale_from_1_to_3_to_2_processes(place: KafkaPlace, original: Log) -> None:
    """Stop all, change the addresses, start all: every event is read once, and the digest is that of one process."""
    log = on_topic(place, original)
    for processes, part in zip((1, 3, 2), slices(log, 3), strict=True):
        place.write(part)
        runs = start(place, processes)
        place.wait_until_read(runs[-1])
        ((state, words),) = what_the_doctor_says(place, "recovery")
        assert (state, "held by process" in words) == ("ok", True)
        assert [state for state, _ in what_the_doctor_says(place, "group")] == ["ok"]
        assert [state for state, _ in what_the_doctor_says(place, "lag")] == ["ok"]
        stop(runs)
        ((state, words),) = what_the_doctor_says(place, "recovery")
        assert (state, words.endswith("no run holds it")) == ("ok", True)
    assert place.quick().done()["in"] == 0
    prove(place, log, batch_digests(original))


def test_a_set_that_is_restarted_whole(place: KafkaPlace, original: Log) -> None:
    """One of two dies: the other one ends with code 1 and one sentence, both are started again, and nothing is lost."""
    log = on_topic(place, original)
    first, second = slices(log, 2)
    place.write(first)
    runs = start(place, 2)
    place.wait_until_read(runs[-1])
    runs[0].kill()
    assert runs[-1].wait() == 1
    assert [line for line in runs[-1].errors.splitlines() if not line.startswith("{")][-1].startswith("headrace: ")
    place.write(second)
    runs = start(place, 2)
    place.wait_until_read(runs[-1])
    stop(runs)
    place.quick().done()
    prove(place, log, batch_digests(original))


def test_upgrade(place: KafkaPlace, original: Log, tmp_path: Path) -> None:
    """Stop, install anew elsewhere, start with the same recovery folder: it goes on where the old one stopped."""
    log = on_topic(place, original)
    first, second = slices(log, 2)
    place.write(first)
    runs = start(place, 1)
    place.wait_until_read(runs[0])
    stop(runs)
    installed = tmp_path / "installed"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, installed / package)
    code = "import sys, runpy; sys.argv[1:] = ['signals', '--json']; runpy.run_module('dataflows', run_name='__main__')"
    place.write(second)
    environment = place.environment(PYTHONPATH=installed)
    run = Run([sys.executable, "-c", code], environment, place.root, "upgraded")
    place.runs.append(run)
    assert run.done()["in"] == len(second.lines)
    prove(place, log, batch_digests(original))


def test_an_upgrade_to_another_format(place: KafkaPlace, original: Log) -> None:
    """It is refused with what to do, nothing touched; done so, the run begins anew and writes no row twice."""
    log = on_topic(place, original)
    first, second = slices(log, 2)
    place.write(first)
    runs = start(place, 1)
    place.wait_until_read(runs[0])
    stop(runs)
    manifest = place.recovery / "headrace.json"
    saved = orjson.loads(manifest.read_bytes())
    saved["identity"]["format"] = FORMAT - 1
    manifest.write_bytes(orjson.dumps(saved))
    before = fingerprint(place.recovery)
    run = place.quick()
    assert run.wait() == 2
    says = run.errors.splitlines()[-1]
    assert "was written by another version of Headrace" in says
    assert "go on with that version, or name an empty folder" in says
    ((state, words),) = what_the_doctor_says(place, "recovery")
    assert (state, words) == ("wrong", says.removeprefix("headrace: "))
    assert fingerprint(place.recovery) == before
    place.write(second)
    done = place.quick(RECOVERY_DIR=place.root / "recovery-2").done()
    assert done["in"] == len(log.lines)
    assert digests(place.offline) == batch_digests(original)


def test_another_version_of_a_feature_set(place: KafkaPlace, original: Log) -> None:
    """A changed set needs a new version and a new recovery folder: both stand side by side, the old rows untouched."""
    log = on_topic(place, original)
    place.write(log)
    place.quick().done()
    prove(place, log, batch_digests(original))
    old = fingerprint(place.offline)
    sets = place.root / "sets.toml"
    text = sets.read_text("utf-8")
    changed = text.replace("version = 1", "version = 2").replace('halflife = "4s"', 'halflife = "6s"', 1)
    assert changed != text
    sets.write_text(changed, "utf-8")
    run = place.quick()
    assert run.wait() == 2
    assert "belongs to a run with another feature set" in run.errors
    ((state, _),) = what_the_doctor_says(place, "recovery")
    assert state == "wrong"
    assert fingerprint(place.offline) == old
    rows = hashes(place.offline)
    place.quick(RECOVERY_DIR=place.root / "recovery-2").done()
    after = hashes(place.offline)
    assert {key: after[key] for key in rows} == rows
    batch = Place(place.root / "batch")
    batch.topic.mkdir(parents=True)
    batch.write(original)
    shutil.copy(sets, batch.root / "sets.toml")
    batch.backfill()
    new = {key: found for key, found in after.items() if key not in rows}
    unchanged = {key: found for key, found in rows.items() if key in hashes(batch.offline)}
    assert new | unchanged == hashes(batch.offline)
    assert any(key[1] == 2 for key in new)


def hashes(offline: Path) -> dict[tuple[str, int, str, str], list[bytes]]:
    """(feature set, version, window, date) → the content hashes of its rows, sorted."""
    found: dict[tuple[str, int, str, str], list[bytes]] = {}
    for key, table in ParquetOfflineStore(offline).scan():
        place = (key.feature_set, key.version, key.window, key.date)
        found[place] = sorted([*found.get(place, []), *table["content_hash"].to_pylist()])
    return found
