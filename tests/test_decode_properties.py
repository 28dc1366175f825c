"""The decoder's two lanes against each other, over messages that no person would write."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators import signal_rules
from operators.decode import Decoder, split_lines
from operators.errors import SkippableError
from operators.hashes import murmur3_bytes
from operators.records import Decoded, RawChunk
from operators.rfc3339 import parse_time
from tests.messages import FIELDS, chunk_of, feature_sets, with_number, with_text

SETS = feature_sets()
DECODER = Decoder(SETS)

blanks = st.sampled_from(["", "", " ", "  ", "\n", "\r\t "])
texts = st.one_of(st.text(max_size=8), st.sampled_from(["plant/1", "pump-7", "a" * 40, "a" * 32, "é" * 20, 'q"\\/\n']))
strings = st.builds(json.dumps, texts, ensure_ascii=st.booleans())
digits = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
floats = st.floats(allow_nan=False, allow_infinity=False).map(repr)
integers = st.one_of(st.integers(-5, 5), st.integers(-(1 << 54), 1 << 54), st.integers(-(1 << 66), 1 << 66)).map(str)
numbers = st.one_of(floats, st.floats(-1e4, 1e4).map(lambda x: f"{x:.4f}"), integers, digits)
literals = st.sampled_from(["null", "true", "false"])
nested = st.recursive(
    st.one_of(numbers, literals, strings),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{' ,'.join(items)}]"),
        st.lists(st.tuples(strings, inner), max_size=3).map(lambda m: f"{{{', '.join(f'{k}: {v}' for k, v in m)}}}"),
    ),
    max_leaves=4,
)
times = st.builds(
    "{}-{:02}-{:02}{}{:02}:{:02}:{:02}{}{}".format,
    st.sampled_from(["1969", "1970", "1999", "2000", "2024", "2026", "2100", "2261", "2262", "9999"]),
    st.integers(0, 13),
    st.one_of(st.integers(1, 28), st.integers(0, 32)),
    st.sampled_from(["T", "T", "t", " ", "_"]),
    st.integers(0, 24),
    st.one_of(st.integers(0, 59), st.integers(59, 60)),
    st.one_of(st.integers(0, 59), st.integers(59, 61)),
    st.one_of(st.just(""), st.from_regex(r"\.[0-9]{0,10}", fullmatch=True)),
    st.sampled_from(["Z", "Z", "z", "", "+00:00", "-00:00", "+05:45", "-23:59", "+24:00", "+1:00", "Zulu"]),
)
odd_values = st.one_of(nested, numbers, strings, literals)


def mostly(usual: st.SearchStrategy[str], other: st.SearchStrategy[str] = odd_values) -> st.SearchStrategy[str]:
    """The usual text of a value, now and then another."""
    return st.one_of(*[usual] * 7, other)


@st.composite
def objects(draw: st.DrawFn, members: list[tuple[str, st.SearchStrategy[str]]], *, whole: bool) -> str:
    """An object with these members in any order and spacing; if not whole, some are missing or stand there twice."""
    chosen = draw(st.permutations(members))
    if members and not whole:
        chosen = draw(st.lists(st.sampled_from(members), max_size=len(members) + 2))
    before, after, between = (draw(blanks) for _ in range(3))
    parts = [f'{before}"{key}"{after}:{between}{draw(value)}{after}' for key, value in chosen]
    return f"{{{','.join(parts)}{before}}}"


@st.composite
def signals(draw: st.DrawFn) -> str:
    """The text of a signal, usually whole and good."""
    fields = [(name, mostly(st.one_of(numbers, st.just("null")))) for name in draw(st.permutations(FIELDS))]
    fields = [*fields[: draw(st.integers(0, 3))], ("other", mostly(st.one_of(numbers, literals, strings)))]
    whole = draw(st.integers(0, 5)) > 0
    payload = draw(objects(fields[draw(st.integers(0, 1)) :], whole=whole))
    members = [
        ("entity_id", mostly(strings)),
        ("event_time", mostly(st.one_of(times.map(json.dumps), st.integers(0, 1 << 43).map(str)))),
        ("sequence", mostly(integers)),
        ("payload", mostly(st.just(payload))),
    ]
    optional = mostly(st.one_of(strings, st.just("null")))
    options = [("source", optional), ("trace_id", mostly(strings)), ("x", odd_values)]
    members += [option for option in options if draw(st.booleans())]
    return draw(objects(members, whole=whole))


@st.composite
def envelopes(draw: st.DrawFn) -> str:
    """The text of a signal in an envelope, usually a good one."""
    members = [
        ("specversion", mostly(st.just('"1.0"'))),
        ("data", mostly(signals(), signals())),
        ("source", strings),
        ("datacontenttype", mostly(st.sampled_from(['"application/json"', "null"]))),
        *draw(st.lists(st.sampled_from([("id", strings), ("entity_id", strings), ("trace_id", strings)]), max_size=2)),
    ]
    return draw(objects(members, whole=draw(st.integers(0, 5)) > 0))


@st.composite
def broken(draw: st.DrawFn, message: bytes) -> bytes:
    """The message with one byte put in, changed or left out, or cut off."""
    at = draw(st.integers(0, len(message)))
    byte = draw(st.one_of(st.sampled_from(list(b'"\\{}[],:.eE+-0 \n\x00\x1f')), st.integers(0, 255)))
    tail = draw(st.sampled_from([message[at:], message[at + 1 :], b""]))
    return message[:at] + bytes([byte] * draw(st.integers(0, 1))) + tail


@st.composite
def logs(draw: st.DrawFn) -> RawChunk:
    """A few messages that look alike, so that each may follow the way through the one before."""
    kinds = draw(st.lists(st.one_of(signals(), signals(), envelopes()), min_size=1, max_size=3))
    messages = [kind.encode() for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))]
    messages = [draw(broken(m)) if draw(st.integers(0, 3)) == 0 else m for m in messages]
    return chunk_of(messages, between=draw(st.sampled_from([b"", b"\n"])))


def by_rules(chunk: RawChunk) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Rows and rejects as the rules alone give them, one message at a time."""
    rows: list[tuple[object, ...]] = []
    rejects: list[tuple[object, ...]] = []
    for index in range(len(chunk.starts)):
        message = chunk.message(index)
        try:
            good = signal_rules.check(signal_rules.open_document(message), FIELDS)
        except SkippableError as error:
            rejects.append((index, error.reason, str(error), message))
            continue
        hashed = int.from_bytes(murmur3_bytes(good.entity)[:8], "little")
        bits = np.array(good.values).view(np.uint64).tolist()
        mask = SETS.mask(good.source)
        offset = int(chunk.offsets[index])
        rows.append((index, offset, good.entity, hashed, good.event_time, good.sequence, mask, bits))
    return rows, rejects


