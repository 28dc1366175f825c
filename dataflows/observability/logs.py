"""Events as structured lines on stderr: JSON for machines, short and coloured on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO, cast

import structlog

from dataflows.observability.events import (
    BusAway,
    BusBack,
    Failed,
    Late,
    OffsetsNotShown,
    PartitionReset,
    PartitionStatus,
    PlaceForgotten,
    Refused,
    SourceAway,
    Started,
    Stopped,
    watch,
)

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from dataflows.observability.events import Event

_LENGTH_MAX = 128
_LINES_A_KIND_MAX = 5
"""Refused and late events are logged one by one up to this many a partition; then only counted."""


def set_up_logs(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send events of at least `level` to `stream` (default stderr) as `json`, `console` or `auto`."""
    out = stream or cast("TextIO", _CurrentStderr())
    console = style == "console" or (style == "auto" and out.isatty())
    renderer = structlog.dev.ConsoleRenderer(colors=out.isatty()) if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    watch(_LogHook())


class _CurrentStderr:
    """Whatever sys.stderr is when a line is written: a run puts another one in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class _LogHook:
    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], int] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LogHook)

    def __hash__(self) -> int:
        return hash(_LogHook)

    def __call__(self, event: Event) -> None:
        log = structlog.get_logger()
        match event:
            case Started(what, detail):
                log.info("started", run=what, **detail)
            case Stopped(what, detail):
                log.info("stopped", run=what, **detail)
            case PartitionStatus(partition, status):
                log.info("partition", partition=partition, status=status)
            case PartitionReset(partition, wanted, chosen):
                log.warning("messages are gone", partition=partition, wanted=wanted, goes_on_at=chosen)
            case BusAway(bus, reason):
                log.warning("bus away", bus=bus, reason=reason)
            case BusBack(bus, away_s):
                log.info("bus back", bus=bus, away_s=round(away_s, 3))
            case PlaceForgotten(name, writer, at):
                log.warning("place forgotten, the last messages may come twice", topic=name, writer=writer, place=at)
            case SourceAway(source, reason) | OffsetsNotShown(source, reason):
                name = "source away" if isinstance(event, SourceAway) else "offsets not shown"
                log.warning(name, source=source, reason=reason)
            case Refused(stage, reason, detail):
                self._some(log, "refused", event, {"stage": stage, "reason": reason, "detail": detail})
            case Late(reason, _, count):
                self._some(log, "late", event, {"reason": reason, "count": count})
            case Failed(step, partition, offset, error):
                text = f"{type(error).__name__}: {error}"
                log.error("failed", step=step, partition=partition, offset=offset, error=text)
            case _:
                log.debug("event", kind=type(event).__name__)

    def _some(self, log: FilteringBoundLogger, name: str, event: Refused | Late, said: dict[str, object]) -> None:
        """Log the first ones of a partition; a storm of bad input must not become a storm of lines."""
        seen = self._lines.get((name, event.partition), 0) + 1
        self._lines[name, event.partition] = seen
        if seen > _LINES_A_KIND_MAX:
            return
        if seen == _LINES_A_KIND_MAX:
            said["note"] = "further ones are counted in the metrics, not logged"
        who = {"entity_id": _short(event.entity), "trace_id": _short(event.trace_id)}
        log.warning(name, partition=event.partition, offset=event.offset, **who, **said)


def _short(text: str | None) -> str | None:
    """What others chose and may have made long."""
    return text if text is None or len(text) <= _LENGTH_MAX else f"{text[:_LENGTH_MAX]}…"
