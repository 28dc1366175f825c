"""Commands run in this process: as a person types them, without the price of a start."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from dataflows.cli import run
from dataflows.config import Settings
from tests.flows import Place


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, the bytes of its stdout, the text of its stderr."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Stdout as text."""
        return self.out.decode()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, of a command that went well."""
        assert self.code == 0, self.err
        return [orjson.loads(line) for line in self.out.splitlines()]


def headrace(place: Place, *arguments: str, **settings: object) -> Done:
    """Run `headrace` with the settings of the place, and others on top."""
    out, err = io.BytesIO(), io.StringIO()
    with (
        environment(place.environment(**settings)),
        _handlers_kept(),
        redirect_stdout(io.TextIOWrapper(out, "utf-8", write_through=True)),
        redirect_stderr(err),
    ):
        code = run(arguments)
        return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Let these be the only settings in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """A run answers SIGTERM and SIGINT from then on: give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
