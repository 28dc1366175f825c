"""Documents over a real Kafka: from a message to a search, and what kills, outages and strangers leave of that."""

from __future__ import annotations

import base64
import random
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest

from operators.documents import doc_id
from stores.vectors import open_vectors
from stores.vectors.port import shard_of
from tests.commands import headrace
from tests.crash.test_kills import KILLED
from tests.documents_place import SERVED, STUB, DocumentPlace, sections, serving, texts_of
from tests.flows import SOAK, until
from tests.hostile_pdfs import honest
from tests.kafka_server import create_topic, own_broker, produce, produce_all

SMALL = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}
"""A chunk a section of `tests.documents_place.sections`."""

METADATA = "stores.metadata.sqlite:SqliteMetadata"
POINTS = [
    "dataflows.document_events:DocumentEvents.batch:after:1",
    "dataflows.preparing:Preparer.prepare:after:3",
    "stores.index_writer:IndexWriter._write:before:1",
    f"{METADATA}.apply:before:1",
    "stores.metadata.sqlite:apply_change:after:2",
    f"{METADATA}.apply:after:1",
    f"{METADATA}.note_positions:before:1",
    f"{METADATA}.note_positions:after:1",
    "stores.deadletters.sqlite:SqliteDeadLetters.put:after:1",
]
"""Where a run is killed, one after the other."""


def event(kind: str, uri: str, content: str | None = None, **more: object) -> bytes:
    """A CloudEvent in structured form."""
    data = {"uri": uri, **({} if content is None else {"content": content}), **more}
    envelope = {"specversion": "1.0", "id": uuid.uuid4().hex, "source": "/tests", "type": f"com.example.doc_{kind}"}
    return orjson.dumps({**envelope, "data": data})


@contextmanager
def on_kafka(root: Path, address: str, partitions: int = 1) -> Iterator[DocumentPlace]:
    """Empty stores, no files, and a topic of its own."""
    topic = f"docs-{uuid.uuid4().hex}"
    told = {"TOPIC_DLQ": f"{topic}.dlq", "TOPIC_RESULTS": f"{topic}.results"}
    create_topic(address, topic, partitions, beside=list(told.values()))
    kafka = {"KAFKA_BROKERS": address, "TOPIC_DOCS": topic, "KAFKA_CONFIG": "fetch.wait.max.ms=20", **told}
    with DocumentPlace(root / "place", settings={**SMALL, **kafka, "INGEST_SOURCES": "", "BUS_FOLLOW": 0}) as place:
        yield place


@pytest.fixture
def place(tmp_path: Path, kafka: str) -> Iterator[DocumentPlace]:
    """As above, with one partition."""
    with on_kafka(tmp_path, kafka) as made:
        yield made


def send(place: DocumentPlace, *messages: bytes, partition: int = 0) -> None:
    """Produce messages, in order."""
    produce(str(place.settings["KAFKA_BROKERS"]), str(place.settings["TOPIC_DOCS"]), partition, messages)


def found(place: DocumentPlace, query: str) -> list[str]:
    """Uris of the documents whose chunks hold the word."""
    hits = headrace(place, "search", query, "--json", "-k", "9").records
    return [hit["uri"] for hit in hits if query in hit["text"]]


def verified(place: DocumentPlace) -> None:
    """Nothing differs."""
    done = headrace(place, "verify", "documents", "--json")
    assert done.code == 0, done.text


def test_from_a_message_to_a_search_and_away(place: DocumentPlace) -> None:
    """Text, Markdown and PDF come in messages, are found, change, and go; each message ends somewhere."""
    pdf = base64.b64encode(honest(["One page about zebras"], title="Z")).decode()
    send(
        place,
        event("added", "https://wiki/1", sections(1, 2), suffix="md"),
        event("added", "https://wiki/2.txt", "a text about giraffes"),
        event("added", "urn:pdf:7", content_base64=pdf, media_type="application/pdf"),
        event("added", "https://wiki/1", sections(1, 2, 3), suffix="md"),
        b"broken",
    )
    counts = {"added": 3, "chunks": 5, "embedded": 5, "dead": 1, "events": 5, "superseded": 1}
    assert place.ingest() == counts
    assert (found(place, "giraffes"), found(place, "zebras")) == (["https://wiki/2.txt"], ["urn:pdf:7"])
    verified(place)
    assert place.ingest() == {"unchanged": 3}
    send(place, event("deleted", "https://wiki/2.txt"), event("updated", "https://wiki/1", sections(1, 4), suffix="md"))
    assert place.ingest() == {"unchanged": 3, "deleted": 1, "updated": 1, "chunks": 2, "embedded": 1, "events": 2}
    assert (found(place, "giraffes"), found(place, "zebras")) == ([], ["urn:pdf:7"])
    verified(place)
    [letter] = place.letters()
    assert (letter.stage, letter.reason, letter.offset) == ("event", "not_json", 4)


