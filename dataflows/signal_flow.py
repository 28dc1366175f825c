"""The signal path, laid out as a Bytewax flow.

bus partition ─▶ decode, mark late ─▶ split by shard ─▶ windows ─▶ offline rows + online features
                     │ dead letters        │ late (partition)  │ late (shard)
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from dataflows.announcing import dead_letter, signal_failed
from dataflows.archiving import verdicts_of
from dataflows.observability.events import DeadLettersOpened, Failed, WindowsClosed, tell
from dataflows.set_aside import (
    held_at_shard,
    held_events,
    late_at_shard_messages,
    late_messages,
    letters_of,
    rows_of,
    tell_refused,
)
from dataflows.signal_source import SignalSource, SourcePlan
from operators.intake import Piece
from operators.rows import closed_by_spec
from operators.shard import shard_keys, split, split_due
from operators.watermark import Status
from operators.windows import Shard
from stores.results_writer import ResultsWriter
from stores.sinks import ArchiveSink, DeadLetterSink, HoldingSink, LogSink, OnlineSink, RowsSink
from stores.writers import Delivery, OfflineWriter, Rows, partitioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from bytewax.dataflow import Stream
    from bytewax.operators import KeyedStream
    from numpy.typing import NDArray

    from dataflows.announcing import Outlets
    from dataflows.buses.port import WritableBus
    from operators.feature_sets import FeatureSets
    from operators.messages import Message
    from operators.records import DeadLetter, RowBlock, SignalBatch
    from operators.retained import Lateness
    from operators.verdicts import Fates
    from operators.watermark import Tick
    from operators.windows import LateAtShard
    from stores.archive.columns import Verdicts
    from stores.deadletters.port import DeadLetters
    from stores.features.port import Features
    from stores.holding.port import HeldEvent
    from stores.log_writer import Append
    from stores.offline.port import OfflineStore

Taken = TypeVar("Taken")
Given = TypeVar("Given")

FLOW = "signals"
OFFLINE_WRITERS = 4
_WRITING_THREADS = 2
_AHEAD_ROWS = 4_096
"""So many closed rows are laid out as tables by another thread while the next shard closes its windows."""

STEPS = ("read", "dead_letters", "late", "windows", "offline", "online", "archive", "dlq", "failed", "results")
"""Steps with state: their names are part of the snapshots and never change."""


@dataclass(frozen=True, slots=True)
class SignalPlan:
    """Everything the flow is made of, opened and checked. outlets: None if there is no Kafka to tell.

    beside: another run reads the same log and keeps what comes late or is refused, and tells of it; this one only
    counts it.
    """

    source: SourcePlan
    shards: int
    late_bus: WritableBus
    topic_late: str
    offline: OfflineStore
    features: Features | None
    dead_letters: DeadLetters
    outlets: Outlets | None
    lineage: str
    durable: bool
    staged: bool
    beside: bool = False

    @property
    def at_once(self) -> bool:
        """Whether messages are sent before their snapshot is durable: without transactions Kafka knows no repeat."""
        return self.outlets is not None and not self.staged


@dataclass(frozen=True, slots=True)
class Share:
    """What one shard gets of a piece: its signals, and how far the partition has come.

    corrections: late signals, and int64 (n,), from when on each counts. released: late ones that
    were held.
    """

    tick: Tick
    known: tuple[str, ...]
    batch: SignalBatch | None
    corrections: tuple[SignalBatch, NDArray[np.int64]] | None = None
    released: tuple[SignalBatch, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """What one shard gives: rows for the stores, events that came below its watermark, and what became of others."""

    rows: Rows
    late: tuple[LateAtShard, ...] = ()
    fates: Fates | None = None


class WindowsLogic(StatefulBatchLogic["Share", "Closed", bytes]):
    """One shard as Bytewax sees it: it never flushes on its own, and its snapshot is bytes."""

    def __init__(
        self,
        sets: FeatureSets,
        resume: bytes | None,
        beside: Executor,
        lateness: Lateness | None = None,
        *,
        notes_fates: bool = False,
    ) -> None:
        """resume: what `snapshot` returned. beside: the threads that write files. notes_fates: for the archive."""
        self._sets = sets
        self._beside = beside
        self._shard = Shard(sets, resume, lateness, notes_fates=notes_fates)

    def on_batch(self, values: list[Share]) -> tuple[Iterable[Closed], bool]:
        """Take shares in order, then close what the watermark has passed."""
        share = values[0]
        late: list[LateAtShard] = []
        try:
            for share in values:
                late += self._take(share)
            blocks = self._shard.advance()
        except Exception as error:
            tell(Failed("windows", *_place(share), error))
            raise
        silent = any(s.tick.status is not Status.LIVE for s in values)
        ended = any(s.tick.status is Status.ENDED for s in values)
        self._tell_closed(blocks)
        ahead = None
        if sum(map(len, blocks)) >= _AHEAD_ROWS:
            ahead = self._beside.submit(partitioned, blocks, self._sets)
        return [Closed(Rows(tuple(blocks), silent, ended, ahead), tuple(late), self._shard.taken_fates())], False

    def _take(self, share: Share) -> list[LateAtShard]:
        """Take what there is; return what is set aside."""
        older = None if share.corrections is None else self._shard.correct(*share.corrections)
        held = [self._shard.correct(batch, released=True) for batch in share.released if len(batch)]
        below = self._shard.push(share.batch, share.tick, share.known)
        return [late for late in (older, *held, below) if late is not None]

    def on_eof(self) -> tuple[Iterable[Closed], bool]:
        """The run stops here, not the log: windows stay open; the stores need not wait for more rows."""
        return [Closed(Rows(final=True))], False

    def snapshot(self) -> bytes:
        """The shard's state."""
        return self._shard.snapshot()

    def _tell_closed(self, blocks: list[RowBlock]) -> None:
        now_ms = time.time() * 1e3
        for block in blocks:
            declared = self._sets.sets[block.set_index]
            for window, (rows, newest) in zip(declared.windows, closed_by_spec(block, declared).tolist(), strict=True):
                if rows > 0:
                    tell(WindowsClosed(window.text, rows, now_ms - newest / 1e3))


