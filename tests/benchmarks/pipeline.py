"""Our own pipeline over the same bytes: the whole of it, from the files to published Parquet.

Each function runs in a fresh process (`fresh.measure`), warms up on a small topic first (so that compiled
kernels are loaded, as in any run of more than a moment), and returns (events, seconds) of `run_signals`:
reading, decoding, windows, snapshots, staging, publishing and the summary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import local
from time import perf_counter, process_time, thread_time
from typing import Any

from dataflows.config import Settings, load_settings
from dataflows.engine import Cluster
from dataflows.runner import run_signals
from tests.benchmarks.events import Load, write_events

SETS = """
[[feature_set]]
name = "bench"
version = 1
fields = ["temperature", "pressure", "vibration"]
windows = ["1s", "5s", "1m"]
halflife = "30s"
"""


def headrace(paths: Sequence[str], workers: int = 1) -> tuple[int, float]:
    """All statistics of 3 fields in 3 windows, exactly once, into Parquet."""
    with _place(paths) as settings:
        return _run(settings, workers)


def headrace_stages(paths: Sequence[str], report: str) -> tuple[int, float]:
    """The same on one worker, with the processor time of each stage written to `report` as JSON {stage: seconds}."""
    spent: dict[str, float] = defaultdict(float)
    with _place(paths) as settings, _timed(spent):
        before = process_time()
        events, seconds = _run(settings, 1)
    spent["engine, snapshots and the rest"] = process_time() - before - sum(spent.values())
    Path(report).write_text(json.dumps(spent), encoding="utf-8")
    return events, seconds


def headrace_pauses(paths: Sequence[str], report: str) -> tuple[int, float]:
    """The same with a snapshot a second; writes {pauses: [seconds], state_bytes, entities} to `report`."""
    from dataflows import signal_flow
    from dataflows.signal_source import SignalSlot

    pauses: list[float] = []
    stopped: list[float] = []
    sizes: dict[int, int] = {}
    plain_snapshot, plain_next = SignalSlot.snapshot, SignalSlot.next_batch
    plain_state = signal_flow.WindowsLogic.snapshot

    def snapshot(self: SignalSlot) -> bytes:
        stopped.append(perf_counter())
        return plain_snapshot(self)

    def next_batch(self: SignalSlot) -> Any:  # noqa: ANN401  # what Bytewax takes
        if stopped:
            pauses.append(perf_counter() - stopped[0])
            stopped.clear()
        return plain_next(self)

    def state(self: signal_flow.WindowsLogic) -> bytes:
        data = plain_state(self)
        sizes[id(self)] = max(len(data), sizes.get(id(self), 0))
        return data

    SignalSlot.snapshot, SignalSlot.next_batch = snapshot, next_batch  # type: ignore[method-assign]  # watched
    signal_flow.WindowsLogic.snapshot = state  # type: ignore[method-assign]  # watched
    with _place(paths, snapshot_seconds=1) as settings:
        sizes.clear()
        pauses.clear()
        events, seconds = _run(settings, 1)
    Path(report).write_text(json.dumps({"pauses": pauses, "state_bytes": sum(sizes.values())}), encoding="utf-8")
    return events, seconds


def online_rows(rows: int, *, push: bool) -> tuple[int, float]:
    """Rows of 33 features into Feast's SQLite online store: by our writer, or by Feast's own `push`."""
    import pyarrow as pa

    from stores.features import open_features, views_of

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = _settings(root, online_store="feast", feast_repo_path=root / "feature_repo")
        repo = shutil.copytree(Path(__file__).parents[2] / "feature_repo", root / "feature_repo")
        (repo / "feature_sets.toml").write_text(SETS, encoding="utf-8")
        view = views_of(settings.feature_sets())[0]
        store = open_features(f"feast:{repo}")
        store.prepare([view])
        batch = _feature_rows(view.feature_set, rows)
        store.write(view, batch.slice(0, 1))
        start = perf_counter()
        if push:
            from feast import FeatureStore

            feast = FeatureStore(repo_path=str(repo))
            frame = pa.Table.from_batches([batch]).to_pandas()
            start = perf_counter()
            feast.push(f"{view.name}_push", frame)
        else:
            store.write(view, batch)
        return rows, perf_counter() - start


def _feature_rows(feature_set: Any, rows: int) -> Any:  # noqa: ANN401  # a record batch
    import numpy as np
    import pyarrow as pa

    from operators.records import feature_row_schema

    schema = feature_row_schema(feature_set)
    time = pa.array(np.full(rows, 1_767_225_600_000_000)).cast(schema.field("event_time").type)
    values = np.random.default_rng(1).normal(size=rows)
    fixed: dict[str, Any] = {
        "entity_id": pa.array([f"device-{i}" for i in range(rows)]),
        "window_start": time,
        "event_time": time,
        "created_at": time,
        "feature_set": pa.repeat(feature_set.name, rows),
        "version": pa.repeat(pa.scalar(1, pa.int32()), rows),
        "revision": pa.repeat(pa.scalar(0, pa.int32()), rows),
        "known_at": time,
        "supersedes": pa.nulls(rows, pa.binary(16)),
        "cause": pa.nulls(rows, pa.string()),
        "retracted": pa.repeat(False, rows),  # noqa: FBT003  # a value
        "content_hash": pa.array([bytes(16)] * rows, pa.binary(16)),
    }
    drawn = pa.array(values)
    columns = [fixed[f.name] if f.name in fixed else drawn.cast(f.type, safe=False) for f in schema]
    return pa.record_batch(columns, schema=schema)


def _run(settings: Settings, workers: int) -> tuple[int, float]:
    start = perf_counter()
    done = run_signals(settings, Cluster(workers))
    seconds = perf_counter() - start
    if done.used != done.seen:
        raise AssertionError(f"every event of the load is good and on time, yet: {done}")
    return done.seen, seconds


@contextmanager
def _place(paths: Sequence[str], **settings: object) -> Iterator[Settings]:
    """A folder whose bus holds the files of events, after a warm-up in another one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("warm", "real"):
            (root / name / "bus" / "signals").mkdir(parents=True)
        write_events(root / "warm" / "bus" / "signals", Load(2_000, 10, 10))
        for path in paths:
            (root / "real" / "bus" / "signals" / Path(path).name).symlink_to(path)
        run_signals(_settings(root / "warm"), Cluster())
        yield _settings(root / "real", **settings)


