"""Topics that change under a run over Kafka: compacted, aborted, trimmed by retention, grown, deleted, made anew."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from tests.flows import SOAK, Log, clean_log, digests, dirty_log, until
from tests.kafka_faults import TopicLog, lineage, pause, set_config, written
from tests.kafka_flows import KafkaLog, KafkaPlace, slices
from tests.kafka_server import create_topic, delete_topic
from tests.outcomes import batch_digests, prove

COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.01",
    "min.compaction.lag.ms": "0",
}


LATER = b"{later"


def produce_keyed(address: str, topic: str, lines: Iterable[tuple[str, bytes]], key: Callable[[], bytes]) -> None:
    """Write the lines with keys."""
    from confluent_kafka import Producer

    refused: list[object] = []

    def heed(error: object, _message: object) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "log_level": 0})
    for partition, line in lines:
        producer.produce(topic, line, key(), int(partition), on_delivery=heed)
        producer.poll(0)
    assert producer.flush(30) == 0
    assert refused == []


def compacted(address: str, log: KafkaLog, most: int) -> TopicLog:
    """Wait until no more than `most` lines are left; what is left, once that stays as it is."""
    found: list[TopicLog] = []

    def is_done() -> bool:
        """Segments are compacted once a message has come after their time."""
        pause(0.15)
        produce_keyed(address, log.topic, ((partition, LATER) for partition in log.partitions), lambda: b"later")
        found.append(written(address, log.topic))
        return sum(line != LATER for _, line in found[-1].lines) <= most

    def is_quiet() -> bool:
        pause(0.6)
        found.append(written(address, log.topic))
        return found[-1] == found[-2]

    until(is_done, "the compaction")
    until(is_quiet, "the compaction to end")
    return found[-1]


def test_a_compacted_topic_is_what_is_left_of_it(tmp_path: Path, kafka: str) -> None:
    """Read from its beginning, or on from an offset that compaction has removed: as a folder of just those lines."""
    original = dirty_log(seed=20, partitions=2)
    chance = random.Random(20)
    with lineage(tmp_path, kafka, original, 2) as (place, log):
        set_config(kafka, log.topic, **COMPACTED)
        first, second = slices(log, 2)
        produce_keyed(kafka, log.topic, first.lines, lambda: b"%d" % chance.randrange(10_000))
        run = place.quick(BUS_FOLLOW=1, STREAM_BATCH_SIZE=30)
        place.wait_until_read(run)
        run.stop()
        read = written(kafka, log.topic)
        produce_keyed(kafka, log.topic, second.lines, lambda: b"%d" % chance.randrange(200))
        left = compacted(kafka, log, len(first.lines) + 400)
        ends = {p: read.part(p).offsets[-1] + 1 for p in log.partitions}
        assert all(end not in left.part(p).offsets for p, end in ends.items())
        place.quick(STREAM_BATCH_SIZE=30).done()
        whole = read
        for partition, end in ends.items():
            whole += left.part(partition, start=end)
        prove(place, whole, batch_digests(whole))
        with KafkaPlace(tmp_path / "anew", address=kafka, topic_name=log.topic) as anew:
            anew.quick(STREAM_BATCH_SIZE=30).done()
            assert digests(anew.offline) == batch_digests(left)
            assert anew.totals() == left.summary


def test_aborted_transactions_leave_no_trace(tmp_path: Path, kafka: str) -> None:
    """Two producers commit and abort between each other, a run reads and is killed: only committed lines count."""
    from confluent_kafka import Producer

    original = dirty_log(seed=21, partitions=3)
    with lineage(tmp_path, kafka, original, 3) as (place, log):
        producers = [
            Producer({"bootstrap.servers": kafka, "transactional.id": f"{log.topic}-{i}", "log_level": 0})
            for i in (0, 1)
        ]
        for producer in producers:
            producer.init_transactions(30)
        run = place.quick(BUS_FOLLOW=1, STREAM_BATCH_SIZE=20)
        until(lambda: run.ended or '"started"' in run.errors, "the run to start")
        parts = slices(log, 12)
        for number, part in enumerate(parts):
            good, bad = producers if number % 2 else producers[::-1]
            for producer, lines in ((bad, parts[number - 1].lines), (good, part.lines)):
                producer.begin_transaction()
                for partition, line in lines:
                    producer.produce(log.topic, line, partition=int(partition))
                producer.flush(30)
            if number == len(parts) // 2:  # with both transactions open
                before = place.durable_bytes()
                run.kill()
                run = place.quick(BUS_FOLLOW=1, STREAM_BATCH_SIZE=20)
                until(lambda: run.ended or '"started"' in run.errors, "the next run")  # noqa: B023  # called at once
                assert place.durable_bytes() >= before
            good.commit_transaction(30)
            bad.abort_transaction(30)
        place.wait_until_read(run)
        run.stop()
        found = written(kafka, log.topic)
        assert sorted(found.lines) == sorted(log.lines)
        assert len(found.part("0").lines) < found.part("0").offsets[-1] + 1
        place.quick().done()
        prove(place, found, batch_digests(original))


def take_all(address: str, topic: str, partitions: Sequence[str]) -> None:
    """Let retention delete everything, then nothing more."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient, OffsetSpec

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})

    def are_empty() -> bool:
        places = [TopicPartition(topic, int(partition)) for partition in partitions]
        first, end = (
            admin.list_offsets(dict.fromkeys(places, spec)) for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
        return all(first[place].result(10).offset == end[place].result(10).offset for place in places)

    set_config(address, topic, **{"retention.ms": "1"})
    until(are_empty, "retention")
    set_config(address, topic, **{"retention.ms": "-1"})


GONE = (
    r"headrace: partition `(\d)` of topic `{topic}` was read up to offset (\d+), but holds (\d+) to (\d+) only: set"
    r" KAFKA_OFFSET_RESET to earliest or latest"
)


@pytest.mark.parametrize("reset", ["earliest", "latest"] if SOAK else ["earliest"])
def test_messages_that_retention_took_while_stopped(tmp_path: Path, kafka: str, reset: str) -> None:
    """The run names what it wanted, what there is and what to set; so set, it says what is lost, and is exact."""
    original = dirty_log(seed=22, partitions=2)
    with lineage(tmp_path, kafka, original, 2) as (place, log):
        first, lost, kept, last = slices(log, 4)
        place.write(first)
        run = place.quick(BUS_FOLLOW=1)
        place.wait_until_read(run)
        run.stop()
        read = written(kafka, log.topic)
        wanted = {p: read.part(p).offsets[-1] + 1 for p in log.partitions}
        place.write(lost)
        take_all(kafka, log.topic, log.partitions)
        place.write(kept)
        there = written(kafka, log.topic)
        before = digests(place.offline), place.totals()
        run = place.quick()
        assert run.wait() == 1
        said = re.match(GONE.format(topic=log.topic), run.errors.splitlines()[-1])
        assert said is not None, run.errors
        offsets = there.part(said[1]).offsets
        assert [int(said[i]) for i in (2, 3, 4)] == [wanted[said[1]], offsets[0], offsets[-1] + 1]
        assert (digests(place.offline), place.totals()) == before
        run = place.quick(BUS_FOLLOW=1, KAFKA_OFFSET_RESET=reset)
        until(lambda: run.ended or run.errors.count("messages are gone") == 2, "the loss to be told")
        place.wait_until_read(run)
        for partition in log.partitions:
            offsets = there.part(partition).offsets
            on = offsets[0] if reset == "earliest" else offsets[-1] + 1
            assert f'"partition": "{partition}", "wanted": {wanted[partition]}, "goes_on_at": {on},' in run.errors
        place.write(last)
        place.wait_until_read(run)
        run.stop()
        place.quick().done()
        found = written(kafka, log.topic)
        for partition in log.partitions:
            start = 0 if reset == "earliest" else there.part(partition).offsets[-1] + 1
            read += found.part(partition, start=start)
        prove(place, read, batch_digests(read))


def test_retention_that_overtakes_a_run(tmp_path: Path, kafka: str) -> None:
    """A run that was too slow, here frozen, ends with the same sentence and does not jump on its own."""
    original = dirty_log(seed=23, partitions=2)
    with lineage(tmp_path, kafka, original, 2) as (place, log):
        first, second, third = slices(log, 3)
        place.write(first)
        run = place.quick(BUS_FOLLOW=1)
        place.wait_until_read(run)
        read = written(kafka, log.topic)
        run.process.send_signal(signal.SIGSTOP)
        pause(0.2)  # what was asked for before is answered
        place.write(second)
        take_all(kafka, log.topic, log.partitions)
        place.write(third)
        run.process.send_signal(signal.SIGCONT)
        assert run.wait() == 1
        assert re.match(GONE.format(topic=log.topic), run.errors.splitlines()[-1]), run.errors
        assert "Traceback" not in run.errors
        place.quick(KAFKA_OFFSET_RESET="earliest").done()
        whole = read + written(kafka, log.topic)
        prove(place, whole, batch_digests(whole))


def grow(address: str, topic: str, partitions: int) -> None:
    """Give the topic more partitions."""
    from confluent_kafka.admin import AdminClient, NewPartitions

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)


