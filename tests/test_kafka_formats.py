"""Messages over a real Kafka in every form that is read: with headers, in CloudEvents' modes, many signals in one."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from cloudevents.core.bindings.kafka import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer

from dataflows.buses.kafka import KafkaBus, LaneName
from operators.decode import Decoder
from operators.records import Headers, RawChunk, Reject
from operators.rfc3339 import parse_time
from tests.arrow_streams import columns, stream
from tests.buses import QUICK
from tests.flows import Log, digests, dirty_log, until
from tests.kafka_flows import KafkaPlace, on_kafka
from tests.kafka_server import create_topic, produce_all
from tests.messages import feature_sets, signal
from tests.outcomes import batch_digests, dead_places

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()

HeaderList = list[tuple[str, str | bytes | None]]


@pytest.fixture(params=["fast", "plain"])
def lane(request: pytest.FixtureRequest) -> LaneName:
    """Each lane."""
    return request.param  # type: ignore[no-any-return]  # one of the two above


def sent(address: str, messages: Sequence[tuple[bytes, HeaderList]]) -> str:
    """A new topic of one partition with these messages."""
    topic = f"formats-{uuid.uuid4().hex}"
    create_topic(address, topic, 1)
    producer = Producer({"bootstrap.servers": address, "acks": "all", "linger.ms": 5, "log_level": 0})
    for value, headers in messages:
        producer.produce(topic, value=value, headers=headers, partition=0)
    assert producer.flush(30) == 0
    return topic


def chunks(address: str, topic: str, lane: LaneName, *, events_max: int, count: int) -> Iterator[RawChunk]:
    """So many messages, as a reader gives them."""
    with (
        closing(KafkaBus(address, properties=QUICK, lane=lane)) as bus,
        closing(bus.reader(topic, "0", None)) as reader,
    ):
        while count > 0:
            chunk = reader.poll(events_max)
            if chunk is None or len(chunk.lengths) == 0:
                threading.Event().wait(0.002)
                continue
            count -= len(chunk.lengths)
            yield chunk


def test_headers_of_every_kind(kafka: str, lane: LaneName) -> None:
    """The last of a name counts, a null is none, case matters, any bytes may be in a value, and most have none."""
    cases: list[tuple[HeaderList, Headers]] = [
        ([], Headers()),
        ([("x", b"1")], Headers()),
        ([("content-type", b"a"), ("content-type", b"b")], Headers(b"b")),
        ([("content-type", b"a"), ("content-type", None)], Headers()),
        ([("Content-Type", b"a"), ("CE_SPECVERSION", b"1.0")], Headers()),
        ([("content-type", b""), ("ce_specversion", b"\x00\xff")], Headers(b"", b"\x00\xff")),
        ([("traceparent", b"t"), ("ce_traceparent", b"c")], Headers(None, None, b"c")),
        ([("traceparent", b"t"), ("ce_traceparent", None)], Headers(None, None, b"t")),
        (
            [("ce_id", b"1"), ("ce_specversion", b"1.0"), *[(f"h{i}", b"v" * i) for i in range(50)]],
            Headers(None, b"1.0"),
        ),
        ([("content-type", b"x" * 100_000)], Headers(b"x" * 100_000)),
        ([], Headers()),
    ]
    topic = sent(kafka, [(b"%d" % i, headers) for i, (headers, _) in enumerate(cases)])
    found = {}
    for chunk in chunks(kafka, topic, lane, events_max=4, count=len(cases)):
        assert chunk.headers is not None
        order = list(range(len(chunk.lengths)))
        for index in [*reversed(order), *order]:
            found[int(chunk.message(index))] = chunk.headers(index)
    assert found == {i: expected for i, (_, expected) in enumerate(cases)}


def test_cloudevents_of_the_sdk(kafka: str, lane: LaneName) -> None:
    """Signals in binary and in structured mode are the bare ones; a refused one has the trace of its headers."""
    chance = random.Random(1)
    bodies = [orjson.loads(signal(sequence=i, payload={"a": chance.random()})) for i in range(300)]
    bodies[70]["sequence"] = "x"
    messages: list[tuple[bytes, HeaderList]] = []
    for number, body in enumerate(bodies):
        attributes = {"type": "reading", "source": "/plant", "id": str(number), "traceparent": PARENT.decode()}
        event = CloudEvent({**attributes, "datacontenttype": "application/json"}, body)
        made = (to_binary_event if number % 2 == 0 else to_structured_event)(event)
        messages.append((made.value, list(made.headers.items())))
    topic = sent(kafka, messages)
    decoder = Decoder(feature_sets())
    seen: list[tuple[int, float]] = []
    rejects: list[Reject] = []
    for chunk in chunks(kafka, topic, lane, events_max=64, count=len(messages)):
        decoded = decoder.decode(chunk)
        seen += list(zip(decoded.batch.sequence.tolist(), decoded.batch.values[:, 0].tolist(), strict=True))
        rejects += decoded.rejects
    assert seen == [(i, body["payload"]["a"]) for i, body in enumerate(bodies) if i != 70]
    assert [(r.offset, r.reason, r.trace_id) for r in rejects] == [(70, "sequence", TRACE)]


def in_arrow(log: Log, seed: int) -> list[tuple[str, bytes]]:
    """The log's partitions with every stretch of good lines as some Arrow messages; broken lines stay alone."""
    chance = random.Random(seed)
    broken = set(log.broken)
    out: list[tuple[str, bytes]] = []
    waiting: dict[str, list[dict[str, Any]]] = {}

    def flush(partition: str) -> None:
        rows = waiting.pop(partition, [])
        if rows:
            table = columns([{**row, "event_time": row["event_time"] * 1000} for row in rows], "abc")
            table["entity_id"] = table["entity_id"].dictionary_encode()
            out.append((partition, stream(pa.table(table), chance.choice([1, 1, 3]))))

    for partition, offset, line in log._placed:
        if (partition, offset) in broken or chance.random() < 0.05:
            flush(partition)
            out.append((partition, line))
        else:
            waiting.setdefault(partition, []).append(orjson.loads(line))
            if chance.random() < 0.03:
                flush(partition)
    for partition in sorted(waiting):
        flush(partition)
    return out


