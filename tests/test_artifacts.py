from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from dataflows import artifacts
from dataflows.artifacts import SCHEMA
from stores.offline.disk import locked
from stores.vectors import open_vectors
from tests.commands import Done, headrace
from tests.documents_place import STUB, DocumentPlace, sections, serving

SETTINGS: dict[str, object] = {"CHUNK_SIZE": 300, "CHUNK_OVERLAP": 0}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DocumentPlace]:
    """A place where some documents were indexed."""
    with DocumentPlace(tmp_path / "place", settings=SETTINGS) as made:
        made.put_all(
            {
                "b.md": sections("b1", "b2"),
                "a.md": sections("a1", "a2", "a3"),
                "ключ.txt": "naïve café 😀",
                "empty.txt": "",
                "dead.pdf": "this is no PDF",
            }
        )
        made.ingest()
        yield made


def backfill(place: DocumentPlace, *options: str, **settings: object) -> Done:
    """Run `headrace backfill documents`."""
    return headrace(place, "backfill", "documents", "--out", str(place.root / "out"), *options, **settings)


def written(place: DocumentPlace, *options: str) -> dict[str, Any]:
    """Its record, which has fixed names."""
    [record] = backfill(place, "--json", *options).records
    assert list(record) == ["version", "rows", "digest", "path", "format"]
    return record


def rows_of(path: str) -> list[dict[str, Any]]:
    """The rows of an artifact."""
    if path.endswith(".parquet"):
        table = parquet.read_table(path)
        assert table.schema.equals(SCHEMA)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def test_both_formats_hold_what_the_index_holds(place: DocumentPlace) -> None:
    """A row a chunk by uri and ordinal, with every column, and the vector as the index gives it to the bit."""
    held = place.held()
    one, other = written(place), written(place, "--format", "jsonl")
    rows = rows_of(one["path"])
    assert [(row["uri"], row["ordinal"]) for row in rows] == sorted((r.uri, r.ordinal) for r in held.rows.values())
    assert len(rows) == one["rows"] == 6
    for row, line in zip(rows, rows_of(other["path"]), strict=True):
        record, document = held.rows[row["key"]], held.documents[row["uri"]]
        assert list(row) == list(line) == SCHEMA.names
        assert np.array(row["embedding"], np.float32).tobytes() == held.vectors[row["key"]]
        assert np.array(line["embedding"], np.float32).tobytes() == held.vectors[row["key"]]
        assert {**row, "embedding": None} == {**line, "embedding": None}
        assert (row["text"], row["length"], row["offset"]) == (record.text, len(record.text), record.offset)
        assert (row["page"], tuple(row["heading"]), row["space"]) == (record.page, record.heading, STUB)
        assert (row["doc_id"], row["title"]) == (document.doc_id, document.title)
        assert (row["content_hash"], row["media_type"]) == (document.content_hash, document.media_type)
    assert one["digest"] == other["digest"]
    assert pa.types.is_float32(SCHEMA.field("embedding").type.value_type)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_same_content_is_the_same_version(place: DocumentPlace, form: str) -> None:
    """Written again it is the same bytes and the same version; an edit is the next one, and replaces the file."""
    first = written(place, "--format", form)
    data = Path(first["path"]).read_bytes()
    assert written(place, "--format", form) == first
    assert Path(first["path"]).read_bytes() == data
    place.put("b.md", sections("b1", "other"))
    place.ingest()
    second = written(place, "--format", form)
    assert (first["version"], second["version"]) == (1, 2)
    assert (second["path"], second["rows"]) == (first["path"], first["rows"])
    assert second["digest"] != first["digest"]
    assert sum("other" in row["text"] for row in rows_of(second["path"])) == 1
    with place.metadata() as metadata:
        versions = metadata.versions("documents")
        assert [(v.version, v.digest, v.format) for v in versions] == [
            (1, first["digest"], form),
            (2, second["digest"], form),
        ]
        assert versions[1].run == metadata.runs(1)[0].run


