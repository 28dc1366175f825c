"""`verify signals`: the feature history is held against the events that it was made from.

The rows that must be there are computed anew and never written: only their digests are kept, by partition of the
history and by a part of the entities. What the store holds is read in full, each row's hash computed from its values.
Where the digests differ, that part of both is looked at row by row.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dataflows.log_feeds import log_feeds
from dataflows.recompute import Options, Recomputed, recompute
from dataflows.run_state import state_of
from dataflows.runner import Beside
from dataflows.set_versions import folder_of, sets_run_together
from dataflows.verify_online import Of, OnlineLook
from dataflows.verify_rows import (
    Difference,
    ExpectedRows,
    Totals,
    before_cut,
    differences_in,
    exact,
    wrong_buckets,
)
from dataflows.wiring import archive_to_read, bus_of, offline_of
from operators.digests import BUCKETS, add_change, no_buckets
from operators.errors import ConfigError, CorruptStoreError, FatalError
from operators.feature_sets import FeatureSets
from operators.rows import hash_table
from stores.archive.reading import partitions
from stores.offline.parquet import partitions_in
from stores.offline.port import EVERYTHING, PartitionKey, Selection
from stores.writers import partitioned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from dataflows.config import Settings
    from dataflows.run_state import RunState
    from operators.feature_sets import FeatureSet
    from stores.offline.port import OfflineStore

_COMPARED = (
    "entity_id", "window_start", "event_time", "revision", "created_at", "supersedes", "retracted", "content_hash",
)  # fmt: skip
"""What is read of a row besides its statistics: what its hash and its digest are made of, and what is served."""

_SHARDS = 4
"""Fewer than a run has are faster, where all of the run's have come equally far: no row depends on them."""

_PARTS_MAX = 512
"""Parts of partitions that are looked at row by row; of more only the partitions are named."""

Part = tuple[PartitionKey, int]
"""A partition of the history and a bucket of its entities."""


@dataclass(slots=True)
class Look:
    """What a look came to. checked: rows computed anew; open_rows: those among them whose windows can still change.

    online: rows that were held against the online store, None if there is none. archived: partitions that came out of
    the archive, the others off the bus.
    """

    differences: list[Difference] = field(default_factory=list)
    checked: int = 0
    open_rows: int = 0
    waiting: int = 0
    online: int | None = None
    archived: int = 0
    on_bus: int = 0
    live: bool = False

    def record(self) -> dict[str, object]:
        """As printed: `equal, checked, differences`, then what was looked at and what was not."""
        return {
            "equal": not self.differences,
            "checked": self.checked,
            "differences": len(self.differences),
            "online": self.online,
            "open": self.open_rows,
            "unpublished": self.waiting,
            "archived": self.archived,
            "on_bus": self.on_bus,
        }


def verify_signals(settings: Settings, selection: Selection = EVERYTHING) -> Look:
    """Compute the selected rows anew and compare them with the history, then the newest with the online store.

    Changes nothing, but publishes what an ended run had staged, as its next start would. While a run goes on, only what
    can change no more is compared, and what differs is looked at twice. Raises ConfigError if nothing declared is
    selected or the settings are not the run's, FatalError for messages that are gone.
    """
    look = Look()
    found = False
    for beside, sets in _runs(settings, selection):
        found = True
        mine = _look(settings, selection, beside, sets, look)
        if mine and look.live:
            again = {difference.place for difference in _look(settings, selection, beside, sets, Look())}
            mine = [difference for difference in mine if difference.place in again]
        look.differences += mine
    if not found:
        raise ConfigError("no declared feature set is selected; `--feature-set`, `--version`: see feature_sets.toml")
    return look


def _runs(settings: Settings, selection: Selection) -> Iterator[tuple[Beside | None, FeatureSets]]:
    """The runs that have made the selected sets: that of all together, and those of versions beside them."""
    declared = settings.feature_sets().sets
    try:
        together = sets_run_together(settings).sets
    except ConfigError:
        together = ()
    mine = tuple(s for s in together if _is_selected(s, selection))
    if mine:
        yield None, FeatureSets(mine)
    for one in declared:
        if one not in together and _is_selected(one, selection):
            assert folder_of(settings, one).exists(), "else it is run together with the others"
            yield Beside(one), FeatureSets((one,))


def _is_selected(declared: FeatureSet, selection: Selection) -> bool:
    windows = {w.folder for w in declared.windows}
    return (
        selection.feature_set in (None, declared.name)
        and selection.version in (None, declared.version)
        and (selection.window is None or selection.window in windows)
    )


def _look(
    settings: Settings, selection: Selection, beside: Beside | None, sets: FeatureSets, look: Look
) -> list[Difference]:
    """Look at the sets of one run; add what was looked at to `look`."""
    archive = archive_to_read(settings)
    with closing(bus_of(settings)) as bus, closing(offline_of(settings)) as store, closing(archive):
        state = state_of(settings, bus, beside)
        log = log_feeds(settings, state, bus, archive if partitions(archive) else None)
        look.live = look.live or state.live
        look.archived += len(log.archived)
        look.on_bus += len(log.feeds) - len(log.archived)
        cuts = state.cuts[:_SHARDS] if len(set(state.cuts)) == 1 else state.cuts
        options = Options(len(cuts), _bound(settings), event_bytes_max=settings.event_bytes_max)
        waiting = _Waiting(state, sets)
        totals = Totals(sets, cuts, selection)
        threads = ThreadPoolExecutor(os.cpu_count() or 1, "history")
        with closing(OnlineLook(settings, sets, state, threads)) as online, _ended(threads):
            history = _History(store, settings.offline_data_path, sets, waiting, _cut(state), online)
            windows = [threads.submit(history.look, of, keys) for of, keys in history.windows(selection)]
            done = recompute(sets, log.feeds, options, totals)
            _check_whole(done, state)
            seen = [window.result() for window in windows]
            online.check()
        stored = {key: sums for window in seen for key, sums in window.stored.items()}
        look.checked += totals.rows
        look.open_rows += totals.open_rows
        look.waiting += waiting.rows
        differing, found = _differing(totals.sums(), stored)
        for key in {key for key, _ in differing[_PARTS_MAX:]}:
            found.append(Difference("rows", key, detail="more differs here than is told row by row"))
        parts = frozenset(differing[:_PARTS_MAX])
        if parts:
            expected = ExpectedRows(sets, cuts, parts)
            recompute(sets, log.feeds, options, expected)
            found += differences_in(store, sets, expected, parts, waiting.tables, _cut(state))
        if settings.online_store != "none":
            look.online = (look.online or 0) + sum(window.compared for window in seen)
        found += [difference for window in seen for difference in window.served]
        return sorted(found, key=lambda difference: difference.order)


