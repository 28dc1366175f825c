"""CloudEvents 1.0 over Kafka, held against the official SDK: what it writes is read, and it reads what is written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import orjson
import pytest
from cloudevents.core.bindings.kafka import (
    KafkaMessage,
    from_kafka_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflows.buses.cloudevents import CloudEvent, binary, event_id, structured
from operators.decode import Decoder
from operators.records import Decoded, Headers, RawChunk
from operators.signal_rules import Reason
from tests.messages import FIELDS, chunk_of, feature_sets, signal

DECODER = Decoder(feature_sets())
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=20)
extensions = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(
        lambda name: (
            name not in {"specversion", "id", "source", "type", "subject", "time", "partitionkey", "data"}
            and name not in {"datacontenttype", "dataschema"}
        )
    ),
    texts,
    max_size=3,
)
data = st.dictionaries(texts, st.one_of(texts, st.integers(-(2**53), 2**53), st.none(), st.booleans()), max_size=4)
times = st.integers(0, 4_000_000_000_000_000)


def sdk_message(kafka_message: KafkaMessage) -> tuple[bytes, Headers]:
    """Value and headers of a message of the SDK's, as a bus gives them."""
    headers = kafka_message.headers
    known = (headers.get("content-type"), headers.get("ce_specversion"), headers.get("ce_traceparent"))
    return kafka_message.value, Headers(*known)


def decode(*messages: tuple[bytes, Headers]) -> Decoded:
    """What the decoder makes of messages with headers."""
    plain = chunk_of([value for value, _ in messages])
    columns = (plain.data, plain.starts, plain.lengths, plain.offsets)
    return DECODER.decode(RawChunk("p0", *columns, None, lambda index: messages[index][1]))


def ours_to_sdk(message: Any) -> SdkEvent:  # noqa: ANN401  # a Message
    """The event as the SDK reads it."""
    headers = {name: text.encode() for name, text in message.headers}
    event = from_kafka_event(KafkaMessage(headers=headers, key=message.key, value=message.value))
    assert isinstance(event, SdkEvent)
    return event


events = st.builds(
    CloudEvent,
    id=texts,
    source=texts,
    type=texts,
    data=data.map(orjson.dumps),
    subject=st.one_of(st.none(), texts),
    time_us=times,
    extensions=extensions,
)


@given(events)
@settings(max_examples=150, deadline=None)
def test_the_sdk_reads_what_is_written(event: CloudEvent) -> None:
    """Every attribute and the data come out of both modes as they went in; the key is the partition key."""
    assert event.data is not None
    assert event.time_us is not None
    for message in (binary(event, b"k"), structured(event, b"k")):
        read = ours_to_sdk(message)
        named = (read.get_id(), read.get_source(), read.get_type(), read.get_subject())
        assert named == (event.id, event.source, event.type, event.subject)
        assert read.get_specversion() == "1.0"
        assert read.get_time() == EPOCH + event.time_us * MICROSECOND
        assert read.get_datacontenttype() == "application/json"
        assert read.get_data() == orjson.loads(event.data)
        assert {key: read.get_extension(key) for key in event.extensions} == event.extensions
        assert read.get_extension("partitionkey") == "k"


@given(st.binary(max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_sdk_reads_data_of_another_type(content: bytes) -> None:
    """Bytes that are no JSON go as they are in binary mode, in base64 in structured mode."""
    event = CloudEvent("1", "/s", "t", b"\xff" + content, content_type="application/octet-stream")
    assert ours_to_sdk(binary(event)).get_data() == b"\xff" + content
    assert ours_to_sdk(structured(event)).get_data() == b"\xff" + content


def test_events_without_data() -> None:
    """Nothing is said of a type of data that are not there."""
    event = CloudEvent("1", "/s", "t")
    for message in (binary(event), structured(event)):
        read = ours_to_sdk(message)
        assert (read.get_data(), read.get_datacontenttype()) == (None, None)


numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
signals = st.fixed_dictionaries({
    "entity_id": st.one_of(texts, st.just("pump")),
    "event_time": st.one_of(st.integers(0, 9_000_000_000_000), times.map(lambda us: str(EPOCH + us * MICROSECOND))),
    "sequence": st.integers(-(2**63), 2**63 - 1),
    "payload": st.fixed_dictionaries(dict.fromkeys(FIELDS, numbers)),
    "source": st.one_of(st.none(), st.just("plant/1"), texts),
    "trace_id": st.one_of(st.none(), texts),
})  # fmt: skip


@given(st.lists(signals, min_size=1, max_size=4), extensions, st.sampled_from([None, "application/json", "text/json"]))
@settings(max_examples=100, deadline=None)
def test_what_the_sdk_writes_is_read(
    bodies: list[dict[str, Any]], more: dict[str, str], content_type: str | None
) -> None:
    """A signal is the same bare, in binary and in structured mode: an envelope's attributes are not the signal's."""
    messages = []
    for number, body in enumerate(bodies):
        attributes = {"type": "reading", "source": "plant/of-the-envelope", "id": str(number), "specversion": "1.0"}
        attributes |= {} if content_type is None else {"datacontenttype": content_type}
        event = SdkEvent(
            {**attributes, "time": datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=2))), **more}, body
        )
        messages += [
            (json.dumps(body).encode(), Headers()),
            sdk_message(to_binary_event(event)),
            sdk_message(to_structured_event(event)),
        ]
    decoded = decode(*messages)
    assert not decoded.rejects
    batch = decoded.batch
    for i in range(0, len(messages), 3):
        for j in (i + 1, i + 2):
            assert batch.entity(i) == batch.entity(j)
            assert batch.values[i].tobytes() == batch.values[j].tobytes()
            for column in (batch.event_time, batch.sequence, batch.sets, batch.entity_hash):
                assert column[i] == column[j]
    assert np.unique(decoded.index).tolist() == list(range(len(messages)))


