"""The bytes that every benchmark reads: JSON signals of about 220 bytes with three fields, made in columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

START_US = 1_767_225_600_000_000
"""Event time of the first event: 2026-01-01T00:00:00Z."""

FIELDS = ("temperature", "pressure", "vibration")


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent.

    count: events in all. entities: who send in turn. rate_hz: events a second of each entity: 10 is dense, 1 is sparse.
    partitions: files, an entity's events all in one. disorder_us: longest delay of an event behind its time.
    """

    count: int
    entities: int
    rate_hz: float
    partitions: int = 1
    disorder_us: int = 2_000_000
    seed: int = 1

    @property
    def span_us(self) -> int:
        """Event time from the first event to the last, rounded up."""
        return int(self.count * 1e6 / (self.entities * self.rate_hz)) + 1


def write_events(folder: Path, load: Load) -> list[Path]:
    """Write the load as `events-0.jsonl`, `events-1.jsonl`, …, one a partition, into the folder, which must exist.

    Times rise along each file but for the disorder; an entity's sequence rises with its time. No two events share
    (entity_id, event_time, sequence). The same load gives the same bytes.
    """
    chance = np.random.default_rng(load.seed)
    index = np.arange(load.count)
    event_time = START_US + (index * (1e6 / (load.entities * load.rate_hz))).astype(np.int64)
    order = np.argsort(event_time + chance.integers(0, load.disorder_us + 1, load.count), kind="stable")
    # Multiplying by a prime spreads who sends next without making one entity send twice in a round.
    entity = index % load.entities * 7_919 % load.entities if load.entities % 7_919 else index % load.entities
    lines = _lines(event_time, entity, index // load.entities + 1, chance)
    paths = []
    for partition in range(load.partitions):
        rows = order[entity[order] % load.partitions == partition]
        paths.append(folder / f"events-{partition}.jsonl")
        paths[-1].write_bytes(_joined(lines.take(pa.array(rows))))
    return paths


def _lines(
    event_time: NDArray[np.int64],
    entity: NDArray[np.int64],
    sequence: NDArray[np.int64],
    chance: np.random.Generator,
) -> pa.LargeStringArray:
    """Each event as a line with its end; numbers of varying width, as they come."""
    time = pa.array(event_time // 1000, pa.timestamp("ms")).cast(pa.large_string())
    noise = chance.standard_normal((3, len(entity)))
    level = entity % 17
    values = (
        np.round(20 + level + 3 * noise[0], 3),
        np.round(1013 + 8 * noise[1], 2),
        np.round(0.05 * level * noise[2], 5),
    )
    trace = chance.integers(1 << 60, 1 << 62, len(entity))
    temperature, pressure, vibration = (pa.array(v).cast(pa.large_string()) for v in values)
    parts = (
        *('{"entity_id":"device-', _text(entity), '","event_time":"', pc.replace_substring(time, " ", "T")),
        *('Z","sequence":', _text(sequence), ',"source":"plant/hamburg/hall-', _text(entity % 4)),
        *('","trace_id":"', _text(trace), '","payload":{"temperature":', temperature),
        *(',"pressure":', pressure, ',"vibration":', vibration, "}}\n", ""),
    )
    large = pa.large_string()
    return pc.binary_join_element_wise(*(pa.scalar(p, large) if isinstance(p, str) else p for p in parts))


def _text(numbers: NDArray[np.int64]) -> pa.LargeStringArray:
    return pa.array(numbers).cast(pa.large_string())


def _joined(lines: pa.LargeStringArray) -> memoryview:
    """Bytes of all the strings, one after the other, without a copy."""
    offsets = np.frombuffer(lines.buffers()[1], np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return memoryview(lines.buffers()[2])[offsets[0] : offsets[-1]] if len(lines) else memoryview(b"")
