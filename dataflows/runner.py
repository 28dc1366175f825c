"""What every run needs round Bytewax: recovery folder, signals, one clear error, exit codes.

Bare `python -m bytewax.run dataflows.signals` goes through `bare_flow`, `headrace signals` through
`run_signals`; both prepare and settle in the same way.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dataflows.kernel_cache import drop_stale_kernels
from dataflows.observability.events import Failed, Started, Stopped, tell, watch
from dataflows.observability.logs import set_up_logs
from dataflows.observability.metrics import set_up_metrics
from dataflows.recovery import Recovery
from dataflows.signal_flow import FLOW, build
from dataflows.summary import Summary, summary_of
from dataflows.wiring import STOP, Engine, bus_of, identity_of, offline_of, signal_plan
from operators.errors import FatalError, HeadraceError
from stores.writers import logged, staged_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from bytewax.dataflow import Dataflow

    from dataflows.config import Settings
    from dataflows.observability.events import Event

_BACKUP = timedelta(0)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which process of which cluster this is. workers: threads of each process."""

    workers: int = 1
    process: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Workers of all processes."""
        return self.workers * max(1, len(self.addresses))


def run_signals(settings: Settings, cluster: Cluster) -> Summary:
    """Run the signal path until it is stopped or (BUS_FOLLOW=0) its log ends; return what this run did.

    Exactly once: everything that was read is in the stores when it returns, or in the recovery folder
    for the next run. Raises ConfigError before anything is touched, FatalError if a step failed.
    """
    drop_stale_kernels()
    set_up_logs(settings.log_level, settings.log_format)
    set_up_metrics()
    sets = settings.feature_sets()
    recovery = Recovery(settings.recovery_dir)
    try:
        lineage = _claim(recovery, settings, cluster)
        before = summary_of(recovery, sets)
        engine = Engine(lineage, durable=True, workers=cluster.total, epoch_s=float(settings.snapshot_seconds))
        flow = build(signal_plan(settings, sets, engine))
        _stop_on_signals()
        tell(Started(FLOW, _described(settings, cluster, str(settings.recovery_dir), lineage)))
        _run_engine(flow, settings, cluster)
        settle(recovery, settings, lineage)
        done = summary_of(recovery, sets).since(before)
        tell(Stopped(FLOW, done.record()))
        return done
    finally:
        recovery.release()


def settle(recovery: Recovery, settings: Settings, lineage: str) -> None:
    """Publish what the last durable snapshot had staged. Always right, safe to repeat."""
    offline = offline_of(settings)
    for state in recovery.states(f"{FLOW}.offline").values():
        offline.publish(staged_tokens(state))
    bus = bus_of(settings)
    for state in recovery.states(f"{FLOW}.late").values():
        at, messages = logged(state)
        bus.append(settings.topic_late, lineage, messages, at=at)


def bare_flow() -> Dataflow:
    """The flow for `python -m bytewax.run dataflows.signals`, as safe with `-r` as `headrace signals`.

    Without `-r` nothing is remembered: each run starts at the beginning of the log, and rows that an
    earlier run has published are not written again. A wrong setting ends the process with one sentence.
    """
    from dataflows.config import load_settings

    try:
        settings = load_settings()
        drop_stale_kernels()
        set_up_logs(settings.log_level, settings.log_format)
        set_up_metrics()
        sets = settings.feature_sets()
        options, cluster = _engine_options(sys.argv[1:])
        if options.recovery is None:
            engine = Engine(_fresh_lineage(), durable=False, workers=cluster.total, epoch_s=options.epoch_s)
        else:
            recovery = Recovery(options.recovery)
            lineage = _claim(recovery, settings, cluster)
            engine = Engine(lineage, durable=True, workers=cluster.total, epoch_s=options.epoch_s)
        flow = build(signal_plan(settings, sets, engine))
        if options.recovery is not None:
            atexit.register(_settle_at_exit, recovery, settings, lineage)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: {error}\n")
        raise SystemExit(exit_code(error)) from None
    _stop_on_signals()
    tell(Started(FLOW, _described(settings, cluster, str(options.recovery), engine.lineage)))
    return flow


def exit_code(error: BaseException) -> int:
    """2 for what a person must set right, 1 for what failed."""
    from operators.errors import ConfigError

    return 2 if isinstance(error, ConfigError) else 1


@dataclass(frozen=True, slots=True)
class _Options:
    recovery: Path | None
    epoch_s: float


def _engine_options(arguments: list[str]) -> tuple[_Options, Cluster]:
    """What `python -m bytewax.run` was given, by flags or by its environment variables."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False)
    variables = {
        "-r/--recovery-directory": "BYTEWAX_RECOVERY_DIRECTORY",
        "-s/--snapshot-interval": "BYTEWAX_SNAPSHOT_INTERVAL",
        "-w/--workers-per-process": "BYTEWAX_WORKERS_PER_PROCESS",
        "-i/--process-id": "BYTEWAX_PROCESS_ID",
        "-a/--addresses": "BYTEWAX_ADDRESSES",
    }
    for names, variable in variables.items():
        parser.add_argument(*names.split("/"), default=os.environ.get(variable) or None)
    known, _ = parser.parse_known_args(arguments)
    recovery = None if known.recovery_directory is None else Path(known.recovery_directory)
    addresses = tuple(known.addresses.split(";")) if known.addresses else ()
    cluster = Cluster(int(known.workers_per_process or 1), int(known.process_id or 0), addresses)
    return _Options(recovery, float(known.snapshot_interval or 10)), cluster


