"""A flow with short epochs and faults, for tests: `python -m tests.crash.launch EPOCH_MS [FAULT]… [-- COMMAND…]`.

The command is one of `headrace`; without one it is `signals --json`.

A fault is `module:name.of.function:when:n`. At its n-th call the process is killed (-9) `before` it runs, `after` it
ran, or `amid`: half of its bytes are written first (os.pwrite only). `skip` answers [] to every call, `full` lets no
file grow past n bytes as long as the call lasts. `steps::before:n` kills at the n-th step that touches a file below the
working directory.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

STEPS = {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "os.truncate"}


def die() -> None:
    """Kill -9 this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def set_fault(fault: str) -> None:
    """Put the fault in its place."""
    module, path, when, number = fault.split(":")
    if module == "steps":
        _kill_at_step(int(number))
        return
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, _faulty(getattr(owner, name), when, int(number)))


def _faulty(real: Callable[..., Any], when: str, number: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    @functools.wraps(real)
    def function(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # stands for any function
        call = next(calls)
        if when == "skip":
            return []
        if when == "full":
            return _on_full_disk(functools.partial(real, *args, **kwargs), number)
        if call == number and when == "amid":
            file, data, at = args
            real(file, data[: len(data) // 2], at)
        if call == number and when != "after":
            die()
        result = real(*args, **kwargs)
        if call == number:
            die()
        return result

    return function


def _on_full_disk(work: Callable[[], Any], size: int) -> Any:  # noqa: ANN401  # stands for any function
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _kill_at_step(left: int) -> None:
    mine = str(Path.cwd())

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS and str(args[0]).startswith(mine):
            left -= 1
            if left == 0:
                die()

    sys.addaudithook(hook)


def main(epoch_ms: str, *arguments: str) -> int:
    """Run the command so."""
    import bytewax.run

    from dataflows.cli import run

    real: Callable[..., None] = bytewax.run.cli_main

    def quick(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # as cli_main
        real(*args, **{**kwargs, "epoch_interval": timedelta(milliseconds=int(epoch_ms))})

    bytewax.run.cli_main = quick
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    for fault in arguments[:cut]:
        set_fault(fault)
    return run(arguments[cut + 1 :] or ["signals", "--json"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
