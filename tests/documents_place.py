"""Real runs of the document path for tests: folders, small corpora, and what the stores hold afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from dataflows.sources.files import uri_of
from operators.documents import doc_id
from operators.embedders.stub import StubEmbedder
from stores.deadletters import open_dead_letters
from stores.deadletters.port import LetterHead
from stores.metadata import MetadataStore, open_metadata
from stores.metadata.records import ChunkRecord, Document
from stores.vectors import open_vectors
from tests.commands import Done, headrace
from tests.embedding_servers import Answer, ScriptedServer, scripted, vectors
from tests.flows import Place, Run, until

STUB = "stub-384"
SERVED_DIM = 64
SERVED = f"openai-served-{SERVED_DIM}"
"""The space of a server of `serving`."""

ONCE = ("documents", "--once", "--json")
_WORDS = [a + b for a in ("ka", "lo", "mi", "ne", "po", "ru", "su", "ta") for b in ("bin", "dor", "fel", "gan", "hut")]


@dataclass
class Held:
    """What the stores hold in a space. vectors: bytes by key. rows: each chunk, by key."""

    documents: dict[str, Document]
    rows: dict[int, ChunkRecord]
    vectors: dict[int, bytes]

    def texts(self, uri: str) -> list[str]:
        """The texts of a document's chunks, in order."""
        mine = [row for row in self.rows.values() if row.uri == uri]
        return [row.text for row in sorted(mine, key=lambda row: row.ordinal)]

    def keys(self, uri: str) -> set[int]:
        """The keys of a document's chunks."""
        return {key for key, row in self.rows.items() if row.uri == uri}


@dataclass
class DocumentPlace(Place):
    """The folders of one index. docs: the documents, in `root` unless another place shares its own."""

    settings: dict[str, object] = field(default_factory=dict)
    docs_of: Path | None = None

    def __enter__(self) -> Self:
        """Make the folders."""
        super().__enter__()
        self.docs.mkdir(exist_ok=True)
        return self

    @property
    def docs(self) -> Path:
        """The folder of the documents."""
        return self.docs_of or self.root / "docs"

    @property
    def metadata_url(self) -> str:
        """The metadata store."""
        return f"sqlite:///{self.root / 'metadata.db'}"

    @property
    def vectors_folder(self) -> Path:
        """The folder of the vectors."""
        return self.root / "vectors"

    def environment(self, **settings: object) -> dict[str, str]:
        """The settings of a run here; `settings` on top."""
        mine = {
            "INGEST_SOURCES": self.docs,
            "EMBEDDINGS": "stub",
            "METADATA_DB_URL": self.metadata_url,
            "VECTORSTORE_PATH": self.vectors_folder,
            "SOURCE_POLL_INTERVAL_SEC": 0.1,
        }
        return super().environment(**(mine | self.settings | settings))

    def twin(self, name: str) -> DocumentPlace:
        """Empty stores for the same documents."""
        return DocumentPlace(self.root / name, settings=self.settings, docs_of=self.docs)

    def put(self, name: str, content: str | bytes) -> str:
        """Write a document, old or new, all at once, and return its uri."""
        path = self.docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
        return uri_of(str(path))

    def put_all(self, contents: Mapping[str, str | bytes]) -> list[str]:
        """Write documents and return their uris."""
        return [self.put(name, content) for name, content in contents.items()]

    def uri(self, name: str) -> str:
        """The uri of a document."""
        return uri_of(str(self.docs / name))

    def once(self, *options: str, **settings: object) -> Done:
        """Run `headrace documents --once --json` in this process."""
        return headrace(self, *ONCE, *options, **settings)

    def ingest(self, *options: str, **settings: object) -> dict[str, int]:
        """Run it as `once` does and return the counts that are not 0, without `found`; it must go well."""
        [record] = self.once(*options, **settings).records
        return told(record)

    def start(self, *options: str, **settings: object) -> Run:
        """Start `headrace documents --json`, which goes on until it is stopped."""
        return self.headrace("documents", "--json", *options, **{"BUS_FOLLOW": 1, **settings})

    def faulty(self, *faults: str, **settings: object) -> Run:
        """Start `headrace documents --json` with short epochs and faults; see tests/crash/launch.py.

        It ends when everything found is done, unless BUS_FOLLOW=1.
        """
        return self._start(["-m", "tests.crash.launch", "40", *faults, "--", "documents", "--json"], settings)

    def bare_documents(self, *arguments: str, **settings: object) -> Run:
        """Start `python -m bytewax.run dataflows.documents`."""
        return self._start(["-m", "bytewax.run", "dataflows.documents", *arguments], settings)

    def wait_until_indexed(self, run: Run, documents: int) -> None:
        """Wait until so many documents are ready."""

        def ready() -> bool:
            if run.ended or not (self.root / "metadata.db").exists():
                return run.ended
            with self.metadata() as metadata:
                return metadata.counts()["ready"] == documents

        until(ready, f"{documents} documents to be indexed")
        assert not run.ended, run.errors

    @contextmanager
    def metadata(self) -> Iterator[MetadataStore]:
        """The metadata store."""
        with closing(open_metadata(self.metadata_url)) as store:
            yield store

    def held(self, space: str = STUB, *, whole: bool = True) -> Held:
        """What the stores hold; whole: metadata and vectors must have the same keys, and the rows be sound."""
        dim = int(space.rpartition("-")[2])
        with self.metadata() as metadata:
            documents = {}
            for known in metadata.ledger():
                document = metadata.document(doc_id(known.uri))
                assert document is not None
                documents[known.uri] = replace(document, run="")
            keys = metadata.keys(space, limit=1_000_000)
            rows = dict(metadata.chunks(space, keys))
        store = open_vectors(f"usearch:///{self.vectors_folder}", space, dim)
        with closing(store.read()) as reader:
            names = reader.keys()
            found, _ = reader.get(names)
        held = Held(documents, rows, {int(key): row.tobytes() for key, row in zip(names, found, strict=True)})
        if whole:
            assert sorted(held.vectors) == sorted(rows)
            for uri in documents:
                ordinals = sorted(row.ordinal for row in rows.values() if row.uri == uri)
                assert ordinals == list(range(len(ordinals))), uri
        return held

    def letters(self) -> list[LetterHead]:
        """All dead letters, oldest first."""
        path = self.root / "bus" / str(self.settings.get("TOPIC_DLQ", "dlq")) / "deadletters.db"
        with closing(open_dead_letters(f"sqlite:///{path}")) as store:
            return list(store.list(limit=1_000_000))