def without_place(record: dict[str, Any]) -> str:
    """A signal to compare: what its message was, and fields that are null, left out."""
    record = {key: value for key, value in record.items() if key != "arrow" and value is not None}
    record["payload"] = {name: value for name, value in record["payload"].items() if value is not None}
    if isinstance(record["event_time"], str):
        record["event_time"] = parse_time(record["event_time"]) // 1000
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode()


def late_lines(log: Log) -> Counter[str]:
    """The late events of the log, as comparable signals."""
    places = {f"signals/{partition}/{offset}": line for partition, offset, line in log._placed}
    return Counter(without_place(orjson.loads(places[name])) for name in log.late)


def kill_one(place: KafkaPlace) -> None:
    """A run that is killed (-9) once some of the log is read and remembered."""
    run = place.quick(STREAM_BATCH_SIZE=3, BUS_FOLLOW=1)
    until(lambda: run.ended or place.durable_bytes() > 5, "some messages to be read")
    run.kill()


@pytest.mark.parametrize(("partitions", "killed"), [(1, False), (3, True)])
def test_arrow_messages_give_the_rows_of_json_lines(
    tmp_path: Path, kafka: str, partitions: int, *, killed: bool
) -> None:
    """The same signals many in a message: the same bits, the same account, late and refused rows each kept once."""
    original = dirty_log(seed=11, partitions=partitions)
    log = on_kafka(original, kafka, partitions)
    with KafkaPlace(tmp_path / "place", address=kafka, topic_name=log.topic) as place:
        messages = in_arrow(original, partitions)
        produce_all(kafka, log.topic, [(int(p.removeprefix("p-")), message) for p, message in messages])
        if killed:
            kill_one(place)
        run = place.quick(STREAM_CONCURRENCY=2)
        run.done()
        assert digests(place.offline) == batch_digests(original)
        late = [orjson.loads(value) for value in place.late_values()]
        assert len({event["id"] for event in late}) == len(late)
        assert Counter(without_place(event["data"]) for event in late) == late_lines(original)
        assert len(dead_places(place)) == len(original.broken)


def test_bad_rows_are_dead_letters_of_their_own(tmp_path: Path, kafka: str) -> None:
    """Of a message of many signals the bad rows are kept, each as a message that can be mended and sent again."""
    rows = [{**orjson.loads(signal(sequence=i, payload={"a": 1.0})), "event_time": 10**15 + i} for i in range(20)]
    rows[3]["sequence"] = rows[9]["entity_id"] = None
    topic = f"signals-{uuid.uuid4().hex}"
    create_topic(kafka, topic, 1, beside=[f"{topic}.{name}" for name in ("late", "dlq", "results")])
    produce_all(kafka, topic, [(0, stream(pa.table(columns(rows, "abc")))), (0, b"\xff\xff\xff\xff\x01")])
    with KafkaPlace(tmp_path / "place", address=kafka, topic_name=topic) as place:
        done = place.signals().done()
        assert (done["in"], done["used"], done["dead"]) == (21, 18, 3)
        letters = [(value, headers) for _, value, headers in place.told("dlq")]
        assert sorted(headers["ce_reason"] for _, headers in letters) == ["entity_id", "not_arrow", "sequence"]
        kept = [orjson.loads(value) for value, _ in letters if value.startswith(b"{")]
        assert sorted(record["arrow"]["row"] for record in kept) == [3, 9]