@contextmanager
def _ended(threads: ThreadPoolExecutor) -> Iterator[None]:
    """Nothing is under way in the threads afterwards; what they have not begun is not done if something else fails."""
    try:
        yield
    finally:
        threads.shutdown(cancel_futures=True)


def _bound(settings: Settings) -> int:
    lateness = settings.lateness
    return settings.watermark_us + (0 if lateness is None else lateness.allowed_us)


def _check_whole(done: Recomputed, state: RunState) -> None:
    for name, seen in state.seen.items():
        if done.seen.get(name) != seen:
            raise FatalError(
                f"partition `{name}`: a run has read {seen} messages, and {done.seen.get(name, 0)} of them are in the"
                " archive or on the bus: what is gone cannot be verified; restore it"
            )


def _cut(state: RunState) -> int | None:
    """Up to which event_time rows of the history count: all, unless a run adds to them meanwhile."""
    return state.cuts[0] if state.live else None


class _Waiting:
    """Rows that a killed run has computed and not staged: they stand in its snapshot, and count as stored."""

    def __init__(self, state: RunState, sets: FeatureSets) -> None:
        """sets: those to look at; the snapshot's are of all sets of its run."""
        self.rows = sum(map(len, state.waiting))
        self.tables: dict[PartitionKey, pa.Table] = {}
        if state.waiting and state.sets is not None:
            chosen = {(s.name, s.version) for s in sets.sets}
            tables = partitioned(list(state.waiting), state.sets)
            self.tables = {key: t for key, t in tables.items() if (key.feature_set, key.version) in chosen}


class _Sums(NamedTuple):
    """What the store holds of a partition. totals: see `no_buckets`. wrong: buckets with a row of a wrong hash."""

    totals: NDArray[np.uint64]
    wrong: NDArray[np.bool_]
    unreadable: str | None


class _Window(NamedTuple):
    """What was seen of a window. served: what differs online; compared: so many rows were."""

    stored: dict[PartitionKey, _Sums]
    served: list[Difference]
    compared: int


@dataclass(frozen=True, slots=True)
class _History:
    """The store while it is looked at. cut: see `before_cut`."""

    store: OfflineStore
    root: Path
    sets: FeatureSets
    waiting: _Waiting
    cut: int | None
    online: OnlineLook

    def windows(self, selection: Selection) -> Iterator[tuple[Of, list[PartitionKey]]]:
        """Yield each window that has selected rows, with its partitions in order."""
        known = {*partitions_in(self.root, selection), *(key for key in self.waiting.tables if selection.takes(key))}
        for declared in self.sets.sets:
            for spec in declared.windows:
                mine = declared.name, declared.version, spec.folder
                keys = sorted(key for key in known if (key.feature_set, key.version, key.window) == mine)
                if keys:
                    yield (declared, spec), keys

    def look(self, of: Of, keys: list[PartitionKey]) -> _Window:
        """Read every row of these partitions of a window once, then compare the newest with what is served."""
        stored = {key: self._read(key, of) for key in keys}
        return _Window(stored, *self.online.differences(of))

    def _read(self, key: PartitionKey, of: Of) -> _Sums:
        totals, wrong = no_buckets(1), np.zeros(BUCKETS, np.bool_)
        one = Selection(key.feature_set, key.version, key.window, key.date, key.date)
        try:
            for _, rows in self.store.scan(one, columns=[*_COMPARED, *of[0].columns]):
                kept = before_cut(rows, self.cut)
                wrong |= wrong_buckets(kept, hash_table(exact(kept), *of))
                add_change(totals, kept)
                self.online.note(of, kept)
        except CorruptStoreError as error:
            return _Sums(totals, wrong, str(error))
        if key in self.waiting.tables:
            add_change(totals, self.waiting.tables[key])
        return _Sums(totals, wrong, None)


def _differing(
    expected: dict[PartitionKey, NDArray[np.uint64]], stored: dict[PartitionKey, _Sums]
) -> tuple[list[Part], list[Difference]]:
    """Parts whose digests differ or in which a hash is wrong, in order; and partitions that cannot be read."""
    parts: list[Part] = []
    found = []
    nothing = _Sums(no_buckets(1), np.zeros(BUCKETS, np.bool_), None)
    for key in sorted({*expected, *stored}):
        there = stored.get(key, nothing)
        if there.unreadable is not None:
            found.append(Difference("unreadable", key, detail=there.unreadable))
            continue
        wanted = expected.get(key, nothing.totals[0])
        differs = (wanted != there.totals[0]).any(axis=1) | there.wrong
        parts += [(key, bucket) for bucket in np.flatnonzero(differs).tolist()]
    return parts, found
