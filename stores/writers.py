"""Writers whose effect is exactly-once over an engine that replays; they know of no engine.

The engine tells nobody when an epoch is durable, but it closes epoch k + 1 only after k is. So what was
staged at one snapshot is published at the next; what a restart finds in its snapshot was durable and is
published first; and what is staged beyond that belongs to a lost epoch and is thrown away.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from operators.errors import ResumeError
from operators.packing import unpack_meta
from operators.records import RowBlock
from operators.rows import newest, to_tables
from stores.features.port import View
from stores.offline.port import PartitionKey, Staged, Withheld
from stores.row_states import pack_rows, unpack_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from operators.feature_sets import FeatureSet, FeatureSets
    from stores.features.port import Features
    from stores.offline.port import OfflineStore

ROWS_MIN = 16_384
"""Fewer rows than this wait for company, in the snapshot, so that files have a sensible size …"""

EPOCHS_MAX = 6
"""… but for no more than this many snapshots."""

_ONLINE_ROWS_MAX = 64_000
"""Rows that may wait for the online store before they are coalesced to the newest an entity."""

_ONLINE_REST = 3
"""A writer to the online store rests so many times as long as its last write took, and at most …"""

_ONLINE_REST_S = 5.0
"""… for so long: what comes meanwhile is coalesced, so that a long backlog costs few writes an entity."""

_CLOSE_S = 10.0
"""How long a closing writer waits for its store, which may be away."""


Tables = dict[PartitionKey, pa.Table]


@dataclass(frozen=True, slots=True)
class Rows:
    """Closed windows of one shard on their way to the stores.

    final: nothing will follow for now, so no company is worth waiting for. ended: a log has ended, and
    whoever waits for the run wants to find everything served. ahead: `partitioned` of the blocks, begun by
    another thread; it stays in its process.
    """

    blocks: tuple[RowBlock, ...] = ()
    final: bool = False
    ended: bool = False
    ahead: Future[Tables] | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[type[Rows], tuple[object, ...]]:
        """Blocks travel between processes, tables do not."""
        return Rows, (self.blocks, self.final, self.ended)

    def __len__(self) -> int:
        """How many rows."""
        return sum(map(len, self.blocks))


@dataclass(frozen=True, slots=True)
class Delivery:
    """How rows become visible.

    durable: snapshots are kept, so that an unpublished file can be found again; else `close` publishes.
    staged: False publishes at once (EXACTLY_ONCE_SINK=0): rows of a lost epoch stay and come again.
    beside: threads that write files while the flow goes on; None writes them all at the snapshot.
    """

    durable: bool
    staged: bool
    beside: Executor | None = None


def partitioned(blocks: Sequence[RowBlock], sets: FeatureSets) -> Tables:
    """Return the rows as one table for each partition of the offline store, sorted; rows stand as they came."""
    return _joined(
        (PartitionKey(declared.name, declared.version, declared.windows[spec].folder, date), table)
        for declared, mine in by_set(blocks, sets)
        for spec, date, table in to_tables(mine, declared)
    )


def _tables_of(waiting: list[Rows], sets: FeatureSets) -> Tables:
    """`partitioned` of all rows, in their order; what another thread has begun is not done again."""
    parts: list[tuple[PartitionKey, pa.Table]] = []
    for begun, some in groupby(waiting, lambda rows: rows.ahead if rows.ahead and not rows.ahead.cancel() else None):
        laid = begun.result() if begun is not None else partitioned([b for rows in some for b in rows.blocks], sets)
        parts += laid.items()
    return _joined(parts)


def _joined(parts: Iterable[tuple[PartitionKey, pa.Table]]) -> Tables:
    """One table for each partition, in the order of the parts."""
    tables: dict[PartitionKey, list[pa.Table]] = {}
    for key, table in parts:
        tables.setdefault(key, []).append(table)
    return {key: pa.concat_tables(some) for key, some in sorted(tables.items())}


def by_set(blocks: Sequence[RowBlock], sets: FeatureSets) -> Iterator[tuple[FeatureSet, list[RowBlock]]]:
    """The blocks of each set that has any."""
    for index, declared in enumerate(sets.sets):
        mine = [b for b in blocks if b.set_index == index]
        if mine:
            yield declared, mine


class OfflineWriter:
    """Stages feature rows at one snapshot, or before it where there are many, and publishes them at the next."""

    def __init__(
        self,
        store: OfflineStore,
        sets: FeatureSets,
        writer: str,
        resume: bytes | None,
        delivery: Delivery,
    ) -> None:
        """Publish what the resumed snapshot had staged; discard the rest.

        sets: what the rows are of, the same for the resumed snapshot.
        """
        self._store = store
        self._sets = sets
        self._writer = writer
        self._durable = delivery.durable
        self._staged = delivery.staged
        self._beside = delivery.beside if delivery.staged else None
        self._ahead: list[Future[Staged]] = []
        self._lock = threading.Lock()
        self._sequence = 0
        self._tokens: tuple[str, ...] = ()
        self._waiting: list[Rows] = []
        self._rows = 0
        self._age = 0
        self._final = False
        self.withheld = Withheld()
        if resume is not None:
            self._restore(resume)
        store.discard(writer, keep=())

    def write(self, rows: Rows) -> None:
        """Take rows of any shard."""
        self._final = self._final or rows.final
        with self._lock:
            if rows.blocks:
                self._waiting.append(rows)
                self._rows += len(rows)
        if all(ahead.done() for ahead in self._ahead):
            self._write_beside()

    def snapshot(self) -> bytes:
        """Publish what the last snapshot staged, stage what waits if it is time, and return the state."""
        ahead = self._written_beside()  # a writer has one user at a time: its files come first
        self._publish()
        for done in ahead:
            self._count(done)
        self._age += 1
        if self._waiting and (self._final or self._rows >= ROWS_MIN or self._age >= EPOCHS_MAX):
            self._stage()
        self._final = False
        meta: dict[str, object] = {
            "sequence": self._sequence,
            "tokens": self._tokens,
            "age": self._age,
            "withheld": [self.withheld.repeated, self.withheld.different],
        }
        return pack_rows(meta, [b for rows in self._waiting for b in rows.blocks])

    def close(self) -> None:
        """Without durable snapshots nobody will come back for what is staged: publish it now."""
        ahead = self._written_beside()
        if not self._durable:
            for done in ahead:
                self._count(done)
            if self._waiting:
                self._stage()
            self._publish()

    def _write_beside(self) -> None:
        """Have what waits staged by another thread, if that is enough for a file."""
        if self._beside is not None and self._rows >= ROWS_MIN:
            self._ahead.append(self._beside.submit(self._stage_beside))

    def _stage_beside(self) -> Staged:
        """Stage what waits by now, and go on later, behind others, if there is enough again."""
        with self._lock:
            number, waiting = self._taken()
        done = self._stage_as(number, waiting)
        self._write_beside()
        return done

    def _written_beside(self) -> list[Staged]:
        """Wait for what other threads stage. Raises what they have met."""
        done = []
        while self._ahead:
            done.append(self._ahead[0].result())
            del self._ahead[0]
        return done

    def _taken(self) -> tuple[int, list[Rows]]:
        """The next sequence number, and the rows that wait, which no longer do."""
        number, waiting = self._sequence, self._waiting
        self._sequence, self._waiting, self._rows, self._age = number + 1, [], 0, 0
        return number, waiting

    def _stage(self) -> None:
        """Stage the rows that wait; if they are to be seen at once, publish them too."""
        number, waiting = self._taken()
        while True:
            done = self._stage_as(number, waiting)
            if self._staged:
                self._count(done)
                return
            try:
                self.withheld += self._store.publish(done.tokens) + done.withheld
            except ResumeError:  # a lost epoch has published that number: it is used up
                self._store.discard(self._writer, keep=())
                number, self._sequence = self._sequence, self._sequence + 1
            else:
                return

    def _stage_as(self, number: int, waiting: list[Rows]) -> Staged:
        return self._store.stage(self._writer, number, _tables_of(waiting, self._sets))

    def _count(self, done: Staged) -> None:
        self._tokens = (*self._tokens, *done.tokens)
        self.withheld += done.withheld

    def _publish(self) -> None:
        if self._tokens:
            self.withheld += self._store.publish(self._tokens)
            self._tokens = ()

    def _restore(self, resume: bytes) -> None:
        meta, blocks = unpack_rows(resume)
        self._waiting = [Rows(tuple(blocks))] if blocks else []
        self._rows = sum(map(len, blocks))
        self._sequence = cast("int", meta["sequence"])
        self._age = cast("int", meta["age"])
        self.withheld = Withheld(*cast("list[int]", meta["withheld"]))
        self._tokens = staged_tokens(resume)
        self._publish()


def staged_tokens(state: bytes) -> tuple[str, ...]:
    """The files that a committed snapshot of an OfflineWriter has staged, ready to be published."""
    return tuple(cast("list[str]", unpack_meta(state)["tokens"]))


def withheld_in(state: bytes) -> Withheld:
    """The rows that a committed snapshot of an OfflineWriter has counted as not written again."""
    return Withheld(*cast("list[int]", unpack_meta(state)["withheld"]))


class OnlineWriter:
    """Writes the newest row of each entity to the online store, in a thread of its own.

    At least once and never backwards, which for a newest-wins store is exactly once. Rows not yet
    confirmed are in the snapshot. A failure of the store is raised by the next call.
    """

    def __init__(self, store: Features, sets: FeatureSets, resume: bytes | None) -> None:
        """Start the thread; rows that the resumed snapshot held come first, those of sets that are gone do not.

        store: prepared for the views of the sets.
        """
        self._store = store
        self._sets = sets
        self._waiting: list[RowBlock] = []
        self._writing: list[RowBlock] = []
        self._rows = 0
        self._rows_max = _ONLINE_ROWS_MAX
        self._error: BaseException | None = None
        self._stopped = False
        self._ended = False
        self._hurried = False
        self._changed = threading.Condition()
        saved: list[RowBlock] = []
        if resume is not None:
            meta, saved = unpack_rows(resume)
            declared, was = self._declared(), cast("list[list[object]]", meta["declared"])
            saved = [b for b in saved if b.set_index < len(declared) and declared[b.set_index] == was[b.set_index]]
        self._thread = threading.Thread(target=self._work, name="online-writer", daemon=True)
        self._thread.start()
        self.write(Rows(tuple(saved)))

    def write(self, rows: Rows) -> None:
        """Take rows; returns at once. At the end of a log the next `snapshot` or `close` waits until all are served."""
        with self._changed:
            self._raise()
            self._waiting += rows.blocks
            self._rows += len(rows)
            if self._rows > self._rows_max:
                self._waiting = self._newest(self._waiting)
                self._rows = sum(map(len, self._waiting))
                self._rows_max = max(_ONLINE_ROWS_MAX, 2 * self._rows)
            self._ended = self._ended or rows.ended
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until every row taken so far is served."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None or not (self._waiting or self._writing))
            self._hurried = self._ended = False
            self._raise()

    def snapshot(self) -> bytes:
        """The rows that are not confirmed, newest an entity."""
        if self._ended:
            self.drain()
        with self._changed:
            held = [*self._writing, *self._waiting]
        return pack_rows({"declared": self._declared()}, self._newest(held))

    def close(self) -> None:
        """Stop the thread, which may finish what it is writing; the rest stays in the snapshot."""
        if self._ended:
            self.drain()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting)
                if self._stopped:
                    return
                self._writing, self._waiting, self._rows = self._waiting, [], 0
            began = time.monotonic()
            try:
                self._serve(self._writing)
            except BaseException as error:  # noqa: BLE001  # handed to the worker's thread, which raises it
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._writing = []
                self._changed.notify_all()
                rest = min(_ONLINE_REST * (time.monotonic() - began), _ONLINE_REST_S)
                self._changed.wait_for(lambda: self._stopped or self._hurried, rest)

    def _serve(self, blocks: list[RowBlock]) -> None:
        for declared, mine in by_set(self._newest(blocks), self._sets):
            for spec, _, table in to_tables(mine, declared):
                self._store.write(View(declared, declared.windows[spec]), table.to_batches()[0])

    def _newest(self, blocks: list[RowBlock]) -> list[RowBlock]:
        return [newest(mine) for _, mine in by_set(blocks, self._sets)]

    def _declared(self) -> list[list[object]]:
        """What the rows of each set are of, JSON-able."""
        return [[s.name, s.version, list(s.fields), [w.text for w in s.windows]] for s in self._sets.sets]
