"""What `headrace backfill signals --feature-set …` does, apart from parsing and printing."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from dataflows.display import progress_bar, task_bar
from dataflows.engine import Cluster
from dataflows.runner import Beside, run_signals
from dataflows.wiring import bus_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dataflows.config import Settings
    from dataflows.summary import Summary
    from operators.feature_sets import FeatureSet


def backfill_version(settings: Settings, declared: FeatureSet, *, quiet: bool) -> Summary:
    """Compute a version of a feature set from the beginning of history to the end of the log, and leave windows open.

    Goes on where an earlier call was stopped or killed. Raises ResumeError where history has a gap.
    """
    with _bar(settings, quiet=quiet) as progress:
        beside = Beside(declared, until_end=True, progress=progress)
        return run_signals(settings, Cluster(settings.stream_concurrency), beside)


@contextmanager
def _bar(settings: Settings, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar that fills up to where the log ends now."""
    with closing(bus_of(settings)) as bus:
        topic, counts_bytes = settings.topic_signals, bus.counts_bytes
        end = sum(bus.end(topic, partition) for partition in bus.partitions(topic))
    if counts_bytes:
        with progress_bar("backfill", end, quiet=quiet) as advance:
            yield advance
        return
    done, lock = 0, threading.Lock()
    with task_bar("backfill", quiet=quiet) as show:

        def grow(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                show(done, max(done, end))

        yield grow
