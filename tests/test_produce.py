"""Made-up signals: what they are, how steadily they are sent, and that a run takes them."""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.buses.kafka import KafkaBus
from dataflows.produce import PARTITION, Kind, Recipe, Sensors, kinds_of
from operators.feature_sets import parse_feature_sets
from tests.buses import read_all
from tests.commands import headrace
from tests.flows import SETS, Place, until
from tests.kafka_server import create_topic

KINDS = [Kind("pump", ("a", "b"), "plant/1"), Kind("lamp", ("c",), "lab")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty place."""
    with Place(tmp_path / "place") as made:
        yield made


def lines(place: Place) -> list[bytes]:
    """What stands in the folder."""
    return (place.topic / f"{PARTITION}.jsonl").read_bytes().splitlines()


@given(
    seed=st.integers(0, 9),
    entities=st.integers(1, 30),
    late=st.floats(0, 1),
    watermark=st.floats(0, 60),
    times=st.lists(st.floats(1.7e9, 1.8e9), min_size=1, max_size=50),
)
def test_signals_are_a_function_of_recipe_and_time(
    seed: int, entities: int, late: float, watermark: float, times: list[float]
) -> None:
    """The same seed gives the same bytes; each entity counts its own; none but the late ones could be late."""
    recipe = Recipe(rate=1, entities=entities, seed=seed, late=late)
    one, other = (Sensors(recipe, KINDS, watermark) for _ in range(2))
    pairs = [one.signal(at) for at in times]
    assert pairs == [other.signal(at) for at in times]
    seen: Counter[str] = Counter()
    for (key, message), at in zip(pairs, times, strict=True):
        record = orjson.loads(message)
        entity = record["entity_id"]
        kind = next(kind for kind in KINDS if entity.startswith(kind.name))
        seen[entity] += 1
        assert record["sequence"] == seen[entity]
        assert key == entity.encode()
        assert (tuple(record["payload"]), record["source"]) == (kind.fields, kind.source)
        behind = at - record["event_time"] / 1000
        assert -0.001 <= behind <= watermark + 31.001
        assert late > 0 or behind <= 0.4 * watermark + 0.002
    assert len(seen) <= entities


def test_every_feature_set_gets_signals_that_it_takes() -> None:
    """A kind for each set, with its fields and a source that its globs let in."""
    text = "".join(
        f'[[feature_set]]\nname="s{i}"\nversion=1\nfields=["x{i}"]\nwindows=["5s"]\nhalflife="4s"\n{sources}\n'
        for i, sources in enumerate(["", 'sources = ["a/*", "b"]', 'sources = ["?[!c]d"]', 'sources = ["[xyz]*"]'])
    )
    sets = parse_feature_sets(text, where="here")
    for number, kind in enumerate(kinds_of(sets)):
        assert kind.fields == (f"x{number}",)
        assert sets.mask(kind.source) >> number & 1


def test_into_the_folder_and_through_a_run(place: Place) -> None:
    """Without KAFKA_BROKERS signals go to a partition of the folder, again and again, and a run uses them all."""
    for _ in range(2):
        (told,) = headrace(place, "produce", "--rate", "1e6", "--events", "500", "--json").records
        assert (told["sent"], told["failed"]) == (500, 0)
    assert len(lines(place)) == 1000
    fields = {tuple(orjson.loads(line)["payload"]) for line in lines(place)}
    assert fields == {tuple(s.fields) for s in SETS.sets}
    summary = place.signals(WATERMARK_SECONDS=60).done()
    assert (summary["in"], summary["used"]) == (1000, 1000)


def test_late_ones_are_late(place: Place) -> None:
    """A share of signals comes later than the watermark allows, and no other does."""
    options = ("--rate", "1e6", "--events", "2000", "--late", "0.1", "--entities", "3", "--fields", "p,q")
    headrace(place, "produce", *options)
    newest, late = 0, 0
    for record in map(orjson.loads, lines(place)):
        late += record["event_time"] < newest - 5000
        newest = max(newest, record["event_time"])
        assert list(record["payload"]) == ["p", "q"]
    assert 120 < late < 280


def test_steady(place: Place) -> None:
    """However long sending takes, the rate over the whole time is the one that was asked for."""
    started = time.monotonic()
    (told,) = headrace(place, "produce", "--rate", "400", "--events", "800", "--json").records
    assert 1.9 < time.monotonic() - started < 20
    assert 0 < told["rate"] < 450
    times = [orjson.loads(line)["event_time"] for line in lines(place)]
    assert 1_500 < max(times) - min(times) < 5_000


def test_to_kafka_by_key(place: Place, kafka: str) -> None:
    """With KAFKA_BROKERS they go to the topic, all of them, those of an entity in one partition and in order."""
    topic = f"signals-{uuid.uuid4().hex}"
    create_topic(kafka, topic, 3)
    asked = ("produce", "--rate", "1e6", "--events", "3000", "--json", "--entities", "20")
    (told,) = headrace(place, *asked, KAFKA_BROKERS=kafka, TOPIC_SIGNALS=topic).records
    assert told["sent"] == 3000
    at: dict[str, tuple[str, int]] = {}
    total = 0
    with closing(KafkaBus(kafka, properties={})) as bus:
        for partition in bus.partitions(topic):
            for _, message in read_all(bus, topic, partition):
                record = orjson.loads(message)
                before = at.get(record["entity_id"], (partition, 0))
                assert (partition, record["sequence"]) == (before[0], before[1] + 1)
                at[record["entity_id"]] = (partition, record["sequence"])
                total += 1
    assert (total, len(at)) == (3000, 20)


def test_a_topic_that_is_not_there(place: Place, kafka: str) -> None:
    """Nothing is sent, and what makes the topic is said."""
    done = headrace(place, "produce", "--rate", "1", KAFKA_BROKERS=kafka, TOPIC_SIGNALS="nowhere")
    assert (done.code, done.out) == (2, b"")
    assert "`nowhere` does not exist" in done.err
    assert "headrace topics create" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(place: Place, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with a summary, and what it says was sent stands there whole."""
    run = place.headrace("produce", "--rate", "500", "--json")
    until(lambda: run.ended or (place.topic / f"{PARTITION}.jsonl").exists(), "the first signals")
    told = run.stop(number)
    assert told["sent"] == len(lines(place)) > 0
    assert run.errors == ""


def test_one_writer_at_a_time(place: Place) -> None:
    """A second producer into the same folder is refused while the first one is at it."""
    first = place.headrace("produce", "--rate", "500", "--json")
    until(lambda: first.ended or (place.topic / f"{PARTITION}.jsonl").exists(), "the first signals")
    done = headrace(place, "produce", "--rate", "1", "--events", "1")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "another `headrace produce`" in done.err
    assert first.stop()["sent"] == len(lines(place))
