"""Events as Prometheus metrics in the default registry, which Bytewax's own endpoint serves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from dataflows.observability.events import (
    Behind,
    DeadLettersOpened,
    DocumentsWritten,
    Failed,
    Late,
    PieceRead,
    Refused,
    SourceAway,
    WindowsClosed,
    watch,
)
from operators.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataflows.observability.events import Event

SIGNALS = Counter("ingestion_signals", "Signals by what became of them", ["stage", "status", "source"])
DOCUMENTS = Counter("ingestion_docs", "Documents by what became of them", ["stage", "status", "source"])
REDACTIONS = Counter("ingestion_redactions", "Places where personal data was replaced by a tag", ["kind"])
ERRORS = Counter("ingestion_errors", "Errors by stage and reason", ["stage", "reason"])
LAG = Gauge("ingestion_lag_seconds", "Wall clock minus the newest event time read", ["source"])
BEHIND = Gauge("ingestion_lag_messages", "Messages of a partition that were not read yet", ["partition"])
LATENCY = Histogram(
    "features_latency_ms",
    "Wall clock minus window end when a window's rows are made",
    ["window"],
    buckets=(10, 100, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000),
)
DLQ = Gauge("dlq_size", "Dead letters in the store")


def set_up_metrics() -> None:
    """Count events from now on."""
    watch(_count)
    watch(_measure)


def _count(event: Event) -> None:
    match event:
        case PieceRead(partition, events, late, dead):
            SIGNALS.labels("decode", "ok", partition).inc(events - late - dead)
            SIGNALS.labels("decode", "late", partition).inc(late)
            SIGNALS.labels("decode", "dead", partition).inc(dead)
        case Late(reason, partition, count) if reason != "late":
            SIGNALS.labels("windows", reason, partition).inc(count)
        case Refused(stage, reason):
            ERRORS.labels(stage, reason).inc()
        case Failed(step, _, _, error):
            ERRORS.labels(step, type(error).__name__).inc()
        case WindowsClosed(window, rows, latency):
            SIGNALS.labels("windows", "rows", window).inc(rows)
            LATENCY.labels(window).observe(latency)
        case DocumentsWritten(written, redacted):
            for (status, source), documents in written.items():
                DOCUMENTS.labels("index", status, source).inc(documents)
            for kind, places in redacted.items():
                REDACTIONS.labels(kind).inc(places)
        case SourceAway():
            ERRORS.labels("find", "unavailable").inc()
        case DeadLettersOpened(count):
            DLQ.set_function(lambda: _size(count))
        case _:
            return


def _measure(event: Event) -> None:
    match event:
        case PieceRead(partition, _, _, _, float(lag)):
            LAG.labels(partition).set(lag)
        case Behind(partition, messages):
            BEHIND.labels(partition).set(messages)


def _size(count: Callable[[], int]) -> float:
    """Asked when somebody looks, so that letters dropped by another process are not counted; NaN if nobody answers."""
    try:
        return float(count())
    except (HeadraceError, ValueError):
        return math.nan
