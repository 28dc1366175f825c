from __future__ import annotations

from pathlib import Path

import pytest

from tests.asof_stores import FEASTS, OURS
from tests.benchmarks.asof import write_history
from tests.benchmarks.fresh import measure


@pytest.mark.parametrize(("store", "known"), [(OURS, "now"), (OURS, "then"), (FEASTS, "now")])
def test_every_entity_row_is_answered(tmp_path: Path, store: str, known: str) -> None:
    """Each way of reading, in a process of its own, answers all that it is asked and says how long that took."""
    write_history(tmp_path / "rows", 10, 1_000)
    arguments = {"store": store, "known": known, "entities": 10, "entity_rows": 200, "feature_rows": 1_000}
    measured = measure("tests.benchmarks.asof:join", folder=str(tmp_path / "rows"), **arguments)
    assert measured.events == 200
    assert 0 < measured.seconds < 60
