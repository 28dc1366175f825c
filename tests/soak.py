"""A run over Kafka for as long as you like: does it grow? `make soak-kafka MINUTES=30`.

It starts a broker of its own, measures how fast one process can read, sends half of that, and looks at the process
every ten seconds. The end is a table, a chart and a verdict; the exit code is 1 if anything grew, or was lost.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import psutil

from tests.flows import LIMIT_S, ROOT, Run, until
from tests.kafka_faults import set_config
from tests.kafka_flows import WRITTEN, KafkaPlace
from tests.kafka_server import Broker, create_topic, own_broker

SETS = """
[[feature_set]]
name = "soak"
version = 1
fields = ["temperature", "pressure", "vibration"]
windows = ["1s", "5s", "1m"]
halflife = "30s"
"""
ENTITIES = 5000
PARTITIONS = 4
FILL_S = 10.0
TICK_S = 0.02
SAMPLE_S = 10.0
WARM_UP = 1 / 3
"""Share of the samples that are shown and not judged: windows of a minute, caches and pools fill up first."""

WARM_UP_S = 180.0
"""A verdict over what came before is worth little, and says so."""

MIB = 1 << 20
KEPT = {"retention.bytes": str(256 * MIB), "segment.bytes": str(32 * MIB), "segment.ms": "600000"}
"""So much of each partition is kept on the disk."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. Sizes in MiB; lag: messages that no durable snapshot holds yet."""

    second: float
    rss_mib: float
    threads: float
    open_files: float
    recovery_mib: float
    recovery_files: float
    offline_mib: float
    offline_files: float
    lag: float


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much a number may drift over the judged part: `share` of its median, or `least`, whichever is more."""

    share: float
    least: float


TOLERANCES = {
    "rss_mib": Tolerance(0.05, 32),
    "threads": Tolerance(0, 1),
    "open_files": Tolerance(0, 4),
    "recovery_mib": Tolerance(0.1, 8),
    "recovery_files": Tolerance(0, 1),
}
"""What must be flat. The history must grow; lag depends on the rate and is judged in seconds of it."""

LAG_S = 30.0
"""Lag at the end of the judged part, at most, in seconds of the rate: three snapshots."""


def main() -> int:
    """Run it; 0 if flat, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, help="signals a second, instead of half of what was measured")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "soak-kafka")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as name, own_broker(Path(name)) as broker:
        rate = asked.rate or measured_rate(broker, Path(name)) / 2
        say(f"{rate:,.0f} signals a second for {asked.minutes:g} minutes, {ENTITIES} entities, {PARTITIONS} partitions")
        samples, sent, done = soak(broker, Path(name), rate, asked.minutes * 60)
    asked.out.mkdir(parents=True, exist_ok=True)
    chart = draw(samples, rate, asked.out / "soak.png")
    return judge(samples, rate, sent, done, chart)


@contextmanager
def place_at(broker: Broker, folder: Path, name: str) -> Iterator[KafkaPlace]:
    """A lineage with a topic of its own."""
    create_topic(broker.address, name, PARTITIONS, beside=[f"{name}.{other}" for other in WRITTEN])
    for topic in (name, *(f"{name}.{other}" for other in WRITTEN)):
        set_config(broker.address, topic, **KEPT)
    with KafkaPlace(folder / name, address=broker.address, topic_name=name) as place:
        (place.root / "sets.toml").write_text(SETS, "utf-8")
        yield place
    shutil.rmtree(folder / name)


