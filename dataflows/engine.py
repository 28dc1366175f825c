"""What every run needs round Bytewax: recovery folder, signals, one clear error, exit codes.

`headrace …` goes through `claimed` and `run_job`, bare `python -m bytewax.run` through `bare_job`; both prepare and
settle in the same way.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dataflows.kernel_cache import drop_stale_kernels
from dataflows.observability.events import Failed, Started, tell, watch
from dataflows.observability.logs import set_up_logs
from dataflows.observability.metrics import set_up_metrics
from dataflows.recovery import Recovery
from operators.errors import ConfigError, FatalError, HeadraceError

if TYPE_CHECKING:
    from types import FrameType

    from bytewax.dataflow import Dataflow

    from dataflows.config import Settings
    from dataflows.observability.events import Event

STOP = threading.Event()
"""Set once by a signal; every source of the process then ends cleanly."""

_BACKUP = timedelta(0)
_FULL = "code: DiskFull"
"""A panic carries nothing but words; with these the database of the snapshots says that its disk is full."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How Bytewax is run. epoch_s: seconds between snapshots; workers: in the whole cluster."""

    lineage: str
    durable: bool
    workers: int
    epoch_s: float


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


@dataclass(frozen=True, slots=True)
class Job:
    """A flow as it is run. folder: its recovery folder under `headrace`; bare runs are told theirs.

    identity: what must not change as long as snapshots live. described: what is worth knowing at the start.
    settle: called when the engine has ended well, or at the end of a bare run. alone: no cluster can run it.
    """

    name: str
    folder: Path
    identity: Mapping[str, object]
    described: Mapping[str, object]
    build: Callable[[Engine], Dataflow]
    settle: Callable[[Recovery, str], None]
    alone: bool = False


def set_up(settings: Settings) -> None:
    """Logs, metrics and compiled code, before anything else is done."""
    drop_stale_kernels()
    set_up_logs(settings.log_level, settings.log_format)
    set_up_metrics()


@contextmanager
def claimed(job: Job, cluster: Cluster) -> Iterator[tuple[Recovery, str]]:
    """Hold the job's recovery folder: (folder, lineage). Raises ConfigError before anything is touched."""
    _check_alone(job, cluster)
    recovery = Recovery(job.folder)
    try:
        yield recovery, _claim(recovery, job, cluster)
    finally:
        recovery.release()


def run_job(job: Job, recovery: Recovery, lineage: str, settings: Settings, cluster: Cluster) -> None:
    """Run the flow until it ends or is stopped, and settle. Raises FatalError if a step failed."""
    engine = Engine(lineage, durable=True, workers=cluster.total, epoch_s=float(settings.snapshot_seconds))
    flow = job.build(engine)
    _stop_on_signals()
    tell(Started(job.name, _described(job, cluster, str(recovery.folder), lineage)))
    _run_engine(flow, recovery.folder, settings, cluster)
    job.settle(recovery, lineage)


def bare_job(load: Callable[[], Settings], make: Callable[[Settings], Job]) -> Dataflow:
    """The flow for `python -m bytewax.run`, as safe with `-r` as `headrace` is.

    Without `-r` nothing is remembered, and nothing is settled but what the flow does itself. A wrong setting ends the
    process with one sentence.
    """
    try:
        settings = load()
        set_up(settings)
        job = make(settings)
        options, cluster = _engine_options(sys.argv[1:])
        _check_alone(job, cluster)
        recovery = None if options.recovery is None else Recovery(options.recovery)
        lineage = _fresh_lineage() if recovery is None else _claim(recovery, job, cluster)
        flow = job.build(Engine(lineage, durable=recovery is not None, workers=cluster.total, epoch_s=options.epoch_s))
        if recovery is not None:
            atexit.register(_settle_at_exit, job, recovery, lineage)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: {error}\n")
        raise SystemExit(exit_code(error)) from None
    _stop_on_signals()
    tell(Started(job.name, _described(job, cluster, str(options.recovery), lineage)))
    return flow


def exit_code(error: BaseException) -> int:
    """2 for what a person must set right, 1 for what failed."""
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


def _described(job: Job, cluster: Cluster, recovery: str, lineage: str) -> dict[str, object]:
    return {**job.described, "workers": cluster.total, "recovery": recovery, "lineage": lineage}


def _check_alone(job: Job, cluster: Cluster) -> None:
    if job.alone and cluster.addresses:
        raise ConfigError(
            f"`{job.name}` is run by one process, since its index has one writer: leave out the addresses of a cluster,"
            " more threads do"
        )


def _claim(recovery: Recovery, job: Job, cluster: Cluster) -> str:
    return recovery.wait_until_prepared(job.identity) if cluster.process > 0 else recovery.prepare(job.identity)


def _fresh_lineage() -> str:
    import uuid

    return uuid.uuid4().hex[:8]


def _settle_at_exit(job: Job, recovery: Recovery, lineage: str) -> None:
    try:
        job.settle(recovery, lineage)
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


def _run_engine(flow: Dataflow, folder: Path, settings: Settings, cluster: Cluster) -> None:
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
                recovery_config=RecoveryConfig(folder, _BACKUP),  # type: ignore[no-untyped-call]  # as above
            )
    except BaseException as error:  # the engine's panics are no Exceptions
        raise _one_error(error, failures, folder) from error


def _one_error(error: BaseException, failures: list[Failed], folder: Path) -> HeadraceError:
    """The HeadraceError at the bottom of it, or a FatalError that says which step failed how."""
    chain: list[BaseException] = [f.error for f in failures]
    cause: BaseException | None = error
    while cause is not None and cause not in chain[len(failures) :]:
        chain.append(cause)
        cause = cause.__cause__
    known = next((e for e in chain if isinstance(e, HeadraceError)), None)
    if known is not None:
        return known
    if any(_FULL in str(e) for e in chain):
        return FatalError(
            f"RECOVERY_DIR `{folder}` has no room for a snapshot: make room and start again; nothing is lost"
        )
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
