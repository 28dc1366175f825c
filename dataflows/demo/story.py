"""Turns readings into what a bus really carries: out of order, with copies, corrections, latecomers and broken lines.

Pure and seeded: the same recordings, seed and sizes give the same bytes. Nothing happens by accident: a reading is
delayed by less than the watermark allows unless it is meant to be late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from dataflows.demo.readings import Recording

OUTCOMES = ("used", "duplicate", "conflict", "late", "dead")
"""What can become of a line; the names are those of a run's summary."""


@dataclass(frozen=True, slots=True)
class Mishaps:
    """How many of each are mixed in, over all recordings together.

    duplicates: a reading sent twice, byte for byte. conflicts: a correction, the same reading sent again with its first
    field higher by one. late: readings held back until their partition's watermark has passed them. broken: lines that
    are no signals, of the kinds in BREAKS in turn.
    """

    duplicates: int = 120
    conflicts: int = 24
    late: int = 36
    broken: int = 12


@dataclass(frozen=True, slots=True)
class Story:
    """What the bus carries and what a run must report of it.

    partitions: lines without their ends, by file name, in the order of the log.
    expected: the run's summary: `in` and each of OUTCOMES; in is the sum of the others.
    late: of each recording the readings that come too late.
    """

    partitions: dict[str, tuple[bytes, ...]]
    expected: dict[str, int]
    late: tuple[Recording, ...]


@dataclass(frozen=True, slots=True)
class _Sent:
    """One line on its way. key: (entity_id, event_time, sequence), None for a broken line."""

    arrival: int
    line: bytes
    key: tuple[str, int, int] | None


