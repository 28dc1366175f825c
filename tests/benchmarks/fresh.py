"""Runs one measurement in a process of its own, so that memory, caches and threads of another do not count."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Measurement:
    """events and seconds as the measured function gave them; peak_bytes: resident memory of its process, at most.

    cpu_s: the function's third number, if it gave one: seconds of CPU.
    """

    events: int
    seconds: float
    peak_bytes: int
    cpu_s: float = 0.0

    @property
    def events_per_s(self) -> float:
        """Rate over the measured part alone, without start-up."""
        return self.events / self.seconds


def measure(target: str, **arguments: object) -> Measurement:
    """Call `module:function` with these arguments (JSON values) in a fresh process.

    The function returns (events, seconds), or a third number, seconds of CPU, and decides what of its work is timed.
    Raises CalledProcessError with the process's own message on the standard error stream when it fails.
    """
    command = [sys.executable, "-m", "tests.benchmarks.fresh", target, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """What is measured meanwhile has so many of the cores; on a system that cannot do that, all."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _call(target: str, arguments: Mapping[str, object]) -> Measurement:
    module, function = target.split(":")
    events, seconds, *cpu_s = getattr(import_module(module), function)(**arguments)
    return Measurement(events, seconds, peak_bytes(), *cpu_s)


def peak_bytes() -> int:
    """Resident memory of this process at its highest so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the parent's memory into a child's ru_maxrss
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    measured = _call(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps(asdict(measured)))  # noqa: T201  # this is the answer