def measured_rate(broker: Broker, folder: Path) -> float:
    """Signals a second that one process takes from a backlog, from its first durable snapshot to its last."""
    with place_at(broker, folder, "measured") as place:
        with producing(broker.address, "measured", 1e9) as producer:
            pause(FILL_S)
            sent = finish(producer)
        say(f"the producer sent {sent / FILL_S:,.0f} signals a second")
        run = place.signals(SNAPSHOT_SECONDS=1)
        until(lambda: run.ended or place.durable_bytes() > 0, "the first snapshot")
        first, begun = place.durable_bytes(), time.monotonic()
        until(lambda: run.ended or place.durable_bytes() >= sent, "the backlog to be read")
        rate = (sent - first) / (time.monotonic() - begun) if first < sent else sent / FILL_S
        run.done()
        say(f"one process took {rate:,.0f} signals a second from a backlog of {sent:,}")
        return min(rate, 2 * sent / FILL_S)


def soak(broker: Broker, folder: Path, rate: float, length_s: float) -> tuple[list[Sample], int, dict[str, int]]:
    """Samples, how many signals were sent, and the summary of the run."""
    samples: list[Sample] = []
    with place_at(broker, folder, "soak") as place:
        run = place.signals(BUS_FOLLOW=1, SNAPSHOT_SECONDS=10, WATERMARK_IDLE_SECONDS=30, LOG_LEVEL="error")
        until(lambda: run.ended or (place.recovery / "headrace.json").exists(), "the run to start")
        begun = time.monotonic()
        print("  ".join(f"{f.name:>14}" for f in fields(Sample)), flush=True)  # noqa: T201  # the table
        with producing(broker.address, "soak", rate) as producer:
            while (now_s := time.monotonic() - begun) < length_s:
                pause(min(SAMPLE_S, length_s - now_s))
                samples.append(sample(run, place, time.monotonic() - begun))
                print("  ".join(f"{v:14,.1f}" for v in astuple(samples[-1])), flush=True)  # noqa: T201  # as above
            sent = finish(producer)
        place.wait_until_read(run)
        return samples, sent, run.stop()


def sample(run: Run, place: KafkaPlace, second: float) -> Sample:
    """Look at the run."""
    assert not run.ended, run.errors
    process = psutil.Process(run.process.pid)
    recovery, offline = sizes(place.recovery), sizes(place.offline)
    return Sample(
        second,
        process.memory_info().rss / MIB,
        process.num_threads(),
        process.num_fds(),
        sum(recovery) / MIB,
        len(recovery),
        sum(offline) / MIB,
        len(offline),
        place.whole_bytes() - place.durable_bytes(),
    )


def sizes(folder: Path) -> list[int]:
    """Bytes of all files below the folder; those that vanish meanwhile are left out."""
    out = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            out.append(status.st_size)
    return out


