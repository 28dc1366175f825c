"""How far a run over documents has come: counts that its threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dataflows.embedding import chunks_in
from stores.metadata.records import Touch

if TYPE_CHECKING:
    from dataflows.document_events import EventBatch
    from dataflows.embedding import Embedded
    from dataflows.preparing import Prepared
    from dataflows.sources.discovery import Work

COUNTS = ("found", "added", "updated", "deleted", "renamed", "unchanged", "chunks", "embedded", "dead")
"""What a summary tells, in this order."""

TOPIC_COUNTS = ("events", "superseded", "repeated")
"""What it tells besides where messages tell of documents."""


class Progress:
    """Counts of one run of one process.

    found, unchanged: as the newest look at the sources told; the others add up. What messages have brought and taken
    since then counts for `found`, too. added, updated, renamed, deleted:
    documents that were written. chunks: theirs. embedded: chunks that were given a new vector. dead: documents and
    messages that became dead letters. events: messages about documents; each one added, updated or deleted a document,
    is dead, was superseded by a newer one before it was done, or repeated what was known.
    """

    def __init__(self, advanced: Callable[[int, int], None] = lambda _done, _of: None, *, topic: bool = False) -> None:
        """advanced: hears (tasks done, tasks known) whenever one of them grows. topic: whether messages are read."""
        self._counts = dict.fromkeys((*COUNTS, *(TOPIC_COUNTS if topic else ())), 0)
        self._of_messages = False
        self._known = 0
        self._done = 0
        self._swept = 0
        self._lock = threading.Lock()
        self._advanced = advanced

    def looked(self, work: Work, tasks: int) -> None:
        """The sources were looked at, and that many tasks follow from it."""
        with self._lock:
            self._of_messages = False
            self._counts["found"] = work.found
            self._counts["unchanged"] = work.unchanged
            self._known += tasks
        self._advanced(self._done, self._known)

    def heard(self, batch: EventBatch, tasks: int) -> None:
        """Messages were read, and that many tasks follow from them; none is open from before."""
        counts = batch.read, batch.superseded, batch.repeated, len(batch.work.added) - len(batch.work.deleted)
        with self._lock:
            self._of_messages = True
            for name, count in zip((*TOPIC_COUNTS, "found"), counts, strict=True):
                self._counts[name] += count
            self._known += tasks
        self._advanced(self._done, self._known)

    def wrote(self, written: list[Embedded]) -> None:
        """These are durable."""
        with self._lock:
            for one in written:
                self._count(one)
            self._done += len(written)
        self._advanced(self._done, self._known)

    def dropped(self) -> None:
        """A task came twice; that is done too."""
        with self._lock:
            self._done += 1

    def swept(self) -> None:
        """Vectors that no document names were looked for, and removed."""
        with self._lock:
            self._swept += 1

    @property
    def sweeps(self) -> int:
        """How many sweeps were made."""
        return self._swept

    @property
    def open(self) -> int:
        """Tasks that are known and not done."""
        with self._lock:
            return self._known - self._done

    def record(self) -> dict[str, int]:
        """The counts, as printed."""
        with self._lock:
            return dict(self._counts)

    def _count(self, one: Embedded) -> None:
        status = status_of(one.prepared)
        if self._of_messages and status in ("vanished", "unchanged"):
            status = "repeated"
        if status != "vanished" and one.prepared.task.kind != "relisted":  # one that is relisted counts as it is
            self._counts[status] += 1
        self._counts["chunks"] += len(chunks_in(one.prepared))
        self._counts["embedded"] += one.made


def status_of(prepared: Prepared) -> str:
    """What became of a document: `dead`, `vanished` before it was read, `unchanged` after all, or what was asked."""
    if prepared.letter is not None:
        return "dead"
    if prepared.change is None:
        return "vanished"
    return "unchanged" if isinstance(prepared.change, Touch) else prepared.task.kind
