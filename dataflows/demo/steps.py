"""Steps ticked off while they work, each with its time; compiling is told apart, since it happens once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from numba.core import event
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.status import Status

_WORTH_TELLING_S = 1.0
_COMPILE = "numba:compile"
_COMPILED = "Compiled the kernels, once: they are kept for later runs"


class Steps:
    """Prints a line when a step is done; meanwhile, on a terminal, one that moves."""

    def __init__(self, out: Console) -> None:
        """Print to `out`."""
        self._out = out

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Callable[[str], None]]:
        """Show `doing` until the block ends, then `done` with a tick, or `doing` with a cross if it raised.

        The yielded function says how far it is: its text replaces what it said before.
        """
        start = time.perf_counter()
        with self._out.status(doing) as status:
            compiling = _CompileTimer(status, doing)

            def say(progress: str) -> None:
                compiling.doing = f"{doing}: {progress}"
                status.update(compiling.doing)

            with event.install_listener(_COMPILE, compiling):
                try:
                    yield say
                except BaseException:
                    status.stop()
                    self._print("[red]✗[/red]", doing, time.perf_counter() - start)
                    raise
        if compiling.spent_s > _WORTH_TELLING_S:
            self._print("[green]✓[/green]", _COMPILED, compiling.spent_s)
        self._print("[green]✓[/green]", done, time.perf_counter() - start - compiling.spent_s)

    def _print(self, mark: str, text: str, seconds: float) -> None:
        line = Table.grid(padding=(0, 1))
        line.add_column()
        line.add_column(width=66)
        line.add_column(justify="right", style="dim", width=7)
        line.add_row(f" {mark}", text, f"{seconds:.1f} s")
        self._out.print(line)


class _CompileTimer(event.Listener):
    """Adds up the time that numba compiles, and says so while it does."""

    def __init__(self, status: Status, doing: str) -> None:
        self.doing = doing
        self.spent_s = 0.0
        self._status = status
        self._depth = 0
        self._start = 0.0

    def on_start(self, _: event.Event) -> None:
        """A function, called by another that compiles or not, starts to compile."""
        if self._depth == 0:
            self._start = time.perf_counter()
            self._status.update(f"{self.doing} (compiling the kernels, once)")
        self._depth += 1

    def on_end(self, _: event.Event) -> None:
        """It is compiled."""
        self._depth -= 1
        if self._depth == 0:
            self.spent_s += time.perf_counter() - self._start
            self._status.update(self.doing)
