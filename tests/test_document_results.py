"""What Kafka is told of documents: at least once, with ids that a repeat has too."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from operators.documents import doc_id
from tests.documents_place import DocumentPlace
from tests.kafka_flows import consume_all
from tests.kafka_server import create_topic


@pytest.fixture
def place(tmp_path: Path, kafka: str) -> Iterator[DocumentPlace]:
    """A folder of documents and topics to tell of them."""
    name = f"docs-{uuid.uuid4().hex}"
    told = {"TOPIC_DLQ": f"{name}.dlq", "TOPIC_RESULTS": f"{name}.results"}
    create_topic(kafka, name, beside=list(told.values()))
    settings: dict[str, object] = {
        "KAFKA_BROKERS": kafka,
        "TOPIC_DOCS": name,
        "KAFKA_CONFIG": "fetch.wait.max.ms=20",
        **told,
    }
    with DocumentPlace(tmp_path / "place", settings=settings) as made:
        yield made


def results(place: DocumentPlace) -> list[dict[str, Any]]:
    """All results, in order."""
    messages = consume_all(str(place.settings["KAFKA_BROKERS"]), str(place.settings["TOPIC_RESULTS"]))
    events = [orjson.loads(value) for _, value, _ in messages]
    assert [key for key, _, _ in messages] == [event["subject"].encode() for event in events]
    return events


def kinds(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(type, name of the file) of each."""
    return [(event["type"].removeprefix("headrace."), event["data"]["uri"].rpartition("/")[2]) for event in events]


def test_indexed_failed_and_deleted_documents_are_told(place: DocumentPlace) -> None:
    """Each change once, keyed by the document; what is unchanged is not told again."""
    place.put_all({"a.md": "words", "b.md": "other words", "c.pdf": b"no pdf"})
    place.ingest()
    first = results(place)
    assert sorted(kinds(first)) == [("doc_failed", "c.pdf"), ("doc_indexed", "a.md"), ("doc_indexed", "b.md")]
    (a,) = [event["data"] for event in first if event["data"]["uri"] == place.uri("a.md")]
    assert (a["doc_id"], a["title"], a["chunks"]) == (doc_id(place.uri("a.md")), "a.md", 1)
    place.ingest()
    assert results(place) == first
    (place.docs / "b.md").rename(place.docs / "d.md")
    (place.docs / "a.md").unlink()
    place.ingest()
    assert sorted(kinds(results(place)[3:])) == [
        ("doc_deleted", "a.md"),
        ("doc_deleted", "b.md"),
        ("doc_indexed", "d.md"),
    ]
    ((_, original, headers),) = consume_all(str(place.settings["KAFKA_BROKERS"]), str(place.settings["TOPIC_DLQ"]))
    assert orjson.loads(original)["uri"] == place.uri("c.pdf")
    assert headers["ce_stage"] == "extract"


def test_what_a_crash_cuts_short_is_told_again_under_the_same_id(place: DocumentPlace) -> None:
    """Killed between telling and remembering: told twice, one id; killed before: told by the next run."""
    index = "stores.index_writer:IndexWriter"
    place.put("a.md", "words")
    for fault in (f"{index}._write:before:1", "dataflows.announcing:DocumentAnnouncer.changing:after:1"):
        assert place.faulty(fault).wait() == -signal.SIGKILL
    place.ingest()
    events = results(place)
    assert kinds(events) == [("doc_indexed", "a.md")] * 2
    assert len({event["id"] for event in events}) == 1
