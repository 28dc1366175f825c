"""No message of many signals is far larger as messages of one: what it holds once is counted for every row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from operators.arrow_messages import originals
from operators.signal_rules import Reason
from tests.arrow_streams import columns, stream
from tests.messages import chunk_of
from tests.test_arrow_messages import DECODER, GOOD, ROW, refusal


def many(count: int, **change: pa.Array) -> dict[str, pa.Array]:
    """So many rows of the narrowest columns, with others."""
    table = columns([ROW] * count)
    table["sequence"] = table["sequence"].cast(pa.int8())
    return {**table, "entity_id": table["entity_id"].dictionary_encode(), **change}


def encoded(text: str, count: int) -> pa.Array:
    """One text for all rows."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), [text])


def shared(text: str, count: int) -> pa.Array:
    """One text that all rows look at."""
    one = pa.array([text], pa.string_view())
    _, view, data = one.buffers()
    return pa.Array.from_buffers(pa.string_view(), count, [None, pa.py_buffer(view.to_pybytes()[:16] * count), data])


@pytest.mark.parametrize(
    "change",
    [
        {"note": encoded("x" * 500_000, 300)},
        {"source": encoded("x" * 500_000, 300)},
        {"trace_id": encoded("x" * 500_000, 300)},
        {"note": encoded("\1" * 3000, 300)},
        {"note": shared("x" * 500_000, 300)},
        {"entity_id": shared("x" * 500_000, 300)},
        {"note": encoded("x" * 500_000, 300).cast(pa.dictionary(pa.int8(), pa.binary()))},
        {"n" * 500_000: pa.array([1] * 300, pa.int8())},
        {"when": pa.array([2**62] * 300, pa.timestamp("s", "z" * 500_000))},
        {f"n{i}": pa.nulls(3000) for i in range(500)},
        {f"n{i}": pa.array([True] * 3000) for i in range(500)},
    ],
    ids=[
        "column",
        "source",
        "trace_id",
        "escapes",
        "views",
        "views_of_entities",
        "bytes",
        "name",
        "zone",
        "nulls",
        "flags",
    ],
)
def test_rows_cannot_multiply_what_a_message_holds_once(change: dict[str, pa.Array]) -> None:
    """A long text, or name, would be written out with every bad or late row: one dead letter says so instead."""
    count = len(next(iter(change.values())))
    refused = refusal(many(count, **change))
    assert refused.reason == Reason.TOO_LARGE
    assert "when each is a message of its own" in refused.detail


def test_no_row_is_larger_than_a_message_may_be() -> None:
    """Control characters have six bytes each in JSON: a row that grows too large for a message cannot leave as one."""
    refused = refusal({**GOOD, "note": pa.array(["", "\1" * 200_000, ""])})
    assert (refused.reason, refused.detail.split(" has ")[0]) == (Reason.TOO_LARGE, "row 1")
    fits = {**GOOD, "note": pa.array(["", "\1" * 170_000, "x" * 500_000])}
    chunk = chunk_of([stream(pa.table(fits))])
    decoded = DECODER.decode(chunk)
    assert not decoded.rejects
    assert all(len(original) <= 1 << 20 for original in originals(chunk, decoded, np.arange(3)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"trace_id": encoded("a-trace-of-36-characters-as-uuids-are", 5000), "source": encoded("plant/1", 5000)},
        {"note": encoded('a "quoted" line\n' * 6, 5000)},
        {"note": shared("x" * 200, 5000)},
        {f"a_number_with_quite_a_long_name_{i}": pa.array([1] * 5000, pa.int8()) for i in range(50)},
        {f"nothing_{i}": pa.nulls(5000) for i in range(10)},
        {f"is_{i}": pa.array([False] * 5000) for i in range(10)},
        {
            "when": pa.array([0] * 5000, pa.timestamp("ns", "Europe/Paris")),
            "cost": pa.array([None] * 5000, pa.decimal256(9, 2)),
        },
        {"note": pa.DictionaryArray.from_arrays(pa.array([None] * 5000, pa.int8()), pa.array([], pa.string()))},
    ],
)
def test_messages_that_repeat_what_is_usual_pass(change: dict[str, pa.Array]) -> None:
    """Ordinary columns, however narrow, are far from the limit."""
    assert len(DECODER.decode(chunk_of([stream(pa.table(many(5000, **change)))])).batch) == 5000
