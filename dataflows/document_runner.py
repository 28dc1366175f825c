"""How the document path is run: `headrace documents` and bare `python -m bytewax.run dataflows.documents`."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataflows.document_flow import FLOW, SHARDS, build
from dataflows.document_wiring import DocumentParts, DocumentRun, document_plan, drop_retired, open_parts
from dataflows.engine import Cluster, Engine, Job, bare_job, claimed, run_job, set_up
from dataflows.observability.events import Failed, Stopped, tell, watch
from dataflows.progress import Progress
from operators.errors import HeadraceError

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow

    from dataflows.config import Settings
    from dataflows.recovery import Recovery


@dataclass(frozen=True, slots=True)
class DocumentsDone:
    """What a run did. record: its counts. away: by source that could not be listed, why."""

    record: dict[str, int]
    away: dict[str, str] = field(default_factory=dict)


def run_documents(
    settings: Settings,
    cluster: Cluster,
    *,
    once: bool,
    allow_mass_delete: bool,
    advanced: Callable[[int, int], None] = lambda _done, _of: None,
    mend: Callable[[DocumentParts], DocumentParts] | None = None,
) -> DocumentsDone:
    """Run the document path until it is stopped or, with `once`, until everything found is done.

    mend: called when no other run can begin and before this one does; the run goes on with the parts that it returns,
    and removes the vectors that no document names.

    What it has written is in ledger and index, and only that: whatever was on its way is found again by the next run.
    Raises ConfigError before anything is touched, FatalError if a step failed, RetryableError if the embedder stays
    away.
    """
    set_up(settings)
    progress = Progress(advanced, topic=bool(settings.kafka_brokers))
    away: dict[str, str] = {}
    with open_parts(settings) as parts:
        runs: list[DocumentRun] = []

        def flow(engine: Engine) -> Dataflow:
            del engine
            drop_retired(settings, parts)
            ready = parts if mend is None else mend(parts)
            runs.append(DocumentRun.start(ready, sweep=mend is not None))
            plan = document_plan(
                settings, ready, runs[0], progress, once=once, allow_mass_delete=allow_mass_delete, away=away
            )
            return build(plan)

        job = _job(settings, parts, flow)
        with claimed(job, cluster) as (recovery, lineage):
            run_job(job, recovery, lineage, settings, cluster)
            runs[0].end(parts, progress)
    tell(Stopped(FLOW, dict(progress.record())))
    return DocumentsDone(progress.record(), away)


def bare_flow() -> Dataflow:
    """The flow for `python -m bytewax.run dataflows.documents`; BUS_FOLLOW=0 ends it when everything found is done."""
    from dataflows.config import load_settings

    return bare_job(load_settings, _bare)


def _bare(settings: Settings) -> Job:
    progress = Progress(topic=bool(settings.kafka_brokers))
    opened = ExitStack()
    failures: list[Failed] = []
    watch(lambda event: failures.append(event) if isinstance(event, Failed) else None)
    parts = opened.enter_context(open_parts(settings))
    atexit.register(opened.close)

    def flow(engine: Engine) -> Dataflow:
        del engine
        drop_retired(settings, parts)
        run = DocumentRun.start(parts)
        atexit.register(_end, run, parts, progress, failures)
        once = not settings.bus_follow
        return build(document_plan(settings, parts, run, progress, once=once, allow_mass_delete=False, away={}))

    return _job(settings, parts, flow)


def _end(run: DocumentRun, parts: DocumentParts, progress: Progress, failures: Sequence[Failed]) -> None:
    """At the end of the process nobody says how the engine has ended: well, if no step failed and nothing is open."""
    if failures or progress.open:
        return
    try:
        run.end(parts, progress)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: the next run looks for leftovers of this one: {error}\n")


def _job(settings: Settings, parts: DocumentParts, flow: Callable[[Engine], Dataflow]) -> Job:
    def settle(recovery: Recovery, lineage: str) -> None:
        """Nothing is staged: the stores are the state."""
        del recovery, lineage

    return Job(
        name=FLOW,
        folder=settings.recovery_dir / FLOW,
        identity={"flow": FLOW, "shards": SHARDS},
        described={"sources": [source.name for source in parts.sources], "space": parts.embedder.space},
        build=flow,
        settle=settle,
        alone=True,
    )
