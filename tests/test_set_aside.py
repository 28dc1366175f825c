"""Late events as messages: each can be fed in again as it is."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pyarrow as pa
import pytest

from dataflows.buses.memory import MemoryBus
from dataflows.set_aside import late_at_shard_messages, late_message
from operators.decode import Decoder
from operators.messages import Message
from operators.shard import take
from operators.windows import LateAtShard
from tests.arrow_streams import columns, stream
from tests.messages import chunk_of
from tests.strategies import two_sets

SETS = two_sets()
SIGNAL = {"entity_id": "x", "event_time": 1_700_000_000_000, "sequence": 7, "payload": {"a": 1.5}, "unit": "m"}
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}


@pytest.mark.parametrize(
    "original",
    [
        orjson.dumps(SIGNAL),
        orjson.dumps({**SIGNAL, "specversion": "1.0"}),
        orjson.dumps({**ENVELOPE, "data": SIGNAL}),
        orjson.dumps({**ENVELOPE, "data_base64": base64.b64encode(orjson.dumps(SIGNAL)).decode()}),
    ],
    ids=["bare", "bare with specversion", "envelope", "envelope in base64"],
)
def test_a_late_event_keeps_its_content_in_every_envelope(original: bytes) -> None:
    """The late topic holds the signal, whatever it was wrapped in, and it decodes to the same signal again."""
    first = Decoder(SETS).decode(chunk_of([original]))
    assert first.rejects == ()
    message = late_message(original, "signals", first.batch, 0, "late").value
    again = Decoder(SETS).decode(chunk_of([message]))
    assert again.rejects == ()
    assert again.batch.entity(0) == "x"
    assert np.array_equal(again.batch.values, first.batch.values, equal_nan=True)
    assert orjson.loads(message)["data"]["unit"] == "m"


def test_events_late_at_their_shard_are_found_again() -> None:
    """Each comes with its own content, as a message or as the row of one, under an id of its own."""
    rows = [{**SIGNAL, "event_time": 10**15 + i // 2, "sequence": i // 2, "payload": {"a": float(i)}} for i in range(8)]
    messages = [orjson.dumps(SIGNAL), stream(pa.table(columns(rows, ["a"]))), orjson.dumps({**SIGNAL, "sequence": 8})]
    bus = MemoryBus()
    bus.append("signals", "p0", [Message(m) for m in messages], at=0)
    reader = bus.reader("signals", "p0", None)
    chunk = reader.poll(10)
    assert chunk is not None
    batch = Decoder(SETS).decode(chunk).batch
    late = LateAtShard(take(batch, np.array([0, 3, 4, 7, 8, 9])), "idle", 0)
    events = [orjson.loads(message.value) for message in late_at_shard_messages(late, "signals", bus, SETS)]
    places = ["0", "1/2", "1/3", "1/6", "1/7", "2"]
    assert [event["id"] for event in events] == [f"signals/p0/{place}" for place in places]
    assert [event["data"]["payload"]["a"] for event in events] == [1.5, 2, 3, 6, 7, 1.5]
