"""How the signal path is run: `headrace signals` and bare `python -m bytewax.run dataflows.signals`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import orjson

from dataflows.engine import Cluster, Engine, Job, bare_job, claimed, run_job, set_up
from dataflows.observability.events import Stopped, tell
from dataflows.signal_flow import FLOW, append_to, build, failed_writer, results_writer
from dataflows.summary import Summary, summary_of
from dataflows.wiring import bus_of, identity_of, monitor_of, offline_of, outlets_of, signal_plan
from stores.log_writer import append_all, logged
from stores.results_writer import tell_rows, untold
from stores.writers import staged_tokens

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow

    from dataflows.buses.port import WritableBus
    from dataflows.config import Settings
    from dataflows.recovery import Recovery

_OFFSETS_S = 3.0


def run_signals(settings: Settings, cluster: Cluster) -> Summary:
    """Run the signal path until it is stopped or (BUS_FOLLOW=0) its log ends; return what this run did.

    Exactly once: everything that was read is in the stores when it returns, or in the recovery folder
    for the next run. Raises ConfigError before anything is touched, FatalError if a step failed.
    """
    set_up(settings)
    sets = settings.feature_sets()
    with closing(bus_of(settings)) as bus, claimed(job := signals_job(settings, bus), cluster) as (recovery, lineage):
        before = summary_of(recovery, sets)
        run_job(job, recovery, lineage, settings, cluster)
        done = summary_of(recovery, sets).since(before)
        tell(Stopped(FLOW, done.record()))
        return done


def signals_job(settings: Settings, bus: WritableBus) -> Job:
    """The signal path as it is run. bus: of all topics."""
    sets = settings.feature_sets()

    def flow(engine: Engine) -> Dataflow:
        return build(signal_plan(settings, sets, engine, bus))

    return Job(
        name=FLOW,
        folder=settings.recovery_dir,
        identity=identity_of(settings, sets),
        described={
            "bus": f"{settings.kafka_brokers or settings.bus_dir}/{settings.topic_signals}",
            "partitions": len(bus.partitions(settings.topic_signals)),
        },
        build=flow,
        settle=lambda recovery, lineage: settle(recovery, settings, lineage, bus),
    )


def settle(recovery: Recovery, settings: Settings, lineage: str, bus: WritableBus) -> None:
    """Publish what the last durable snapshot had staged. Always right, safe to repeat."""
    offline = offline_of(settings)
    for state in recovery.states(f"{FLOW}.offline").values():
        offline.publish(staged_tokens(state))
    outlets = outlets_of(settings, bus)
    logs = {"late": (settings.topic_late, lineage)}
    if outlets is not None:
        logs["dlq"] = (outlets.topic_dlq, lineage)
    if outlets is not None and outlets.topic_results is not None:
        logs["failed"] = (outlets.topic_results, failed_writer(lineage))
        _settle_results(recovery, settings, lineage, outlets.topic_results, bus)
    for step, (topic, writer) in logs.items():
        for state in recovery.states(f"{FLOW}.{step}").values():
            at, messages = logged(state)
            append_all(append_to(bus, topic, writer), messages, at)
    _settle_offsets(recovery, settings, bus)


def _settle_offsets(recovery: Recovery, settings: Settings, bus: WritableBus) -> None:
    """Show others how far the last durable snapshot has come, if the brokers hear it soon."""
    monitor = monitor_of(settings, bus)
    if monitor is not None:
        feeds = [feed for state in recovery.states(f"{FLOW}.read").values() for feed in orjson.loads(state).items()]
        offsets = {partition: int(feed["position"]["offset"]) for partition, feed in feeds}
        monitor.show(offsets, offsets)
        monitor.wait(_OFFSETS_S)


def _settle_results(recovery: Recovery, settings: Settings, lineage: str, topic: str, bus: WritableBus) -> None:
    sets = settings.feature_sets()
    for part, state in recovery.states(f"{FLOW}.results").items():
        at, blocks = untold(state)
        tell_rows(append_to(bus, topic, results_writer(lineage, part)), at, blocks, sets)


def bare_flow() -> Dataflow:
    """The flow for `python -m bytewax.run dataflows.signals`, as safe with `-r` as `headrace signals`.

    Without `-r` nothing is remembered: each run starts at the beginning of the log, and rows that an
    earlier run has published are not written again. A wrong setting ends the process with one sentence.
    """
    from dataflows.config import load_settings

    return bare_job(load_settings, lambda settings: signals_job(settings, bus_of(settings)))
