"""Documents as Bytewax sees them: looks at the sources, and prepares what has changed in threads of its own.

One partition: there is one ledger. It never blocks; what is prepared is handed on in the order of the plan. A look at
the sources and a batch of messages about documents take turns: each is done before the next one begins.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import TYPE_CHECKING

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from dataflows.document_events import EventBatch
from dataflows.embedding import chunks_in
from dataflows.observability.events import Failed, SourceAway, tell
from dataflows.preparing import Prepared
from dataflows.sources.discovery import Item, discover
from dataflows.sources.topic import reading_order
from operators.document_tasks import Task, TaskKind
from operators.errors import ResumeError
from operators.packing import pack, unpack_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dataflows.document_events import DocumentEvents
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
_LISTENING = timedelta(milliseconds=20)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything found is written: remove what no document names."""


@dataclass(frozen=True, slots=True)
class DocumentSourcePlan:
    """What the source is made of.

    once: end when everything found is done. poll_s: seconds from one look to the next. sweep: whether a run before
    this one died. building: whether searches are answered from another space, which must keep what was renamed until
    this one answers. allow_mass_delete: in the first look. finished: called when everything that a look found is
    done; whether there is more to do now. events: messages about documents, read whenever no look is due, and with
    `once` to the end of their topic; closed by the source.
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
    events: DocumentEvents | None = None


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
        self._look: Future[Discovery | EventBatch] | None = None
        self._found: Discovery | EventBatch | None = None
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
        resting = _RESTING if self._plan.events is None else _LISTENING
        return datetime.now(UTC) + (resting if self._look is None and self._found is None else _BUSY)

    def snapshot(self) -> bytes:
        return pack({"turn": self._turn}, {})

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._plan.events is not None:
            self._plan.events.close()

    def _next(self) -> list[Prepared | Sweep] | None:
        """What is ready; None when everything found is done and nobody wants another look."""
        if self._found is None and not self._look_for_work():
            return None
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
        self._end()
        return [] if self._look_for_work() else None

    def _end(self) -> None:
        """Everything that the look or the messages asked for is done."""
        found, self._found = self._found, None
        if isinstance(found, EventBatch):
            assert self._plan.events is not None
            self._plan.events.done()
            return
        assert found is not None
        self._allow_mass_delete = False
        more = self._plan.finished(found)
        rest_s = math.inf if self._plan.once else self._plan.poll_s
        self._look_at = time.monotonic() + (0.0 if more else rest_s)

    def _look_for_work(self) -> bool:
        """Begin a look when it is time, else read messages; take in what there is to do when that is known.

        False if there is nothing any more, with `once`.
        """
        if self._look is None:
            events = self._plan.events
            if time.monotonic() >= self._look_at:
                self._look = self._pool.submit(self._discovered)
                return True
            told = None if events is None else events.read()
            if events is not None and told:
                self._look = self._pool.submit(events.batch, told)
            return told is not None or not self._plan.once
        if self._look.done():
            found, self._look = self._look.result(), None
            self._turn += 1
            self._found = found
            if isinstance(found, EventBatch):
                self._take_messages(found)
            else:
                self._take_look(found)
        return True

    def _take_messages(self, batch: EventBatch) -> None:
        tasks = tasks_of(batch.work, self._turn)
        self._todo.extend(tasks)
        for letter in batch.letters:
            name = f"{letter.source}/{letter.partition}/{letter.offset}"
            task = Task(self._turn, "refused", name, letter.source, "", 0)
            ready: Future[Prepared] = Future()
            ready.set_result(Prepared(task, None, letter))
            self._coming.append((task, ready))
        self._plan.progress.heard(batch, len(tasks) + len(batch.letters))

    def _take_look(self, found: Discovery) -> None:
        for name, error in found.failed.items():
            tell(SourceAway(name, str(error)))
        for name, documents in found.unnamed.items():
            if name not in self._unnamed:
                self._unnamed.add(name)
                keeps = f"INGEST_SOURCES no longer names it; its {documents} documents stay"
                tell(SourceAway(name, f"{keeps} until --allow-mass-delete removes them"))
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
    """The tasks of a plan, in an order that is read fast.

    What is gone comes last, so that its texts are found where they have moved to.
    """
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
    return sorted(
        tasks, key=lambda task: (task.kind == "deleted", *reading_order(task.source, task.uri, task.fingerprint))
    )


def _turn_in(state: bytes) -> int:
    turn = unpack_meta(state)["turn"]
    if not isinstance(turn, int):
        raise ResumeError("a snapshot of the sources is damaged; start anew with an empty RECOVERY_DIR")
    return turn
