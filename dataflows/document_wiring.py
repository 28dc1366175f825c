"""Settings → the opened ports of the document path: the only place that picks an adapter for it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from dataflows.announcing import DocumentAnnouncer
from dataflows.document_events import DocumentEvents
from dataflows.document_flow import DocumentPlan
from dataflows.document_source import DocumentSourcePlan
from dataflows.embedders import open_embedder
from dataflows.embedders.openai import OPENAI_URL, OpenAIServer
from dataflows.engine import STOP
from dataflows.extraction import Extraction
from dataflows.preparing import Preparer, Stages
from dataflows.sources import open_sources
from dataflows.sources.sieve import without_forgotten
from dataflows.sources.topic import TopicSource
from dataflows.wiring import bus_of, dead_letters_of, forgotten_of, outlets_of
from operators.chunk import Chunker
from operators.errors import CorruptStoreError
from operators.extract import ExtractLimits
from stores.metadata import open_metadata
from stores.patience import Patience
from stores.sqlite import sqlite_path
from stores.vectors import drop_vectors, open_vectors

if TYPE_CHECKING:
    from dataflows.buses.port import WritableBus
    from dataflows.config import Settings
    from dataflows.progress import Progress
    from dataflows.sources.discovery import Discovery
    from dataflows.sources.port import Source
    from operators.embedders.port import Embedder
    from stores.metadata.port import MetadataStore
    from stores.metadata.records import Space
    from stores.vectors.port import VectorStore

_FETCHERS = 8
"""Threads that prepare documents; most of them wait for a disk, a server or a process that reads PDFs."""


@dataclass(frozen=True, slots=True)
class DocumentParts:
    """The opened ports of the document path. Closed by whoever opened them.

    sources: all of them. topic: the one among them whose documents come in messages, told: the bus that hears of all
    documents, if KAFKA_BROKERS are set.
    """

    sources: tuple[Source, ...]
    stages: Stages
    embedder: Embedder
    metadata: MetadataStore
    vectors: VectorStore
    topic: TopicSource | None = None
    told: WritableBus | None = None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def server_for_search(settings: Settings) -> OpenAIServer | None:
    """The server that may be asked for the model of another space; None if the settings name none."""
    named = settings.embeddings == "openai" or settings.openai_api_key or settings.openai_base_url != OPENAI_URL
    return server_of(settings) if named else None


def server_of(settings: Settings) -> OpenAIServer:
    """The embedding server of the settings; nobody is called."""
    return OpenAIServer(
        model=settings.embedding_model,
        base_url=settings.openai_base_url,
        key=settings.openai_api_key,
        dim=settings.embedding_dim,
        batch_max=settings.max_embed_batch,
    )


def embedder_of(settings: Settings) -> Embedder:
    """The embedder of the settings."""
    server = server_of(settings) if settings.embeddings == "openai" else None
    return open_embedder(settings.embeddings, server=server, threads=cores())


def sources_of(settings: Settings) -> tuple[Source, ...]:
    """The sources of INGEST_SOURCES. Raises ConfigError if there is none, and no topic either."""
    if settings.kafka_brokers and not _listed(settings.ingest_sources):
        return ()
    return open_sources(
        _listed(settings.ingest_sources),
        include=_listed(settings.source_include),
        exclude=_listed(settings.source_exclude),
    )


def metadata_of(settings: Settings) -> MetadataStore:
    """What is known of documents and chunks."""
    return open_metadata(settings.metadata_db_url)


def metadata_as_it_is(settings: Settings) -> MetadataStore:
    """What is known of documents and chunks; a file that is not there is not made, and nothing is known then."""
    path = sqlite_path(settings.metadata_db_url) if settings.metadata_db_url.startswith("sqlite:") else None
    return metadata_of(settings) if path is None or path.exists() else open_metadata("memory:")


def vectors_url(settings: Settings) -> str:
    """Where vectors are kept."""
    return f"{settings.vectorstore_backend}:///{quote(str(settings.vectorstore_path))}"


def vectors_of(settings: Settings, space: str, dim: int) -> VectorStore:
    """The vectors of a space."""
    return open_vectors(vectors_url(settings), space, dim, element=settings.vectorstore_element)


def stages_of(settings: Settings, embedder: Embedder, extraction: Extraction) -> Stages:
    """All that shapes chunks and vectors. Raises ConfigError for sizes that do not fit."""
    tokenizer = None
    if settings.chunk_unit == "tokens" and settings.embeddings == "local":
        from tokenizers import Tokenizer

        from dataflows.embedders.model_files import load_minilm

        tokenizer = Tokenizer.from_str(load_minilm().tokenizer)
    chunker = Chunker(settings.chunk_size, settings.chunk_overlap, settings.chunk_unit, tokenizer)
    return Stages(extraction, settings.pii_redaction, chunker, embedder.space)


@contextmanager
def open_parts(settings: Settings, *, make: bool = True) -> Iterator[DocumentParts]:
    """Open the ports of the document path, and close them at the end.

    make: whether a metadata store that is not there is made; otherwise nothing is.
    """
    with ExitStack() as opened:
        sources = without_forgotten(sources_of(settings), forgotten_of(settings))
        embedder = opened.enter_context(closing(embedder_of(settings)))
        limits = ExtractLimits(size_bytes=settings.document_bytes_max)
        extraction = opened.enter_context(Extraction(pdf=settings.pdf_extractor, workers=cores(), limits=limits))
        stages = stages_of(settings, embedder, extraction)
        metadata = opened.enter_context(closing(metadata_of(settings) if make else metadata_as_it_is(settings)))
        vectors = vectors_of(settings, embedder.space, embedder.dim)
        topic = told = None
        if settings.kafka_brokers:
            bus = opened.enter_context(closing(bus_of(settings)))
            told = opened.enter_context(closing(bus_of(settings, at_least_once=True)))
            topic = TopicSource(bus, settings.topic_docs, metadata, event_bytes_max=settings.event_bytes_max)
            sources = (*sources, topic)
        yield DocumentParts(sources, stages, embedder, metadata, vectors, topic, told)


@dataclass(frozen=True, slots=True)
class DocumentRun:
    """One run over documents: its name in the metadata, and whether it removes the vectors that no document names.

    It does unless the one before it ended well and wrote the same space: what was removed while another one was built
    still has vectors in this one, and vectors may be older than the metadata.
    """

    name: str
    sweep: bool
    reshaped: bool = False
    """Whether the last run that ended well made other texts, whose words are to be forgotten."""

    @staticmethod
    def start(parts: DocumentParts, *, sweep: bool = False) -> DocumentRun:
        """Note that a run begins, and make sure that its space is there. sweep: whatever became of the one before."""
        space = parts.embedder.space
        last = parts.metadata.runs()
        clean = bool(last) and last[0].ended_us is not None and last[0].shape.partition("/")[2] == space
        ended = next((run for run in last if run.ended_us is not None), None)
        reshaped = ended is not None and ended.shape.partition("/")[0] != parts.stages.text_shape
        if not sweep:
            _check_vectors(parts)
        parts.metadata.add_space(space)
        run = DocumentRun(uuid.uuid4().hex[:12], sweep or not clean, reshaped)
        parts.metadata.start_run(run.name, started_us=_now_us(), shape=parts.stages.shape)
        return run

    def end(self, parts: DocumentParts, progress: Progress) -> None:
        """Note that the run has ended well. One that left a sweep undone counts as dead: the next one sweeps."""
        if progress.sweeps or not self.sweep:
            parts.metadata.end_run(self.name, ended_us=_now_us(), counts=progress.record())


def document_plan(  # noqa: PLR0913  # what a run is made of, each once
    settings: Settings,
    parts: DocumentParts,
    run: DocumentRun,
    progress: Progress,
    *,
    once: bool,
    allow_mass_delete: bool,
    away: dict[str, str],
) -> DocumentPlan:
    """Lay out a run. away: is told the sources that the newest look could not list, and why."""
    patience = Patience(sleep=STOP.wait)
    reshaped = run.reshaped

    def building() -> bool:
        return parts.metadata.active_space() != parts.embedder.space

    def finished(found: Discovery) -> bool:
        nonlocal reshaped
        was_building = building()
        away.clear()
        away.update({name: str(error) for name, error in found.failed.items()})
        if reshaped:
            parts.metadata.mend_text()
            reshaped = False
        switch_space(settings, parts)
        return was_building and not building() and bool(found.work.renamed)

    preparer = Preparer(
        sources={source.name: source for source in parts.sources},
        stages=parts.stages,
        metadata=parts.metadata,
        patience=Patience(tries_max=6, sleep=STOP.wait),
        run=run.name,
        limit_bytes=settings.document_bytes_max,
    )
    source = DocumentSourcePlan(
        sources=parts.sources,
        preparer=preparer,
        progress=progress,
        fetchers=_FETCHERS,
        stop=STOP,
        once=once,
        poll_s=settings.source_poll_interval_sec,
        allow_mass_delete=allow_mass_delete,
        sweep=run.sweep,
        building=building,
        finished=finished,
        events=events_of(settings, parts),
    )
    return DocumentPlan(
        source=source,
        embedder=parts.embedder,
        vectors=parts.vectors,
        metadata=parts.metadata,
        dead_letters=dead_letters_of(settings),
        announcer=announcer_of(settings, parts),
        batch_max=settings.max_embed_batch,
        patience=patience,
    )


def announcer_of(settings: Settings, parts: DocumentParts) -> DocumentAnnouncer | None:
    """Who tells Kafka of documents; None without it. Raises ConfigError if a topic is missing."""
    outlets = None if parts.told is None else outlets_of(settings, parts.told)
    return None if outlets is None else DocumentAnnouncer(outlets, parts.metadata)


def events_of(settings: Settings, parts: DocumentParts) -> DocumentEvents | None:
    """The messages of TOPIC_DOCS; None without KAFKA_BROKERS. Nobody is called."""
    if parts.topic is None:
        return None
    return DocumentEvents(
        parts.topic,
        [source for source in parts.sources if source is not parts.topic],
        parts.metadata,
        parts.stages.shape,
        limit_bytes=settings.document_bytes_max,
        may_reset=settings.kafka_offset_reset != "error",
    )


def switch_space(settings: Settings, parts: DocumentParts) -> None:
    """Let searches be answered from this space once it is complete; drop what it replaces. Safe to repeat."""
    metadata, own = parts.metadata, parts.embedder.space
    if metadata.active_space() != own and not metadata.activate(own):
        return
    _drop(settings, parts, [space for space in metadata.spaces() if space.name != own])  # or begun and given up


def drop_retired(settings: Settings, parts: DocumentParts) -> None:
    """Finish what a run that died had begun: a space that was to go may have lost its vectors, but not its chunks."""
    _drop(settings, parts, [space for space in parts.metadata.spaces() if space.state == "retired"])


def _drop(settings: Settings, parts: DocumentParts, spaces: Sequence[Space]) -> None:
    """Vectors first: what is cut short is still known by the metadata, and done again."""
    for space in spaces:
        drop_vectors(vectors_url(settings), space.name)
        parts.metadata.drop_space(space.name)


def _check_vectors(parts: DocumentParts) -> None:
    """Raise CorruptStoreError if there are fewer vectors than chunks: somebody has removed them."""
    named = next((space.chunks for space in parts.metadata.spaces() if space.name == parts.vectors.space), 0)
    with closing(parts.vectors.read()) as reader:
        if reader.count() < named:
            raise CorruptStoreError(
                f"the space `{parts.vectors.space}` has {named} chunks and only {reader.count()} vectors;"
                " `headrace verify documents --repair` makes those that are missing"
            )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for entry in text.split(",") if (part := entry.strip()))


def _now_us() -> int:
    return time.time_ns() // 1000