def judge(samples: list[Sample], rate: float, sent: int, done: dict[str, int], chart: Path) -> int:
    """Print what drifted how much, and say whether that is flat."""
    judged = samples[int(len(samples) * WARM_UP) :]
    span_s = judged[-1].second - judged[0].second
    good = True
    say(f"judged: the last {span_s / 60:.1f} minutes")
    if judged[0].second < WARM_UP_S:
        say(f"TOO SHORT: memory and snapshots take {WARM_UP_S / 60:g} minutes to come to rest; give it 10 or more")
    for name, tolerance in TOLERANCES.items():
        values = np.array([getattr(each, name) for each in judged])
        drift = slope(np.array([each.second for each in judged]), values) * span_s
        allowed = max(tolerance.share * float(np.median(values)), tolerance.least)
        flat = drift <= allowed
        good &= flat
        say(
            f"{'flat ' if flat else 'GROWS'}  {name:<15} {np.median(values):10,.1f}, drift {drift:+8.2f} in that time,"
            f" {drift / span_s * 3600:+9.2f} an hour (allowed: {allowed:.1f} in that time)"
        )
    lag_s = float(np.median([each.lag for each in judged[len(judged) // 2 :]])) / rate
    good &= lag_s <= LAG_S
    say(f"{'good ' if lag_s <= LAG_S else 'LAGS '}  lag {lag_s:.1f} s of the rate (allowed: {LAG_S:g})")
    ended = done["used"] + done["duplicate"] + done["conflict"] + done["late"] + done["dead"]
    exact = done["in"] == sent == ended and done["late"] == done["dead"] == 0
    good &= exact
    say(f"{'exact' if exact else 'WRONG'}  {sent:,} signals sent; the run's account: {done}")
    say(f"{'FLAT' if good else 'NOT FLAT'}; chart: {chart}")
    return 0 if good else 1


def slope(times: Any, values: Any) -> float:  # noqa: ANN401  # arrays of floats
    """Median of the slopes of all pairs (Theil and Sen): a few outliers do not move it."""
    i, j = np.triu_indices(len(times), 1)
    return float(np.median((values[j] - values[i]) / (times[j] - times[i]))) if len(i) else 0.0


def draw(samples: list[Sample], rate: float, path: Path) -> Path:
    """One panel for each number, over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [f.name for f in fields(Sample) if f.name != "second"]
    minutes = [each.second / 60 for each in samples]
    warm = minutes[int(len(minutes) * WARM_UP)]
    figure = Figure(figsize=(13, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"headrace signals, one process, {rate:,.0f} signals a second (grey: not judged)")
    for axes, name in zip(figure.subplots(2, 4).flat, names, strict=True):
        axes.axvspan(0, warm, color="#eeeeee", lw=0)
        axes.plot(minutes, [getattr(each, name) for each in samples], color="#1b5e8c", lw=1.6)
        axes.set_title(name, loc="left", size=10)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, minutes[-1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("minutes", size=8)
    figure.savefig(path)
    return path


@contextmanager
def producing(address: str, topic: str, rate: float) -> Iterator[Popen[str]]:
    """A producer in a process of its own; it ends when its stdin does."""
    command = [sys.executable, "-m", "tests.soak", "produce", address, topic, str(rate)]
    with Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(producer: Popen[str]) -> int:
    """Let the producer end; how many signals it has sent, all of them acknowledged."""
    told, _ = producer.communicate(timeout=LIMIT_S)
    assert producer.returncode == 0, "the producer failed"
    return int(told)


def produce(address: str, topic: str, rate: float) -> None:
    """Send signals of now, in the disorder of two seconds at most, until stdin ends; then print how many there were."""
    from confluent_kafka import Producer

    refused: list[object] = []
    producer = Producer(
        {
            "bootstrap.servers": address,
            "enable.idempotence": True,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1 << 18,
            "log_level": 0,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _message: refused.append(error),
            "error_cb": lambda _error: None,
        }
    )
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    delays = np.random.default_rng(1).integers(0, 2000, 4096).tolist()
    sent, begun = 0, time.monotonic()
    while not stop.is_set():
        due = min(int((time.monotonic() - begun) * rate), sent + 20_000)
        now_ms = int(time.time() * 1000)
        for number in range(sent, due):
            entity = number % ENTITIES
            line = (
                f'{{"entity_id":"sensor-{entity}","event_time":{now_ms - delays[number & 4095]},"sequence":{number},'
                f'"payload":{{"temperature":{20 + entity % 17}.{number % 997},"pressure":{1000 + number % 31}.5,'
                f'"vibration":0.{number % 9973}}},"source":"soak"}}'
            )
            while True:
                try:
                    producer.produce(topic, line.encode(), partition=entity % PARTITIONS)
                    break
                except BufferError:
                    producer.poll(0.01)
        sent = due
        producer.poll(0)
        if rate * (time.monotonic() - begun) < sent + rate * TICK_S:
            stop.wait(TICK_S)
    assert producer.flush(LIMIT_S) == 0
    assert refused == [], refused[:3]
    print(sent)  # noqa: T201  # heard by the process that started this one


def pause(length_s: float) -> None:
    """Let time pass."""
    threading.Event().wait(max(0.0, length_s))


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, flush=True)  # noqa: T201  # a program of the command line


if __name__ == "__main__":
    if sys.argv[1:2] == ["produce"]:
        produce(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        sys.exit(main())
