"""`documents --plan`: what a run would do now, found out as the run would, with nothing changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from dataflows.document_source import tasks_of
from dataflows.document_wiring import DocumentParts, open_parts
from dataflows.embedding import Embedded, Embedding, chunks_in
from dataflows.engine import STOP
from dataflows.preparing import Prepared, Preparer
from dataflows.progress import Progress
from dataflows.sources.discovery import discover
from stores.metadata.memory import MemoryMetadata
from stores.metadata.records import Touch
from stores.patience import Patience

if TYPE_CHECKING:
    from dataflows.config import Settings
    from stores.metadata.port import Chunks
    from stores.vectors.port import VectorReader

_PREPARERS = 8
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Planned:
    """What would become of one document. what: added, updated, renamed, deleted, dead or unchanged.

    to_embed: chunks whose text no document has, neither in the index nor earlier in the plan.
    """

    what: str
    uri: str
    chunks: int
    to_embed: int


@dataclass(frozen=True, slots=True)
class DocumentsPlan:
    """What a run would do. record: its counts. documents: the first of those concerned, of `concerned` in all.

    away: by source that could not be listed, why.
    """

    record: dict[str, int]
    documents: tuple[Planned, ...]
    concerned: int
    away: dict[str, str] = field(default_factory=dict)


def plan_documents(
    settings: Settings,
    *,
    allow_mass_delete: bool,
    shown: int = 20,
    advanced: Callable[[int, int], None] = lambda _done, _of: None,
) -> DocumentsPlan:
    """Tell what a run would do. Reads what has changed; makes, locks and changes nothing.

    A text that the embedder would refuse is counted as one to embed. shown: documents that are told one by one, at
    most. advanced: hears (documents prepared, of so many). Raises MassDeleteError as a run would, and what reading
    the stores raises.
    """
    with open_parts(settings, make=False) as parts, closing(parts.vectors.read()) as reader:
        found = discover(
            parts.sources,
            parts.metadata.ledger(),
            parts.stages.shape,
            limit_bytes=settings.document_bytes_max,
            allow_mass_delete=allow_mass_delete,
        )
        tasks = tasks_of(found.work, 0)
        progress = Progress(advanced)
        progress.looked(found.work, len(tasks))
        forecast = _Forecast(parts, reader, progress)
        preparer = _preparer(settings, parts)
        documents: list[Planned] = []
        with ThreadPoolExecutor(_PREPARERS, "plan") as pool:
            for start in range(0, len(tasks), _BATCH):
                planned = forecast.take(list(pool.map(preparer.prepare, tasks[start : start + _BATCH])))
                documents += planned[: shown - len(documents)]
    counts = progress.record()
    record = {"found": counts.pop("found")}
    dead, to_embed = counts.pop("dead"), counts.pop("embedded")
    record |= counts | {"to_embed": to_embed, "tokens": forecast.tokens, "dead": dead}
    return DocumentsPlan(record, tuple(documents), len(tasks), {name: str(why) for name, why in found.failed.items()})


class _Forecast:
    """Counts what would be embedded, as the embedding step looks it up."""

    def __init__(self, parts: DocumentParts, reader: VectorReader, progress: Progress) -> None:
        self.tokens = 0
        self._embedder = parts.embedder
        self._progress = progress
        self._planned: set[str] = set()
        self._none = np.empty(0, np.uint64), np.empty((0, parts.embedder.dim), np.float32)
        self._embedding = Embedding(
            parts.embedder,
            reader,
            _chunks(parts),
            batch_max=_BATCH,
            patience=Patience(tries_max=1),
            stop=Event(),
            now_us=_now_us,
        )

    def take(self, batch: Sequence[Prepared]) -> list[Planned]:
        """Count the documents, in the order in which a run would embed them."""
        texts = {chunk.text_hash: chunk.text for prepared in batch for chunk in chunks_in(prepared)}
        known = self._embedding.kept(batch, texts)
        fresh = {name: text for name, text in texts.items() if name not in known and name not in self._planned}
        self.tokens += sum(self._embedder.count_tokens(list(fresh.values())))
        planned = []
        for prepared in batch:
            new = {chunk.text_hash for chunk in chunks_in(prepared) if chunk.text_hash in fresh} - self._planned
            self._planned |= new
            self._progress.wrote([Embedded(prepared, *self._none, len(new))])
            planned.append(Planned(_what(prepared), prepared.task.uri, len(chunks_in(prepared)), len(new)))
        return planned


def _what(prepared: Prepared) -> str:
    if prepared.letter is not None:
        return "dead"
    return "unchanged" if prepared.change is None or isinstance(prepared.change, Touch) else prepared.task.kind


def _preparer(settings: Settings, parts: DocumentParts) -> Preparer:
    return Preparer(
        sources={source.name: source for source in parts.sources},
        stages=parts.stages,
        metadata=parts.metadata,
        patience=Patience(tries_max=3, sleep=STOP.wait),
        run="",
        limit_bytes=settings.document_bytes_max,
    )


def _chunks(parts: DocumentParts) -> Chunks:
    """The chunks that are known; none in a space that no run has made yet."""
    space = parts.embedder.space
    if any(known.name == space for known in parts.metadata.spaces()):
        return parts.metadata
    empty = MemoryMetadata()
    empty.add_space(space)
    return empty


def _now_us() -> int:
    return time.time_ns() // 1000
