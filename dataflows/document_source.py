"""Documents as Bytewax sees them: looks at the sources, and prepares what has changed in threads of its own.

One partition: there is one ledger. It never blocks; what is prepared is handed on in the order of the plan.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import TYPE_CHECKING

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from dataflows.embedding import chunks_in
from dataflows.observability.events import Failed, SourceAway, tell
from dataflows.preparing import Prepared
from dataflows.sources.discovery import Item, discover
from operators.document_tasks import Task, TaskKind
from operators.errors import ResumeError
from operators.packing import pack, unpack_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dataflows.preparing import Preparer
    from dataflows.progress import Progress
    from dataflows.sources.discovery import Discovery, Work
    from dataflows.sources.port import Source

STEP = "find"
_PART = "sources"
_OPEN_MAX = 256
"""Documents that are on their way at a time …"""

_OPEN_BYTES_MAX = 256 << 20
"""… and bytes of those that are being prepared, unless a single one has more."""

_BATCH_MAX = 32
"""Documents that are handed on at once, since they are embedded together …"""

_BATCH_CHUNKS = 256
"""… unless they have as many chunks before: what is embedded together is lost together in a crash."""

_BUSY = timedelta(milliseconds=2)
_RESTING = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything found is written: remove what no document names."""


@dataclass(frozen=True, slots=True)
class DocumentSourcePlan:
    """What the source is made of.

    once: end when everything found is done. poll_s: seconds from one look to the next. sweep: whether a run before
    this one died. building: whether searches are answered from another space, which must keep what was renamed until
    this one answers. allow_mass_delete: in the first look. finished: called when everything that a look found is
    done; whether there is more to do now.
    """

    sources: Sequence[Source]
    preparer: Preparer
    progress: Progress
    fetchers: int
    stop: Event
    once: bool
    poll_s: float
    allow_mass_delete: bool
    sweep: bool
    building: Callable[[], bool]
    finished: Callable[[Discovery], bool]


class DocumentSource(FixedPartitionedSource["Prepared | Sweep", bytes]):
    """All sources of documents. At least once: what is not in the ledger is found again."""

    def __init__(self, plan: DocumentSourcePlan) -> None:
        """Nothing is looked at yet."""
        self._plan = plan

    def list_parts(self) -> list[str]:
        """One."""
        return [_PART]

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> _Partition:
        """Go on counting turns where the snapshot ended."""
        del step_id, for_part
        return _Partition(self._plan, 0 if resume_state is None else _turn_in(resume_state))


class _Partition(StatefulSourcePartition["Prepared | Sweep", bytes]):
    def __init__(self, plan: DocumentSourcePlan, turn: int) -> None:
        self._plan = plan
        self._turn = turn
        self._pool = ThreadPoolExecutor(plan.fetchers, "prepare")
        self._look: Future[Discovery] | None = None
        self._found: Discovery | None = None
        self._todo: deque[Task] = deque()
        self._coming: deque[tuple[Task, Future[Prepared]]] = deque()
        self._coming_bytes = 0
        self._look_at = time.monotonic()
        self._sweep = plan.sweep
        self._unnamed: set[str] = set()
        self._allow_mass_delete = plan.allow_mass_delete

    def next_batch(self) -> list[Prepared | Sweep]:
        if self._plan.stop.is_set():
            raise StopIteration
        try:
            out = self._next()
        except Exception as error:
            tell(Failed(STEP, _PART, None, error))
            raise
        if out is None:
            raise StopIteration
        return out

    def next_awake(self) -> datetime | None:
        resting = self._look is None and self._found is None
        return datetime.now(UTC) + (_RESTING if resting else _BUSY)

    def snapshot(self) -> bytes:
        return pack({"turn": self._turn}, {})

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[Prepared | Sweep] | None:
        """What is ready; None when everything found is done and nobody wants another look."""
        if self._found is None:
            self._look_at_sources()
        self._submit()
        ready: list[Prepared | Sweep] = []
        chunks = 0
        while self._coming and self._coming[0][1].done() and len(ready) < _BATCH_MAX and chunks < _BATCH_CHUNKS:
            task, future = self._coming.popleft()
            self._coming_bytes -= task.size_bytes
            ready.append(future.result())
            chunks += len(chunks_in(future.result()))
        if ready or self._found is None or self._todo or self._coming or self._plan.progress.open:
            return ready
        if self._sweep:
            self._sweep = False
            return [Sweep()]
        if self._plan.sweep and not self._plan.progress.sweeps:
            return []
        found, self._found = self._found, None
        self._allow_mass_delete = False
        more = self._plan.finished(found)
        self._look_at = time.monotonic() + (0.0 if more else self._plan.poll_s)
        return None if self._plan.once and not more else []

    def _look_at_sources(self) -> None:
        """Begin a look when it is time; take in what it found when it has ended."""
        if self._look is None:
            if time.monotonic() >= self._look_at:
                self._look = self._pool.submit(self._discovered)
            return
        if not self._look.done():
            return
        found, self._look = self._look.result(), None
        for name, error in found.failed.items():
            tell(SourceAway(name, str(error)))
        for name, documents in found.unnamed.items():
            if name not in self._unnamed:
                self._unnamed.add(name)
                keeps = f"INGEST_SOURCES no longer names it; its {documents} documents stay"
                tell(SourceAway(name, f"{keeps} until --allow-mass-delete removes them"))
        self._turn += 1
        self._found = found
        work = found.work.with_old_names() if self._plan.building() else found.work
        self._todo.extend(tasks_of(work, self._turn))
        self._plan.progress.looked(work, len(self._todo))

    def _discovered(self) -> Discovery:
        plan, preparer = self._plan, self._plan.preparer
        return discover(
            plan.sources,
            preparer.metadata.ledger(),
            preparer.stages.shape,
            limit_bytes=preparer.limit_bytes,
            allow_mass_delete=self._allow_mass_delete,
        )

    def _submit(self) -> None:
        """Have threads prepare as many as may be on their way."""
        on_their_way = self._plan.progress.open - len(self._todo)
        while self._todo and on_their_way < _OPEN_MAX:
            if self._coming and self._coming_bytes + self._todo[0].size_bytes > _OPEN_BYTES_MAX:
                return
            task = self._todo.popleft()
            self._coming.append((task, self._pool.submit(self._plan.preparer.prepare, task)))
            self._coming_bytes += task.size_bytes
            on_their_way += 1


def tasks_of(work: Work, turn: int) -> list[Task]:
    """The tasks of a plan, by uri; what is gone comes last, so that its texts are found where they have moved to."""
    lists: tuple[tuple[TaskKind, tuple[Item, ...]], ...] = (
        ("added", work.added),
        ("updated", work.updated),
        ("relisted", work.relisted),
    )
    tasks = [
        Task(turn, kind, item.found.uri, item.source, item.found.fingerprint, item.found.size_bytes)
        for kind, items in lists
        for item in items
    ]
    for rename in work.renamed:
        found = rename.item.found
        tasks.append(
            Task(turn, "renamed", found.uri, rename.item.source, found.fingerprint, found.size_bytes, rename.old.uri)
        )
    tasks += [Task(turn, "deleted", known.uri, known.source, known.fingerprint, 0) for known in work.deleted]
    return sorted(tasks, key=lambda task: (task.kind == "deleted", task.uri))


def _turn_in(state: bytes) -> int:
    turn = unpack_meta(state)["turn"]
    if not isinstance(turn, int):
        raise ResumeError("a snapshot of the sources is damaged; start anew with an empty RECOVERY_DIR")
    return turn
