"""`make bench`: everything measured in one run on the same bytes, printed and written to RESULTS.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.asof import measure_joins
from tests.benchmarks.documents import measure_documents
from tests.benchmarks.events import Load, write_events
from tests.benchmarks.fresh import Measurement, measure, on_cores
from tests.benchmarks.kafka import measure_kafka
from tests.benchmarks.late import measure_late

RESULTS = Path(__file__).parent / "RESULTS.md"
PIPELINE = "tests.benchmarks.pipeline"
PEERS = "tests.benchmarks.peers"
ENTITIES = (100, 5_000, 100_000)
RATES = {"dense": 10, "sparse": 1}
_SECTIONS = {
    "signals": "# Benchmark results\n",
    "late": "\n## Late events, archive, verify\n",
    "joins": "\n## Point-in-time joins\n",
    "kafka": "\n## Signals over Kafka\n",
    "documents": "\n## Documents\n",
}
"""How the part of RESULTS.md begins that each measures; they stand in this order."""

_NATIVE_EVENTS = {("dense", 5_000): 300_000}
_NATIVE_DEFAULT = 60_000
_FULL_JOIN_BYTES = 22 << 30
"""A machine needs so much memory for Feast's own join of 50,000 rows."""


@dataclass(frozen=True, slots=True)
class Line:
    """One load measured by us and by the others; rates in events a second."""

    load: str
    entities: int
    ours: float
    bare: float
    arrow: float
    native: float
    peak_mib: float


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(prog="make bench", description=__doc__)
    options.add_argument("--events", type=int, default=1_000_000, help="events of each load (1,000,000)")
    options.add_argument("--repeat", type=int, default=3, help="runs of which the median counts (3)")
    options.add_argument("--only-main", action="store_true", help="5,000 entities only, nothing else")
    options.add_argument("--only", choices=tuple(_SECTIONS), help="one part of it")
    chosen = options.parse_args()
    parts: list[str] = []
    for part in _parts(chosen):
        sys.stdout.write(part)  # as it comes: a later part may fail
        sys.stdout.flush()
        parts.append(part)
    if not chosen.only_main and chosen.events == options.get_default("events"):
        _keep("".join(parts), chosen.only)


def _keep(text: str, only: str | None) -> None:
    """Write what was measured in its place; the sections of the others stay as they are."""
    if only is not None:
        old = RESULTS.read_text(encoding="utf-8")
        starts = [*(old.find(title) for title in _SECTIONS.values()), len(old)]
        starts = [at if at >= 0 else min(later for later in starts[i:] if later >= 0) for i, at in enumerate(starts)]
        parts = {name: old[a:b] for name, (a, b) in zip(_SECTIONS, pairwise(starts), strict=True)}
        text = "".join((parts | {only: text}).values())
    RESULTS.write_text(text, encoding="utf-8")


def _parts(chosen: argparse.Namespace) -> Iterator[str]:
    wanted = tuple(_SECTIONS) if chosen.only is None else (chosen.only,)
    if "signals" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            yield from _signals(Path(folder), chosen.events, chosen.repeat, only_main=chosen.only_main)
    if chosen.only_main:
        return
    if "late" in wanted:
        yield measure_late(chosen.events, chosen.repeat)
    if "joins" in wanted:
        yield measure_joins(full=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > _FULL_JOIN_BYTES)
    if "kafka" in wanted:
        yield from measure_kafka(2 * chosen.events, repeat=chosen.repeat)
    if "documents" in wanted:
        yield from measure_documents(repeat=chosen.repeat)


def _signals(folder: Path, events: int, repeat: int, *, only_main: bool) -> Iterator[str]:
    lines = [
        _line(folder, load, entities, events, repeat)
        for load in RATES
        for entities in (ENTITIES if not only_main else (5_000,))
    ]
    yield _head(events, repeat) + _table(lines)
    if only_main:
        return
    yield from _scaling(folder, events, repeat)
    yield _workers(folder, events, repeat)
    yield _state(folder, events)
    yield _online()
    yield _stages(folder, events)


def _line(folder: Path, load: str, entities: int, events: int, repeat: int) -> Line:
    paths = _events(folder, load, entities, events)
    _say(f"{load}, {entities:,} entities")
    ours: list[Measurement] = []
    bare: list[Measurement] = []
    arrow: list[Measurement] = []
    for _ in range(repeat):
        ours.append(measure(f"{PIPELINE}:headrace", paths=paths))
        bare.append(measure(f"{PEERS}:bare_loop", paths=paths))
        arrow.append(measure(f"{PEERS}:pyarrow_json", paths=paths))
    sample = min(events, _NATIVE_EVENTS.get((load, entities), _NATIVE_DEFAULT))
    native = measure(f"{PEERS}:native_bytewax", paths=paths, limit=sample)
    rate, loop, table = (median(m.events_per_s for m in runs) for runs in (ours, bare, arrow))
    return Line(load, entities, rate, loop, table, native.events_per_s, median(m.peak_bytes for m in ours) / 2**20)


def _events(folder: Path, load: str, entities: int, events: int) -> list[str]:
    place = folder / f"{load}-{entities}-{events}"
    if not place.exists():
        place.mkdir()
        write_events(place, Load(events, entities, RATES[load], partitions=4))
    return [str(p) for p in sorted(place.glob("*.jsonl"))]


