"""What others see of a run over Kafka: offsets of a group, dead letters that come back, events from the future."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient

from tests.flows import Log, dirty_log
from tests.kafka_flows import KafkaPlace, on_kafka
from tests.outcomes import batch_digests, prove


@pytest.fixture
def place(tmp_path: Path, kafka: str) -> Iterator[KafkaPlace]:
    """A lineage whose topics are there and empty."""
    topic = on_kafka(Log(()), kafka, 3).topic
    with KafkaPlace(tmp_path / "place", address=kafka, topic_name=topic) as opened:
        yield opened


def group_offsets(address: str, group: str) -> dict[int, int]:
    """Partition → offset of a group, as Kafka's own tools see them."""
    admin = AdminClient({"bootstrap.servers": address})
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(30)
    return {place.partition: place.offset for place in found.topic_partitions}


def send(place: KafkaPlace, *signals: tuple[dict[str, object], int]) -> None:
    """Produce signals to partition 0, each with its time in milliseconds."""
    producer = Producer({"bootstrap.servers": place.address})
    for signal, taken_ms in signals:
        producer.produce(place.topic_name, orjson.dumps(signal), partition=0, timestamp=taken_ms)
    assert producer.flush(30) == 0


def signal(event_time: int, sequence: int, **payload: object) -> dict[str, object]:
    """A signal of entity `x`."""
    return {"entity_id": "x", "event_time": event_time, "sequence": sequence, "payload": payload or {"a": 1.0}}


def test_the_group_shows_what_is_durable(place: KafkaPlace) -> None:
    """After a run the group's offsets are the ends of the partitions; without a name there is no group."""
    log = dirty_log(events=200, partitions=3)
    place.write(Log(tuple((partition.removeprefix("p-"), line) for partition, line in log.lines)))
    place.quick(KAFKA_GROUP_ID="").done()
    assert group_offsets(place.address, place.topic_name) == {}
    place.quick(KAFKA_GROUP_ID=place.topic_name).done()
    shown = group_offsets(place.address, place.topic_name)
    assert sum(shown.values()) == place.whole_bytes() == len(log.lines)


def test_the_group_follows_a_run(place: KafkaPlace) -> None:
    """While a run goes on its group comes to the end of the log, with nobody waiting for it."""
    log = dirty_log(events=200, partitions=3)
    place.write(Log(tuple((partition.removeprefix("p-"), line) for partition, line in log.lines)))
    run = place.quick(BUS_FOLLOW=1, KAFKA_GROUP_ID=place.topic_name)
    deadline = time.monotonic() + 60
    while sum(group_offsets(place.address, place.topic_name).values()) < len(log.lines):
        assert time.monotonic() < deadline
        assert not run.ended, run.errors
    run.kill()


def test_dead_letters_come_back_with_their_ids(place: KafkaPlace) -> None:
    """A replay puts the originals back on the topic, keyed, with their ids; killed half way, it may be repeated."""
    now = time.time_ns() // 1_000_000
    wrong = signal(now + 5, 1, a="many")
    send(place, (signal(now, 0), now), (wrong, now))
    assert place.signals().done()["dead"] == 1
    ((key, original, headers),) = place.told("dlq")
    assert (key, orjson.loads(original)) == (b"x", wrong)
    assert (headers["ce_stage"], headers["ce_reason"]) == ("decode", "field")
    assert (headers["ce_partition"], headers["ce_offset"]) == ("0", "1")
    fault = "stores.deadletters.sqlite:SqliteDeadLetters.drop:before:1"
    assert place.quick(fault, "--", "dlq", "replay", "--all").wait() < 0
    assert place.headrace("dlq", "replay", "--all").wait() == 0
    messages = [told for told in place.consumed() if "headrace-id" in told[2]]
    assert [(k, v) for k, v, _ in messages] == [(b"x", original)] * 2
    assert {h["headrace-id"] for _, _, h in messages} == {headers["ce_id"]}
    assert place.signals().done()["dead"] == 2, "they are as wrong as before"


def test_events_from_a_far_future_close_no_window(place: KafkaPlace) -> None:
    """More than MAX_FUTURE_SECONDS ahead of the broker's time: a dead letter that moves no watermark."""
    now = time.time_ns() // 1_000_000
    send(
        place,
        (signal(now, 0), now),
        (signal(now + 3_600_000, 1), now),
        (signal(now + 59_000, 2), now),
        (signal(now + 58_000, 3), now),
    )
    done = place.signals(MAX_FUTURE_SECONDS=60).done()
    assert (done["in"], done["used"], done["late"], done["dead"]) == (4, 3, 0, 1)
    ((_, original, headers),) = place.told("dlq")
    assert orjson.loads(original)["sequence"] == 1
    assert headers["ce_reason"] == "future"


def test_late_events_are_listed_from_kafka(place: KafkaPlace) -> None:
    """`late list` tells what is in the topic; the late events' keys are their entities."""
    now = time.time_ns() // 1_000_000
    send(place, (signal(now, 0), now), (signal(now - 60_000, 1), now))
    assert place.signals().done()["late"] == 1
    run = place.headrace("late", "list", "--json")
    assert run.wait() == 0, run.errors
    (told,) = [orjson.loads(line) for line in run._out.read_bytes().splitlines()]
    assert (told["id"], told["entity_id"], told["sequence"]) == (f"{place.topic_name}/0/1", "x", 1)
    ((key, _, headers),) = place.told("late")
    assert key == b"x"
    assert headers["content-type"].startswith("application/cloudevents+json")


@pytest.mark.parametrize("name", ["late", "dlq", "results"])
def test_a_topic_that_is_missing_is_named_before_anything_is_done(place: KafkaPlace, name: str) -> None:
    """One sentence with the topic and the command that makes it."""
    run = place.signals(**{f"TOPIC_{name.upper()}": "nowhere"})
    assert run.wait() == 2
    assert "topic `nowhere` does not exist" in run.errors
    assert "headrace topics create" in run.errors


def test_results_can_be_switched_off_and_on(place: KafkaPlace) -> None:
    """KAFKA_RESULTS=0 tells nothing; rows made from then on are told again with 1."""
    log = dirty_log(partitions=3)
    numbered = Log(tuple((partition.removeprefix("p-"), line) for partition, line in log.lines))
    first, second, third = numbered.slices(3)
    counts = []
    for part, on in ((first, 1), (second, 0), (third, 1)):
        place.write(part)
        place.quick(KAFKA_RESULTS=on).done()
        counts.append(len(place.results("features_emitted")))
    assert 0 < counts[0] == counts[1] < counts[2]
    assert [len(place.told("dlq")), place.totals().dead] == [len(log.broken)] * 2


def test_at_least_once_tells_everything(place: KafkaPlace) -> None:
    """EXACTLY_ONCE_SINK=0: no transactions, and in a run without a crash each message still once."""
    original = dirty_log(seed=9, events=300, partitions=3)
    log = on_kafka(original, place.address, 3)
    with KafkaPlace(place.root / "other", address=place.address, topic_name=log.topic) as other:
        other.write(log)
        other.quick(EXACTLY_ONCE_SINK=0).done()
        prove(other, log, batch_digests(original))
