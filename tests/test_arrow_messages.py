"""Messages of many signals: Arrow IPC streams are read as their rows would be as JSON, and none can do harm."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import signal_rules
from operators.arrow_messages import find_rows, originals
from operators.decode import Decoder
from operators.errors import SkippableError
from operators.hashes import murmur3_bytes
from operators.intake import Intake
from operators.records import Decoded, RawChunk, Reject
from operators.rfc3339 import TIME_US_END
from operators.signal_rules import Reason
from tests.arrow_streams import Row, columns, stream, under_payload
from tests.messages import FIELDS, chunk_of, feature_sets, signal

SETS = feature_sets()
DECODER = Decoder(SETS)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = 1_772_366_400_000_000
ROW = {"entity_id": "pump", "event_time": NOON, "sequence": 7, "payload": {"a": 1.5, "b": -0.0}, "source": "plant/1"}

texts = st.one_of(st.sampled_from(["pump-1", "pump-2", "ключ-😀", "a" * 1024, 'q"\\/\n']), st.text(max_size=6))
odd_texts = st.sampled_from([None, "", "é" * 513])
floats = st.one_of(st.floats(width=32), st.sampled_from([None, -0.0, 5e-324, 1e300, math.inf, -math.inf, math.nan]))
times = st.one_of(
    st.integers(NOON, NOON + 10**9),
    st.sampled_from([0, None, -1, 9_214_646_399_999_999, 9_214_646_400_000_000, -(2**62)]),
)


def mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual value, now and then another."""
    return st.one_of(*[usual] * 9, other)


rows_of_signals = st.lists(
    st.fixed_dictionaries({
        "entity_id": mostly(texts, odd_texts),
        "event_time": times,
        "sequence": mostly(st.integers(-(2**63), 2**63 - 1), st.none()),
        "source": st.sampled_from([None, "plant/1", "lab", ""]),
        "trace_id": st.sampled_from([None, "t-1"]),
        "payload": st.fixed_dictionaries(dict.fromkeys(FIELDS, floats)),
    }),
    min_size=1,
    max_size=8,
)  # fmt: skip
ways = st.fixed_dictionaries({
    "text": st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]),
    "encoded": st.booleans(),
    "unit": st.sampled_from(["us", "ns", "int64", "ms"]),
    "narrow": st.booleans(),
    "struct": st.booleans(),
    "parts": st.integers(1, 3),
})  # fmt: skip


