"""How the signal path is run: `headrace signals` and bare `python -m bytewax.run dataflows.signals`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import orjson

from dataflows.archiving import ARCHIVE, slot_writer_state
from dataflows.buses.archived import ArchivedBus
from dataflows.engine import Cluster, Engine, Job, bare_job, claimed, run_job, set_up
from dataflows.observability.events import Stopped, tell
from dataflows.released import RELEASED
from dataflows.set_versions import folder_of, sets_run_together
from dataflows.signal_flow import FLOW, append_to, build, failed_writer, results_writer
from dataflows.summary import Summary, summary_of
from dataflows.wiring import (
    archive_of,
    archive_to_read,
    bus_of,
    identity_of,
    monitor_of,
    offline_of,
    outlets_of,
    signal_plan,
)
from operators.feature_sets import FeatureSets
from stores.log_writer import append_all, logged
from stores.results_writer import tell_rows, untold
from stores.writers import staged_tokens

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow

    from dataflows.buses.port import Bus, WritableBus
    from dataflows.config import Settings
    from dataflows.recovery import Recovery
    from operators.feature_sets import FeatureSet

_OFFSETS_S = 3.0


@dataclass(frozen=True, slots=True)
class Beside:
    """One version of a feature set, computed from the beginning of history beside the others, in its own folder.

    What comes late or is refused is only counted: the run of the others keeps it. until_end: stop once everything is
    read that is there, all windows left open, so that a run that follows the log goes on from there.
    progress: hears by how much a partition's offset has grown.
    """

    declared: FeatureSet
    until_end: bool = False
    progress: Callable[[int], None] = lambda _: None


def run_signals(settings: Settings, cluster: Cluster, beside: Beside | None = None) -> Summary:
    """Run the signal path until it is stopped or (BUS_FOLLOW=0) its log ends; return what this run did.

    Exactly once: everything that was read is in the stores when it returns, or in the recovery folder
    for the next run. Raises ConfigError before anything is touched, FatalError if a step failed.
    """
    set_up(settings)
    sets = sets_run_together(settings) if beside is None else FeatureSets((beside.declared,))
    with (
        closing(bus_of(settings)) as bus,
        claimed(job := signals_job(settings, bus, beside), cluster) as (recovery, lineage),
    ):
        before = summary_of(recovery, sets, settings.lateness)
        run_job(job, recovery, lineage, settings, cluster)
        done = summary_of(recovery, sets, settings.lateness).since(before)
        tell(Stopped(FLOW, done.record()))
        return done


def signals_job(settings: Settings, bus: WritableBus, beside: Beside | None = None) -> Job:
    """The signal path as it is run. bus: of all topics."""
    if beside is not None:
        return _job_beside(settings, bus, beside)
    return _job(settings, sets_run_together(settings), bus)


def _with_history(settings: Settings, bus: WritableBus, beside: Beside) -> Bus:
    """The bus with the archive before it."""
    skips = bool(settings.kafka_brokers) and settings.kafka_offset_reset != "error"
    return ArchivedBus(bus, archive_to_read(settings), passes_gaps=skips, progress=beside.progress)


def _job_beside(settings: Settings, bus: WritableBus, beside: Beside) -> Job:
    mine: dict[str, object] = {"recovery_dir": folder_of(settings, beside.declared), "archive_signals": False}
    if beside.until_end:
        mine["bus_follow"] = True
    job = _job(settings.model_copy(update=mine), FeatureSets((beside.declared,)), bus, beside)
    return replace(job, identity={**job.identity, "beside": True})


def _job(settings: Settings, sets: FeatureSets, bus: WritableBus, beside: Beside | None = None) -> Job:
    history = None if beside is None else _with_history(settings, bus, beside)

    def flow(engine: Engine) -> Dataflow:
        plan = signal_plan(settings, sets, engine, bus, history=history)
        if beside is not None:
            plan = replace(plan, source=replace(plan.source, until_end=beside.until_end))
        return build(plan)

    return Job(
        name=FLOW,
        folder=settings.recovery_dir,
        identity=identity_of(settings, sets),
        described={
            "bus": f"{settings.kafka_brokers or settings.bus_dir}/{settings.topic_signals}",
            "partitions": len((bus if history is None else history).partitions(settings.topic_signals)),
        },
        build=flow,
        settle=lambda recovery, lineage: settle(recovery, settings, lineage, None if beside is not None else sets),
    )


def settle(recovery: Recovery, settings: Settings, lineage: str, told: FeatureSets | None) -> None:
    """Publish what the last durable snapshot had staged. Always right, safe to repeat.

    told: the sets of the rows that others hear of; None if nobody does.
    """
    offline = offline_of(settings)
    for state in recovery.states(f"{FLOW}.offline").values():
        offline.publish(staged_tokens(state))
    if settings.archive_signals:
        archive = archive_of(settings)
        slots = map(slot_writer_state, recovery.states(f"{FLOW}.read").values())
        for found in (*slots, *recovery.states(f"{FLOW}.archive").values()):
            archive.publish(() if found is None else staged_tokens(found))
    if told is not None:
        with closing(bus_of(settings)) as bus:  # of its own: to the run's writers this would be new, and no repeat
            _settle_logs(recovery, settings, told, lineage, bus)
            _settle_offsets(recovery, settings, bus)


def _settle_logs(recovery: Recovery, settings: Settings, sets: FeatureSets, lineage: str, bus: WritableBus) -> None:
    outlets = outlets_of(settings, bus)
    logs = {"late": (settings.topic_late, lineage)}
    if outlets is not None:
        logs["dlq"] = (outlets.topic_dlq, lineage)
    if outlets is not None and outlets.topic_results is not None:
        logs["failed"] = (outlets.topic_results, failed_writer(lineage))
        _settle_results(recovery, sets, lineage, outlets.topic_results, bus)
    for step, (topic, writer) in logs.items():
        for state in recovery.states(f"{FLOW}.{step}").values():
            at, messages = logged(state)
            if messages:
                append_all(append_to(bus, topic, writer), messages, at)


def _settle_offsets(recovery: Recovery, settings: Settings, bus: WritableBus) -> None:
    """Show others how far the last durable snapshot has come, if the brokers hear it soon."""
    monitor = monitor_of(settings, bus)
    if monitor is not None:
        feeds = [feed for state in recovery.states(f"{FLOW}.read").values() for feed in orjson.loads(state).items()]
        offsets = {name: int(feed["position"]["offset"]) for name, feed in feeds if name not in (RELEASED, ARCHIVE)}
        monitor.show(offsets, offsets)
        monitor.wait(_OFFSETS_S)


def _settle_results(recovery: Recovery, sets: FeatureSets, lineage: str, topic: str, bus: WritableBus) -> None:
    for part, state in recovery.states(f"{FLOW}.results").items():
        at, blocks = untold(state)
        if blocks:
            tell_rows(append_to(bus, topic, results_writer(lineage, part)), at, blocks, sets)


def bare_flow() -> Dataflow:
    """The flow for `python -m bytewax.run dataflows.signals`, as safe with `-r` as `headrace signals`.

    Without `-r` nothing is remembered: each run starts at the beginning of the log, and rows that an
    earlier run has published are not written again. A wrong setting ends the process with one sentence.
    """
    from dataflows.config import load_settings

    return bare_job(load_settings, lambda settings: signals_job(settings, bus_of(settings)))
