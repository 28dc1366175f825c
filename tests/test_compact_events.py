"""Events kept in few bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.compact import compacted, gathered, of_rows
from operators.order import Pending

INT64 = st.integers(-(2**63), 2**63 - 1)
DECIMAL = st.builds(lambda whole, digits: whole / 10**digits, st.integers(-(2**52), 2**52), st.integers(0, 10))
VALUE = st.one_of(DECIMAL, st.sampled_from([np.nan, 0.0, -0.0]), st.floats())
EVENT = st.tuples(
    st.integers(0, 5), INT64, INT64, st.integers(0, 2**31 - 1), INT64, st.integers(0, 2**64 - 1), VALUE, DECIMAL
)


@given(st.lists(EVENT, min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_compact_events_are_those_they_were_made_of_to_the_bit(events: list[tuple[float, ...]]) -> None:
    """Any numbers, nulls, signed zeros and values that are no decimals come back as they were, also from rows."""
    columns = tuple(zip(*events, strict=True))
    dtypes = (np.int32, np.int64, np.int64, np.int32, np.int64, np.uint64)
    whole = (np.array(c, d) for c, d in zip(columns[:6], dtypes, strict=True))
    pending = Pending(*whole, np.array(columns[6:], np.float64).T.copy())  # type: ignore[call-arg]  # in their order
    compact = compacted(pending)
    for each in (compact, of_rows(compact.entity, compact.rows(), compact.layout)):
        found = gathered([each], np.arange(6, dtype=np.int32), 2)
        assert [c.tobytes() for c in found] == [c.tobytes() for c in pending]


def test_decimals_and_neighbouring_numbers_take_few_bytes() -> None:
    """1,000 events a second apart with values of two digits take 10 bytes each beside the entity."""
    index = np.arange(1000)
    values = np.round(20 + index[:, None] / 100, 2)
    same = np.zeros(1000, np.int32)
    events = Pending(same, index * 1_000_000, index, same, index, np.ones(1000, np.uint64), values)
    assert compacted(events).stride == 4 + 2 + 2 + 2
