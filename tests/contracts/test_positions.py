"""What every metadata store promises of the positions in topics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stores.metadata import open_metadata
from stores.metadata.port import MetadataStore


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    """One open store with nothing in it."""
    opened = open_metadata(f"{request.param}:///{tmp_path}/metadata.db")
    yield opened
    opened.close()


def test_positions_are_kept_by_topic_and_partition(store: MetadataStore) -> None:
    """The newest of each; what is not named stays; nothing of documents shows in them."""
    assert store.positions("docs") == {}
    store.note_positions("docs", {"0": {"offset": 7, "topic_id": "x"}, "1": {"offset": 0}})
    store.note_positions("docs", {"0": {"offset": 8, "topic_id": "é"}, "2": {"offset": 1}})
    store.note_positions("others", {"0": {"offset": 1}})
    store.note_positions("docs", {})
    expected = {"0": {"offset": 8, "topic_id": "é"}, "1": {"offset": 0}, "2": {"offset": 1}}
    assert store.positions("docs") == expected
    assert store.positions("others") == {"0": {"offset": 1}}
    assert list(store.ledger()) == []


def test_a_closed_store_says_so(store: MetadataStore) -> None:
    """After close every call is a ValueError."""
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.positions("docs")
    with pytest.raises(ValueError, match="closed"):
        store.note_positions("docs", {})
