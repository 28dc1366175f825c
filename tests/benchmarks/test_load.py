from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from tests.benchmarks.events import FIELDS, START_US, Load, write_events
from tests.benchmarks.fresh import measure


def test_load_is_what_it_says(tmp_path: Path) -> None:
    """Events of about 220 bytes, an entity in one partition only, at its rate, and out of order within the limit."""
    load = Load(count=20_000, entities=100, rate_hz=10, partitions=3)
    paths = write_events(tmp_path, load)
    owners: dict[str, set[str]] = {}
    keys = set()
    for path in paths:
        signals = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        times = np.array([s["event_time"].removesuffix("Z") for s in signals], "datetime64[us]").astype(np.int64)
        behind = np.maximum.accumulate(times) - times
        assert 0 < behind.max() <= load.disorder_us
        assert times.min() >= START_US
        assert times.max() < START_US + load.span_us
        assert all(tuple(s["payload"]) == FIELDS for s in signals)
        for signal in signals:
            owners.setdefault(signal["entity_id"], set()).add(path.name)
            keys.add((signal["entity_id"], signal["sequence"]))
    assert len(owners) == load.entities
    assert {len(files) for files in owners.values()} == {1}
    assert len(keys) == load.count
    assert sum(p.stat().st_size for p in paths) / load.count == pytest.approx(220, abs=6)


def test_same_load_same_bytes(tmp_path: Path) -> None:
    """The bytes are a function of the load, also when every reading of a round shares one millisecond."""
    (tmp_path / "again").mkdir()
    load = Load(count=3_000, entities=7_919, rate_hz=10)
    first, again = (write_events(folder, load)[0].read_bytes() for folder in (tmp_path, tmp_path / "again"))
    assert first == again
    assert len(first.splitlines()) == load.count


@pytest.mark.parametrize("peer", ["bare_loop", "native_bytewax", "pyarrow_json"])
def test_peers_use_every_event(tmp_path: Path, peer: str) -> None:
    """Each peer, in a process of its own, takes all the events it is given and says how long that took."""
    paths = write_events(tmp_path, Load(count=2_000, entities=20, rate_hz=10, partitions=2))
    measured = measure(f"tests.benchmarks.peers:{peer}", paths=[str(p) for p in paths], limit=1_000)
    assert measured.events == 1_000
    assert 0 < measured.seconds < 60
    assert measured.peak_bytes > 10_000_000
