"""Late events as messages: each can be fed in again as it is."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest

from dataflows.set_aside import late_message
from operators.decode import Decoder
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
    message = late_message(original, "signals", first.batch, 0, "late")
    again = Decoder(SETS).decode(chunk_of([message]))
    assert again.rejects == ()
    assert again.batch.entity(0) == "x"
    assert np.array_equal(again.batch.values, first.batch.values, equal_nan=True)
    assert orjson.loads(message)["data"]["unit"] == "m"
