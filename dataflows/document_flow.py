"""The document path, laid out as a Bytewax flow.

sources ─▶ find, fetch, extract, normalise, redact, chunk ─▶ documents (drop repeats) ─▶ embed ─▶ index
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from dataflows.document_source import STEP, DocumentSource, DocumentSourcePlan, Sweep
from dataflows.embedding import Embedded, Embedding
from dataflows.observability.events import DeadLettersOpened, DocumentsWritten, Failed, Refused, tell
from dataflows.preparing import Prepared
from dataflows.progress import status_of
from operators.document_tasks import Passed
from operators.errors import RetryableError
from operators.shard import shard_keys
from stores.index_writer import IndexChange, IndexWriter
from stores.sinks import IndexSink
from stores.vectors.port import shard_of

if TYPE_CHECKING:
    from dataflows.progress import Progress
    from operators.embedders.port import Embedder
    from stores.deadletters.port import DeadLetters
    from stores.index_writer import Announcer
    from stores.metadata.port import MetadataStore
    from stores.patience import Patience
    from stores.vectors.port import VectorStore

FLOW = "documents"
SHARDS = 12
"""Parts that documents are spread over on their way to be embedded."""

STEPS = (STEP, "documents", "index")
"""Steps with state: their names are part of the snapshots and never change."""


@dataclass(frozen=True, slots=True)
class DocumentPlan:
    """Everything the flow is made of, opened and checked."""

    source: DocumentSourcePlan
    embedder: Embedder
    vectors: VectorStore
    metadata: MetadataStore
    dead_letters: DeadLetters
    announcer: Announcer | None
    batch_max: int
    patience: Patience

    @property
    def progress(self) -> Progress:
        """Of this process."""
        return self.source.progress


class DocumentsLogic(StatefulBatchLogic["Prepared | Sweep", "Prepared | Sweep", bytes]):
    """One shard's documents as Bytewax sees them; its snapshot is bytes."""

    def __init__(self, progress: Progress, resume: bytes | None) -> None:
        """resume: what `snapshot` returned."""
        self._progress = progress
        self._passed = Passed() if resume is None else Passed.restored(resume)

    def on_batch(self, values: list[Prepared | Sweep]) -> tuple[Iterable[Prepared | Sweep], bool]:
        """Hand on what is new."""
        out: list[Prepared | Sweep] = []
        for value in values:
            if isinstance(value, Prepared):
                new, self._passed = self._passed.take(value.task)
                if not new:
                    self._progress.dropped()
                    continue
            out.append(value)
        return out, False

    def snapshot(self) -> bytes:
        """The shard's state."""
        return self._passed.snapshot()


def build(plan: DocumentPlan) -> Dataflow:
    """Lay the flow. Step names are frozen: Bytewax silently drops the state of a renamed one."""
    keys = shard_keys(SHARDS)
    flow = Dataflow(FLOW)
    tell(DeadLettersOpened(plan.dead_letters.count))
    prepared = op.input(STEP, flow, DocumentSource(plan.source))
    keyed = op.map("by_document", prepared, lambda item: (_key(item, keys), item))
    fresh = op.stateful_batch("documents", keyed, lambda resume: DocumentsLogic(plan.progress, resume))
    embedded = op.flat_map_batch("embed", fresh, _embedding(plan))
    op.output("index", embedded, IndexSink(lambda: _Writer(plan), failed))
    return flow


def failed(step: str, part: str, error: BaseException) -> None:
    """Tell of an error before the engine sees it. step: with the name of the flow before it, or without."""
    tell(Failed(step.removeprefix(f"{FLOW}."), part, None, error))


def _key(item: Prepared | Sweep, keys: tuple[str, ...]) -> str:
    return keys[0] if isinstance(item, Sweep) else keys[shard_of(item.task.doc_id, len(keys))]


Batch = tuple[str, "list[Embedded] | Sweep | RetryableError"]


def _embedding(plan: DocumentPlan) -> Callable[[list[tuple[str, Prepared | Sweep]]], Iterable[Batch]]:
    """The embedding step of all workers.

    An embedder that stays away is told behind the documents that were complete, which are paid for.
    """
    embedding = Embedding(
        plan.embedder,
        plan.vectors.read(),
        plan.metadata,
        batch_max=plan.batch_max,
        patience=plan.patience,
        stop=plan.source.stop,
        now_us=lambda: time.time_ns() // 1000,
    )

    def embed(items: list[tuple[str, Prepared | Sweep]]) -> Iterable[Batch]:
        try:
            done, away = embedding.embed([item for _, item in items if isinstance(item, Prepared)])
        except Exception as error:
            failed("embed", "", error)
            raise
        sweeps: list[Batch] = [("", item) for _, item in items if isinstance(item, Sweep)]
        return [*([("", done)] if done else []), *sweeps, *([("", away)] if away is not None else [])]

    return embed


class _Writer:
    """The writer of the index, which counts what it has written."""

    def __init__(self, plan: DocumentPlan) -> None:
        self._plan = plan
        self._index = IndexWriter(plan.vectors, plan.metadata, plan.dead_letters, plan.announcer)

    def write(self, batch: list[Embedded] | Sweep | RetryableError) -> None:
        if isinstance(batch, RetryableError):
            raise batch
        if isinstance(batch, Sweep):
            self._index.sweep()
            self._plan.progress.swept()
            return
        changes = [IndexChange(e.prepared.change, e.prepared.letter, e.keys, e.vectors) for e in batch]
        self._plan.patience.call(lambda: self._index.write(changes))
        self._plan.progress.wrote(batch)
        _tell(batch)

    def snapshot(self) -> bytes:
        return self._index.snapshot()

    def close(self) -> None:
        self._index.close()


def _tell(batch: list[Embedded]) -> None:
    written: Counter[tuple[str, str]] = Counter()
    redacted: Counter[str] = Counter()
    for one in batch:
        task, letter = one.prepared.task, one.prepared.letter
        written[status_of(one.prepared), task.source] += 1
        redacted.update(one.prepared.redacted or {})
        if letter is not None:
            tell(Refused(letter.stage, letter.reason, letter.detail, task.source, letter.offset, None))
    tell(DocumentsWritten(written, redacted))