def as_rows(decoded: Decoded) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Rows and rejects of a decoded chunk in the same form."""
    batch = decoded.batch
    entities = [batch.entity_data[a:b].tobytes() for a, b in pairwise(batch.entity_offsets.tolist())]
    columns: list[NDArray[np.generic]] = [batch.entity_hash, batch.event_time, batch.sequence, batch.sets]
    bits = batch.values.view(np.uint64)
    places = (decoded.index.tolist(), batch.offset.tolist(), entities)
    rows = zip(*places, *(column.tolist() for column in columns), bits.tolist(), strict=True)
    return list(rows), [(r.index, r.reason, r.detail, r.original) for r in decoded.rejects]


@given(logs())
def test_both_lanes_agree(chunk: RawChunk) -> None:
    """What the decoder gives is what the rules alone give, bit for bit, whatever the neighbours of a message are."""
    assert as_rows(DECODER.decode(chunk)) == by_rules(chunk)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_are_judged(messages: list[bytes]) -> None:
    """Arbitrary bytes end as rows or rejects like any message; nothing is raised and nothing lost."""
    chunk = chunk_of(messages, between=b"")
    assert as_rows(DECODER.decode(chunk)) == by_rules(chunk)


@given(logs(), st.integers(0, 6))
def test_any_cut_of_a_chunk_gives_the_same(chunk: RawChunk, cut: int) -> None:
    """Two halves decoded apart give the rows and rejects of the whole."""
    whole_rows, whole_rejects = as_rows(DECODER.decode(chunk))
    rows: list[tuple[object, ...]] = []
    rejects: list[tuple[object, ...]] = []
    for part in (slice(0, cut), slice(cut, None)):
        piece = RawChunk("p0", chunk.data, chunk.starts[part], chunk.lengths[part], chunk.offsets[part])
        some_rows, some_rejects = as_rows(DECODER.decode(piece))
        base = part.start
        rows += [(base + int(str(index)), *rest) for index, *rest in some_rows]
        rejects += [(base + int(str(index)), *rest) for index, *rest in some_rejects]
    assert [row[1:] for row in rows] == [row[1:] for row in whole_rows]
    assert [reject[1:] for reject in rejects] == [reject[1:] for reject in whole_rejects]


@given(st.one_of(numbers, st.tuples(st.integers(1, 10**19 - 1), st.integers(-345, 310)).map("{0[0]}e{0[1]}".format)))
def test_every_number_is_the_nearest_float(text: str) -> None:
    """A number with a fraction or an exponent is the float that Python reads, or the message is refused as infinite."""
    message = with_number(text)
    decoded = DECODER.decode(chunk_of([message, message]))
    exact = float(text)
    integer = text.lstrip("-").isdigit()
    if np.isinf(exact) or (integer and abs(int(text)) > 1 << 53):
        assert len(decoded.rejects) == 2
    else:
        expected = np.array([exact + 0.0 if integer else exact] * 2)
        assert decoded.batch.values[:, 2].copy().view(np.uint64).tolist() == expected.view(np.uint64).tolist()


@given(times)
def test_every_time_is_read_as_the_plain_parser_reads_it(text: str) -> None:
    """A time gives the microseconds of the plain parser, or is refused where that refuses it or is out of range."""
    message = with_text("event_time", json.dumps(text))
    decoded = DECODER.decode(chunk_of([message, message]))
    try:
        expected = parse_time(text)
    except ValueError:
        expected = -1
    if 0 <= expected < 9_214_646_400_000_000:
        assert decoded.batch.event_time.tolist() == [expected, expected]
    else:
        assert [reject.reason for reject in decoded.rejects] == ["event_time", "event_time"]


@given(st.lists(st.sampled_from([b"\n", b"\r", b"a", b"b" * 31, b"c" * 70])).map(b"".join), st.integers(0, 12))
def test_lines_are_those_of_a_plain_split(text: bytes, lines_max: int) -> None:
    """Lines, their order and the bytes they take are those of a split by hand, and a limit only stops it earlier."""
    whole = text.split(b"\n")[:-1][:lines_max]
    starts, lengths, consumed = split_lines(np.frombuffer(text, np.uint8), lines_max=lines_max)
    lines = [text[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert lines == [line.removesuffix(b"\r") for line in whole]
    assert consumed == sum(len(line) + 1 for line in whole)
