"""Real runs of the signal path for tests: make a log, start processes, wait for conditions, judge what they left.

A `Log` is written down once and knows, by the slow oracle, what must become of each of its lines. A `Place` holds the
folders of one lineage; whatever is run and killed in it, `tests.outcomes.prove` tells whether the promise was kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self, cast

import orjson

from dataflows.recovery import Recovery
from dataflows.summary import Summary, summary_of
from operators.errors import HeadraceError
from operators.feature_sets import FeatureSets
from operators.hashes import digest, murmur3_bytes
from operators.rows import hash_table
from stores.offline.parquet import ParquetOfflineStore
from tests import oracles
from tests.oracles import Event
from tests.strategies import SECOND, TWO_SETS, two_sets

ROOT = Path(__file__).parents[1]
SETS = two_sets()
BOUND = 5 * SECOND
START = 1_699_919_980 * SECOND
"""20 seconds before midnight, so that rows fall on two dates."""

STEP = 35_000
"""Microseconds from one event to the next, before they are shuffled: no partition gets a minute ahead of another."""

LIMIT_S = 120.0
"""How long any condition may take, a first compilation of the kernels on a busy machine included."""

SOAK = int(os.environ.get("HEADRACE_SOAK", "0"))
"""`make soak` sets it: ten times so many more seeds are tried."""

Key = tuple[str, int, str, str]
Digests = dict[Key, tuple[int, int]]
"""(feature set, version, window, date) → (rows, digest of their recomputed content hashes)."""


def until(condition: Callable[[], object], what: str, limit: float = LIMIT_S) -> None:
    """Wait until the condition holds; fail, saying `what` was waited for, after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit} s for {what}"
        threading.Event().wait(0.025)


