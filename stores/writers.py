"""Writers whose effect is exactly-once over an engine that replays; they know of no engine.

The engine tells nobody when an epoch is durable, but it closes epoch k + 1 only after k is. So what was
staged at one snapshot is published at the next; what a restart finds in its snapshot was durable and is
published first; and what is staged beyond that belongs to a lost epoch and is thrown away.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from operators.errors import ResumeError
from operators.packing import pack, unpack
from operators.rows import by_date
from stores.features.newest import coalesce
from stores.features.port import View
from stores.offline.port import PartitionKey, Withheld

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stores.features.port import Features
    from stores.offline.port import OfflineStore

ROWS_MIN = 16_384
"""Fewer rows than this wait for company, in the snapshot, so that files have a sensible size …"""

EPOCHS_MAX = 6
"""… but for no more than this many snapshots."""

_ONLINE_ROWS_MAX = 200_000
"""Rows that may wait for the online store before they are coalesced to the newest an entity."""


_CLOSE_S = 10.0
"""How long a closing writer waits for its store, which may be away."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Closed windows of one shard on their way to the stores.

    final: nothing will follow for now, so no company is worth waiting for. ended: a log has ended, and
    whoever waits for the run wants to find everything served.
    """

    tables: tuple[tuple[View, pa.Table], ...] = ()
    final: bool = False
    ended: bool = False


def _to_ipc(table: pa.Table) -> NDArray[np.uint8]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return np.frombuffer(sink.getvalue(), np.uint8)


def _from_ipc(data: NDArray[np.generic]) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(data.tobytes())).read_all()


class OfflineWriter:
    """Stages feature rows at one snapshot and publishes them at the next."""

    def __init__(self, store: OfflineStore, writer: str, resume: bytes | None, *, durable: bool, staged: bool) -> None:
        """Publish what the resumed snapshot had staged; discard the rest.

        durable: snapshots are kept, so that an unpublished file can be found again; else `close` publishes.
        staged: False publishes at once (EXACTLY_ONCE_SINK=0): rows of a lost epoch stay and come again.
        """
        self._store = store
        self._writer = writer
        self._durable = durable
        self._staged = staged
        self._sequence = 0
        self._tokens: tuple[str, ...] = ()
        self._waiting: dict[PartitionKey, list[pa.Table]] = {}
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
        for view, table in rows.tables:
            declared = view.feature_set
            for date, part in by_date(table):
                key = PartitionKey(declared.name, declared.version, view.window.folder, date)
                self._waiting.setdefault(key, []).append(part)
            self._rows += table.num_rows

    def snapshot(self) -> bytes:
        """Publish what the last snapshot staged, stage what waits if it is time, and return the state."""
        self._publish()
        self._age += 1
        if self._waiting and (self._final or self._rows >= ROWS_MIN or self._age >= EPOCHS_MAX):
            self._stage()
        self._final = False
        meta: dict[str, object] = {
            "sequence": self._sequence,
            "tokens": self._tokens,
            "keys": [(k.feature_set, k.version, k.window, k.date) for k in self._waiting],
            "age": self._age,
            "withheld": [self.withheld.repeated, self.withheld.different],
        }
        tables = {str(i): _to_ipc(pa.concat_tables(t)) for i, t in enumerate(self._waiting.values())}
        return pack(meta, cast("dict[str, NDArray[np.generic]]", tables))

    def close(self) -> None:
        """Without durable snapshots nobody will come back for what is staged: publish it now."""
        if not self._durable:
            if self._waiting:
                self._stage()
            self._publish()

    def _stage(self) -> None:
        tables = {k: pa.concat_tables(t) for k, t in sorted(self._waiting.items())}
        while not self._staged_as_next(tables):
            self._store.discard(self._writer, keep=())
        self._waiting, self._rows, self._age = {}, 0, 0

    def _staged_as_next(self, tables: dict[PartitionKey, pa.Table]) -> bool:
        """Stage the rows; if they are to be seen at once, publish them too.

        False if a lost epoch has published that number: it is used up.
        """
        number, self._sequence = self._sequence, self._sequence + 1
        done = self._store.stage(self._writer, number, tables)
        if self._staged:
            self._tokens = (*self._tokens, *done.tokens)
        else:
            try:
                self.withheld += self._store.publish(done.tokens)
            except ResumeError:
                return False
        self.withheld += done.withheld
        return True

    def _publish(self) -> None:
        if self._tokens:
            self.withheld += self._store.publish(self._tokens)
            self._tokens = ()

    def _restore(self, resume: bytes) -> None:
        meta, tables = unpack(resume)
        self._sequence = cast("int", meta["sequence"])
        self._age = cast("int", meta["age"])
        self.withheld = Withheld(*cast("list[int]", meta["withheld"]))
        self._tokens = staged_tokens(resume)
        self._publish()
        for index, key in enumerate(cast("list[tuple[str, int, str, str]]", meta["keys"])):
            table = _from_ipc(tables[str(index)])
            self._waiting[PartitionKey(*key)] = [table]
            self._rows += table.num_rows


def staged_tokens(state: bytes) -> tuple[str, ...]:
    """The files that a committed snapshot of an OfflineWriter has staged, ready to be published."""
    return tuple(cast("list[str]", unpack(state)[0]["tokens"]))


def withheld_in(state: bytes) -> Withheld:
    """The rows that a committed snapshot of an OfflineWriter has counted as not written again."""
    return Withheld(*cast("list[int]", unpack(state)[0]["withheld"]))


class LogWriter:
    """Appends messages to a log at one snapshot later than they came; owns its partition of the log."""

    def __init__(self, append: Callable[[list[bytes], int], int], resume: bytes | None, *, durable: bool) -> None:
        """append: (messages, at) → next offset; repeating it changes nothing. durable: see OfflineWriter."""
        self._append = append
        self._durable = durable
        self._at, self._ready = (0, []) if resume is None else logged(resume)
        self._waiting: list[bytes] = []
        self._flush()

    def write(self, messages: list[bytes]) -> None:
        """Take messages."""
        self._waiting += messages

    def snapshot(self) -> bytes:
        """Append what the last snapshot held; hold what has come since."""
        self._flush()
        self._ready, self._waiting = self._waiting, []
        lengths = np.array([len(m) for m in self._ready], np.int64)
        data = np.frombuffer(b"".join(self._ready), np.uint8)
        return pack({"at": self._at}, {"data": data, "lengths": lengths})

    def close(self) -> None:
        """Without durable snapshots: append everything now."""
        if not self._durable:
            self._flush()
            self._ready, self._waiting = self._waiting, []
            self._flush()

    def _flush(self) -> None:
        if self._ready:
            self._at = self._append(self._ready, self._at)
            self._ready = []


def logged(state: bytes) -> tuple[int, list[bytes]]:
    """(offset, messages) that a committed snapshot of a LogWriter holds, ready to be appended."""
    meta, arrays = unpack(state)
    data, ends = arrays["data"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
    return cast("int", meta["at"]), [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class OnlineWriter:
    """Writes the newest row of each entity to the online store, in a thread of its own.

    At least once and never backwards, which for a newest-wins store is exactly once. Rows not yet
    confirmed are in the snapshot. A failure of the store is raised by the next `write` or `drain`.
    """

    def __init__(self, store: Features, views: tuple[View, ...], resume: bytes | None) -> None:
        """Start the thread; rows that the resumed snapshot held for these views come first."""
        self._store = store
        self._waiting: dict[View, list[pa.Table]] = {}
        self._writing: dict[View, list[pa.Table]] = {}
        self._rows = 0
        self._rows_max = _ONLINE_ROWS_MAX
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        saved = {} if resume is None else unpack(resume)[1]
        self._thread = threading.Thread(target=self._work, name="online-writer", daemon=True)
        self._thread.start()
        self.write(Rows(tuple((v, _from_ipc(saved[v.name])) for v in views if v.name in saved)))

    def write(self, rows: Rows) -> None:
        """Take rows; returns at once, but at the end of a log when all are served."""
        with self._changed:
            self._raise()
            for view, table in rows.tables:
                if table.num_rows == 0:
                    continue
                self._waiting.setdefault(view, []).append(table)
                self._rows += table.num_rows
            if self._rows > self._rows_max:
                self._waiting = {v: [_newest(t)] for v, t in self._waiting.items()}
                self._rows = sum(t.num_rows for tables in self._waiting.values() for t in tables)
                self._rows_max = max(_ONLINE_ROWS_MAX, 2 * self._rows)
            self._changed.notify_all()
        if rows.ended:
            self.drain()

    def drain(self) -> None:
        """Wait until every row taken so far is served."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not (self._waiting or self._writing))
            self._raise()

    def snapshot(self) -> bytes:
        """The rows that are not confirmed, newest an entity."""
        with self._changed:
            views = {*self._waiting, *self._writing}
            held = {v.name: [*self._writing.get(v, []), *self._waiting.get(v, [])] for v in views}
        arrays = {name: _to_ipc(_newest(tables)) for name, tables in sorted(held.items())}
        return pack({}, cast("dict[str, NDArray[np.generic]]", arrays))

    def close(self) -> None:
        """Stop the thread, which may finish what it is writing; the rest stays in the snapshot."""
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
                self._writing, self._waiting, self._rows = self._waiting, {}, 0
            try:
                for view, tables in self._writing.items():
                    self._store.write(view, _batch(tables))
            except BaseException as error:  # noqa: BLE001  # handed to the worker's thread, which raises it
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._writing = {}
                self._changed.notify_all()


def _batch(tables: list[pa.Table]) -> pa.RecordBatch:
    return pa.concat_tables(tables).combine_chunks().to_batches()[0]


def _newest(tables: list[pa.Table]) -> pa.Table:
    return pa.Table.from_batches([coalesce(_batch(tables))])
