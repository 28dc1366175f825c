"""What late events, the archive and `verify` cost: each beside a run without, in pairs.

Functions with `paths` run in a fresh process (`fresh.measure`) and return (events, seconds); processor seconds of all
threads go to `report`, since they tell more than the clock does on a machine that others use too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from dataflows.config import Settings
from dataflows.engine import Cluster
from dataflows.runner import run_signals
from dataflows.verify_signals import verify_signals
from tests.benchmarks.events import Load, write_events
from tests.benchmarks.fresh import measure
from tests.benchmarks.kafka import apply_views
from tests.benchmarks.pipeline import SETS, _settings

LATE = "tests.benchmarks.late"
LATE_SHARE = 0.01
_LATE_S = (6, 12)
"""How far behind its time a late event comes; 5 s are allowed."""


class _Cost(NamedTuple):
    """Of one measurement."""

    seconds: float
    cpu_s: float
    events: int


def signals(
    paths: Sequence[str], report: str, policy: str = "drop", *, archive: bool = False, online: bool = True
) -> tuple[int, float]:
    """A whole run on one worker, exactly once, with or without the archive and Feast's online store."""
    with _run_place(paths, policy, archive=archive, online=online) as settings:
        return _timed(report, lambda: run_signals(settings, Cluster()).seen)


def verify(paths: Sequence[str], report: str, *, archive: bool = False, online: bool = True) -> tuple[int, float]:
    """The whole history computed anew and compared, and what is served, after a run."""
    with _run_place(paths, "drop", archive=archive, online=online) as settings:
        events = run_signals(settings, Cluster()).seen

        def look() -> int:
            found = verify_signals(settings)
            if found.differences or found.checked == 0:
                raise AssertionError(f"all is equal, yet: {found}")
            return events

        return _timed(report, look)


@contextmanager
def _run_place(paths: Sequence[str], policy: str, *, archive: bool, online: bool) -> Iterator[Settings]:
    """A folder whose bus holds the files, after a run and a look at a small topic, so that compiled code is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name in ("warm", "real"):
            root = Path(folder) / name
            (root / "bus" / "signals").mkdir(parents=True)
            repository = shutil.copytree(Path(__file__).parents[2] / "feature_repo", root / "feature_repo")
            (repository / "feature_sets.toml").write_text(SETS, encoding="utf-8")
            found[name] = _settings(
                root,
                late_event_policy=policy,
                archive_signals=archive,
                archive_path=root / "archive",
                online_store="feast" if online else "none",
                feast_repo_path=repository,
            )
            apply_views(found[name])
        for path in paths:
            (Path(folder) / "real" / "bus" / "signals" / Path(path).name).symlink_to(path)
        warm = write_events(Path(folder) / "warm" / "bus" / "signals", Load(20_000, 10, 10))[0]
        warm.write_bytes(delayed(warm, Path(folder) / "warm", Load(20_000, 10, 10)).read_bytes())
        run_signals(found["warm"], Cluster())
        verify_signals(found["warm"])
        yield found["real"]


def measure_late(events: int = 1_000_000, repeat: int = 3) -> str:
    """The section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "calm").mkdir()
        (folder / "late").mkdir()
        load = Load(events, 5_000, 10, partitions=4)
        calm = [str(p) for p in write_events(folder / "calm", load)]
        late = [str(delayed(Path(p), folder / "late", load)) for p in calm]
        pairs = 3 * repeat  # the online store's thread makes runs uneven
        rows = [*_rows(pairs, calm, late, online=True), *_rows(repeat, calm, late, online=False)]
    return (
        "\n## Late events, archive, verify\n\n"
        f"{events:,} events of 5,000 entities, dense, 4 partitions, one worker; pairs of runs, now one first and now"
        f" the other, on {os.cpu_count()} shared cores; medians of {pairs} pairs, and of {repeat} into Parquet alone."
        " *clock* and *processor*: seconds of the second as a share of the first's."
        " *to*: into Parquet and Feast's SQLite online store, as by default, or Parquet alone.\n\n"
        "| to | first | second | first, s | second, s | clock | processor |\n|---|---|---|--:|--:|--:|--:|\n"
        + "".join(rows)
    )


def _rows(repeat: int, calm: list[str], late: list[str], *, online: bool) -> Iterator[str]:
    """The lines of the table with the online store, or without."""
    to = "Parquet, online store" if online else "Parquet"
    off: dict[str, object] = {"online": online}
    on = off | {"archive": True}
    cases: tuple[tuple[str, str, _Target, _Target], ...] = (
        (
            f"`drop`, {LATE_SHARE:.0%} late",
            "`correct`",
            ("signals", late, off | {"policy": "drop"}),
            ("signals", late, off | {"policy": "correct"}),
        ),
        ("no archive", "archive", ("signals", calm, off), ("signals", calm, on)),
        ("live", "verify, off the bus", ("signals", calm, off), ("verify", calm, off)),
        ("live, archive", "verify, out of the archive", ("signals", calm, on), ("verify", calm, on)),
    )
    for first, second, one, other in cases:
        _say(f"{second} against {first}, {to}")
        yield _row(to, first, second, _pairs(repeat, one, other))


def delayed(path: Path, folder: Path, load: Load) -> Path:
    """Write the file's lines with some of the first half further behind, so that they come late."""
    lines = path.read_bytes().splitlines(keepends=True)
    chance = np.random.default_rng(7)
    n = len(lines)
    rate = load.entities * load.rate_hz / load.partitions
    chosen = chance.choice(n // 2, int(n * LATE_SHARE), replace=False)
    place = np.arange(n, dtype=np.float64)
    place[chosen] += rate * chance.uniform(*_LATE_S, len(chosen))
    target = folder / path.name
    target.write_bytes(b"".join(lines[i] for i in np.argsort(place, kind="stable")))
    return target


_Target = tuple[str, list[str], dict[str, object]]


def _pairs(repeat: int, *targets: _Target) -> list[list[_Cost]]:
    """For each target its measurements, taken in turn, forwards and backwards."""
    found: list[list[_Cost]] = [[] for _ in targets]
    turn = list(zip(found, targets, strict=True))
    for _ in range(repeat):
        for out, (name, paths, arguments) in turn:
            out.append(_cost(name, paths, arguments))
        turn.reverse()
    return found


def _cost(name: str, paths: list[str], arguments: dict[str, object]) -> _Cost:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        done = measure(f"{LATE}:{name}", paths=paths, report=report.name, **arguments)
        cpu_s = float(json.loads(Path(report.name).read_text(encoding="utf-8"))["cpu_s"])
    return _Cost(done.seconds, cpu_s, done.events)


def _row(to: str, first: str, second: str, found: list[list[_Cost]]) -> str:
    one, two = found
    clock = median(b.seconds / a.seconds for a, b in zip(one, two, strict=True))
    processor = median(b.cpu_s / a.cpu_s for a, b in zip(one, two, strict=True))
    times = " | ".join(f"{median(c.seconds for c in costs):.2f}" for costs in found)
    return f"| {to} | {first} | {second} | {times} | {clock:.2f} × | {processor:.2f} × |\n"


def _timed(report: str, work: Callable[[], int]) -> tuple[int, float]:
    cpu, start = process_time(), perf_counter()
    events = work()
    seconds = perf_counter() - start
    Path(report).write_text(json.dumps({"cpu_s": process_time() - cpu}), encoding="utf-8")
    return events, seconds


def _say(what: str) -> None:
    sys.stderr.write(f"measuring: {what}\n")


if __name__ == "__main__":
    sys.stdout.write(measure_late(*map(int, sys.argv[1:])))
