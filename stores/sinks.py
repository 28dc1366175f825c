"""Where stores meet Bytewax: each writer as a sink with snapshots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from stores.log_writer import Append, LogWriter
from stores.writers import OnlineWriter, Rows

if TYPE_CHECKING:
    from operators.feature_sets import FeatureSets
    from operators.messages import Message
    from operators.records import DeadLetter
    from stores.archive.columns import Verdicts
    from stores.archive_writer import ArchiveWriter
    from stores.deadletters.port import DeadLetters
    from stores.features.port import Features
    from stores.holding.port import HeldEvent, Holding

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result = TypeVar("Result")
Failure = Callable[[str, str, BaseException], None]
"""Hears (step, part, error) before the error is raised."""


class RowsSink(FixedPartitionedSink[Rows, bytes]):
    """Feature rows from every shard, by some writers. Exactly once with recovery."""

    def __init__(
        self, open_writer: Callable[[str, bytes | None], _Writer[Rows]], failed: Failure, *, parts: int
    ) -> None:
        """open_writer: (part, what its snapshot returned). parts: writers, fixed for a recovery folder."""
        self._open_writer = open_writer
        self._failed = failed
        self._parts = parts

    def list_parts(self) -> list[str]:
        """The writers."""
        return [f"w{p}" for p in range(self._parts)]

    def part_fn(self, item_key: str) -> int:
        """Shard names start with the shard's number."""
        return int(item_key.partition(".")[0])

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> StatefulSinkPartition[Rows, bytes]:
        """Open one writer."""
        return _Part(step_id, for_part, self._failed, lambda: self._open_writer(for_part, resume_state))


class OnlineSink(FixedPartitionedSink[Rows, bytes]):
    """Online features from every shard, by one writer."""

    def __init__(self, store: Features, sets: FeatureSets, failed: Failure) -> None:
        """store, sets: see OnlineWriter."""
        self._store = store
        self._sets = sets
        self._failed = failed

    def list_parts(self) -> list[str]:
        """One writer, so that one connection writes."""
        return ["online"]

    def part_fn(self, item_key: str) -> int:
        """All shards go to the one writer."""
        del item_key
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> StatefulSinkPartition[Rows, bytes]:
        """Start the writer."""
        return _Part(step_id, for_part, self._failed, lambda: OnlineWriter(self._store, self._sets, resume_state))


class LogSink(FixedPartitionedSink[list["Message"], bytes]):
    """Messages to a log, by one writer. Exactly once with recovery."""

    def __init__(self, append: Append, failed: Failure, *, durable: bool, at_once: bool = False) -> None:
        """append, durable, at_once: see LogWriter."""
        self._append = append
        self._failed = failed
        self._durable = durable
        self._at_once = at_once

    def list_parts(self) -> list[str]:
        """One writer: it owns its name."""
        return ["log"]

    def part_fn(self, item_key: str) -> int:
        """Everything goes to the one writer."""
        del item_key
        return 0

    def build_part(
        self, step_id: str, for_part: str, resume_state: bytes | None
    ) -> StatefulSinkPartition[list[Message], bytes]:
        """Open the writer; what its snapshot held is appended first."""

        def opened() -> LogWriter:
            return LogWriter(self._append, resume_state, durable=self._durable, at_once=self._at_once)

        return _Part(step_id, for_part, self._failed, opened)


class IndexSink(FixedPartitionedSink[Item, bytes]):
    """Documents from every worker, by one writer. At least once, and a repeat changes nothing."""

    def __init__(self, open_writer: Callable[[], _Writer[Item]], failed: Failure) -> None:
        """open_writer: becomes the writer of the whole index."""
        self._open_writer = open_writer
        self._failed = failed

    def list_parts(self) -> list[str]:
        """One writer: a document that is renamed may change two shards at one moment."""
        return ["index"]

    def part_fn(self, item_key: str) -> int:
        """Everything goes to the one writer."""
        del item_key
        return 0

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> StatefulSinkPartition[Item, bytes]:
        """Nothing to resume: the stores are the state."""
        del resume_state
        return _Part(step_id, for_part, self._failed, self._open_writer)