@dataclass(frozen=True)
class Log:
    """Lines of a topic in the order in which they are appended: (partition, bytes without line end)."""

    lines: tuple[tuple[str, bytes], ...]

    @cached_property
    def partitions(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(sorted({partition for partition, _ in self.lines}))

    @cached_property
    def events(self) -> list[Event]:
        """The good lines as the oracle reads them; offsets are byte positions."""
        out: list[Event] = []
        for partition, offset, line in self._placed:
            with contextlib.suppress(ValueError, TypeError):
                record = json.loads(line)
                values = tuple(record["payload"].items())
                when = record["event_time"] * 1000
                out.append(
                    Event(partition, offset, record["entity_id"], when, record["sequence"], values, record["source"])
                )
        return out

    @cached_property
    def verdict(self) -> oracles.Verdict:
        """What happens to each event."""
        return oracles.judge(self.events, BOUND, SETS)

    @cached_property
    def late(self) -> list[str]:
        """Ids of the late events, sorted."""
        newest: dict[str, int] = {}
        out: list[str] = []
        for event in self.events:
            before = newest.get(event.partition, event.time)
            if event.time < before - BOUND:
                out.append(f"signals/{event.partition}/{event.offset}")
            newest[event.partition] = max(before, event.time)
        return sorted(out)

    @cached_property
    def broken(self) -> list[tuple[str, int]]:
        """Partition and offset of the lines that are no signals, sorted."""
        good = {(event.partition, event.offset) for event in self.events}
        return sorted((p, offset) for p, offset, _ in self._placed if (p, offset) not in good)

    @cached_property
    def summary(self) -> Summary:
        """The counts that every way of running must come to."""
        verdict = self.verdict
        used, dead, rows = len(verdict.used), len(self.broken), sum(map(len, self._windows()))
        return Summary(len(self.lines), used, verdict.duplicate, verdict.conflict, verdict.late, dead, rows)

    def spread(self, partitions: int, seed: int) -> Log:
        """The same lines, each dealt to a partition at random."""
        chance = random.Random(seed)
        return Log(tuple((f"p-{chance.randrange(partitions)}", line) for _, line in self.lines))

    def slices(self, count: int) -> list[Log]:
        """The log cut into consecutive parts."""
        size = -(-len(self.lines) // count)
        return [Log(self.lines[i : i + size]) for i in range(0, len(self.lines), size)]

    def _windows(self) -> Iterator[list[tuple[int, int]]]:
        """The windows of every feature set, entity and spec that hold an event."""
        for number, declared in enumerate(SETS.sets):
            times: dict[str, list[int]] = {}
            for event in self.verdict.used:
                if SETS.mask(event.source) >> number & 1:
                    times.setdefault(event.entity, []).append(event.time)
            yield from (oracles.windows_of(t, spec) for t in times.values() for spec in declared.windows)

    @property
    def _placed(self) -> Iterator[tuple[str, int, bytes]]:
        ends: Counter[str] = Counter()
        for partition, line in self.lines:
            yield partition, ends[partition], line
            ends[partition] += len(line) + 1


def clean_log(seed: int = 0, *, events: int = 1500) -> Log:
    """One partition, disorder within the bound, nulls and some exact duplicates; nothing late or broken."""
    chance = random.Random(seed)
    lines: list[bytes] = []
    for i in range(events):
        lines.append(_line(chance, START + i * STEP + chance.randrange(-2 * SECOND, 2 * SECOND), i))
        if chance.random() < 0.03:
            lines.append(lines[-chance.randrange(1, min(20, len(lines)) + 1)])
    return Log(tuple(("p-0", line) for line in lines))


def dirty_log(seed: int = 0, *, events: int = 1500, partitions: int = 2) -> Log:
    """Entities spread over partitions; also late events, conflicts and broken lines."""
    chance = random.Random(seed)
    out: list[tuple[str, bytes]] = []
    for i in range(events):
        when = START + i * STEP + chance.randrange(-2 * SECOND, 2 * SECOND)
        if chance.random() < 0.03:
            when -= 30 * SECOND
        line = _line(chance, when, i)
        partition = f"p-{murmur3_bytes(orjson.loads(line)['entity_id'].encode())[0] % partitions}"
        out.append((partition, line))
        fate = chance.random()
        if fate < 0.02:
            out.append((partition, line))
        elif fate < 0.04:
            out.append((partition, orjson.dumps({**orjson.loads(line), "payload": {"b": chance.gauss(0, 1)}})))
        elif fate < 0.06:
            out.append((partition, chance.choice([b"", b"{broken", b"\xff\xfe", line[: len(line) // 2], b"[1]"])))
    return Log(tuple(out))


def _line(chance: random.Random, when: int, sequence: int) -> bytes:
    fields = [field for field in "abc" if chance.random() < 0.9]
    payload = {field: chance.choice([None, chance.gauss(1e6, 1), float(sequence % 7)]) for field in fields}
    record = {
        "entity_id": chance.choice(["pump-1", "pump-2", "ключ-😀", "a/../b", *(f"s{i}" for i in range(20))]),
        "event_time": when // 1000,
        "sequence": sequence,
        "payload": payload,
        "source": chance.choice([None, "plant/1", "lab"]),
    }
    return orjson.dumps(record)


class Run:
    """One process of the flow."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path, name: str) -> None:
        """Start it; stdout and stderr go to files of that name."""
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def wait(self, limit: float = LIMIT_S) -> int:
        """Return its exit code; −n if signal n killed it."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {limit} s: {self.errors}") from None

    def done(self, limit: float = LIMIT_S) -> dict[str, int]:
        """Wait for an exit with code 0 and return the summary, all there is on stdout; {} of a bare run."""
        assert self.wait(limit) == 0, self.errors
        told = self._out.read_bytes()
        return cast("dict[str, int]", orjson.loads(told)) if told.startswith(b"{") else {}

    def stop(self, number: int = signal.SIGTERM) -> dict[str, int]:
        """Send the signal and return as `done` does."""
        self.process.send_signal(number)
        return self.done()

    def kill(self) -> None:
        """Kill it (-9), if it still runs."""
        self.process.kill()
        self.process.wait()

    def lives_for(self, seconds: float) -> bool:
        """Let it run for so long; False if it ended before."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._err.read_text("utf-8", "replace")


@dataclass
class Place:
    """The folders of one lineage. As a context manager it kills what still runs at the end."""

    root: Path
    runs: list[Run] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Make the folders."""
        self.topic.mkdir(parents=True)
        (self.root / "sets.toml").write_text(TWO_SETS, "utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        """Leave no process behind."""
        for run in self.runs:
            run.kill()

    @property
    def topic(self) -> Path:
        """The folder of the partitions."""
        return self.root / "bus" / "signals"

    @property
    def offline(self) -> Path:
        """The feature history."""
        return self.root / "offline"

    @property
    def recovery(self) -> Path:
        """The recovery folder."""
        return self.root / "recovery"

    def environment(self, **settings: object) -> dict[str, str]:
        """The settings of a run here: stop at the end of the log, no online store; `settings` on top."""
        kept = {n: v for n, v in os.environ.items() if n in {"PATH", "HOME", "TMPDIR", "NUMBA_CACHE_DIR"}}
        mine = {
            "BUS_DIR": self.topic.parent,
            "BUS_FOLLOW": 0,
            "OFFLINE_DATA_PATH": self.offline,
            "RECOVERY_DIR": self.recovery,
            "FEATURE_SETS_PATH": self.root / "sets.toml",
            "ONLINE_STORE": "none",
            "WATERMARK_IDLE_SECONDS": 0,
            "SNAPSHOT_SECONDS": 1,
            "PYTHONPATH": ROOT,
        }
        return kept | {name: str(value) for name, value in (mine | settings).items()}

    def headrace(self, *arguments: str, **settings: object) -> Run:
        """Start `python -m dataflows …`."""
        return self._start(["-m", "dataflows", *arguments], settings)

    def signals(self, **settings: object) -> Run:
        """Start `python -m dataflows signals --json`."""
        return self.headrace("signals", "--json", **settings)

    def bare(self, *arguments: str, **settings: object) -> Run:
        """Start `python -m bytewax.run dataflows.signals` with this recovery folder and one-second epochs."""
        engine = ["-m", "bytewax.run", "dataflows.signals", "-r", str(self.recovery), "-s", "1", "-b", "0"]
        return self._start([*engine, *arguments], settings)

    def cluster(self, start: Callable[..., Run], *arguments: str, **settings: object) -> list[Run]:
        """Start `quick`, `signals` or `bare` in two processes that know each other, the second one first."""
        addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(2))
        both = {"BYTEWAX_ADDRESSES": addresses, **settings}
        return [start(*arguments, BYTEWAX_PROCESS_ID=i, **both) for i in (1, 0)]

    def quick(self, *faults: str, epoch_ms: int = 40, **settings: object) -> Run:
        """Start `signals` with short epochs and faults at named places; see tests/crash/launch.py."""
        return self._start(["-m", "tests.crash.launch", str(epoch_ms), *faults], settings)

    def write(self, log: Log) -> None:
        """Append the lines, each partition's at once."""
        for partition in log.partitions:
            self.append(partition, b"".join(line + b"\n" for p, line in log.lines if p == partition))

    def append(self, partition: str, data: bytes) -> None:
        """Append bytes to a partition file."""
        with (self.topic / f"{partition}.jsonl").open("ab") as file:
            file.write(data)

    def durable_bytes(self) -> int:
        """How far all partitions together are read and remembered, in bytes."""
        total = 0
        try:
            for state in Recovery(self.recovery).states("signals.read").values():
                total += sum(feed["position"]["offset"] for feed in orjson.loads(state).values())
        except HeadraceError:
            return 0  # no run has made the folder yet
        return total

    def whole_bytes(self) -> int:
        """How far all partitions together can be read: up to their last line ends."""
        return sum(path.read_bytes().rfind(b"\n") + 1 for path in self.topic.iterdir())

    def wait_until_read(self, run: Run) -> None:
        """Wait until everything that can be read is read and remembered."""
        until(lambda: run.ended or self.durable_bytes() >= self.whole_bytes(), "the log to be read")
        assert not run.ended, run.errors

    def backfill(self) -> dict[str, int]:
        """Run the batch over the topic and return its summary."""
        return self.headrace("backfill", "signals", "--json", "--input", f"{self.topic}/*.jsonl").done()

    def totals(self) -> Summary:
        """The counts since the recovery folder was made."""
        return summary_of(Recovery(self.recovery), SETS)

    def _start(self, arguments: list[str], settings: dict[str, object]) -> Run:
        run = Run([sys.executable, *arguments], self.environment(**settings), self.root, f"run-{len(self.runs)}")
        self.runs.append(run)
        return run


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def half_way(root: Path, log: Log) -> Place:
    """A lineage that has read the first of two slices of the log and was stopped."""
    with Place(root) as place:
        place.write(log.slices(2)[0])
        run = place.quick(BUS_FOLLOW=1)
        place.wait_until_read(run)
        run.stop()
    return place


def digests(offline: Path, sets: FeatureSets = SETS) -> Digests:
    """Digest what readers of the history see; a row that is there twice, or whose hash is not its own, fails."""
    out: Digests = {}
    seen: set[tuple[object, ...]] = set()
    for key, table in ParquetOfflineStore(offline).scan():
        declared = next(s for s in sets.sets if (s.name, s.version) == (key.feature_set, key.version))
        spec = next(w for w in declared.windows if w.folder == key.window)
        hashes = hash_table(table, declared, spec)
        assert [bytes(row) for row in hashes] == table["content_hash"].to_pylist()
        columns = [table[name].to_pylist() for name in ("entity_id", "revision")]
        times = [table[name].cast("int64").to_pylist() for name in ("window_start", "event_time")]
        for row in zip(*columns, *times, strict=True):
            identity = (key.feature_set, key.version, key.window, *row)
            assert identity not in seen, f"{identity} is there twice"
            seen.add(identity)
        place = (key.feature_set, key.version, key.window, key.date)
        rows, total = out.get(place, (0, 0))
        out[place] = (rows + len(table), (total + digest(hashes)) % (1 << 128))
    return out