def test_a_topic_that_grows(tmp_path: Path, kafka: str) -> None:
    """Partitions that come while a run goes on, or between two runs, are read without a word: one digest."""
    original = clean_log(seed=24)
    chance = random.Random(24)
    counts = (2, 4, 7)
    dealt = [
        tuple((f"p-{chance.randrange(count)}", line) for _, line in part.lines)
        for count, part in zip(counts, original.slices(3), strict=True)
    ]
    with lineage(tmp_path, kafka, Log(dealt[0] + dealt[1] + dealt[2]), 2) as (place, log):
        first, second, third = slices(log, 3)
        place.write(first)
        run = place.quick(BUS_FOLLOW=1, STREAM_CONCURRENCY=2, STREAM_BATCH_SIZE=40)
        place.wait_until_read(run)
        grow(kafka, log.topic, 4)
        until(lambda: run.ended or run.errors.count('"found"') == 4, "the new partitions")
        place.write(second)
        place.wait_until_read(run)
        run.stop()
        grow(kafka, log.topic, 7)
        place.write(third)
        place.quick(STREAM_CONCURRENCY=3).done()
        prove(place, log, batch_digests(log))
        assert digests(place.offline) == batch_digests(original)


def test_a_topic_made_anew_is_refused(tmp_path: Path, kafka: str) -> None:
    """Deleted and made again, with more in it: the run ends, the next one too, nothing is taken."""
    original = dirty_log(seed=25, partitions=2)
    with lineage(tmp_path, kafka, original, 2) as (place, log):
        place.write(slices(log, 3)[0])
        run = place.quick(BUS_FOLLOW=1)
        place.wait_until_read(run)
        before = place.totals(), place.durable_bytes()
        delete_topic(kafka, log.topic)
        create_topic(kafka, log.topic, 2)
        place.write(log)
        for again in (False, True):
            refused = place.quick() if again else run
            assert refused.wait() == 1, refused.errors
            said = refused.errors.splitlines()[-1]
            assert said.startswith(f"headrace: topic `{log.topic}` was deleted and made anew (its id "), refused.errors
            assert "Traceback" not in refused.errors
            assert (place.totals(), place.durable_bytes()) == before
        with KafkaPlace(tmp_path / "anew", address=kafka, topic_name=log.topic) as anew:
            anew.quick().done()
            assert digests(anew.offline) == batch_digests(original)
            assert anew.totals() == log.summary


def test_a_topic_that_is_deleted(tmp_path: Path, kafka: str) -> None:
    """A run does not wait for ever for a topic that is no more: it says so and ends."""
    original = dirty_log(seed=26, events=300, partitions=2)
    with lineage(tmp_path, kafka, original, 2) as (place, log):
        place.write(log)
        run = place.quick(BUS_FOLLOW=1)
        place.wait_until_read(run)
        delete_topic(kafka, log.topic)
        assert run.wait(60) == 1
        assert f"of topic `{log.topic}` does not exist (any more)" in run.errors.splitlines()[-1]
