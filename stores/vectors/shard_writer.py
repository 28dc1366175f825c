"""The writer of one shard. A commit appends one record; a thread makes a new base when the logs have grown."""

from __future__ import annotations

from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from operators.errors import CorruptStoreError, FatalError, HeadraceError
from stores.vectors.compaction import Compaction, make_base
from stores.vectors.port import KEY_MAX, checked_keys, checked_vectors
from stores.vectors.shard_folder import Manifest, ShardFolder, sequence_of, translated
from stores.vectors.shard_log import LogFormat, LogReader, LogWriter, create_log

_BEHIND = 4
"""A commit waits for the running compaction once the logs have grown to so many times what starts the next one."""


class UsearchVectorWriter:
    """`VectorWriter` of one shard. Its cost does not depend on the size of the index: it holds none.

    A compaction runs beside the commits, one in a store at a time; `close` leaves none that is due.
    """

    def __init__(self, folder: ShardFolder, log_format: LogFormat, compaction: Compaction, turn: Lock) -> None:
        """Take the shard's lock, find its last commit and cut off what a crash left behind it.

        turn: held by the one compaction of a store that runs.
        """
        self._folder = folder
        self._format = log_format
        self._compaction = compaction
        self._turn = turn
        self._changes: dict[int, NDArray[np.float32] | None] = {}
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._told = False
        self._closed = False
        self._held = folder.lock()
        try:
            with translated(f"opening `{folder.path}`"):
                self._open()
        except BaseException:
            self._held.close()
            raise

    def put(self, keys: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        """Store or replace vectors by key, with the next commit."""
        self._check()
        keys = checked_keys(keys)
        self._changes.update(zip(keys.tolist(), checked_vectors(keys, vectors, self._format.dim).copy(), strict=True))

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove vectors by key, with the next commit."""
        self._check()
        self._changes.update(dict.fromkeys(checked_keys(keys).tolist()))

    def commit(self) -> None:
        """Append everything since the last commit to the log and fsync it."""
        self._check()
        if not self._changes:
            return
        try:
            with translated(f"committing vectors to `{self._folder.path}`"):
                self._log.append(self._format.pack(self._sequence, self._changes))
                self._sequence += 1
                self._log_rows += len(self._changes)
                self._changes = {}
                if self._is_due():
                    self._compact()
        except BaseException as exc:
            self._failure, self._told = self._failure or exc, True
            raise

    def erase(self, keys: NDArray[np.uint64]) -> None:
        """Remove vectors, and make the base anew without what was removed."""
        self.delete(keys)
        self.commit()
        self._join()
        self._check()
        base = self._manifest.base
        if self._log_rows == 0:
            if base is None or base.removed == 0:
                return
            self._changes[KEY_MAX] = None  # a base is made of commits, so there must be one
            self.commit()
        try:
            with translated(f"compacting `{self._folder.path}`"):
                self._start_compaction(anew=True)
        except BaseException as exc:
            self._failure, self._told = self._failure or exc, True
            raise
        self._join()
        self._check()

    def close(self) -> None:
        """Finish the compactions that are due, then let another writer have the shard."""
        if self._closed:
            return
        self._closed = True
        self._join()
        if self._failure is None and self._is_due():
            try:
                with translated(f"compacting `{self._folder.path}`"):
                    self._start_compaction()
            except HeadraceError as exc:
                self._failure = exc
            self._join()
        self._log.close()
        self._held.close()
        if not self._told:
            self._raise_failure()

    def _check(self) -> None:
        if self._closed:
            raise ValueError("the writer is closed")
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        self._told = True
        if isinstance(self._failure, HeadraceError):
            raise self._failure
        raise FatalError(f"writing to `{self._folder.path}` failed before; open it anew") from self._failure

    def _open(self) -> None:
        manifest = self._folder.manifest()
        if manifest is None:
            manifest = Manifest(None, (self._folder.log(0),))
            create_log(self._folder.path / manifest.logs[0], self._format)
            self._folder.publish(manifest)
        self._manifest = manifest
        self._folder.remove_leftovers(manifest)
        self._base_rows = manifest.base.rows if manifest.base else 0
        self._log_rows = 0
        sequence, end = sequence_of(manifest.logs[0]), 0
        for name in manifest.logs:
            log = LogReader(self._folder.path / name, self._format, sequence)
            try:
                self._log_rows += sum(record.keys.size + record.deleted.size for record in log.read())
                sequence, end = log.next_sequence, log.end
                if log.torn_bytes() and name != manifest.logs[-1]:
                    raise CorruptStoreError(f"`{log.path}` is damaged at byte {log.end}; restore the store")
            finally:
                log.close()
        self._sequence = sequence
        self._log = LogWriter(self._folder.path / manifest.logs[-1], end)

    def _is_due(self) -> bool:
        return self._log_rows >= self._compaction.rows(self._base_rows)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _compact(self) -> None:
        """Start a compaction, unless one runs and is not far behind."""
        if self._thread is not None and self._thread.is_alive():
            if self._log_rows < _BEHIND * self._compaction.rows(self._base_rows):
                return
            self._join()
        self._check()
        self._start_compaction()

    def _start_compaction(self, *, anew: bool = False) -> None:
        """Go on in a new log, and turn those before it into a base beside the commits that follow."""
        logs = self._manifest.logs
        name = self._folder.log(self._sequence)
        if name == logs[-1]:  # a crash came after the new log and before the base: it is empty still
            logs = logs[:-1]
        else:
            create_log(self._folder.path / name, self._format)
            self._manifest = Manifest(self._manifest.base, (*logs, name))
            self._folder.publish(self._manifest)
            self._log.close()
            self._log = LogWriter(self._folder.path / name, len(self._format.header))
        self._log_rows = 0
        complete = Manifest(self._manifest.base, logs)
        self._thread = Thread(
            target=self._make_base, args=(complete, name, self._sequence, anew), name="vector-compaction"
        )
        self._thread.start()

    def _make_base(self, complete: Manifest, log: str, sequence: int, anew: bool) -> None:  # noqa: FBT001  # of a thread
        try:
            with self._turn, translated(f"compacting `{self._folder.path}`"):
                base = make_base(self._folder, complete, self._format, sequence, anew=anew)
                compacted = Manifest(base, (log,))
                self._folder.publish(compacted)
                self._manifest, self._base_rows = compacted, base.rows if base else 0
                self._folder.remove_leftovers(compacted)
        except BaseException as exc:  # noqa: BLE001  # handed to the writer's thread, which raises it
            self._failure = exc