@pytest.mark.parametrize(
    ("value", "headers", "reason", "says"),
    [
        (b"<x/>", Headers(b"application/xml", b"1.0"), Reason.ENVELOPE, "header `content-type` of the CloudEvent"),
        (b"{}", Headers(b"application/json", b"0.3"), Reason.ENVELOPE, "header `ce_specversion`"),
        (b"{}", Headers(b"application/json; charset=utf-8", b"1.0"), Reason.ENTITY_ID, "missing"),
        (b"{}", Headers(None, b"1.0"), Reason.ENTITY_ID, "missing"),
        (b"Obj", Headers(b"application/cloudevents+avro"), Reason.ENVELOPE, "application/cloudevents+json is"),
        (b"[{}]", Headers(b"Application/CloudEvents-Batch+JSON"), Reason.ENVELOPE, "application/cloudevents+json is"),
        (b"{}x", Headers(b"application/cloudevents+json", b"0.3"), Reason.NOT_JSON, "unexpected content"),
        (b"<x/>", Headers(b"application/xml"), Reason.NOT_JSON, "JSON"),
        (b"ARROW1", Headers(b"application/vnd.apache.arrow.stream"), Reason.NOT_ARROW, "does not begin as one"),
        (b"", Headers(b"application/xml", b"1.0"), Reason.EMPTY, "empty"),
        (b"x", Headers(b"\xff\xfe", b"1.0"), Reason.ENVELOPE, "content-type"),
    ],
)
def test_headers_say_what_a_refused_message_was_meant_as(
    value: bytes, headers: Headers, reason: Reason, says: str
) -> None:
    """The refusal names the header that cannot be right, where there is one."""
    (reject,) = decode((value, headers)).rejects
    assert reject.reason == reason
    assert says in reject.detail


def test_headers_do_not_refuse_a_signal() -> None:
    """A value that is a signal is one whatever stands beside it: it means the same when it comes again without."""
    odd = [Headers(b"text/plain", b"1.0"), Headers(b"application/json", b"9"), Headers(b"application/cloudevents+avro")]
    assert len(decode(*[(signal(), headers) for headers in odd]).batch) == 3


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (TRACE, None),
        ("", None),
    ],
)
def test_a_refused_message_has_the_trace_of_its_headers(traceparent: str, trace_id: str | None) -> None:
    """A valid W3C traceparent gives the trace_id, unless the message has one of its own."""
    headers = Headers(None, None, traceparent.encode())
    decoded = decode((b"{", headers), (signal(sequence="x", trace_id="own"), headers))
    assert [r.trace_id for r in decoded.rejects] == [trace_id, "own"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": ""}, "`id`"),
        ({"source": "a\nb"}, "`source`"),
        ({"type": "\ud800"}, "`type`"),
        ({"extensions": {"Name": "x"}}, "`Name`"),
        ({"extensions": {"time": "x"}}, "`time`"),
        ({"extensions": {"a" * 21: "x"}}, "cannot be the name"),
        ({"extensions": {"a": "\x7f"}}, "`a`"),
    ],
)
def test_attributes_that_the_specification_forbids(changes: dict[str, Any], says: str) -> None:
    """They are refused before anything is written."""
    event = CloudEvent(**{"id": "1", "source": "/s", "type": "t", **changes})
    for write in (binary, structured):
        with pytest.raises(ValueError, match=says):
            write(event)


@given(st.lists(st.one_of(texts, st.integers()), max_size=4), st.lists(st.one_of(texts, st.integers()), max_size=4))
def test_ids_are_those_of_their_place(one: list[str | int], other: list[str | int]) -> None:
    """The same place gives the same id, another place another one, whatever its names are made of."""
    assert (event_id(*one) == event_id(*other)) == ([*map(str, one)] == [*map(str, other)])


def test_usual_ids_are_easy_to_read() -> None:
    """Only what would be ambiguous is written otherwise."""
    assert event_id("signals", "p-0", 7) == "signals/p-0/7"
    assert event_id("a/b", "%") == "a%2Fb/%25"