def test_an_index_made_anew_has_the_same_digest(place: DocumentPlace) -> None:
    """The digest is that of the content: another store of the same documents, filled in another order, has it too."""
    first = written(place)
    with place.twin("twin") as twin:
        assert twin.ingest(SOURCE_INCLUDE="**/*.txt")["added"] == 2
        assert twin.ingest()["added"] == 2
        second = written(twin)
    assert (second["digest"], second["rows"]) == (first["digest"], first["rows"])
    assert Path(second["path"]).read_bytes() == Path(first["path"]).read_bytes()


def test_row_groups_are_of_one_size(place: DocumentPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written in groups, however many a document has, so that memory does not grow with the index."""
    monkeypatch.setattr(artifacts, "_GROUP_ROWS", 4)
    path = written(place)["path"]
    file = parquet.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 2]
    assert len(rows_of(path)) == 6


def test_a_chunk_without_a_vector_has_none(place: DocumentPlace) -> None:
    """Where the vector is lost the row is there all the same, with null in its place."""
    held = place.held()
    key = next(iter(sorted(held.rows)))
    store = open_vectors(f"usearch:///{place.vectors_folder}", STUB, 384)
    for shard in range(store.shards):
        writer = store.write(shard)
        writer.delete(np.array([key], np.uint64))
        writer.commit()
        writer.close()
    for form in ("parquet", "jsonl"):
        rows = rows_of(written(place, "--format", form)["path"])
        assert [row["key"] for row in rows if row["embedding"] is None] == [key]


def test_it_writes_the_space_that_searches_are_answered_from(place: DocumentPlace) -> None:
    """With settings of another model whose space is not made yet, the artifact is of the one that is active."""
    first = written(place)
    with serving() as (_, settings):
        assert backfill(place, "--json", **settings).records == [first]


def test_a_failure_leaves_what_was_there(place: DocumentPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the writing half-way, the old file stays whole, no draft is left, and no version is kept."""
    first = written(place)
    before = Path(first["path"]).read_bytes()
    place.put("b.md", sections("b1", "other"))
    place.ingest()

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "_line", full)
        done = backfill(place, "--json")
    assert (done.code, done.out, "the disk is full" in done.err) == (1, b"", True)
    assert Path(first["path"]).read_bytes() == before
    assert not list(Path(first["path"]).parent.glob("*.new"))
    assert written(place)["version"] == 2


def test_two_at_once_and_a_folder_that_is_none(place: DocumentPlace) -> None:
    """A second writer of the same file, a file where the folder should be, an unknown format: one sentence, code 2."""
    path = Path(written(place)["path"])
    with locked(path.with_name(f".{path.name}.lock")):
        done = backfill(place)
    assert (done.code, "is being written by another run" in done.err) == (2, True)
    done = headrace(place, "backfill", "documents", "--out", str(path))
    assert (done.code, done.err.count("\n"), "cannot be written" in done.err) == (2, 1, True)
    assert backfill(place, "--format", "csv").code == 2
    assert headrace(place, "backfill", "documents").code == 2


def test_before_anything_was_indexed(tmp_path: Path) -> None:
    """Without an index there is nothing to write: exit code 2, and neither stores nor folder are made."""
    with DocumentPlace(tmp_path / "place") as place:
        before = sorted(place.root.rglob("*"))
        done = backfill(place)
        assert (done.code, done.out, "holds no chunks yet" in done.err) == (2, b"", True)
        assert sorted(place.root.rglob("*")) == before


def test_people_read_where_it_is(place: DocumentPlace) -> None:
    """For people: version, chunks, digest and path, each with its meaning."""
    text = backfill(place, COLUMNS=200).text
    assert [line.split()[0] for line in text.splitlines()] == ["version", "rows", "digest", "path", "format"]
    assert "chunks" in text
    assert str(place.root / "out" / "documents.parquet") in text
