"""Hypothesis strategies: logs of signals with disorder, duplicates, conflicts, nulls and late events."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.hashes import murmur3_bytes
from operators.records import SignalBatch
from tests.oracles import Event

SECOND = 1_000_000

TWO_SETS = """
[[feature_set]]
name = "fast"
version = 1
fields = ["a", "b"]
windows = ["5s", "6s/2s", "session:3s"]
halflife = "4s"

[[feature_set]]
name = "some"
version = 3
fields = ["b", "c"]
windows = ["2s", "12s/3s"]
halflife = "1m"
statistics = ["count", "mean", "zscore"]
sources = ["plant/*"]
"""


def two_sets() -> FeatureSets:
    """Two feature sets that share a field and differ in windows, halflife, statistics and sources."""
    return parse_feature_sets(TWO_SETS, where="test.toml")


def values(offset: float = 0.0) -> st.SearchStrategy[float | None]:
    """Null, or a finite value of ordinary size, ties included, moved by `offset`.

    Not so small that its square leaves float64's range: a spread that does counts as none.
    """
    plain = st.one_of(st.integers(-3, 3).map(float), st.floats(-1000, 1000).map(lambda x: round(x, 12)))
    return st.one_of(st.none(), plain.map(lambda x: x + offset), plain.map(lambda x: x + offset))


@st.composite
def logs(
    draw: st.DrawFn, *, partitions: int = 3, events_max: int = 60, offset: float = 0.0, span: int = 30
) -> list[Event]:
    """A log: each event goes to a partition; times wander within `span` seconds; keys repeat now and then."""
    out: list[Event] = []
    heads = [0] * partitions
    start = draw(st.integers(0, 3)) * 100 * SECOND
    for _ in range(draw(st.integers(0, events_max))):
        p = draw(st.integers(0, partitions - 1))
        if out and draw(st.integers(0, 9)) == 0:
            again = draw(st.sampled_from(out))
            payload = again.values if draw(st.booleans()) else (("a", draw(values(offset))),)
            entity, time, sequence, source = again.entity, again.time, again.sequence, again.source
        else:
            entity = draw(st.sampled_from(["x", "y", "ключ-😀", "a/../b"]))
            time = start + draw(st.integers(0, span * 4)) * (SECOND // 4) + draw(st.sampled_from([0, 0, 1, 249_999]))
            sequence = draw(st.integers(0, 2))
            source = draw(st.sampled_from([None, "plant/1", "lab"]))
            fields = draw(st.sets(st.sampled_from("abc")))
            payload = tuple((f, draw(values(offset))) for f in sorted(fields))
        heads[p] += draw(st.integers(1, 200))
        out.append(Event(f"p-{p}", heads[p], entity, time, sequence, payload, source))
    return out


def batch_of(events: list[Event], sets: FeatureSets) -> SignalBatch:
    """The columns of events of one partition."""
    names = [e.entity.encode() for e in events]
    lengths = [len(n) for n in names]
    return SignalBatch(
        events[0].partition if events else "none",
        np.frombuffer(b"".join(names), np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([int.from_bytes(murmur3_bytes(n)[:8], "little") for n in names], np.uint64),
        np.array([e.time for e in events], np.int64),
        np.array([e.sequence for e in events], np.int64),
        np.array([e.offset for e in events], np.int64),
        np.array([sets.mask(e.source) for e in events], np.uint64),
        np.array(
            [[np.nan if (x := e.fields.get(f)) is None else x for f in sets.fields] for e in events], np.float64
        ).reshape(len(events), len(sets.fields)),
    )
