"""How the signal path is run: `headrace signals` and bare `python -m bytewax.run dataflows.signals`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from dataflows.engine import Cluster, Engine, Job, bare_job, claimed, run_job, set_up
from dataflows.observability.events import Stopped, tell
from dataflows.signal_flow import FLOW, build
from dataflows.summary import Summary, summary_of
from dataflows.wiring import bus_of, identity_of, local_bus_of, offline_of, signal_plan
from stores.writers import logged, staged_tokens

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow

    from dataflows.buses.port import Bus
    from dataflows.config import Settings
    from dataflows.recovery import Recovery


def run_signals(settings: Settings, cluster: Cluster) -> Summary:
    """Run the signal path until it is stopped or (BUS_FOLLOW=0) its log ends; return what this run did.

    Exactly once: everything that was read is in the stores when it returns, or in the recovery folder
    for the next run. Raises ConfigError before anything is touched, FatalError if a step failed.
    """
    set_up(settings)
    sets = settings.feature_sets()
    with closing(bus_of(settings)) as bus, claimed(job := signals_job(settings, bus), cluster) as (recovery, lineage):
        before = summary_of(recovery, sets, settings.lateness)
        run_job(job, recovery, lineage, settings, cluster)
        done = summary_of(recovery, sets, settings.lateness).since(before)
        tell(Stopped(FLOW, done.record()))
        return done


def signals_job(settings: Settings, bus: Bus) -> Job:
    """The signal path as it is run. bus: where signals come from."""
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
        settle=lambda recovery, lineage: settle(recovery, settings, lineage),
    )


def settle(recovery: Recovery, settings: Settings, lineage: str) -> None:
    """Publish what the last durable snapshot had staged. Always right, safe to repeat."""
    offline = offline_of(settings)
    for state in recovery.states(f"{FLOW}.offline").values():
        offline.publish(staged_tokens(state))
    bus = local_bus_of(settings)
    for state in recovery.states(f"{FLOW}.late").values():
        at, messages = logged(state)
        bus.append(settings.topic_late, lineage, messages, at=at)


def bare_flow() -> Dataflow:
    """The flow for `python -m bytewax.run dataflows.signals`, as safe with `-r` as `headrace signals`.

    Without `-r` nothing is remembered: each run starts at the beginning of the log, and rows that an
    earlier run has published are not written again. A wrong setting ends the process with one sentence.
    """
    from dataflows.config import load_settings

    return bare_job(load_settings, lambda settings: signals_job(settings, bus_of(settings)))