def test_a_lost_recovery_folder_costs_nothing(place: DocumentPlace) -> None:
    """The position is where the documents are; an equal message again embeds nothing."""
    send(place, event("added", "a:1", sections(1)))
    place.ingest()
    for path in sorted(place.recovery.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    send(place, event("updated", "a:1", sections(1)))
    assert place.ingest() == {"unchanged": 1, "events": 1, "repeated": 1}


def test_another_chunk_size_and_another_model(place: DocumentPlace) -> None:
    """Documents are made anew from their messages, and the stores are those of a first run with these settings."""
    messages = [event("added", f"a:{number}", sections(number, number + 50), suffix="md") for number in range(9)]
    send(place, *messages)
    place.ingest()
    place.settings |= {"CHUNK_SIZE": 200}
    assert place.ingest()["updated"] == 9
    with serving() as (_, settings):
        place.settings |= settings
        assert place.ingest()["updated"] == 9
        verified(place)
        with place.twin("twin") as twin:
            twin.ingest()
            assert twin.held(SERVED) == place.held(SERVED)


def test_messages_that_retention_has_taken(place: DocumentPlace) -> None:
    """Documents whose messages are gone are cut anew from what the metadata have, and mended without a loss."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    uris = [f"a:{number}" for number in range(3)]
    send(place, *(event("added", uri, sections(uri, f"{uri}-b"), suffix="md") for uri in uris))
    place.ingest()
    topic = str(place.settings["TOPIC_DOCS"])
    admin = AdminClient({"bootstrap.servers": str(place.settings["KAFKA_BROKERS"]), "log_level": 0})
    admin.delete_records([TopicPartition(topic, 0, 3)])[TopicPartition(topic, 0)].result(30)
    before = place.held()
    verified(place)
    assert place.ingest() == {"unchanged": 3}
    assert place.ingest(CHUNK_SIZE=200) == {"updated": 3, "chunks": 12, "embedded": 12}
    assert place.ingest()["updated"] == 3
    again = place.held()
    for uri in uris:  # where a chunk was cut a blank may have become a line feed
        assert [text.split() for text in again.texts(uri)] == [text.split() for text in before.texts(uri)]
    before = again
    store = open_vectors(f"usearch:///{place.vectors_folder}", STUB, 384)
    key = min(before.keys(uris[1]))
    with closing(store.write(shard_of(doc_id(uris[1]), store.shards))) as writer:
        writer.delete(np.array([key], np.uint64))
        writer.commit()
    assert headrace(place, "verify", "documents").code == 1
    assert headrace(place, "verify", "documents", "--repair").code == 0
    assert place.held() == before
    send(place, event("added", "a:9", sections(9)))
    assert place.ingest() == {"added": 1, "unchanged": 3, "chunks": 1, "embedded": 1, "events": 1}


def test_files_and_hints(place: DocumentPlace) -> None:
    """A hint is followed at once, long before the next look; files and messages live side by side."""
    place.settings |= {"INGEST_SOURCES": place.docs, "SOURCE_POLL_INTERVAL_SEC": 3600}
    uri = place.put("a.md", sections(1))
    send(place, event("added", "a:1", sections(2)))
    run = place.start()
    place.wait_until_indexed(run, 2)
    place.put("a.md", sections(3))
    fresh = place.put("b.md", sections(4))
    send(place, event("updated", uri), event("added", fresh), event("updated", "file:///etc/passwd"))
    place.wait_until_indexed(run, 3)
    until(lambda: found(place, "text3") == [uri], "the change to be found")
    record = run.stop()
    assert (record["found"], record["added"], record["updated"], record["dead"]) == (3, 3, 1, 1)
    assert [(letter.stage, letter.reason) for letter in place.letters()] == [("event", "outside")]
    verified(place)
    assert place.ingest("--allow-mass-delete") == {"unchanged": 3}


def test_a_refused_message_is_replayed(place: DocumentPlace) -> None:
    """It goes back to its own topic, and is good once what was wrong is mended."""
    uri = place.put("a.md", sections(1))
    send(place, event("updated", uri))
    assert place.ingest() == {"dead": 1, "events": 1}
    [replayed] = headrace(place, "dlq", "replay", "--all", "--json").records
    assert replayed["replayed"] == 1
    assert place.letters() == []
    place.settings |= {"INGEST_SOURCES": place.docs}
    assert place.ingest() == {"added": 1, "chunks": 1, "embedded": 1, "events": 1, "repeated": 1}


def test_a_topic_that_is_not_there(tmp_path: Path, kafka: str) -> None:
    """There is nothing to read, and that is no failure."""
    with on_kafka(tmp_path, kafka) as place:
        place.settings["TOPIC_DOCS"] = f"none-{uuid.uuid4().hex}"
        assert place.ingest() == {}


@pytest.mark.parametrize("seed", range(1 + 3 * SOAK))
def test_killed_again_and_again(tmp_path: Path, kafka: str, seed: int) -> None:
    """At named points and at any time, while messages go on: the end is that of the log, nothing is embedded twice."""
    chance = random.Random(seed)
    wanted: dict[str, str] = {}
    with on_kafka(tmp_path, kafka, 3) as place, serving() as (server, settings):
        place.settings |= {**settings, "MAX_EMBED_BATCH": 5}
        number = 0
        for point in (*POINTS, None, None):
            messages = [(0, b"broken")]
            for _ in range(12):
                number += 1
                name = chance.randrange(20)
                uri, text = f"a:{name}", sections(f"{seed}-{number}", f"{seed}-{number}-b", words=20)
                goes = uri in wanted and chance.random() < 0.3
                messages.append((name % 3, event("deleted", uri) if goes else event("added", uri, text, suffix="md")))
                if wanted.pop(uri, None) is None or not goes:
                    wanted[uri] = text
            produce_all(kafka, str(place.settings["TOPIC_DOCS"]), messages)
            begin, kept = len(texts_of(server)), committed(place)
            if point is not None:
                run = place.faulty(point, STREAM_CONCURRENCY=1 + number % 3)
                assert run.wait() == KILLED, (point, run.errors)
            else:
                run = place.faulty(BUS_FOLLOW=1)
                until(lambda: run.ended or '"started"' in run.errors, "the run to start")  # noqa: B023  # called at once
                assert run.lives_for(chance.uniform(0, 0.5)), run.errors
                run.kill()
            assert kept.isdisjoint(texts_of(server)[begin:]), point
        begin, kept = len(texts_of(server)), committed(place)
        place.ingest()
        assert kept.isdisjoint(texts_of(server)[begin:])
        held = place.held(SERVED)
        texts = {uri: " ".join(held.texts(uri)).split() for uri in held.documents}
        assert texts == {uri: text.split() for uri, text in wanted.items()}
        verified(place)
        assert len(place.letters()) == len(POINTS) + 2
        assert place.ingest() == {"unchanged": len(wanted)}
        with place.twin("twin") as twin:
            twin.ingest()
            assert twin.held(SERVED) == held


def committed(place: DocumentPlace) -> set[str]:
    """The texts that the metadata hold, so that their vectors are there."""
    if not (place.root / "metadata.db").exists():
        return set()
    with place.metadata() as metadata:
        if SERVED not in {space.name for space in metadata.spaces()}:
            return set()
        return {row.text for row in metadata.chunks(SERVED, metadata.keys(SERVED, limit=1_000_000)).values()}


def test_a_broker_that_is_away_for_a_while(tmp_path: Path) -> None:
    """A run that follows waits for it, says so once, and goes on by itself; files are seen to meanwhile."""
    with own_broker(tmp_path) as broker, on_kafka(tmp_path, broker.address) as place:
        place.settings |= {"INGEST_SOURCES": place.docs, "KAFKA_RESULTS": 0}  # else each document waits to be told of
        send(place, event("added", "a:1", sections(1)))
        run = place.start()
        place.wait_until_indexed(run, 1)
        broker.kill()
        until(lambda: "bus away" in run.errors, "the absence to be noticed")
        place.put("a.md", sections(2))
        place.wait_until_indexed(run, 2)
        broker.start()
        send(place, event("added", "a:2", sections(3)))
        place.wait_until_indexed(run, 3)
        assert run.errors.count("bus away") == 1
        run.stop()
        verified(place)