def _head(events: int, repeat: int) -> str:
    return (
        "# Benchmark results\n\nWritten by `make bench`; not edited by hand.\n\n## Signals\n\n"
        "One run, the same bytes for all:"
        f" {events:,} JSON events of about 220 bytes with 3 fields, spread over 4 partition files.\n"
        f"Medians of {repeat} runs, each in a fresh process, on {os.cpu_count()} shared cores"
        f" ({platform.machine()}, Python {platform.python_version()}): read the ratios, not the rates.\n\n"
        "*ours*: the whole signal path on one worker, exactly once: read, decode, watermark, windows 1s, 5s and 1m with"
        " all 11 statistics of 3 fields, snapshots, Parquet published.\n"
        "*bare*: `for line in lines: orjson.loads(line)`, result dropped. *arrow*: `pyarrow.json` over the same lines,"
        " one thread.\n*native*: Bytewax's own windows doing only count, mean and std of one field in one 1 s window"
        " (a sample of the events, rate per event).\n*dense*: 10 events a second and entity; *sparse*: one, so that"
        " more rows come out than events go in.\n\n"
    )


def _table(lines: list[Line]) -> str:
    rows = [
        "| load | entities | ours, k ev/s | bare | arrow | native | ours / bare | ours / native | peak MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for x in lines:
        rates = " | ".join(f"{rate / 1e3:,.0f}" for rate in (x.ours, x.bare, x.arrow, x.native))
        ratios = f"{x.ours / x.bare:.2f} | {x.ours / x.native:.0f}"
        rows.append(f"| {x.load} | {x.entities:,} | {rates} | {ratios} | {x.peak_mib:,.0f} |")
    return "\n".join(rows) + "\n\n"


def _scaling(folder: Path, events: int, repeat: int) -> Iterator[str]:
    for load in RATES:
        _say(f"cost per event, {load}")
        few, many = (_events(folder, load, n, events) for n in (min(ENTITIES), max(ENTITIES)))
        ratios = [_rate(few) / _rate(many) for _ in range(2 * repeat + 1)]
        yield f"- Cost per event, {load}, {max(ENTITIES):,} entities against {min(ENTITIES)}: {_median_of(ratios)}\n"


def _workers(folder: Path, events: int, repeat: int) -> str:
    """One worker has work for a second core, so two on two cores are also held against one that has but one."""
    paths = _events(folder, "dense", 5_000, 8 * events)
    _say("two workers")
    alone: list[float] = []
    helped: list[float] = []
    for _ in range(2 * repeat + 1):
        with on_cores(1):
            one = _rate(paths, workers=1)
        two = _rate(paths, workers=2)
        alone.append(two / one)
        helped.append(two / _rate(paths, workers=1))
    what = f"dense, 5,000 entities, {8 * events:,} events"
    return (
        f"- Two workers against one, a core each, {what}: {_median_of(alone)}\n"
        f"- Two workers against one that has both cores too: {_median_of(helped)}\n"
    )


def _rate(paths: list[str], **arguments: object) -> float:
    return measure(f"{PIPELINE}:headrace", paths=paths, **arguments).events_per_s


def _median_of(ratios: list[float]) -> str:
    return f"median {median(ratios):.2f} × of pairs {', '.join(f'{r:.2f}' for r in sorted(ratios))}"


def _state(folder: Path, events: int) -> str:
    text = ""
    for entities in (5_000, 100_000):
        _say(f"state, {entities:,} entities")
        found = _with_report("headrace_pauses", _events(folder, "sparse", entities, 4 * events))
        pauses = found["pauses"]
        longest = f"{max(pauses) * 1e3:,.0f} ms" if pauses else "none taken"
        text += (
            f"- State of {entities:,} entities (3 fields, 3 windows), at most, with the events that wait:"
            f" {found['state_bytes'] / entities:,.0f} bytes each; snapshots a second apart: longest pause {longest}\n"
        )
    return text


def _online() -> str:
    _say("online store")
    ours = measure(f"{PIPELINE}:online_rows", rows=2_000, push=False).events_per_s
    push = measure(f"{PIPELINE}:online_rows", rows=2_000, push=True).events_per_s
    return f"- Online store (Feast, SQLite), rows of 33 features a second: {ours:,.0f}; Feast's `push`: {push:,.0f}\n"


def _stages(folder: Path, events: int) -> str:
    text = "\nShare of the processor time by stage, in all threads, one worker, 5,000 entities:\n\n"
    shares: dict[str, dict[str, float]] = {}
    for load in RATES:
        _say(f"stages, {load}")
        paths = _events(folder, load, 5_000, events)
        spent: dict[str, float] = _with_report("headrace_stages", paths)
        total = sum(spent.values())
        shares[load] = {stage: seconds / total for stage, seconds in spent.items()}
    text += "| stage | " + " | ".join(shares) + " |\n|---|" + "--:|" * len(shares) + "\n"
    for stage in shares["dense"]:
        text += f"| {stage} | " + " | ".join(f"{shares[load].get(stage, 0.0):.0%}" for load in shares) + " |\n"
    widest = {load: max(found, key=found.__getitem__) for load, found in shares.items()}
    return text + "\nThe next bottleneck: " + "; ".join(f"{load}: {stage}" for load, stage in widest.items()) + ".\n"


def _with_report(function: str, paths: list[str]) -> Any:  # noqa: ANN401  # what the function reports
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        measure(f"{PIPELINE}:{function}", paths=paths, report=report.name)
        return json.loads(Path(report.name).read_text(encoding="utf-8"))


def _say(what: str) -> None:
    sys.stderr.write(f"measuring: {what}\n")


if __name__ == "__main__":
    main()
