"""Slow and obvious: what the columns must say, computed with lists, dicts, `math.fsum` and fractions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from operators.feature_sets import FeatureSet, FeatureSets, WindowSpec

FORGET_HALFLIVES = 400


@dataclass(frozen=True)
class Event:
    """One signal as a test writes it down; values by field, None is null."""

    partition: str
    offset: int
    entity: str
    time: int
    sequence: int
    values: tuple[tuple[str, float | None], ...]
    source: str | None = None

    @property
    def fields(self) -> dict[str, float | None]:
        """The payload."""
        return dict(self.values)


@dataclass
class Verdict:
    """What happened to each event of a log."""

    used: list[Event]
    duplicate: int = 0
    conflict: int = 0
    late: int = 0


def judge(log: list[Event], bound: int, sets: FeatureSets) -> Verdict:
    """Decide late, duplicate and conflict for a log; partitions in their own order."""
    newest: dict[str, int] = {}
    kept: dict[tuple[str, int, int], list[Event]] = {}
    late = 0
    for event in log:
        before = newest.get(event.partition)
        if before is not None and event.time < before - bound:
            late += 1
        else:
            kept.setdefault((event.entity, event.time, event.sequence), []).append(event)
        newest[event.partition] = event.time if before is None else max(before, event.time)
    verdict = Verdict([], late=late)
    for key in sorted(kept):
        *others, winner = sorted(kept[key], key=lambda e: (e.partition, e.offset))
        verdict.used.append(winner)
        for other in others:
            if content(other, sets) == content(winner, sets):
                verdict.duplicate += 1
            else:
                verdict.conflict += 1
    return verdict


def content(event: Event, sets: FeatureSets) -> tuple[object, ...]:
    """What matters of an event: the declared fields, and the sets that it feeds."""
    return (sets.mask(event.source), *(event.fields.get(f) for f in sets.fields))


def windows_of(times: list[int], spec: WindowSpec) -> list[tuple[int, int]]:
    """Every window [start, end) that holds at least one of the times."""
    if not spec.session:
        ends = {(t // spec.slide_us + 1 + k) * spec.slide_us for t in times for k in range(spec.panes)}
        return sorted((end - spec.size_us, end) for end in ends)
    sessions: list[tuple[int, int]] = []
    for t in sorted(times):
        if sessions and t < sessions[-1][1]:
            sessions[-1] = (sessions[-1][0], t + spec.size_us)
        else:
            sessions.append((t, t + spec.size_us))
    return sessions


def rows(used: list[Event], sets: FeatureSets) -> dict[tuple[str, int, str, str, int, int], dict[str, float | None]]:
    """All feature rows: (set, version, window, entity, start, end) → statistics by column."""
    out: dict[tuple[str, int, str, str, int, int], dict[str, float | None]] = {}
    for number, declared in enumerate(sets.sets):
        of_entity: dict[str, list[Event]] = {}
        for event in sorted(used, key=lambda e: (e.entity, e.time, e.sequence)):
            if sets.mask(event.source) >> number & 1:
                of_entity.setdefault(event.entity, []).append(event)
        for entity, events in of_entity.items():
            for spec in declared.windows:
                for start, end in windows_of([e.time for e in events], spec):
                    key = (declared.name, declared.version, spec.folder, entity, start, end)
                    out[key] = row(events, start, end, declared)
    return out


def row(events: list[Event], start: int, end: int, declared: FeatureSet) -> dict[str, float | None]:
    """The statistics of one window, from all events of its entity in order."""
    out: dict[str, float | None] = {}
    for name in declared.fields:
        seen = [(e.time, x) for e in events if (x := e.fields.get(name)) is not None]
        upto = [(t, x) for t, x in seen if t < end]
        inside = [x for t, x in upto if t >= start]
        for statistic, value in field_statistics(inside, upto, declared.halflife_us).items():
            if statistic in declared.statistics:
                out[f"{name}__{statistic}"] = value
    return out


def field_statistics(inside: list[float], upto: list[tuple[int, float]], halflife: int) -> dict[str, float | None]:
    """The eleven statistics of one field: `inside` the window, EW family over all values `upto` its end."""
    n = len(inside)
    out: dict[str, float | None] = dict.fromkeys(
        ("sum", "mean", "std", "min", "max", "first", "last", "ewma", "ewm_std", "zscore")
    )
    out = {"count": float(n), **out}
    if n == 0:
        return out
    out |= {"sum": math.fsum(inside), "min": min(inside), "max": max(inside), "first": inside[0], "last": inside[-1]}
    mean = sum(map(Fraction, inside), Fraction(0)) / n
    out["mean"] = float(mean)
    if n > 1:
        out["std"] = root(sum(((Fraction(x) - mean) ** 2 for x in inside), Fraction(0)) / (n - 1))
    out["ewma"], out["ewm_std"] = ew(upto, halflife)
    before, spread = ew(upto[:-1], halflife)
    if before is not None and spread is not None and spread > 0:
        exact = Fraction(upto[-1][1]) - ew_mean(upto[:-1], halflife)
        out["zscore"] = float(exact) / spread
    return out


def weights(points: list[tuple[int, float]], halflife: int) -> list[Fraction]:
    """2^-(age/halflife) of each point; 400 halflives or more between neighbours forget what came before."""
    out: list[Fraction] = []
    previous: int | None = None
    for t, _ in points:
        if previous is not None:
            age = (t - previous) / halflife
            factor = Fraction(0) if age >= FORGET_HALFLIVES else Fraction(2.0**-age)
            out = [w * factor for w in out]
        out.append(Fraction(1))
        previous = t
    return out


def ew_mean(points: list[tuple[int, float]], halflife: int) -> Fraction:
    """Σwx/Σw."""
    w = weights(points, halflife)
    return sum((a * Fraction(x) for a, (_, x) in zip(w, points, strict=True)), Fraction(0)) / sum(w)


def ew(points: list[tuple[int, float]], halflife: int) -> tuple[float | None, float | None]:
    """EWMA and unbiased EW standard deviation √(Σw(x−m)²/(Σw − Σw²/Σw)) as of the last point."""
    if not points:
        return None, None
    w = weights(points, halflife)
    mean = ew_mean(points, halflife)
    total = sum(w, Fraction(0))
    spread = sum((a * (Fraction(x) - mean) ** 2 for a, (_, x) in zip(w, points, strict=True)), Fraction(0))
    denominator = total - sum((a * a for a in w), Fraction(0)) / total
    return float(mean), root(spread / denominator) if denominator > 0 else None


def root(x: Fraction) -> float:
    """Square root of a fraction of any size, to float precision."""
    if x == 0:
        return 0.0
    shift = (x.numerator.bit_length() - x.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(x / Fraction(4) ** shift), shift)
