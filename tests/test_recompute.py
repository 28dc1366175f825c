"""Rows computed anew: those of a batch in which nothing is late, however they are cut and whatever the disorder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dataflows.inputs import open_input
from dataflows.recompute import Feed, Options, Recomputed, recompute
from operators.records import Decoded, RowBlock
from operators.rows import to_tables
from tests.flows import SETS, Log, Place
from tests.late_rows import WIDE, batch_rows, late_log, newest

Rows = dict[tuple[object, ...], tuple[bytes, object]]


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        """Hold nothing."""
        self.blocks: list[RowBlock] = []
        self.begun = 0

    def begin(self) -> None:
        """Forget it."""
        self.blocks = []
        self.begun += 1

    def take(self, shard: int, blocks: list[RowBlock]) -> None:
        """Keep rows."""
        del shard
        self.blocks += blocks

    def rows(self) -> Rows:
        """Each row's content and start; none is there twice."""
        out: Rows = {}
        for index, declared in enumerate(SETS.sets):
            for spec, _, table in to_tables([b for b in self.blocks if b.set_index == index], declared):
                columns = (table[c].to_pylist() for c in ("entity_id", "event_time", "content_hash", "window_start"))
                for entity, end, content, start in zip(*columns, strict=True):
                    place = (declared.name, declared.windows[spec].folder, entity, end)
                    assert place not in out
                    out[place] = (content, start)
        return out


def computed(place: Place, options: Options, **feed: object) -> tuple[Recomputed, Kept]:
    """Compute the rows of the place's topic."""
    kept = Kept()
    feeds = [Feed(p.stem, lambda p=p: open_input(p, 1 << 20), **feed) for p in sorted(place.topic.iterdir())]  # type: ignore[arg-type, misc]  # of any kind
    return recompute(SETS, feeds, options, kept), kept


@pytest.fixture(scope="module")
def log() -> Log:
    """Events of which a tenth is late, with repeats and conflicts."""
    return late_log(5)


@pytest.fixture
def place(tmp_path: Path, log: Log) -> Place:
    """The log on a bus."""
    there = Place(tmp_path / "place")
    there.topic.mkdir(parents=True)
    there.write(log)
    return there


@pytest.mark.parametrize(
    "options",
    [
        Options(shards=3, bound_us=WIDE, threads=1),
        Options(shards=12, bound_us=WIDE, batch_size=7, threads=4),
        Options(shards=1, bound_us=0, batch_size=100),
    ],
)
def test_rows_are_those_of_a_batch_that_waits_for_everything(place: Place, log: Log, options: Options) -> None:
    """Shards, pieces, threads and a bound that is too small at first do not show; every row comes once."""
    done, kept = computed(place, options)
    expected, counts = batch_rows(log, None, WIDE)
    assert kept.rows() == newest(expected)
    assert (kept.begun > 1) == (options.bound_us == 0)
    assert (done.used, done.duplicate, done.conflict) == (counts.used, counts.duplicate, counts.conflict)
    assert sum(done.seen.values()) == len(log.lines)


def test_one_entity_alone_gives_its_rows(place: Place, log: Log) -> None:
    """Only the named entity's events are applied, and its rows are those that it has among all."""
    _, kept = computed(place, Options(shards=2, bound_us=WIDE, entity="s7"))
    whole = newest(batch_rows(log, None, WIDE)[0])
    assert kept.rows() == {row: value for row, value in whole.items() if row[2] == "s7"}


def test_what_a_judge_refuses_and_what_stands_behind_the_end_does_not_count(place: Place, log: Log) -> None:
    """Events are left out by verdict and by offset; what is read is counted all the same."""
    ends = {path.stem: path.stat().st_size // 2 for path in place.topic.iterdir()}
    feeds = []
    for path in sorted(place.topic.iterdir()):

        def even(decoded: Decoded) -> NDArray[np.bool_]:
            kept: NDArray[np.bool_] = decoded.batch.sequence % 2 == 0
            return kept

        open_it = lambda path=path: open_input(path, 1 << 20)  # noqa: E731  # opened by the run
        feeds.append(Feed(path.stem, open_it, lambda: even, ends[path.stem]))
    kept = Kept()
    done = recompute(SETS, feeds, Options(shards=2, bound_us=WIDE), kept)
    counted = [e for e in log.events if e.offset < ends[e.partition]]
    assert sum(done.seen.values()) == len(counted)
    assert done.used + done.duplicate + done.conflict == sum(e.sequence % 2 == 0 for e in counted)