def _described(settings: Settings, cluster: Cluster, recovery: str, lineage: str) -> dict[str, object]:
    partitions = len(bus_of(settings).partitions(settings.topic_signals))
    bus = f"{settings.bus_dir}/{settings.topic_signals}"
    return {"bus": bus, "partitions": partitions, "workers": cluster.total, "recovery": recovery, "lineage": lineage}


def _claim(recovery: Recovery, settings: Settings, cluster: Cluster) -> str:
    identity = identity_of(settings, settings.feature_sets())
    return recovery.wait_until_prepared(identity) if cluster.process > 0 else recovery.prepare(identity)


def _fresh_lineage() -> str:
    import uuid

    return uuid.uuid4().hex[:8]


def _settle_at_exit(recovery: Recovery, settings: Settings, lineage: str) -> None:
    try:
        settle(recovery, settings, lineage)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: what was staged stays for the next run: {error}\n")


def _stop_on_signals() -> None:
    """SIGTERM and SIGINT end the sources; a second one ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        if STOP.is_set():
            os._exit(128 + number)
        STOP.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _run_engine(flow: Dataflow, settings: Settings, cluster: Cluster) -> None:
    """Run Bytewax and turn whatever comes out of it into one HeadraceError."""
    from bytewax.recovery import RecoveryConfig
    from bytewax.run import cli_main

    failures: list[Failed] = []

    def note(event: Event) -> None:
        if isinstance(event, Failed):
            failures.append(event)

    watch(note)
    try:
        with _quiet_stderr(verbose=settings.log_level == "debug"), _stdout_kept_clean():
            cli_main(  # type: ignore[no-untyped-call]  # bytewax does not type it
                flow,
                workers_per_process=cluster.workers,
                process_id=cluster.process if cluster.addresses else None,
                addresses=list(cluster.addresses) or None,
                epoch_interval=timedelta(seconds=settings.snapshot_seconds),
                recovery_config=RecoveryConfig(settings.recovery_dir, _BACKUP),  # type: ignore[no-untyped-call]  # as above
            )
    except BaseException as error:  # the engine's panics are no Exceptions
        raise _one_error(error, failures) from error


def _one_error(error: BaseException, failures: list[Failed]) -> HeadraceError:
    """The HeadraceError at the bottom of it, or a FatalError that says which step failed how."""
    chain: list[BaseException] = [f.error for f in failures]
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    known = next((e for e in chain if isinstance(e, HeadraceError)), None)
    if known is not None:
        return known
    if failures:
        first = failures[0]
        text = f"step `{first.step}` failed at `{first.partition}`: {_first_line(first.error)}"
        return FatalError(f"{text}; LOG_LEVEL=debug shows where")
    return FatalError(f"the engine stopped: {_first_line(error)}; LOG_LEVEL=debug shows where")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@contextmanager
def _quiet_stderr(*, verbose: bool) -> Iterator[None]:
    """Keep the engine's panics and backtraces off the terminal, and our own lines on it.

    What was kept is shown after all if the run ends well, since then it is no backtrace.
    """
    if verbose:
        yield
        return
    sys.stderr.flush()
    real = os.dup(2)
    mine, sys.stderr = sys.stderr, os.fdopen(os.dup(2), "w", buffering=1)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
            kept.seek(0)
            os.write(real, kept.read())
        finally:
            os.dup2(real, 2)
            os.close(real)
            sys.stderr.close()
            sys.stderr = mine


@contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send what the engine says on stdout to stderr: there, processes of a cluster tell that they wait for others."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(real, 1)
        os.close(real)
