"""The decoder by example: what is good, what is refused and in which words, and which lane takes it."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import orjson
import pytest

from operators.decode import ENTITY_BYTES_MAX, Decoder, Reason, split_lines
from operators.feature_sets import parse_feature_sets
from operators.hashes import murmur3_bytes
from operators.records import Decoded, Reject
from tests.messages import chunk_of, feature_sets, signal, with_number, with_text


def decode(*messages: bytes) -> Decoded:
    """What a new decoder makes of these messages."""
    return Decoder(feature_sets()).decode(chunk_of(list(messages)))


def left_over(*messages: bytes) -> list[int]:
    """Indices of the messages that the fast lane leaves to the rules."""
    return [int(index) for index in Decoder(feature_sets())._read_plain(chunk_of(list(messages)))[2]]


def refusal(message: bytes) -> Reject:
    """The only verdict on the message, which must be a reject."""
    decoded = decode(message)
    assert len(decoded.batch) == 0
    (reject,) = decoded.rejects
    assert reject.original == message
    return reject


GOOD_1 = 1772366400_500_000


def test_good_signal_becomes_a_row() -> None:
    """Every column of a plain signal holds what the message says."""
    message = signal(payload={"b": -0.0, "x": 3, "a": 2}, source="plant/7", trace_id="t")
    decoded = decode(message)
    batch = decoded.batch
    assert not decoded.rejects
    assert batch.partition == "p0"
    assert batch.entity(0) == "pump"
    assert int(batch.entity_hash[0]) == int.from_bytes(murmur3_bytes(b"pump")[:8], "little")
    assert batch.event_time.tolist() == [GOOD_1]
    assert batch.sequence.tolist() == [7]
    assert batch.offset.tolist() == [1000]
    assert batch.sets.tolist() == [0b11]
    assert decoded.index.tolist() == [0]
    assert batch.values.shape == (1, 3)
    assert batch.values[0, 0] == 2
    assert math.isnan(batch.values[0, 1])
    assert math.copysign(1, batch.values[0, 2]) == -1
    assert batch.values.dtype == np.float64
    assert batch.sets.dtype == batch.entity_hash.dtype == np.uint64


@pytest.mark.parametrize(
    "message",
    [
        signal(),
        signal(payload={}),
        signal(payload={"a": None, "unknown": "x", "other": True, "more": 1e5}),
        signal(source=None, trace_id=None),
        signal().replace(b"pump", "ключ-😀/../x".encode()),
        signal(extra={"deep": [1, {"er": [None, False, "s"]}, []], "none": {}}, list=[[], [[1.5e3]]]),
        signal(event_time=1772366400500),
        with_number("12.345678901234567"),
        with_number("0.00012345678901234567"),
        with_number("-1.2345678901234567E-300"),
        b' \t\r\n{ "sequence" : 1 , "payload" : { } , "event_time" : 0 , "entity_id" : "x" } \n',
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":' + signal() + b',"subject":"x"}',
        b'{"data":' + signal() + b',"datacontenttype":"application/json","specversion":"1.0"}',
    ],
)
def test_plain_messages_stay_in_the_fast_lane(message: bytes) -> None:
    """The fast lane takes the usual forms by itself: unknown members, any plain float, text beyond ASCII, envelopes."""
    assert left_over(message, message) == []
    assert not decode(message).rejects


def test_one_bad_message_leaves_the_others_in_the_fast_lane() -> None:
    """A broken message costs its neighbours nothing, and each keeps its place."""
    messages = [signal(sequence=i) for i in range(2000)]
    messages[700] = b'{"entity_id": "pu\xff'
    assert left_over(*messages) == [700]
    decoded = decode(*messages)
    assert [reject.index for reject in decoded.rejects] == [700]
    assert decoded.rejects[0].offset == 8000
    expected = [i for i in range(2000) if i != 700]
    assert decoded.index.tolist() == expected
    assert decoded.batch.sequence.tolist() == expected
    assert decoded.batch.offset.tolist() == [1000 + 10 * i for i in expected]


def test_both_lanes_meet_in_the_order_of_the_log() -> None:
    """A message that the rules accept takes its row among those of the fast lane, entity bytes included."""
    escaped = b'{"entity_id": "a\\nb\\"", "event_time": 5, "sequence": 1, "payload": {"b": 3}, "source": "plant\\/x"}'
    decoded = decode(signal(), b"", escaped, signal(entity_id="z", payload={"b": 4}), escaped)
    batch = decoded.batch
    assert [batch.entity(i) for i in range(4)] == ["pump", 'a\nb"', "z", 'a\nb"']
    assert decoded.index.tolist() == [0, 2, 3, 4]
    assert batch.event_time.tolist() == [GOOD_1, 5000, GOOD_1, 5000]
    assert batch.sets.tolist() == [0b01, 0b11, 0b01, 0b11]
    assert batch.values[:, 2].tolist()[1:] == [3, 4, 3]
    hashes = [int.from_bytes(murmur3_bytes(batch.entity(i).encode())[:8], "little") for i in range(4)]
    assert batch.entity_hash.tolist() == hashes


@pytest.mark.parametrize(
    ("message", "reason", "says"),
    [
        (b"", Reason.EMPTY, "empty"),
        (b" \t\r\n", Reason.EMPTY, "empty"),
        (signal().replace(b"pump", b"pu\xffmp"), Reason.NOT_UTF8, "byte"),
        (signal().replace(b"pump", b"pu\xed\xa0\x80mp"), Reason.NOT_UTF8, "byte"),
        (b"hello", Reason.NOT_JSON, "character 0"),
        (signal() + b"x", Reason.NOT_JSON, "unexpected content"),
        (signal()[:-1], Reason.NOT_JSON, "end of data"),
        (signal().replace(b"pump", b"pu\nmp"), Reason.NOT_JSON, "control character"),
        (with_number("NaN"), Reason.NOT_JSON, "JSON"),
        (with_number("-Infinity"), Reason.NOT_JSON, "JSON"),
        (with_number("1e400"), Reason.NOT_JSON, "infinity"),
        (with_number("01"), Reason.NOT_JSON, "leading zero"),
        (b"[1]", Reason.NOT_OBJECT, "an array; an object is expected"),
        (b"null", Reason.NOT_OBJECT, "null; an object"),
        (signal(entity_id=...), Reason.ENTITY_ID, "missing"),
        (signal(entity_id=5), Reason.ENTITY_ID, "an integer"),
        (signal(entity_id=None), Reason.ENTITY_ID, "null"),
        (signal(entity_id=""), Reason.ENTITY_ID, "empty"),
        (signal(entity_id="x" * 10_240), Reason.ENTITY_ID, "10240 UTF-8 bytes"),
        (signal().replace(b"pump", b"\xc3\xa4" * 513), Reason.ENTITY_ID, "1026 UTF-8 bytes"),
        (signal(event_time=...), Reason.EVENT_TIME, "missing"),
        (signal(event_time=None), Reason.EVENT_TIME, "null"),
        (signal(event_time=True), Reason.EVENT_TIME, "a boolean"),
        (signal(event_time=1.5), Reason.EVENT_TIME, "a float"),
        (signal(event_time="yesterday"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="2026-02-29T00:00:00Z"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="2026-01-01T00:00:00.Z"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="2026-01-01T00:00:00.0123456789Z"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="2026-01-01T24:00:00Z"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="2026-01-01T00:00:00+24:00"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="٢٠٢٦-01-01T00:00:00Z"), Reason.EVENT_TIME, "is no such time"),
        (signal(event_time="2026-01-01T00:00:00"), Reason.EVENT_TIME, "has no zone"),
        (signal(event_time="2026-01-01 00:00:00.123"), Reason.EVENT_TIME, "has no zone"),
        (signal(event_time="1969-12-31T23:59:59.999999Z"), Reason.EVENT_TIME, "before 1970"),
        (signal(event_time="1970-01-01T00:00:00+00:01"), Reason.EVENT_TIME, "before 1970"),
        (signal(event_time=-1), Reason.EVENT_TIME, "before 1970"),
        (signal(event_time="9999-12-31T00:00:00Z"), Reason.EVENT_TIME, "after 2261"),
        (signal(event_time="2261-12-31T23:59:60Z"), Reason.EVENT_TIME, "after 2261"),
        (signal(event_time=9_214_646_400_000), Reason.EVENT_TIME, "after 2261"),
        (signal(sequence=...), Reason.SEQUENCE, "missing"),
        (signal(sequence=True), Reason.SEQUENCE, "a boolean"),
        (signal(sequence=1.0), Reason.SEQUENCE, "a float"),
        (signal(sequence="1"), Reason.SEQUENCE, "a string"),
        (signal(sequence=1 << 63), Reason.SEQUENCE, "beyond 64 bits"),
        (signal(sequence=-(1 << 63) - 1), Reason.SEQUENCE, "64 bits"),
        (signal(payload=...), Reason.PAYLOAD, "missing"),
        (signal(payload=[1]), Reason.PAYLOAD, "an array"),
        (signal(payload="{}"), Reason.PAYLOAD, "a string"),
        (signal(payload={"a": {}}), Reason.PAYLOAD, "`a` is an object"),
        (signal(payload={"unknown": [1]}), Reason.PAYLOAD, "`unknown` is an array"),
        (signal(payload={"a": "1.5"}), Reason.FIELD, "`a` is a string"),
        (signal(payload={"a": False}), Reason.FIELD, "`a` is a boolean"),
        (signal(payload={"a": (1 << 53) + 1}), Reason.FIELD, "`a` is an integer beyond ±2^53"),
        (signal(payload={"a": -(1 << 53) - 1}), Reason.FIELD, "`a` is an integer beyond ±2^53"),
        (signal(payload={"a": 10**30}), Reason.FIELD, "`a` is an integer beyond ±2^53"),
        (signal(payload={"a": 10**300}), Reason.FIELD, "`a` is an integer beyond ±2^53"),
        (signal(source=5), Reason.SOURCE, "`source` is an integer"),
        (signal(trace_id={}), Reason.TRACE_ID, "`trace_id` is an object"),
    ],
)
def test_bad_message_is_refused_with_reason_and_sentence(message: bytes, reason: Reason, says: str) -> None:
    """Each fault has its stable word and a sentence that names the member and what is expected."""
    reject = refusal(message)
    assert reject.reason == reason
    assert says in reject.detail
    assert "\n" not in reject.detail


def test_message_over_the_limit_is_refused_unread() -> None:
    """A message of 10 MB is refused for its size and kept whole; one at the limit is read."""
    at_limit = signal().ljust(200)
    decoder = Decoder(feature_sets(), event_bytes_max=200)
    decoded = decoder.decode(chunk_of([at_limit, at_limit + b" ", b"x" * 10_000_000]))
    assert decoded.index.tolist() == [0]
    assert [reject.reason for reject in decoded.rejects] == [Reason.TOO_LARGE, Reason.TOO_LARGE]
    assert len(decoded.rejects[1].original) == 10_000_000


def test_detail_quotes_no_value() -> None:
    """What stands in the payload never reaches the sentence."""
    for message in (signal(payload={"a": "secret"}), signal(payload={"a": ["secret"]}), signal(entity_id=["secret"])):
        assert "secret" not in refusal(message).detail


def test_reject_carries_the_trace_id() -> None:
    """The trace_id of a refused signal is kept if it can be read."""
    assert refusal(signal(sequence=None, trace_id="4bf9")).trace_id == "4bf9"
    assert refusal(signal(sequence=None, trace_id=7)).trace_id is None
    assert refusal(b'{"trace_id": "4bf9"').trace_id is None


@pytest.mark.parametrize(
    ("text", "event_time"),
    [
        ('"1970-01-01T00:00:00Z"', 0),
        ('"1970-01-01t00:00:00z"', 0),
        ('"2026-03-01 12:00:00.5Z"', GOOD_1),
        ('"2026-03-01T14:30:00.5+02:30"', GOOD_1),
        ('"2026-02-28T23:59:00.5-12:01"', GOOD_1),
        ('"2026-03-01T12:00:00.500000999Z"', GOOD_1),
        ('"2026-03-01T11:59:60.5Z"', GOOD_1),
        ('"1969-12-31T23:30:00-01:00"', 1_800_000_000),
        ('"2024-02-29T00:00:00Z"', 1_709_164_800_000_000),
        ('"2000-02-29T00:00:00-00:00"', 951_782_400_000_000),
        ('"2261-12-31T23:59:59.999999999Z"', 9_214_646_399_999_999),
        ("1772366400500", GOOD_1),
        ("0", 0),
        ("9214646399999", 9_214_646_399_999_000),
        ('"2026-03-01T12:00:00.5\\u005a"', GOOD_1),
    ],
)
def test_event_time_forms(text: str, event_time: int) -> None:
    """RFC 3339 and epoch milliseconds give microseconds; digits beyond a microsecond are cut."""
    assert decode(with_text("event_time", text)).batch.event_time.tolist() == [event_time]


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-0", "0.0", "-0.0", "5", "-5", "9007199254740992", "-9007199254740992", "1e30", "1E+2", "-1e-2"),
        *("0.1", "0.30000000000000004", "1013.2519", "21.347112345678901", "0.00012345678901234567"),
        *("1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "2.2250738585072011e-308", "1e-400"),
        *("9007199254740993.0", "123456789012345678901234567890.5", "0." + "0" * 30 + "1", "8.5e22", "1e23"),
    ],
)
def test_numbers_are_read_exactly(text: str) -> None:
    """A number is the float64 nearest to its decimal, with its sign; so says orjson, and so do the columns."""
    values = decode(with_number(text)).batch.values[0, 2:]
    expected = np.array([float(orjson.loads(text))])
    assert values.view(np.uint64).tolist() == expected.view(np.uint64).tolist()


@pytest.mark.parametrize("entity_id", ["😀", 'quo"te', "line\nbreak", "a/../b", "..", "x" * ENTITY_BYTES_MAX, "\x00"])
def test_any_text_may_name_an_entity(entity_id: str) -> None:
    """Whatever can stand in a JSON string is an entity_id, up to the limit of bytes."""
    assert decode(signal(entity_id=entity_id)).batch.entity(0) == entity_id


def test_last_of_repeated_keys_wins() -> None:
    """A key that stands there twice counts as the last one says, as in every common parser."""
    message = signal(payload={"a": 1}).replace(b'{"a": 1}', b'{"a": 1, "a": 2}, "sequence": 9')
    batch = decode(message).batch
    assert batch.sequence.tolist() == [9]
    assert batch.values[0, 0] == 2


def envelope(**attributes: object) -> bytes:
    """A structured CloudEvents envelope with these attributes beside the required ones."""
    required = {"specversion": "1.0", "id": "1", "source": "plant/of-the-envelope", "type": "t"}
    return json.dumps(required | attributes).encode()


def test_envelope_gives_its_data() -> None:
    """A structured CloudEvents envelope counts as the signal in it, its own source does not; base64 data too."""
    inner = json.loads(signal(source="office"))
    encoded = base64.b64encode(signal(source="office")).decode()
    kinds = [{"data": inner}, {"data": inner, "datacontenttype": "application/x+json; charset=utf-8"}]
    decoded = decode(*[envelope(**kind) for kind in [*kinds, {"data_base64": encoded}]], signal(source="office"))
    assert not decoded.rejects
    assert decoded.batch.sequence.tolist() == [7] * 4
    assert decoded.batch.sets.tolist() == [0b01] * 4


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (envelope(), "needs either `data` or `data_base64`"),
        (envelope(data={}, data_base64=""), "needs either `data` or `data_base64`"),
        (envelope(data={}, specversion="0.3"), "specversion"),
        (envelope(data={}, datacontenttype="text/plain"), "datacontenttype"),
        (envelope(data_base64="%%"), "not base64"),
        (envelope(data_base64=5), "an integer; a string is expected"),
    ],
)
def test_broken_envelope_is_refused(message: bytes, says: str) -> None:
    """An envelope that cannot be opened is refused for that, not for what it lacks as a signal."""
    reject = refusal(message)
    assert reject.reason == Reason.ENVELOPE
    assert says in reject.detail


def test_envelope_is_told_from_a_signal_with_odd_members() -> None:
    """`data` without `specversion` is an unknown member; `specversion` without data too where the signal is bare."""
    assert not decode(signal(data={"entity_id": "x"}), signal(specversion="9")).rejects
    assert refusal(envelope(data=[1])).reason == Reason.NOT_OBJECT
    assert refusal(envelope(data=json.loads(signal(entity_id=...)), entity_id="x")).reason == Reason.ENTITY_ID


def test_decoding_leaves_its_input_alone() -> None:
    """The chunk is unchanged and shares no memory with the batch."""
    chunk = chunk_of([signal(), b"{", signal(entity_id='"')])
    before = chunk.data.tobytes()
    batch = Decoder(feature_sets()).decode(chunk).batch
    assert chunk.data.tobytes() == before
    for column in (batch.entity_data, batch.entity_offsets, batch.event_time, batch.offset, batch.values, batch.sets):
        assert not any(np.shares_memory(column, part) for part in (chunk.data, chunk.offsets, chunk.starts))


def test_empty_chunk_gives_an_empty_batch() -> None:
    """No messages: no rows, no rejects, arrays of length 0."""
    decoded = Decoder(feature_sets()).decode(chunk_of([], behind=0))
    assert len(decoded.batch) == len(decoded.index) == len(decoded.rejects) == 0
    assert decoded.batch.entity_offsets.tolist() == [0]
    assert decoded.batch.values.shape == (0, 3)


def test_last_message_needs_nothing_behind_it() -> None:
    """Bytes behind the last message are not needed: the rules read it where the fast lane may not."""
    decoded = Decoder(feature_sets()).decode(chunk_of([signal(), signal()], between=b"", behind=0))
    assert decoded.batch.sequence.tolist() == [7, 7]


def test_many_sources_and_many_fields() -> None:
    """Hundreds of sources and of fields are told apart, each by its own name."""
    fields = [f"temperature_{i:03d}_celsius" for i in range(300)]
    text = f"[[feature_set]]\nname='f'\nversion=1\nfields={fields}\nwindows=['5s']\nhalflife='4s'\nsources=['s-*7']\n"
    decoder = Decoder(parse_feature_sets(text, where="test.toml"))
    payload = {name: i for i, name in enumerate(fields)}
    turned = dict(reversed(payload.items()))
    chunk = chunk_of([signal(source=f"s-{i}", payload=turned if i % 3 else payload) for i in range(500)])
    batch = decoder.decode(chunk).batch
    assert (batch.values == np.arange(300)).all()
    assert batch.sets.tolist() == [int(i % 10 == 7) for i in range(500)]
    assert len(decoder._read_plain(chunk)[2]) == 0


@pytest.mark.parametrize(
    ("text", "lines", "consumed"),
    [
        (b"", [], 0),
        (b"unfinished", [], 0),
        (b"\n", [b""], 1),
        (b"one\ntwo\nthr", [b"one", b"two"], 8),
        (b"one\r\n\r\ntwo\r", [b"one", b""], 7),
        (b"a\rb\nc\r\r\n", [b"a\rb", b"c\r"], 8),
    ],
)
def test_split_lines_gives_whole_lines(text: bytes, lines: list[bytes], consumed: int) -> None:
    r"""A line ends at `\n`, a `\r` before it is cut, and an unfinished last line waits."""
    starts, lengths, taken = split_lines(np.frombuffer(text, np.uint8), lines_max=100)
    assert [text[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)] == lines
    assert taken == consumed
