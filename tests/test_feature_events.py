"""Feature rows as CloudEvents: what a reader of the results finds in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from operators.feature_events import feature_events
from operators.records import feature_row_schema
from tests.strategies import two_sets

DECLARED = two_sets().sets[0]
SPEC = DECLARED.windows[0]
TIMES = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
ENTITIES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
HASHES = st.binary(min_size=16, max_size=16)
FLOATS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, object]]:
    """Rows of the set with any content."""
    return [
        {
            "entity_id": draw(ENTITIES),
            "window_start": draw(TIMES),
            "event_time": draw(TIMES),
            "feature_set": DECLARED.name,
            "version": DECLARED.version,
            "revision": draw(st.integers(0, 9999)),
            "created_at": draw(TIMES),
            "known_at": draw(TIMES),
            "supersedes": draw(st.one_of(st.none(), HASHES)),
            "cause": draw(st.one_of(st.none(), ENTITIES)),
            "retracted": draw(st.booleans()),
            "content_hash": draw(HASHES),
            **{c: draw(st.integers(0, 1 << 50)) if c.endswith("__count") else draw(FLOATS) for c in DECLARED.columns},
        }
        for _ in range(draw(st.integers(0, 4)))
    ]


def table_of(some: list[dict[str, object]]) -> pa.Table:
    """The rows as a table."""
    schema = feature_row_schema(DECLARED)
    columns = []
    for field in schema:
        values = [row[field.name] for row in some]
        plain = pa.int64() if pa.types.is_timestamp(field.type) else field.type
        columns.append(pa.array(values, plain).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def moment(us: object) -> str:
    """RFC 3339, slowly."""
    assert isinstance(us, int)
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    return when.strftime(f"{when.year:04d}-%m-%dT%H:%M:%S.%fZ")


@given(some=rows())
def test_an_event_holds_its_row_to_the_bit(some: list[dict[str, object]]) -> None:
    """Envelope and data are what the row says, floats exactly, and the key is the entity."""
    events = feature_events(table_of(some), DECLARED, SPEC)
    assert len(events) == len(some)
    for message, row in zip(events, some, strict=True):
        event = json.loads(message.value)
        entity, time, revision = row["entity_id"], row["event_time"], row["revision"]
        prefix = f"{DECLARED.name}/v{DECLARED.version}/{SPEC.text}"
        data = event.pop("data")
        assert event == {
            "specversion": "1.0",
            "id": f"{prefix}/{entity}/{time}/{revision}",
            "source": "/headrace/signals",
            "type": "headrace.features_emitted",
            "datacontenttype": "application/json",
            "time": moment(row["created_at"]),
            "subject": entity,
        }
        assert message.key == str(entity).encode()
        assert dict(message.headers)["content-type"].startswith("application/cloudevents+json")
        expected = {n: v for n, v in row.items() if n != "created_at"}
        expected["window"] = SPEC.text
        hashes = {n: row[n] for n in ("content_hash", "supersedes")}
        expected |= {n: value.hex() for n, value in hashes.items() if isinstance(value, bytes)}
        expected |= {name: moment(row[name]) for name in ("window_start", "event_time", "known_at")}
        assert data == expected
        for name in DECLARED.columns:
            assert isinstance(data[name], int) or not name.endswith("__count")
            if data[name] is not None:
                assert np.signbit(float(data[name])) == np.signbit(float(row[name]))  # type: ignore[arg-type]  # a number