def tell_story(
    recordings: Sequence[Recording],
    *,
    seed: int,
    disorder_us: int,
    watermark_us: int,
    mishaps: Mishaps | None = None,
) -> Story:
    """Give each recording a partition of its own and mix the mishaps in.

    disorder_us: longest delay of a reading that is not late, at most watermark_us. watermark_us: WATERMARK_SECONDS of
    the run. Late are only readings that a later one, more than watermark_us younger, can overtake; the recordings must
    hold enough of those, and more readings than mishaps.
    """
    assert 0 <= disorder_us <= watermark_us, "a delay above the watermark would make readings late by accident"
    mishaps = Mishaps() if mishaps is None else mishaps
    chance = np.random.default_rng(seed)
    plans = _plan(recordings, mishaps, chance, watermark_us)
    partitions: dict[str, tuple[bytes, ...]] = {}
    counts: Counter[str] = Counter()
    for index, (recording, plan) in enumerate(zip(recordings, plans, strict=True)):
        sent = _send(recording, plan, chance, disorder_us, watermark_us)
        counts.update(_outcomes(sent, watermark_us))
        partitions[f"{recording.instrument.source.split('/')[0]}-{index}.jsonl"] = tuple(s.line for s in sent)
    planned = (mishaps.duplicates, mishaps.conflicts, mishaps.late, mishaps.broken)
    assert tuple(counts[o] for o in OUTCOMES[1:]) == planned, "the log does not hold what was planned"
    expected = {"in": counts.total()} | {outcome: counts[outcome] for outcome in OUTCOMES}
    return Story(partitions, expected, tuple(r.take(p.late) for r, p in zip(recordings, plans, strict=True)))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Rows of one recording to which something happens: int64, rising. `kinds` says how each of `broken` is broken."""

    duplicates: NDArray[np.int64]
    conflicts: NDArray[np.int64]
    late: NDArray[np.int64]
    broken: NDArray[np.int64]
    kinds: tuple[int, ...]


def _plan(
    recordings: Sequence[Recording], mishaps: Mishaps, chance: np.random.Generator, watermark_us: int
) -> list[_Plan]:
    """Pick different readings for each mishap, out of all recordings together."""
    owner = np.repeat(np.arange(len(recordings)), [len(r) for r in recordings])
    row = np.concatenate([np.arange(len(r)) for r in recordings])
    overtaken = np.concatenate([r.event_time < r.event_time[-1] - watermark_us for r in recordings])
    shuffled = chance.permutation(len(row))
    late = shuffled[overtaken[shuffled]][: mishaps.late]
    # The last reading of a recording is never late, and so overtakes whatever lies far enough behind it.
    rest = shuffled[~np.isin(shuffled, late)]
    duplicates, conflicts, broken, _ = np.split(
        rest, np.cumsum([mishaps.duplicates, mishaps.conflicts, mishaps.broken])
    )
    kinds = np.empty(len(row), np.int64)
    kinds[broken] = np.arange(len(broken)) % len(BREAKS)
    plans = []
    for index in range(len(recordings)):
        mine = [np.sort(picked[owner[picked] == index]) for picked in (duplicates, conflicts, late, broken)]
        duplicate_rows, conflict_rows, late_rows, broken_rows = (row[picked] for picked in mine)
        plans.append(_Plan(duplicate_rows, conflict_rows, late_rows, broken_rows, tuple(kinds[mine[3]].tolist())))
    return plans


def _send(
    recording: Recording,
    plan: _Plan,
    chance: np.random.Generator,
    disorder_us: int,
    watermark_us: int,
) -> list[_Sent]:
    """Lines of one partition in the order in which they arrive."""
    instrument, time = recording.instrument, recording.event_time
    arrival = time + chance.integers(0, disorder_us + 1, len(time))
    on_time = np.setdiff1d(np.arange(len(time)), plan.late)
    for row in plan.late:
        overtaker = on_time[np.searchsorted(time[on_time], time[row] + watermark_us, side="right")]
        arrival[row] = arrival[overtaker] + 1
    lines = lines_of(recording, recording.values)
    corrected = lines_of(recording, recording.values + np.eye(1, len(instrument.fields)))
    keys = [(instrument.entity_id, t, s) for t, s in zip(time.tolist(), recording.sequence.tolist(), strict=True)]
    sent = [_Sent(*s) for s in zip(arrival.tolist(), lines, keys, strict=True)]
    for rows, again in ((plan.duplicates, lines), (plan.conflicts, corrected)):
        second = chance.integers(arrival[rows], time[rows] + disorder_us + 1)
        sent += [_Sent(a, again[r], keys[r]) for a, r in zip(second.tolist(), rows.tolist(), strict=True)]
    for row, kind in zip(plan.broken.tolist(), plan.kinds, strict=True):
        sent.append(_Sent(int(arrival[row]), BREAKS[kind](lines[row]), None))
    return sorted(sent, key=lambda s: s.arrival)  # stable: a copy never comes before its original


def lines_of(recording: Recording, values: NDArray[np.float64]) -> list[bytes]:
    """The recording as signals on the wire; NaN becomes null."""
    instrument = recording.instrument
    times = np.datetime_as_string(recording.event_time.astype("datetime64[us]"), unit="s", timezone="UTC").tolist()
    return [
        orjson.dumps(
            {
                "entity_id": instrument.entity_id,
                "event_time": time,
                "sequence": sequence,
                "source": instrument.source,
                "trace_id": f"{instrument.entity_id}.{sequence}",
                "payload": dict(zip(instrument.fields, row, strict=True)),
            }
        )
        for time, sequence, row in zip(times, recording.sequence.tolist(), values.tolist(), strict=True)
    ]


def _outcomes(sent: Sequence[_Sent], watermark_us: int) -> Counter[str]:
    """What must become of each line, told by the rules alone and not by what was planned."""
    counts: Counter[str] = Counter()
    newest: int | None = None
    seen: dict[tuple[str, int, int], bytes] = {}
    for one in sent:
        if one.key is None:
            counts["dead"] += 1
        elif newest is not None and one.key[1] < newest - watermark_us:
            counts["late"] += 1
        else:
            newest = one.key[1] if newest is None else max(newest, one.key[1])
            before = seen.get(one.key)
            counts["used" if before is None else "duplicate" if before == one.line else "conflict"] += 1
            seen[one.key] = one.line
    return counts


def _cut_off(line: bytes) -> bytes:
    return line[: len(line) * 2 // 3]


def _not_utf8(line: bytes) -> bytes:
    return line.replace(b'"entity_id":"', b'"entity_id":"\xff\xfe', 1)


def _no_entity(line: bytes) -> bytes:
    return orjson.dumps({k: v for k, v in orjson.loads(line).items() if k != "entity_id"})


def _number_as_text(line: bytes) -> bytes:
    signal = orjson.loads(line)
    return orjson.dumps(signal | {"payload": {k: str(v) for k, v in signal["payload"].items()}})


def _no_time_zone(line: bytes) -> bytes:
    signal = orjson.loads(line)
    return orjson.dumps(signal | {"event_time": signal["event_time"].removesuffix("Z")})


def _payload_is_list(line: bytes) -> bytes:
    signal = orjson.loads(line)
    return orjson.dumps(signal | {"payload": list(signal["payload"].values())})


BREAKS: tuple[Callable[[bytes], bytes], ...] = (
    _cut_off,
    _not_utf8,
    _no_entity,
    _number_as_text,
    _no_time_zone,
    _payload_is_list,
)
"""How a good line becomes a broken one: each gives bytes that no reader of signals may accept."""
