"""The same steps over files that are complete: the same rows, at the speed of a plain loop."""

from __future__ import annotations

import glob
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dataflows.inputs import Input, open_input
from dataflows.set_aside import letters_of, tell_refused
from dataflows.summary import Summary
from operators.decode import Decoder
from operators.errors import ConfigError
from operators.intake import Intake
from operators.shard import split, split_due
from operators.watermark import Status
from operators.windows import Shard
from stores.offline.port import BATCH_PART, Withheld
from stores.writers import partitioned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from operators.feature_sets import FeatureSets
    from operators.forgotten import Forgotten
    from operators.intake import Piece
    from operators.records import RowBlock
    from operators.retained import Lateness
    from stores.deadletters.port import DeadLetters
    from stores.offline.port import OfflineStore

_STAGE_ROWS = 1 << 18
_FIRST_EVENTS_MAX = 4096


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch run is made of. bound_us: WATERMARK_SECONDS in microseconds. topic: of the dead letters.

    lateness: what late events may still change; held they are never. forgotten: whose signals are refused; still_so
    raises if that has changed since.
    """

    sets: FeatureSets
    shards: int
    bound_us: int
    batch_size: int
    event_bytes_max: int
    offline: OfflineStore
    dead_letters: DeadLetters
    topic: Callable[[Path], str]
    lateness: Lateness | None = None
    forgotten: Forgotten | None = None
    still_so: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _Feed:
    """One file being read."""

    path: Path
    source: Input
    intake: Intake
    ended: bool = False


@dataclass(slots=True)
class _Output:
    """Rows on their way into the store: staged piece by piece, published together at the end."""

    store: OfflineStore
    sets: FeatureSets
    writer: str
    waiting: list[RowBlock] = field(default_factory=list)
    rows: int = 0
    sequence: int = 0
    tokens: list[str] = field(default_factory=list)
    withheld: Withheld = field(default_factory=Withheld)

    def add(self, blocks: list[RowBlock]) -> None:
        self.waiting += blocks
        self.rows += sum(map(len, blocks))
        if self.rows >= _STAGE_ROWS:
            self.stage()

    def stage(self) -> None:
        if not self.waiting:
            return
        done = self.store.stage(self.writer, self.sequence, partitioned(self.waiting, self.sets))
        self.sequence += 1
        self.tokens.extend(done.tokens)
        self.withheld += done.withheld
        self.waiting, self.rows = [], 0

    def publish(self) -> None:
        self.stage()
        self.withheld += self.store.publish(self.tokens)


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """Return the files that the patterns match, sorted, each once.

    Raises ConfigError for a pattern that matches nothing, and for two files with one name: the name is
    the partition's.
    """
    found: set[Path] = set()
    for pattern in patterns:
        files = [Path(p).absolute() for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]  # noqa: PTH207  # takes absolute patterns too
        if not files:
            raise ConfigError(f"no file matches `{pattern}`; put the pattern in quotes, as 'folder/*.jsonl'")
        found.update(files)
    names: dict[str, Path] = {}
    for path in sorted(found):
        if path.stem in names:
            raise ConfigError(f"`{names[path.stem]}` and `{path}` have one name, which names the partition; rename one")
        names[path.stem] = path
    return sorted(found)


def run_batch(plan: BatchPlan, paths: Sequence[Path], progress: Callable[[int], None]) -> tuple[Summary, Withheld]:
    """Compute the features of complete files, each a partition, and add the rows that are missing.

    All rows become visible at the end, or none. Rows that the store has already stay as they are and
    are counted as withheld. progress hears the bytes read since the last call.
    """
    decoder = Decoder(plan.sets, event_bytes_max=plan.event_bytes_max, forgotten=plan.forgotten)
    feeds = [
        _Feed(p, open_input(p, plan.event_bytes_max), Intake(p.stem, decoder, plan.bound_us, None, plan.lateness))
        for p in paths
    ]
    known = tuple(sorted(f.intake.partition for f in feeds))
    shards = [Shard(plan.sets, None, plan.lateness) for _ in range(plan.shards)]
    output = _Output(plan.offline, plan.sets, f"{uuid.uuid4().hex[:8]}.{BATCH_PART}")
    try:
        while any(not f.ended for f in feeds):
            feed = min((f for f in feeds if not f.ended), key=lambda f: (f.intake.newest, f.intake.partition))
            piece = _next_piece(feed, plan.batch_size, known, progress)
            if piece.rejects:
                _refuse(piece, plan.topic(feed.path), plan.dead_letters)
            _push(shards, piece, output)
        plan.still_so()
        output.publish()
    except BaseException:
        plan.offline.discard(output.writer, keep=())
        raise
    finally:
        for feed in feeds:
            feed.source.close()
    return _summary(feeds, shards), output.withheld


def _next_piece(feed: _Feed, batch_size: int, known: tuple[str, ...], progress: Callable[[int], None]) -> Piece:
    from operators.intake import Piece

    first = feed.intake.seen == 0
    chunk = feed.source.poll(min(batch_size, _FIRST_EVENTS_MAX) if first else batch_size)
    progress(feed.source.advanced())
    if chunk is None:
        feed.ended = True
        return Piece(feed.intake.tick(Status.ENDED), known)
    return feed.intake.take(chunk, known)


def _push(shards: list[Shard], piece: Piece, output: _Output) -> None:
    parts = None if piece.batch is None or piece.late is None else split(piece.batch, piece.late, len(shards))
    late = None if piece.batch is None or piece.due is None else split_due(piece.batch, piece.due, len(shards))
    for index, shard in enumerate(shards):
        corrections = None if late is None else late[index]
        if corrections is not None:
            shard.correct(*corrections)
        shard.push(None if parts is None else parts[index], piece.tick, piece.known)
        output.add(shard.advance())


def _refuse(piece: Piece, topic: str, store: DeadLetters) -> None:
    letters = letters_of(piece, topic)
    tell_refused(letters)
    store.put(letters)


def _summary(feeds: list[_Feed], shards: list[Shard]) -> Summary:
    return Summary(
        seen=sum(f.intake.seen for f in feeds),
        used=sum(s.counts.used for s in shards),
        duplicate=sum(s.counts.duplicate for s in shards),
        conflict=sum(s.counts.conflict for s in shards),
        late=sum(f.intake.late for f in feeds) + sum(s.counts.late for s in shards),
        dead=sum(f.intake.dead for f in feeds),
        rows=sum(s.counts.rows for s in shards),
    )