def build(plan: SignalPlan) -> Dataflow:
    """Lay the flow. Step names are frozen: Bytewax silently drops the state of a renamed one."""
    source = plan.source
    keys = shard_keys(plan.shards)
    flow = Dataflow(FLOW)
    tell(DeadLettersOpened(plan.dead_letters.count))
    pieces = op.input("read", flow, SignalSource(source))

    shares = op.flat_map_batch("split", pieces, _logged("split", lambda p: _shares(p, keys)))
    archived = source.archive is not None
    beside = ThreadPoolExecutor(_WRITING_THREADS, "offline")
    closed = op.stateful_batch(
        "windows",
        shares,
        lambda resume: WindowsLogic(source.sets, resume, beside, source.lateness, notes_fates=archived),
    )
    if source.archive is not None:
        verdicts = op.flat_map_batch("verdicts", closed, _logged("archive", lambda c: _verdicts(c, plan)))
        op.output("archive", verdicts, ArchiveSink(source.archive, failed))

    refused = None if plan.beside else _lay_set_aside(plan, pieces, closed)
    rows = op.map("rows", closed, lambda pair: (pair[0], pair[1].rows))

    delivery = Delivery(plan.durable, plan.staged, beside)

    def open_offline(part: str, resume: bytes | None) -> OfflineWriter:
        name = f"{plan.lineage}.{part}"
        return OfflineWriter(plan.offline, source.sets, name, resume, delivery)

    op.output("offline", rows, RowsSink(open_offline, failed, parts=OFFLINE_WRITERS))
    if plan.features is not None:
        op.output("online", rows, OnlineSink(plan.features, source.sets, failed))
    if refused is not None and plan.outlets is not None:
        _announce(plan, plan.outlets, refused, rows)
    return flow


def _lay_set_aside(
    plan: SignalPlan, pieces: Stream[Piece], closed: KeyedStream[Closed]
) -> KeyedStream[list[DeadLetter]]:
    """Lay the steps that keep what does not go on: dead letters, which are returned, late events, held ones."""
    source = plan.source
    refused = op.flat_map_batch("refused", pieces, _logged("refused", lambda p: _refused(p, source.topic)))
    op.output("dead_letters", refused, DeadLetterSink(plan.dead_letters, failed))

    late_there = op.flat_map_batch("late_at_partition", pieces, _logged("late", lambda p: _late_there(p, plan)))
    late_here = op.flat_map_batch("late_at_shard", closed, _logged("late", lambda c: _late_here(c, plan)))
    late = op.merge("late_events", late_there, late_here)
    if source.holding is not None:
        held_there = op.flat_map_batch(
            "held_at_partition", pieces, _logged("hold", lambda p: _held_there(p, source.topic))
        )
        held_here = op.flat_map_batch("held_at_shard", closed, _logged("hold", lambda c: _held_here(c, plan)))
        op.output("holding", op.merge("held_events", held_there, held_here), HoldingSink(source.holding, failed))

    append_late = append_to(plan.late_bus, plan.topic_late, plan.lineage)
    op.output("late", late, LogSink(append_late, failed, durable=plan.durable, at_once=plan.at_once))
    return refused


def _announce(
    plan: SignalPlan, outlets: Outlets, refused: KeyedStream[list[DeadLetter]], rows: KeyedStream[Rows]
) -> None:
    """Tell Kafka of dead letters and, if somebody wants them, of results."""

    def log_of(append: Append) -> LogSink:
        return LogSink(append, failed, durable=plan.durable, at_once=plan.at_once)

    dead = op.map_value("dead_letter_messages", refused, lambda some: _told(some, outlets.original_bytes_max))
    op.output("dlq", dead, log_of(append_to(outlets.bus, outlets.topic_dlq, plan.lineage)))
    if outlets.topic_results is None:
        return
    append_failed = append_to(outlets.bus, outlets.topic_results, failed_writer(plan.lineage))
    op.output("failed", op.map_value("failures", refused, _failures), log_of(append_failed))

    def open_results(part: str, resume: bytes | None) -> ResultsWriter:
        assert outlets.topic_results is not None  # asked above
        append = append_to(outlets.bus, outlets.topic_results, results_writer(plan.lineage, part))
        return ResultsWriter(append, plan.source.sets, resume, durable=plan.durable, at_once=plan.at_once)

    op.output("results", rows, RowsSink(open_results, failed, parts=OFFLINE_WRITERS))