class DeadLetterSink(FixedPartitionedSink[list["DeadLetter"], bytes]):
    """Dead letters to their store at once: a repeat has the same id and changes nothing."""

    def __init__(self, store: DeadLetters, failed: Failure) -> None:
        """store: see DeadLetters."""
        self._store = store
        self._failed = failed

    def list_parts(self) -> list[str]:
        """One writer."""
        return ["letters"]

    def part_fn(self, item_key: str) -> int:
        """Everything goes to the one writer."""
        del item_key
        return 0

    def build_part(
        self, step_id: str, for_part: str, resume_state: bytes | None
    ) -> StatefulSinkPartition[list[DeadLetter], bytes]:
        """Nothing to resume: the store is the state."""
        del resume_state
        return _Part(step_id, for_part, self._failed, lambda: _AtOnceWriter(self._store.put))


class HoldingSink(FixedPartitionedSink[list["HeldEvent"], bytes]):
    """Late events to the holding store at once: a repeat has the same name and changes nothing."""

    def __init__(self, store: Holding, failed: Failure) -> None:
        """store: see Holding."""
        self._store = store
        self._failed = failed

    def list_parts(self) -> list[str]:
        """One writer."""
        return ["held"]

    def part_fn(self, item_key: str) -> int:
        """Everything goes to the one writer."""
        del item_key
        return 0

    def build_part(
        self, step_id: str, for_part: str, resume_state: bytes | None
    ) -> StatefulSinkPartition[list[HeldEvent], bytes]:
        """Nothing to resume: the store is the state."""
        del resume_state
        return _Part(step_id, for_part, self._failed, lambda: _AtOnceWriter(self._store.put))


class ArchiveSink(FixedPartitionedSink["Verdicts", bytes]):
    """What shards found out about messages, to the archive by one writer. Exactly once with recovery."""

    def __init__(self, open_writer: Callable[[str, bytes | None], ArchiveWriter], failed: Failure) -> None:
        """open_writer: (part, what its snapshot returned)."""
        self._open_writer = open_writer
        self._failed = failed

    def list_parts(self) -> list[str]:
        """One writer: verdicts are few."""
        return ["v0"]

    def part_fn(self, item_key: str) -> int:
        """Everything goes to the one writer."""
        del item_key
        return 0

    def build_part(
        self, step_id: str, for_part: str, resume_state: bytes | None
    ) -> StatefulSinkPartition[Verdicts, bytes]:
        """Open the writer."""
        return _Part(step_id, for_part, self._failed, lambda: _Judging(self._open_writer(for_part, resume_state)))


class _Writer(Protocol[Item_contra]):
    """What the writers have in common."""

    def write(self, value: Item_contra, /) -> None: ...
    def snapshot(self) -> bytes: ...
    def close(self) -> None: ...


class _Part(StatefulSinkPartition[Item, bytes], Generic[Item]):
    """A writer as Bytewax sees it; what it raises is told first, since the engine may swallow it."""

    def __init__(self, step_id: str, part: str, failed: Failure, open_writer: Callable[[], _Writer[Item]]) -> None:
        self._name = (step_id, part)
        self._failed = failed
        self._writer = self._told(open_writer)

    def write_batch(self, values: list[Item]) -> None:
        for value in values:
            self._told(partial(self._writer.write, value))

    def snapshot(self) -> bytes:
        return self._told(self._writer.snapshot)

    def close(self) -> None:
        self._told(self._writer.close)

    def _told(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except Exception as error:
            self._failed(*self._name, error)
            raise


class _Judging:
    """An ArchiveWriter that gets no messages, only verdicts."""

    def __init__(self, writer: ArchiveWriter) -> None:
        self.write = writer.judge
        self.snapshot = writer.snapshot
        self.close = writer.close


class _AtOnceWriter(Generic[Item]):
    """Items to their store at once: the store is the state."""

    def __init__(self, put: Callable[[list[Item]], int]) -> None:
        self._put = put

    def write(self, items: list[Item]) -> None:
        if items:
            self._put(items)

    def snapshot(self) -> bytes:
        return b""

    def close(self) -> None:
        """The store belongs to whoever opened it."""
