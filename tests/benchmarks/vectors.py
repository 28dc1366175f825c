"""The vector store measured: commits of one document, search, recall, size on disk; all of it through the port."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stores.vectors import open_vectors
from stores.vectors.port import Element, VectorStore, VectorWriter, recall

T = TypeVar("T")

DIM = 384
CHUNKS = 10
"""Chunks of the document that is changed."""

QUERIES = 300
_CLUSTER_SIZE = 100
_NOISE = 0.8
_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class VectorFigures:
    """One store measured. Times in ms, sizes in MB; recall of ten against comparing the vectors as they were put.

    commit: ten chunks replaced by new ones, durable. refresh: a reader moves on to such a commit.
    worst: the slowest commit, while a compaction ran beside it. open: a new reader.
    """

    element: Element
    count: int
    load_per_s: float
    commit_p50: float
    commit_p99: float
    commit_worst: float
    refresh_p50: float
    search_p50: float
    search_p99: float
    exact_p50: float
    open: float
    recall_at_10: float
    recall_as_stored: float
    disk: float


def clustered(count: int, dim: int = DIM, *, seed: int = 0) -> NDArray[np.float32]:
    """Vectors in clusters of about a hundred, as chunks of like documents are: float32 (count, dim), of length 1."""
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((max(count // _CLUSTER_SIZE, 1), dim), np.float32)
    rows = centres[chance.integers(0, len(centres), count)]
    rows += np.float32(_NOISE) * chance.standard_normal((count, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def measure_vectors(
    count: int, *, element: Element = "f16", commits: int = 200, shards: int = 4, folder: Path | None = None
) -> VectorFigures:
    """Load `count` vectors, change a document `commits` times, search."""
    with TemporaryDirectory(dir=folder) as place:
        store = open_vectors(f"usearch:///{place}", "bench", DIM, shards=shards, element=element)
        rows = clustered(count)
        keys = np.random.default_rng(1).permutation(count).astype(np.uint64) * np.uint64(2**40 + 15)
        load_s = _load(store, keys, rows)
        reader_ms, reader = _timed(store.read)
        commit_ms, refresh_ms = _change(store, keys, rows, commits)
        reader.refresh()
        queries = _queries(rows)
        found = [_timed(partial(reader.search, query, 10)) for query in queries]
        exact_ms = [_timed(partial(reader.search, query, 10, exact=True))[0] for query in queries[:10]]
        right = _nearest(keys, rows, queries)
        hits = [len({hit.key for hit in some[1]} & best) for some, best in zip(found, right, strict=True)]
        search_ms = [ms for ms, _ in found]
        figures = VectorFigures(
            element=element,
            count=count,
            load_per_s=count / load_s,
            commit_p50=_percentile(commit_ms, 50),
            commit_p99=_percentile(commit_ms, 99),
            commit_worst=max(commit_ms),
            refresh_p50=_percentile(refresh_ms, 50),
            search_p50=_percentile(search_ms, 50),
            search_p99=_percentile(search_ms, 99),
            exact_p50=_percentile(exact_ms, 50),
            open=reader_ms,
            recall_at_10=sum(hits) / (10 * len(queries)),
            recall_as_stored=recall(reader, queries[:30]),
            disk=sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file()) / 1e6,
        )
        reader.close()
        return figures


def measure_growth(sizes: tuple[int, ...] = (10_000, 100_000)) -> str:
    """A Markdown table: the figures at each size in float16, and those of the other elements at the last."""
    lines = [measure_vectors(size) for size in sizes]
    lines += [measure_vectors(sizes[-1], element=element) for element in ("f32", "i8")]
    head = (
        "| vectors | element | commit of 10, ms: p50 | p99 | worst | refresh | search, ms: p50 | p99 | exact |"
        " recall@10 | open, ms | load/s | MB |"
    )
    text = [head, "|--:|---|" + "--:|" * 11]
    text += [
        f"| {x.count:,} | {x.element} | {x.commit_p50:.1f} | {x.commit_p99:.1f} | {x.commit_worst:.1f} |"
        f" {x.refresh_p50:.1f} | {x.search_p50:.2f} | {x.search_p99:.2f} | {x.exact_p50:.0f} | {x.recall_at_10:.3f} |"
        f" {x.open:.0f} | {x.load_per_s:,.0f} | {x.disk:,.0f} |"
        for x in lines
    ]
    return "\n".join(text) + "\n"


def _load(store: VectorStore, keys: NDArray[np.uint64], rows: NDArray[np.float32]) -> float:
    """Put everything, with all compactions that it brings; seconds. A key's shard is its place modulo shards."""
    start = time.perf_counter()
    for shard in range(store.shards):
        writer = store.write(shard)
        mine = np.arange(shard, keys.size, store.shards)
        for part in np.array_split(mine, max(mine.size // _BATCH, 1)):
            writer.put(keys[part], rows[part])
            writer.commit()
        writer.close()
    return time.perf_counter() - start


def _change(
    store: VectorStore, keys: NDArray[np.uint64], rows: NDArray[np.float32], commits: int
) -> tuple[list[float], list[float]]:
    """Replace the chunks of one document after another by chunks with other keys, and back; ms each."""
    commit_ms: list[float] = []
    refresh_ms: list[float] = []
    reader, writer = store.read(), store.write(0)
    mine = np.arange(0, keys.size, store.shards)
    for number in range(commits):
        some = mine[(number // 2 * CHUNKS + np.arange(CHUNKS)) % mine.size]
        here, away = keys[some], keys[some] + np.uint64(1)
        old, new = (here, away) if number % 2 == 0 else (away, here)

        commit_ms.append(_timed(partial(_replace, writer, old, new, rows[some]))[0])
        refresh_ms.append(_timed(reader.refresh)[0])
    writer.close()
    reader.close()
    return commit_ms, refresh_ms


def _replace(writer: VectorWriter, old: NDArray[np.uint64], new: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
    writer.delete(old)
    writer.put(new, rows)
    writer.commit()


def _queries(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points near to some of the vectors, none of which is one of them."""
    chance = np.random.default_rng(2)
    near = rows[chance.integers(0, len(rows), QUERIES)]
    queries = near + np.float32(_NOISE / np.sqrt(DIM)) * chance.standard_normal(near.shape, np.float32)
    unit: NDArray[np.float32] = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return unit


def _nearest(keys: NDArray[np.uint64], rows: NDArray[np.float32], queries: NDArray[np.float32]) -> list[set[int]]:
    """The ten nearest of each query, by comparing with every vector."""
    top = np.argpartition(-(queries @ rows.T), 10, axis=1)[:, :10]
    return [set(keys[places].tolist()) for places in top]


def _timed(action: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = action()
    return (time.perf_counter() - start) * 1e3, result


def _percentile(values: list[float], wanted: int) -> float:
    return float(np.percentile(values, wanted))