def _settings(root: Path, **more: object) -> Settings:
    sets = root / "sets.toml"
    sets.write_text(SETS, encoding="utf-8")
    fixed: dict[str, object] = {
        "bus_dir": root / "bus",
        "bus_follow": False,
        "offline_data_path": root / "offline",
        "recovery_dir": root / "recovery",
        "feature_sets_path": sets,
        "online_store": "none",
        "log_level": "error",
    }
    return load_settings(**(fixed | more))


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Put a clock of its thread's processor time round each stage; it is its own, without that of a stage inside it."""
    from dataflows import signal_flow
    from dataflows.buses.folder import FileReader
    from operators import windows
    from operators.decode import Decoder
    from operators.watermark import PartitionWatermark
    from stores import writers
    from stores.offline.parquet import ParquetOfflineStore

    places: list[tuple[Any, str, str]] = [
        (FileReader, "poll", "read"),
        (Decoder, "decode", "decode"),
        (PartitionWatermark, "mark", "decode"),
        (signal_flow, "split", "split by shard"),
        (windows.Shard, "push", "wait and order"),
        (windows, "in_order", "wait and order"),
        (windows.Shard, "advance", "windows"),
        (writers, "partitioned", "rows: hash and columns"),
        (signal_flow, "partitioned", "rows: hash and columns"),
        (ParquetOfflineStore, "stage", "Parquet"),
        (ParquetOfflineStore, "publish", "Parquet"),
    ]
    nested = local()
    plain = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, stage in places:
        setattr(owner, name, _clocked(getattr(owner, name), stage, spent, nested))
    try:
        yield
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


def _clocked(function: Callable[..., Any], stage: str, spent: dict[str, float], nested: local) -> Callable[..., Any]:
    def clocked(*args: object, **kwargs: object) -> Any:  # noqa: ANN401  # whatever the function gives
        stack: list[float] = nested.__dict__.setdefault("stack", [])
        stack.append(0.0)
        start = thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            elapsed = thread_time() - start
            spent[stage] += elapsed - stack.pop()
            if stack:
                stack[-1] += elapsed

    return clocked
