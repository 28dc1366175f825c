"""The signal path over a real Kafka, beside what others do with the same topic.

`measure_kafka` starts a broker on loopback, fills its topics and gives the section of RESULTS.md. The functions above
it are run by `fresh.measure`, each in a process of its own; rates are by wall clock from the first poll to the last
row published and served, CPU is that of the process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import orjson

from tests.benchmarks.events import Load, write_events
from tests.benchmarks.fresh import Measurement, measure
from tests.benchmarks.pipeline import SETS

if TYPE_CHECKING:
    from dataflows.config import Settings

HERE = "tests.benchmarks.kafka"
QUIX = "quixstreams==3.28.1"
_PARTITIONS = 4
_QUIX_EVENTS = 200_000
_BACKLOG_EVENTS = 10_000_000
_ARROW_ROWS = 2_000
_LATENCY_S = 20


def headrace(address: str, topic: str, *, online: bool = True, results: bool = False) -> tuple[int, float, float]:
    """The whole path on one worker, exactly once: windows 1s, 5s, 1m, all statistics, Parquet and Feast's online store.

    results: every row goes to the topic of results too.
    """
    from dataflows.config import load_settings
    from dataflows.engine import Cluster
    from dataflows.runner import run_signals

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run_signals(load_settings(**_settings(root / "warm", online=online)), Cluster())
        settings = load_settings(**_settings(root / "real", online=online), **_on(address, topic, results=results))
        apply_views(settings)
        start, cpu = time.perf_counter(), time.process_time()
        done = run_signals(settings, Cluster())
        if done.used != done.seen:
            raise AssertionError(f"every event of the load is good and on time, yet: {done}")
        return done.seen, time.perf_counter() - start, time.process_time() - cpu


def bare_loop(address: str, topic: str, count: int, *, tuned: bool = False) -> tuple[int, float, float]:
    """`consume()` and `orjson.loads` of every value, dropped. tuned: librdkafka's queue does not wait for a second."""
    from confluent_kafka import Consumer, TopicPartition

    more = {"fetch.queue.backoff.ms": 5} if tuned else {}
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "bare", "auto.offset.reset": "earliest", "enable.auto.commit": False}
        | more
    )
    consumer.assign([TopicPartition(topic, p, 0) for p in range(_PARTITIONS)])
    seen = 0
    start, cpu = time.perf_counter(), time.process_time()
    while seen < count:
        messages = consumer.consume(10_000, 1.0)
        for message in messages:
            orjson.loads(message.value() or b"")
        seen += len(messages)
    done = seen, time.perf_counter() - start, time.process_time() - cpu
    consumer.close()
    return done


