"""What a run of the signal path has come to, as its last durable snapshot says: what was read, and what is final."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from dataflows.engine import Cluster, claimed
from dataflows.recovery import Recovery, is_held, was_made
from dataflows.released import RELEASED
from dataflows.runner import signals_job
from dataflows.set_versions import sets_run_together
from dataflows.signal_flow import FLOW
from operators.feature_sets import FeatureSets
from operators.packing import unpack
from operators.records import END_OF_TIME, NO_WATERMARK
from operators.shard import shard_keys
from operators.window_loops import ROW_END
from stores.row_states import unpack_rows
from stores.writers import staged_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dataflows.buses.port import WritableBus
    from dataflows.config import Settings
    from dataflows.runner import Beside
    from operators.records import RowBlock

_WAIT_S = 10.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class RunState:
    """A moment of a run; without a recovery folder, that after the end of everything.

    ends, seen: of each partition, the offset read to, exclusive, and how many messages that were; None: all there are.
    cuts: of each shard, up to which window end all rows were given, and are in the store or in `waiting`.
    pending: offsets of late events that do not count yet. released: number of the last that was. live: a run goes on
    meanwhile; then only what can change no more is before the cuts, and nothing waits.
    waiting, serving: rows of `sets` on their way to the history, and to the online store.
    """

    cuts: tuple[int, ...]
    ends: dict[str, int] | None = None
    seen: dict[str, int] = field(default_factory=dict)
    pending: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    released: int | None = None
    sets: FeatureSets | None = None
    waiting: tuple[RowBlock, ...] = ()
    serving: tuple[RowBlock, ...] = ()
    live: bool = False


def state_of(settings: Settings, bus: WritableBus, beside: Beside | None = None) -> RunState:
    """Read the state of the run; of one that has ended, everything that it has staged is published first.

    Raises ConfigError if the recovery folder is that of other settings, what reading snapshots raises.
    """
    job = signals_job(settings, bus, beside)
    sets = sets_run_together(settings) if beside is None else FeatureSets((beside.declared,))
    if not was_made(job.folder):
        return RunState((END_OF_TIME,) * settings.signal_shards)
    if is_held(job.folder):
        return replace(_state_meanwhile(Recovery(job.folder), settings), sets=sets)
    with claimed(job, Cluster()) as (recovery, lineage):
        job.settle(recovery, lineage)
        return replace(_state(recovery, settings), sets=sets)


def _state(recovery: Recovery, settings: Settings) -> RunState:
    ends: dict[str, int] = {}
    seen: dict[str, int] = {}
    released = None
    for state in recovery.states(f"{FLOW}.read").values():
        for name, feed in orjson.loads(state).items():
            if name == RELEASED:
                released = int(feed["released"])
            elif not name.startswith("/"):
                ends[name], seen[name] = int(feed["position"]["offset"]), int(feed["intake"][1])
    cuts, _, pending = _shards(recovery, settings)
    waiting = _blocks(recovery.states(f"{FLOW}.offline").values())
    serving = _blocks(recovery.states(f"{FLOW}.online").values())
    return RunState(cuts, ends, seen, pending, released, waiting=waiting, serving=serving)


def _state_meanwhile(recovery: Recovery, settings: Settings) -> RunState:
    """As far as nothing can change any more, once what was staged by then is published."""
    state = _state(recovery, settings)
    _, edges, _ = _shards(recovery, settings)
    staged = _tokens(recovery)
    limit = time.monotonic() + 6 * settings.snapshot_seconds + _WAIT_S
    while staged & _tokens(recovery) and is_held(recovery.folder) and time.monotonic() < limit:
        time.sleep(_LOOK_S)
    final = min((*edges, *(int(b.place[:, ROW_END].min()) - 1 for b in state.waiting if len(b))))
    return replace(state, cuts=(final,) * settings.signal_shards, waiting=(), serving=(), live=True)


def _tokens(recovery: Recovery) -> set[str]:
    return {token for state in recovery.states(f"{FLOW}.offline").values() for token in staged_tokens(state)}


def _shards(
    recovery: Recovery, settings: Settings
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, NDArray[np.int64]]]:
    """Of each shard its watermark, and before what nothing changes any more; and corrections that do not count yet."""
    states = recovery.states(f"{FLOW}.windows")
    cuts, edges = [], []
    pending: dict[str, list[NDArray[np.int64]]] = {}
    for key in shard_keys(settings.signal_shards):
        if key not in states:
            cuts.append(NO_WATERMARK)
            edges.append(NO_WATERMARK)
            continue
        meta, arrays = unpack(states[key])
        cuts.append(cast("int", meta["watermark"]))
        retained = cast("list[dict[str, int]] | None", meta["retained"])
        edges.append(cuts[-1] if retained is None else min(retained[0]["start"], cuts[-1]))
        if "late.due" in arrays:
            for number, name in enumerate(cast("list[str]", meta["partitions"])):
                mine = arrays["late.offset"][arrays["late.partition"] == number]
                pending.setdefault(name, []).append(mine.astype(np.int64))
    return tuple(cuts), tuple(edges), {name: np.sort(np.concatenate(some)) for name, some in pending.items()}


def _blocks(states: Iterable[bytes]) -> tuple[RowBlock, ...]:
    return tuple(block for state in states for block in unpack_rows(state)[1])