def told(record: Mapping[str, int]) -> dict[str, int]:
    """The counts of a summary that say that something was done."""
    return {name: count for name, count in record.items() if count and name != "found"}


def prose(seed: object, words: int = 60) -> str:
    """A text of made-up words that is the same for the same seed, and no other's."""
    chance = random.Random(f"{seed}")
    return " ".join([f"text{seed}", *(chance.choice(_WORDS) for _ in range(words))])


def sections(*texts: object, words: int = 30) -> str:
    """Markdown with one section for each seed: cut into a chunk each by CHUNK_SIZE=300."""
    return "".join(f"# Section {text}\n\n{prose(text, words)}\n\n" for text in texts)


@contextmanager
def serving(refuse: str | None = None) -> Iterator[tuple[ScriptedServer, dict[str, object]]]:
    """An embedding server of this process and the settings that use it; `texts_of` tells what it was asked."""
    embedder = StubEmbedder(SERVED_DIM)

    def script(request: dict[str, Any]) -> Answer:
        texts = cast("list[str]", request["input"])
        if refuse is not None and any(refuse in text for text in texts):
            return Answer(400, b'{"error": {"message": "this text is refused", "type": "invalid_request_error"}}')
        return vectors(embedder.embed(texts).astype(np.float64).tolist())

    with scripted(script) as server:
        yield server, served_by(server)


def served_by(server: ScriptedServer) -> dict[str, object]:
    """The settings that use a server."""
    return {
        "EMBEDDINGS": "openai",
        "OPENAI_BASE_URL": server.base_url,
        "EMBEDDING_MODEL": "served",
        "EMBEDDING_DIM": SERVED_DIM,
    }


def texts_of(server: ScriptedServer) -> list[str]:
    """Every text that the server was asked for, in order."""
    return [text for request in server.requests for text in request["input"]]