def written(rows: list[Row], way: dict[str, Any]) -> tuple[bytes, list[dict[str, object]]]:
    """The rows as a message, written that way, and each as the JSON that says the same."""
    table = columns(rows)
    for name in ("entity_id", "source", "trace_id"):
        column = table[name].cast(way["text"])
        table[name] = column.dictionary_encode() if way["encoded"] and way["text"] != pa.string_view() else column
    scale = {"us": 1, "ns": 1, "int64": 1000, "ms": 1000}[way["unit"]]
    micros = [None if r["event_time"] is None else r["event_time"] // scale * scale for r in rows]
    if way["unit"] == "ns":
        micros = [None if t is None else min(t, 2**63 // 1000 - 1) if t >= 0 else -1 for t in micros]
        nanos = [None if t is None else t * 1000 + 999 for t in micros]
        table["event_time"] = pa.array(nanos, pa.int64()).view(pa.timestamp("ns", "Europe/Paris"))
    else:
        whole = pa.array([None if t is None else t // scale for t in micros], pa.int64())
        kind = pa.int64() if way["unit"] == "int64" else pa.timestamp(way["unit"], "UTC")
        table["event_time"] = whole.view(kind)
    if way["narrow"]:
        for name in FIELDS:
            table[name] = table[name].cast(pa.float32(), safe=False)
    payloads = [{name: table[name][i].as_py() for name in FIELDS} for i in range(len(rows))]
    as_int = way["unit"] == "int64"
    said = [
        {**row, "event_time": as_written(t, as_int=as_int), "payload": {k: sayable(v) for k, v in payload.items()}}
        for row, t, payload in zip(rows, micros, payloads, strict=True)
    ]
    if way["struct"]:
        table = under_payload(table, [i % 5 == 4 for i in range(len(rows))])
        said = [{**each, "payload": None} if i % 5 == 4 else each for i, each in enumerate(said)]
    return stream(pa.table(table), way["parts"]), said


def as_written(micros: int | None, *, as_int: bool) -> object:
    """A time as JSON has it."""
    if micros is None or as_int or not 0 <= micros < TIME_US_END:
        return None if micros is None else micros // 1000
    return (EPOCH + timedelta(microseconds=micros)).isoformat()


def sayable(value: float | None) -> object:
    """A float as JSON can have it: NaN is null, infinity no number."""
    if value is None or math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def judged(said: list[dict[str, object]]) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Rows and rejects as the rules for JSON give them."""
    good: list[tuple[object, ...]] = []
    bad: list[tuple[object, ...]] = []
    for row, each in enumerate(said):
        text = json.dumps(each).encode()
        try:
            s = signal_rules.check(signal_rules.open_document(text), FIELDS)
        except SkippableError as error:
            bad.append((row, error.reason, str(error), each.get("trace_id")))
            continue
        hashed = int.from_bytes(murmur3_bytes(s.entity)[:8], "little")
        bits = np.array(s.values).view(np.uint64).tolist()
        good.append((row, s.entity.decode(), hashed, s.event_time, s.sequence, SETS.mask(s.source), bits))
    return good, bad


def found(decoded: Decoded) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The same of what the decoder gave."""
    batch = decoded.batch
    assert decoded.rows is not None
    entities = [batch.entity(i) for i in range(len(batch))]
    columns_ = (batch.entity_hash, batch.event_time, batch.sequence, batch.sets)
    bits = batch.values.copy().view(np.uint64).tolist()
    good = list(zip(decoded.rows.tolist(), entities, *(c.tolist() for c in columns_), bits, strict=True))
    return good, [(r.row, r.reason, r.detail, r.trace_id) for r in decoded.rejects]


@given(rows_of_signals, ways)
@settings(max_examples=150, deadline=None)
def test_a_row_means_what_it_means_as_json(rows: list[Row], way: dict[str, Any]) -> None:
    """Every kind of column, every bad value: signals to the bit and refusals to the word are those of JSON messages."""
    message, said = written(rows, way)
    decoded = DECODER.decode(chunk_of([message]))
    assert found(decoded) == judged(said)
    for reject in decoded.rejects:
        original = orjson.loads(reject.original)
        assert original.pop("arrow") == {"offset": 1000, "row": reject.row}
        assert reject.row is not None
        assert original == json.loads(json.dumps(said[reject.row]))


@given(rows_of_signals, ways, st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_that_leaves_comes_back_as_it_was(rows: list[Row], way: dict[str, Any], data: st.DataObject) -> None:
    """The message made of a good row is decoded to the same signal, and a search for the signal finds that row."""
    message, _ = written(rows, way)
    chunk = chunk_of([message])
    decoded = DECODER.decode(chunk)
    batch = decoded.batch
    which = np.array(sorted(data.draw(st.sets(st.integers(0, max(0, len(batch) - 1))))), np.int64)[: len(batch)]
    again = DECODER.decode(chunk_of(list(originals(chunk, decoded, which))))
    assert not again.rejects
    assert again.batch.values.tobytes() == batch.values[which].tobytes()
    assert [again.batch.entity(i) for i in range(len(which))] == [batch.entity(i) for i in which]
    for name in ("event_time", "sequence", "sets", "entity_hash"):
        assert getattr(again.batch, name).tolist() == getattr(batch, name)[which].tolist()
    assert decoded.rows is not None
    keys = [(batch.entity(i), int(batch.event_time[i]), int(batch.sequence[i])) for i in range(len(batch))]
    assert [row for row, _ in find_rows(message, SETS, 1000, keys)] == decoded.rows.tolist()


@given(st.lists(st.one_of(rows_of_signals, st.sampled_from([b"", b"{", signal()])), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_both_formats_in_one_log(parts: list[Any]) -> None:
    """JSON and Arrow may follow one another: all stands in the order of the log, whatever the chunks are."""
    way = {"text": pa.string(), "encoded": True, "unit": "us", "narrow": False, "struct": False, "parts": 2}
    messages = [part if isinstance(part, bytes) else written(part, way)[0] for part in parts]
    whole = DECODER.decode(chunk_of(messages))
    alone = [DECODER.decode(chunk_of([message])) for message in messages]
    assert [whole.batch.entity(i) for i in range(len(whole.batch))] == [
        d.batch.entity(i) for d in alone for i in range(len(d.batch))
    ]
    assert whole.batch.values.tobytes() == b"".join(d.batch.values.tobytes() for d in alone)
    assert whole.batch.sequence.tolist() == [s for d in alone for s in d.batch.sequence.tolist()]
    numbers = [number for number, d in enumerate(alone) for _ in range(len(d.batch))]
    assert whole.index.tolist() == numbers
    assert whole.batch.offset.tolist() == [1000 + 10 * number for number in numbers]
    refused = [(number, r.row, r.reason) for number, d in enumerate(alone) for r in d.rejects]
    assert [(r.index, r.row, r.reason) for r in whole.rejects] == refused


def refusal(table: dict[str, pa.Array], **options: object) -> Reject:
    """The only verdict on a message with this table, which must be that on the whole."""
    message = stream(pa.table(table), **options)  # type: ignore[arg-type]  # options of the writer's
    decoded = DECODER.decode(chunk_of([message]))
    assert len(decoded.batch) == 0
    (reject,) = decoded.rejects
    assert (reject.row, reject.original) == (None, message)
    return reject


GOOD = columns([ROW] * 3)


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        ({"entity_id": ...}, Reason.ENTITY_ID, "column `entity_id` is missing"),
        ({"entity_id": pa.array([1, 2, 3])}, Reason.ENTITY_ID, "is int64; text is expected"),
        ({"event_time": pa.array([1, 2, 3], pa.timestamp("us"))}, Reason.EVENT_TIME, "timestamp with zone"),
        ({"event_time": pa.array([1, 2, 3], pa.int32())}, Reason.EVENT_TIME, "64 bits"),
        ({"event_time": pa.array(["x"] * 3)}, Reason.EVENT_TIME, "is string"),
        ({"sequence": pa.array([1.0, 2.0, 3.0])}, Reason.SEQUENCE, "is double; an integer"),
        ({"sequence": ...}, Reason.SEQUENCE, "missing"),
        ({"source": pa.array([1, 2, 3])}, Reason.SOURCE, "text"),
        ({"trace_id": pa.array([b"x"] * 3)}, Reason.TRACE_ID, "text"),
        ({"a": pa.array(["1", "2", "3"])}, Reason.FIELD, "column `a` is string; a number is expected"),
        ({"b": pa.array([True] * 3)}, Reason.FIELD, "is bool"),
        ({"payload": pa.array(['{"a": 1}'] * 3)}, Reason.PAYLOAD, "a struct of numbers"),
        ({"other": pa.array([[1]] * 3)}, Reason.NOT_ARROW, "column `other` is list"),
        ({"other": pa.array([{"x": {"y": 1}}] * 3)}, Reason.NOT_ARROW, "column `other` is struct"),
        ({"other": pa.array([{"x": 1}] * 3)}, Reason.PAYLOAD, "column `other` is struct"),
    ],
)
def test_columns_that_no_row_can_be_read_with(change: dict[str, Any], reason: Reason, says: str) -> None:
    """A column that is missing or of another kind refuses the message as one dead letter that names it."""
    refused = refusal({name: column for name, column in (GOOD | change).items() if column is not ...})
    assert refused.reason == reason
    assert says in refused.detail


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_bodies_are_not_unpacked(codec: str) -> None:
    """How much they would become is only their own word; the refusal names what to do instead."""
    refused = refusal(GOOD, compression=codec)
    assert refused.reason == Reason.NOT_ARROW
    assert "compression.type" in refused.detail


def test_two_columns_of_one_name() -> None:
    """Nobody could say which one counts."""
    table = pa.table([*GOOD.values(), GOOD["b"]], names=[*GOOD, "b"])
    (reject,) = DECODER.decode(chunk_of([stream(table)])).rejects
    assert "two columns of one name" in reject.detail


def test_a_stream_without_rows_is_not_lost_sight_of() -> None:
    """It holds nothing, and is told of like an empty message."""
    assert refusal({name: column[:0] for name, column in GOOD.items()}).reason == Reason.EMPTY


def test_bytes_around_a_stream() -> None:
    """Cut off anywhere or followed by more, it is refused whole: no row of it is taken."""
    message = stream(pa.table(GOOD))
    for broken in (message + message, message + b"\0", message[:-1], message[:-9], message[:40], message[:4]):
        decoded = DECODER.decode(chunk_of([signal(), broken, signal()]))
        assert [(r.index, r.reason) for r in decoded.rejects] == [(1, Reason.NOT_ARROW)]
        assert decoded.index.tolist() == [0, 2]


def test_a_message_too_large_is_not_read() -> None:
    """The limit of a message holds for both formats."""
    message = stream(pa.table(GOOD))
    (reject,) = Decoder(SETS, event_bytes_max=len(message) - 1).decode(chunk_of([message])).rejects
    assert reject.reason == Reason.TOO_LARGE
    assert not Decoder(SETS, event_bytes_max=len(message)).decode(chunk_of([message])).rejects


def test_rows_cannot_multiply_long_names() -> None:
    """A dictionary holds a long entity_id once; rows that would write it out too often are refused."""
    rows = columns([{**ROW, "entity_id": "x" * 1000}] * 5000)
    usual = columns([{**ROW, "entity_id": "x" * 200}] * 5000)
    rows["entity_id"], usual["entity_id"] = (
        rows["entity_id"].dictionary_encode(),
        usual["entity_id"].dictionary_encode(),
    )
    assert refusal({n: rows[n] for n in ("entity_id", "event_time", "sequence", "a")}).reason == Reason.TOO_LARGE
    assert len(DECODER.decode(chunk_of([stream(pa.table(usual))])).batch) == 5000


STREAMS = [
    stream(pa.table(GOOD)),
    stream(pa.table({**GOOD, "entity_id": GOOD["entity_id"].dictionary_encode()}), 3, emit_dictionary_deltas=True),
    stream(pa.table(under_payload(GOOD, [False, True, False]))),
    stream(pa.table({**GOOD, "entity_id": GOOD["entity_id"].cast(pa.string_view())}), 2),
    stream(pa.table(GOOD), compression="zstd"),
]
flips = st.tuples(st.floats(0, 1), st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255)))


@given(st.sampled_from(STREAMS), st.lists(flips, min_size=1, max_size=4), st.sampled_from([0, 0, 0, 1, 4, 8, 64]))
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_do_no_harm(message: bytes, changes: list[tuple[float, int]], cut: int) -> None:
    """Whatever bytes are changed or missing: rows or dead letters, nothing raised, and neighbours are as they were."""
    broken = bytearray(message)
    for where, byte in changes:
        broken[4 + int(where * (len(broken) - 5))] = byte
    decoded = DECODER.decode(chunk_of([signal(), bytes(broken[: len(broken) - cut]), signal()]))
    assert decoded.index[0] == 0
    assert decoded.index[-1] == 2
    middle = np.count_nonzero(decoded.index == 1) + len(decoded.rejects)
    assert 1 <= middle <= 3 + len(broken) // 8


def test_rows_are_counted_one_by_one_and_late_ones_keep_their_place() -> None:
    """An intake counts rows as signals; of late ones it knows the row, and its message holds that row alone."""
    times_ = [NOON, NOON + 60_000_000, NOON + 1, NOON + 61_000_000, None]
    rows = [{**ROW, "event_time": t, "sequence": i} for i, t in enumerate(times_)]
    intake = Intake("p0", DECODER, 5_000_000)
    piece = intake.take(chunk_of([stream(pa.table(columns(rows))), signal(sequence=9)]), ("p0",))
    assert (intake.seen, intake.late, intake.dead) == (6, 2, 1)
    assert piece.late_rows == (2, -1)
    assert piece.originals[1] == signal(sequence=9)
    late = orjson.loads(piece.originals[0])
    assert (late["sequence"], late["arrow"]) == (2, {"offset": 1000, "row": 2})
    assert [(r.row, r.reason) for r in piece.rejects] == [(4, "event_time")]


def test_chunks_of_arrow_without_room_behind() -> None:
    """A message that ends with its chunk is read like any other."""
    message = stream(pa.table(GOOD))
    alone = RawChunk(
        "p0", np.frombuffer(message, np.uint8), np.zeros(1, np.int64), np.array([len(message)]), np.array([5])
    )
    assert DECODER.decode(alone).batch.offset.tolist() == [5, 5, 5]


def test_every_nan_is_the_one_null() -> None:
    """A NaN with other bits, as some machines make, leaves no trace."""
    odd = np.array([0xFFF8000000000001, 0x7FF0000000000001, 0x7FF8000000000000], np.uint64).view(np.float64)
    batch = DECODER.decode(chunk_of([stream(pa.table({**GOOD, "a": pa.array(odd)}))])).batch
    assert batch.values[:, 0].copy().view(np.uint64).tolist() == [0x7FF8000000000000] * 3