def append_to(bus: WritableBus, topic: str, writer: str) -> Append:
    """How one writer's messages get to one topic."""
    return lambda messages, at: bus.append(topic, writer, messages, at=at)


def failed_writer(lineage: str) -> str:
    """The writer of the results of dead letters."""
    return f"{lineage}.failed"


def results_writer(lineage: str, part: str) -> str:
    """The writer of the results of feature rows that come to this part."""
    return f"{lineage}.{part}"


def _told(letters: list[DeadLetter], original_bytes_max: int) -> list[Message]:
    return [dead_letter(letter, original_bytes_max) for letter in letters]


def _failures(letters: list[DeadLetter]) -> list[Message]:
    return [signal_failed(letter) for letter in letters]


def failed(step: str, part: str, error: BaseException) -> None:
    """Tell of an error before the engine sees it. step: with the name of the flow before it, or without."""
    tell(Failed(step.removeprefix(f"{FLOW}."), part, None, error))


def _logged(step: str, work: Callable[[Taken], Iterable[Given]]) -> Callable[[list[Taken]], Iterable[Given]]:
    """The engine may swallow an exception: tell of it first, with its step and partition."""

    def batch(items: list[Taken]) -> Iterable[Given]:
        out: list[Given] = []
        for item in items:
            try:
                out.extend(work(item))
            except Exception as error:
                tell(Failed(step, *_place(item), error))
                raise
        return out

    return batch


def _place(item: object) -> tuple[str, int | None]:
    """Partition and first offset of what a step had in hand: a piece, a share, or a shard's late events."""
    match item:
        case Piece(tick=tick, batch=batch) | Share(tick=tick, batch=batch):
            return tick.partition, None if batch is None or len(batch) == 0 else int(batch.offset[0])
        case (_, Closed(late=(first, *_))):
            return first.events.partition, int(first.events.offset[0])
        case _:
            return "", None


def _refused(piece: Piece, topic: str) -> list[tuple[str, list[DeadLetter]]]:
    """Always one item, so that whoever is told of them is awake."""
    letters = letters_of(piece, topic)
    tell_refused(letters)
    return [("letters", letters)]


def _shares(piece: Piece, keys: tuple[str, ...]) -> list[tuple[str, Share]]:
    if piece.released:
        cut = [split(batch, np.zeros(len(batch), np.bool_), len(keys)) for batch in piece.released]
        parts_of = zip(keys, zip(*cut, strict=True), strict=True)
        return [(key, Share(piece.tick, piece.known, None, released=parts)) for key, parts in parts_of]
    if piece.batch is None or piece.late is None or len(piece.batch) == 0:
        return [(key, Share(piece.tick, piece.known, None)) for key in keys]
    parts = split(piece.batch, piece.late, len(keys))
    late = [None] * len(keys) if piece.due is None else split_due(piece.batch, piece.due, len(keys))
    return [(k, Share(piece.tick, piece.known, part, some)) for k, part, some in zip(keys, parts, late, strict=True)]


def _late_there(piece: Piece, plan: SignalPlan) -> list[tuple[str, list[Message]]]:
    """Late by their partition's own watermark; always one item, so that the log's writer is awake."""
    return [("log", [] if plan.source.holding is not None else late_messages(piece, plan.source.topic))]


def _late_here(pair: tuple[str, Closed], plan: SignalPlan) -> list[tuple[str, list[Message]]]:
    """Late at the shard: their originals are fetched from the bus again."""
    source = plan.source
    messages: list[Message] = []
    for late in pair[1].late:
        if source.holding is None or late.reason == "too_old":
            messages += late_at_shard_messages(late, source.topic, source.bus, source.sets)
    return [("log", messages)] if messages else []


def _verdicts(pair: tuple[str, Closed], plan: SignalPlan) -> list[tuple[str, Verdicts]]:
    source = plan.source
    found = verdicts_of(pair[1].fates, pair[1].late, lambda late: rows_of(late, source.topic, source.bus, source.sets))
    return [("verdicts", verdicts) for verdicts in found]


def _held_there(piece: Piece, topic: str) -> list[tuple[str, list[HeldEvent]]]:
    held = held_events(piece, topic)
    return [("held", held)] if held else []


def _held_here(pair: tuple[str, Closed], plan: SignalPlan) -> list[tuple[str, list[HeldEvent]]]:
    """Those that were released once and are too old go to the late topic."""
    source = plan.source
    late = [some for some in pair[1].late if some.reason != "too_old"]
    held = [event for some in late for event in held_at_shard(some, source.topic, source.bus, source.sets)]
    return [("held", held)] if held else []