def latency(address: str, topic: str, rate: float) -> tuple[int, float, float]:
    """Events of now at `rate` a second; gives (rows served, p50 s, p99 s) from the event that closed a window on.

    With WATERMARK_SECONDS=0 a window is closed by the first event past its end; a row counts from its window's end,
    when that event was produced, to the moment at which the online store has taken it.
    """
    from threading import Thread, Timer

    from dataflows import engine
    from dataflows.config import load_settings
    from dataflows.engine import Cluster
    from dataflows.runner import run_signals
    from stores.features.feast import FeastFeatures

    waits: list[float] = []
    plain = FeastFeatures.write

    def write(self: FeastFeatures, view: Any, rows: Any) -> None:  # noqa: ANN401  # as FeastFeatures.write
        plain(self, view, rows)
        now = time.time()
        waits.extend(now - t.timestamp() for t in rows.column("event_time").to_pylist())

    FeastFeatures.write = write  # type: ignore[method-assign]  # the clock stands round it
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            **_settings(Path(folder), online=True)
            | _on(address, topic, results=False)
            | {"bus_follow": True, "watermark_seconds": 0.0}
        )
        apply_views(settings)
        sender = Thread(target=_send_now, args=(address, topic, rate, _LATENCY_S))
        sender.start()
        Timer(_LATENCY_S + 2, engine.STOP.set).start()
        run_signals(settings, Cluster())
        sender.join()
    settled = sorted(waits[len(waits) // 5 :])  # the first writes open the store
    return len(settled), settled[len(settled) // 2], settled[int(len(settled) * 0.99)]


def apply_views(settings: Settings) -> None:
    """Have Feast know the views, as it does on a second day; importing it takes seconds."""
    from dataflows.wiring import features_of

    features = features_of(settings, settings.feature_sets())
    if features is not None:
        features.close()


def _send_now(address: str, topic: str, rate: float, seconds: float) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "linger.ms": 5})
    entities, sent, start = 500, 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for n in range(sent, int(passed * rate)):
            entity = n % entities
            event = {
                "entity_id": f"device-{entity}",
                "event_time": int(time.time() * 1e3),
                "sequence": n // entities,
                "payload": {"temperature": n % 97 * 0.5, "pressure": 1000.0 + n % 13, "vibration": n % 7 * 0.01},
            }
            producer.produce(topic, orjson.dumps(event), partition=entity % _PARTITIONS)
            sent += 1
        producer.poll(0)
        time.sleep(0.002)
    producer.flush(10)


def _settings(root: Path, *, online: bool) -> dict[str, object]:
    (root / "bus" / "signals").mkdir(parents=True)
    write_events(root / "bus" / "signals", Load(2_000, 10, 10))
    (root / "sets.toml").write_text(SETS, encoding="utf-8")
    repository = shutil.copytree(Path(__file__).parents[2] / "feature_repo", root / "feature_repo")
    shutil.copy(root / "sets.toml", repository / "feature_sets.toml")
    return {
        "bus_dir": root / "bus",
        "bus_follow": False,
        "offline_data_path": root / "offline",
        "recovery_dir": root / "recovery",
        "feature_sets_path": root / "sets.toml",
        "feast_repo_path": repository,
        "online_store": "feast" if online else "none",
        "log_level": "error",
    }


def _on(address: str, topic: str, *, results: bool) -> dict[str, object]:
    return {"kafka_brokers": address, "topic_signals": topic, "kafka_results": results, "kafka_group_id": ""}


def measure_kafka(events: int = 2_000_000, *, repeat: int = 3) -> Iterator[str]:
    """Yield the section, as it is measured."""
    from tests.kafka_server import create_topic, own_broker

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with own_broker(root / "broker") as broker:
            address = broker.address
            for topic in ("json", "arrow", "now", "late", "dlq", "results", "docs"):
                create_topic(address, topic, _PARTITIONS)
            paths = write_events(_made(root / "events"), Load(events, 5_000, 10, partitions=_PARTITIONS))
            _say("filling topics")
            for partition, path in enumerate(paths):
                _fill(address, "json", partition, path.read_bytes().splitlines())
                _fill(address, "arrow", partition, _arrow_messages(path))
            yield _rates(address, events, repeat)
            yield _latency(address)
            yield _quix(root, address)
        with own_broker(root / "backlog") as broker:
            for topic in ("json", "late", "dlq", "results", "docs"):
                create_topic(broker.address, topic, _PARTITIONS)
            yield _backlog(root, broker.address)


def _rates(address: str, events: int, repeat: int) -> str:
    runs: dict[str, list[Measurement]] = {}
    for _ in range(repeat):
        for name, function, arguments in (
            ("ours", "headrace", {"topic": "json"}),
            ("bare", "bare_loop", {"topic": "json", "count": events}),
            ("bare, tuned queue", "bare_loop", {"topic": "json", "count": events, "tuned": True}),
            ("ours, Arrow", "headrace", {"topic": "arrow"}),
            ("ours, no online store", "headrace", {"topic": "json", "online": False}),
            ("ours, Arrow, no online store", "headrace", {"topic": "arrow", "online": False}),
            ("ours, rows to the topic of results", "headrace", {"topic": "json", "results": True}),
        ):
            _say(name)
            runs.setdefault(name, []).append(measure(f"{HERE}:{function}", address=address, **arguments))
    bare, bare_cpu = (median(f(m) for m in runs["bare"]) for f in (_rate, _cpu_rate))
    lines = [
        f"| {name} | {median(map(_rate, some)):,.0f} | {median(map(_rate, some)) / bare:.2f} × |"
        f" {median(map(_cpu_rate, some)):,.0f} | {median(map(_cpu_rate, some)) / bare_cpu:.2f} × |"
        f" {max(m.peak_bytes for m in some) / 2**20:,.0f} |"
        for name, some in runs.items()
    ]
    return (
        "\n## Signals over Kafka\n\n"
        f"One real broker on the same cores; {events:,} events of about 220 bytes, 3 fields, 5,000 entities at 10 a"
        f" second each, {_PARTITIONS} partitions; one worker; windows 1s, 5s and 1m into Parquet and Feast's SQLite"
        f" online store. Medians of {repeat} runs. *bare* is `consume()` and `orjson.loads`, result dropped;"
        f" *Arrow* are the same events, {_ARROW_ROWS:,} a message.\n\n"
        "| what | events/s by the clock | against bare | events/s of CPU | against bare | peak MiB |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def _latency(address: str) -> str:
    _say("latency")
    full = measure(f"{HERE}:headrace", address=address, topic="json")
    rate = _rate(full) / 10
    served = measure(f"{HERE}:latency", address=address, topic="now", rate=rate)
    return (
        f"\nFrom produce to the online store at {rate:,.0f} events/s (a tenth of the rate above),"
        f" {served.events:,} rows: p50 {served.seconds * 1e3:,.0f} ms, p99 {served.cpu_s * 1e3:,.0f} ms.\n"
    )


def _quix(root: Path, address: str) -> str:
    """Quix Streams has requirements of its own: it gets an environment of its own."""
    _say("Quix Streams")
    python = root / "quix" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(root / "quix")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", QUIX], check=True)
    script = Path(__file__).with_name("quix_peer.py")
    command = [str(python), str(script), address, "json", str(_QUIX_EVENTS)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    theirs = float(json.loads(done.stdout.splitlines()[-1])["events_per_s"])
    ours = _rate(measure(f"{HERE}:headrace", address=address, topic="json"))
    return (
        f"\nQuix Streams 3 ({_QUIX_EVENTS:,} events; count, mean and std of one field in one tumbling window of a"
        f" second): {theirs:,.0f} events/s; ours, all statistics of 3 fields in 3 windows, is {ours / theirs:.0f} ×.\n"
    )


def _backlog(root: Path, address: str) -> str:
    _say("backlog")
    paths = write_events(_made(root / "many"), Load(_BACKLOG_EVENTS, 5_000, 10, partitions=_PARTITIONS))
    for partition, path in enumerate(paths):
        with path.open("rb") as lines:
            while some := [line[:-1] for line in islice(lines, 200_000)]:
                _fill(address, "json", partition, some)
        path.unlink()
    drained = measure(f"{HERE}:headrace", address=address, topic="json")
    return (
        f"\nA backlog of {_BACKLOG_EVENTS:,} events drains at {_rate(drained):,.0f} events/s with"
        f" {drained.peak_bytes / 2**20:,.0f} MiB at most.\n"
    )


def _fill(address: str, topic: str, partition: int, messages: Sequence[bytes]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "linger.ms": 20, "batch.size": 1 << 20})
    for message in messages:
        while True:
            try:
                producer.produce(topic, message, key=_key(message), partition=partition)
                break
            except BufferError:
                producer.poll(0.05)
    if producer.flush(120):
        raise AssertionError("the broker has not taken all messages")


def _key(message: bytes) -> bytes | None:
    """The entity of a JSON event, which peers want as key."""
    start = len(b'{"entity_id":"')
    return message[start : message.index(b'"', start)] if message.startswith(b'{"entity_id"') else None


def _arrow_messages(path: Path) -> list[bytes]:
    """The events of a file as Arrow streams of many events each."""
    import pyarrow as pa

    messages = []
    with path.open("rb") as lines:
        while some := [orjson.loads(line) for line in islice(lines, _ARROW_ROWS)]:
            columns: dict[str, pa.Array] = {
                "entity_id": pa.array([e["entity_id"] for e in some]).dictionary_encode(),
                "event_time": _times([e["event_time"] for e in some]),
                "sequence": pa.array([e["sequence"] for e in some], pa.int64()),
            }
            for name in some[0]["payload"]:
                columns[name] = pa.array([e["payload"][name] for e in some], pa.float64())
            sink = pa.BufferOutputStream()
            table = pa.table(columns)
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            messages.append(sink.getvalue().to_pybytes())
    return messages


def _times(values: list[Any]) -> Any:  # noqa: ANN401  # an Arrow array
    import pyarrow as pa

    if isinstance(values[0], str):
        from datetime import datetime

        return pa.array([datetime.fromisoformat(v) for v in values], pa.timestamp("us", tz="UTC"))
    return pa.array(values, pa.timestamp("ms", tz="UTC"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _rate(measured: Measurement) -> float:
    return measured.events_per_s


def _cpu_rate(measured: Measurement) -> float:
    return measured.events / measured.cpu_s


def _say(text: str) -> None:
    sys.stderr.write(f"… {text}\n")
    sys.stderr.flush()
