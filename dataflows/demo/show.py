"""The demo: readings become features that Feast serves, documents become chunks to search; all of it checked."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from rich.console import Console

from dataflows.batch import find_inputs
from dataflows.commands import backfill_files
from dataflows.demo.check import (
    Anomaly,
    History,
    check_counts,
    check_set_aside,
    prove_equal,
    read_history,
    strongest,
)
from dataflows.demo.documents import Papers, answer, edit, index
from dataflows.demo.folder import WATERMARK_SECONDS, DemoFolder, no_settings
from dataflows.demo.papers import write_papers
from dataflows.demo.picture import draw_signal
from dataflows.demo.readings import GLUCOSE_SENSOR, Recording, load_recordings
from dataflows.demo.report import Findings, show_findings
from dataflows.demo.serving import Remembered, Served, Serving
from dataflows.demo.steps import Steps
from dataflows.demo.story import Story, tell_story
from dataflows.engine import STOP, Cluster
from dataflows.observability.events import Event, PieceRead, watch
from dataflows.runner import run_signals
from dataflows.wiring import features_of
from operators.errors import MissingExtraError

SEED = 7
"""The same story, and so the same digests, everywhere."""

_HOUR_US = 3_600_000_000
_DISORDER_US = 2 * _HOUR_US


def run_demo(out: Path) -> None:
    """Run the demo in the folder `out`, print what it finds, and draw a picture there.

    Takes no settings from the environment and touches nothing outside `out`, which it empties first if
    an earlier demo made it. Raises ConfigError if `out` holds anything else, MissingExtraError without
    the packages of the extra `demo`, HeadraceError if anything is not as it must be.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where there is no ✓, a ? does
    console = Console(highlight=False, file=sys.stdout)
    folder = DemoFolder(out)
    if find_spec("matplotlib") is None:
        raise MissingExtraError("the demo", "demo")
    recordings = load_recordings()
    with no_settings(), folder.claimed():
        console.print("[bold]Headrace[/bold]: real readings to features, real documents to chunks, all of it checked\n")
        show_findings(console, folder, _play(Steps(console), folder, recordings))


def _play(steps: Steps, folder: DemoFolder, recordings: tuple[Recording, ...]) -> Findings:
    story = _prepare(steps, folder, recordings)
    _open_feast(steps, folder)
    counts = _run_live(steps, folder, story)
    _run_batch(steps, folder, story)
    with steps.step("Comparing the two histories", "Compared the two: every row's hash computed anew"):
        live, batch = read_history(folder.live_settings()), read_history(folder.batch_settings())
        proofs = prove_equal(live, batch)
    anomalies = strongest(live)
    served, remembered, online_store = _serve(steps, folder, live, anomalies)
    _draw(steps, folder, recordings, story, live)
    return Findings(counts, proofs, served, remembered, online_store, _index(steps, folder))


def _prepare(steps: Steps, folder: DemoFolder, recordings: tuple[Recording, ...]) -> Story:
    readings = sum(map(len, recordings))
    done = f"Shuffled {readings:,} real readings of {len(recordings)} instruments, with mishaps"
    with steps.step("Shuffling readings", done):
        story = tell_story(recordings, seed=SEED, disorder_us=_DISORDER_US, watermark_us=WATERMARK_SECONDS * 1_000_000)
        folder.write_log(story)
    return story


def _open_feast(steps: Steps, folder: DemoFolder) -> None:
    """Registers the views before the run would, so that the run's time is its own."""
    with steps.step("Loading Feast", "Loaded Feast and registered the views") as say:
        settings = folder.live_settings()
        say("it takes a few seconds to import")
        features = features_of(settings, settings.feature_sets())
        assert features is not None, "the demo's settings leave ONLINE_STORE at its default"
        features.close()


def _run_live(steps: Steps, folder: DemoFolder, story: Story) -> dict[str, int]:
    with steps.step("Running live", "Ran live: bus → windows → Parquet, and Feast online") as say:
        settings = folder.live_settings()
        watch(_reader(say, story.expected["in"]))
        with _interruptible():
            done = cast("dict[str, int]", run_signals(settings, Cluster()).record())
        check_counts("live", done, story.expected)
        check_set_aside(settings, story.expected)
    return done


@contextmanager
def _interruptible() -> Iterator[None]:
    """A run takes SIGINT and SIGTERM for itself and ends cleanly: pass that on, and give the signals back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if STOP.is_set():
        raise KeyboardInterrupt


def _reader(say: Callable[[str], None], total: int) -> Callable[[Event], None]:
    """A hook that says how much of the log is read."""
    read = 0

    def hear(event: Event) -> None:
        nonlocal read
        if isinstance(event, PieceRead):
            read += event.events
            say(f"{read:,} of {total:,} events read")

    return hear


def _run_batch(steps: Steps, folder: DemoFolder, story: Story) -> None:
    with steps.step("Running the same log as batch", "Ran the same log as batch, into a history of its own"):
        paths = find_inputs([f"{folder.signals}/*.jsonl"])
        done, _ = backfill_files(folder.batch_settings(), paths, quiet=True)
        check_counts("batch", done.record(), story.expected)


def _serve(
    steps: Steps, folder: DemoFolder, live: History, anomalies: list[Anomaly]
) -> tuple[list[Served], list[Remembered], str]:
    with steps.step("Feast: materializing, reading back", "Materialized with Feast; read online and by point in time"):
        serving = Serving(folder.repository)
        serving.read_online(live)
        serving.materialize(live)
        return serving.read_online(live), serving.look_back(live, anomalies), serving.online_store


def _draw(steps: Steps, folder: DemoFolder, recordings: tuple[Recording, ...], story: Story, live: History) -> None:
    with steps.step("Drawing the picture", "Drew the picture"):
        view = next(v for v in live if v.feature_set.fields == GLUCOSE_SENSOR.fields)
        at = next(i for i, r in enumerate(recordings) if r.instrument == GLUCOSE_SENSOR)
        draw_signal(
            folder.picture,
            recording=recordings[at],
            late=story.late[at],
            rows=live[view],
            field=GLUCOSE_SENSOR.fields[0],
            window=view.window.text,
            halflife=f"{view.feature_set.halflife_us // _HOUR_US}h",
        )


def _index(steps: Steps, folder: DemoFolder) -> Papers:
    with steps.step("Writing documents", "Wrote READMEs as Markdown and licences as PDF"):
        readmes, licences = write_papers(folder.documents)
    settings = folder.document_settings()
    with steps.step("Indexing them", "Indexed them: text, chunks, vectors of a local model") as say, _interruptible():
        counts, redacted = index(settings, say)
    with steps.step("Asking", "Asked questions"):
        answers = answer(settings)
    with steps.step("Editing one", "Edited one and looked again"), _interruptible():
        edited = edit(folder, settings)
    return Papers(readmes, licences, counts, redacted, answers, edited)
