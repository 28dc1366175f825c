"""The point-in-time join over revisions, as lazy expressions that DuckDB runs.

Times, keys and revisions go through the join alone; the values of the rows that it has found are fetched
afterwards. So what is held in memory are a few short columns, however many rows precede the one wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import ibis
from ibis.expr import datatypes as dt

UTC_TIMESTAMP = dt.Timestamp(timezone="UTC")
REVISION_COLUMNS = frozenset({"known_at", "supersedes", "cause", "retracted"})
"""A source with all four holds revisions; a column of another's that happens to have one of the names is its own."""


@dataclass(frozen=True, slots=True)
class EntityRows:
    """The rows asked for: `columns` of `table` are the caller's, in their order.

    Three more columns of the table stand under names that start with `prefix`, which no caller's column
    does: `position` (int64, 0 up, the order of the answer), `asked_at` and, if each row has its own,
    `known_by`. earliest, latest: of asked_at. known_latest: no revision that became known later is seen.
    """

    table: ibis.Table
    columns: Sequence[str]
    prefix: str
    earliest: datetime | None
    latest: datetime | None
    known_latest: datetime | None = None
    known_by_row: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What one feature view reads: the rows of its source, and which column is what.

    keys: join key in `rows` to column of the entity rows. values: column in `rows` to name in the answer.
    """

    rows: ibis.Table
    keys: Mapping[str, str]
    event_time: str
    created_at: str | None
    values: Mapping[str, str]
    ttl: timedelta | None


def has_revisions(rows: ibis.Table) -> bool:
    """Whether the rows say when they became known and which are retracted."""
    return REVISION_COLUMNS.issubset(rows.columns)


def current(rows: ibis.Table, keys: Sequence[str], event_time: str, created_at: str | None) -> ibis.Table:
    """Keep of each (keys, event_time) the newest revision, and nothing where that is retracted."""
    if not has_revisions(rows):
        return rows
    newest = ibis.window(
        group_by=[rows[key] for key in (*keys, event_time)],
        order_by=[ibis.desc(rows[column]) for column in (created_at, "known_at") if column],
    )
    ranked = rows.mutate(headrace_rank=ibis.row_number().over(newest))
    return ranked.filter(ranked.headrace_rank == 0, ~_retracted(ranked)).drop("headrace_rank")


def point_in_time(asked: EntityRows, histories: Sequence[History], *, by_created: bool) -> ibis.Table:
    """Join to each entity row the newest row of each history that was there at its moment.

    Every entity row is answered, in the order given; values are null where there is no row, or none
    within ttl. by_created: only revisions with created_at <= asked_at are seen.
    """
    answer = asked.table
    columns = [(name, name) for name in asked.columns]
    for place, history in enumerate(histories):
        values = _values(asked, history, by_created=by_created)
        names = {f"{asked.prefix}{place}_{name}": name for name in values.columns}
        values = values.rename(names)
        here, there = f"{asked.prefix}position", f"{asked.prefix}{place}_position"
        answer = answer.left_join(values, [answer[here] == values[there]])
        columns += [(f"{asked.prefix}{place}_value_{n}", name) for n, name in enumerate(history.values.values())]
    answer = answer.order_by(f"{asked.prefix}position")
    return answer.select([answer[inner].name(name) for inner, name in columns])


def _values(asked: EntityRows, history: History, *, by_created: bool) -> ibis.Table:
    """`position` of the entity rows that have an answer, and their values as `value_0` and so on."""
    keys = [f"key_{n}" for n in range(len(history.keys))]
    table = asked.table
    questions = table.select(
        table[f"{asked.prefix}position"].name("position"),
        table[f"{asked.prefix}asked_at"].name("asked_at"),
        *([table[f"{asked.prefix}known_by"].name("known_by")] if asked.known_by_row else []),
        *(table[column].name(key) for key, column in zip(keys, history.keys.values(), strict=True)),
    )
    revisions = _within(_revisions(history, keys), asked, history.ttl)
    clocks = {"known_at": "known_by"} if asked.known_by_row else {}
    if by_created and history.created_at:
        clocks["created_at"] = "asked_at"
    candidates = revisions.select(*keys, "event_time", "created_at", "known_at", "retracted")
    if keys:
        candidates = candidates.semi_join(questions.select(keys).distinct(), keys)
    if clocks:
        found = _found_then(questions, candidates, keys, clocks)
    else:
        found = _asof(questions, _there(candidates, [*keys, "event_time"], history.rows), keys, "asked_at")
    if history.ttl:
        found = found.filter(found.event_time + _interval(history.ttl) >= found.asked_at)
    return _fetched(found, revisions, keys, clocks)


def _revisions(history: History, keys: Sequence[str]) -> ibis.Table:
    """The source's rows under fixed names; without the columns of revisions a row is known at its event_time."""
    rows = history.rows
    event_time = rows[history.event_time].cast(UTC_TIMESTAMP)
    known_at, created_at, retracted = event_time, ibis.null(UTC_TIMESTAMP), ibis.literal(False)  # noqa: FBT003
    if has_revisions(rows):
        known_at, retracted = rows.known_at.cast(UTC_TIMESTAMP).coalesce(event_time), _retracted(rows)
        created_at = known_at
    if history.created_at:
        created_at = rows[history.created_at].cast(UTC_TIMESTAMP)
    return rows.select(
        *(rows[column].name(key) for key, column in zip(keys, history.keys, strict=True)),
        event_time.name("event_time"),
        created_at.name("created_at"),
        known_at.name("known_at"),
        retracted.name("retracted"),
        *(rows[column].name(f"value_{n}") for n, column in enumerate(history.values)),
    )


def _retracted(rows: ibis.Table) -> ibis.Value:
    return rows.retracted.coalesce(ibis.literal(False))  # noqa: FBT003  # null is what older files give


def _within(revisions: ibis.Table, asked: EntityRows, ttl: timedelta | None) -> ibis.Table:
    """Leave out what no entity row can see: DuckDB then skips whole row groups by their statistics."""
    if asked.latest is not None:
        revisions = revisions.filter(revisions.event_time <= asked.latest)
    if asked.earliest is not None and ttl and ttl < asked.earliest - _FIRST:
        revisions = revisions.filter(revisions.event_time >= asked.earliest - ttl)
    if asked.known_latest is not None:
        revisions = revisions.filter(revisions.known_at <= asked.known_latest)
    return revisions


def _interval(span: timedelta) -> ibis.Value:
    # In two parts, since DuckDB counts the microseconds of one in a float64.
    return ibis.interval(days=span.days) + ibis.interval(microseconds=span // timedelta(microseconds=1) % _DAY_US)


_DAY_US = 86_400_000_000
_FIRST = datetime.min.replace(tzinfo=UTC)


def _there(candidates: ibis.Table, moments: Sequence[str], rows: ibis.Table) -> ibis.Table:
    """The revisions of rows that are there now: without those whose newest revision is retracted."""
    there = candidates.filter(~candidates.retracted)
    if not has_revisions(rows):
        return there
    # Few rows are ever retracted: only their revisions are compared.
    touched = candidates.semi_join(candidates.filter(candidates.retracted).select(moments).distinct(), moments)
    newest = touched.group_by(*moments).agg(
        there_at=touched.created_at.max(where=~touched.retracted),
        gone_at=touched.created_at.max(where=touched.retracted),
    )
    return there.anti_join(newest.filter(newest.gone_at >= newest.there_at), moments)


def _asof(questions: ibis.Table, rows: ibis.Table, keys: Sequence[str], moment: str) -> ibis.Table:
    """Each entity row with the event_time of the newest of `rows` up to its moment, or null."""
    joined = questions.asof_join(
        rows, on=questions[moment] >= rows.event_time, predicates=[questions[key] == rows[key] for key in keys]
    )
    return joined.select(*questions.columns, "event_time")


def _found_then(
    questions: ibis.Table, candidates: ibis.Table, keys: Sequence[str], clocks: Mapping[str, str]
) -> ibis.Table:
    """As `_asof`, each entity row seeing only the revisions that were known at its own moments.

    clocks: columns of a revision that must not be after a column of the entity row. A row that has one
    revision, known at its event_time, is seen from then on: of these an ASOF join finds the newest. What is
    newer than that and has another story is compared one by one, and reduced on the way: that takes time
    where many rows in a run are corrected, never memory.
    """
    moments = [*keys, "event_time"]
    groups = candidates.group_by(*moments).agg(
        *(candidates[column].max().name(column) for column in clocks),
        retracted=candidates.retracted.any(),
        revisions=candidates.count(),
    )
    on_time = [(groups[column] <= groups.event_time).coalesce(ibis.literal(False)) for column in clocks]  # noqa: FBT003
    plain = ibis.and_(groups.revisions == 1, ~groups.retracted, *on_time)
    seen_from = ibis.least(questions.asked_at, *(questions[moment] for moment in clocks.values()))
    first = _asof(questions.mutate(moment=seen_from), groups.filter(plain), keys, "moment")
    told = _told(candidates.semi_join(groups.filter(~plain), moments), moments)
    pairs = first.join(
        told,
        [
            *(first[key] == told[key] for key in keys),
            told.event_time <= first.asked_at,
            told.event_time > first.event_time.coalesce(ibis.literal(_FIRST)),
            *(told[column] <= first[moment] for column, moment in clocks.items()),
            ~ibis.and_(*(told[f"next_{column}"] <= first[moment] for column, moment in clocks.items())).coalesce(
                ibis.literal(False)  # noqa: FBT003  # null where none comes after
            ),
        ],
        rname="told_{name}",
    )
    newer = pairs.group_by("position").agg(newer=pairs.told_event_time.max())
    both = first.left_join(newer, "position")
    return both.select(*questions.columns, both.newer.coalesce(both.event_time).name("event_time"))


def _told(candidates: ibis.Table, moments: Sequence[str]) -> ibis.Table:
    """The revisions that are not retracted, each with the moments from which it is superseded."""
    groups = [candidates[column] for column in moments]
    later = ibis.window(group_by=groups, order_by=[candidates.created_at, candidates.known_at], rows=(1, None))
    told = candidates.mutate(
        next_created_at=candidates.created_at.min().over(later), next_known_at=candidates.known_at.min().over(later)
    )
    return told.filter(~told.retracted)


def _fetched(found: ibis.Table, revisions: ibis.Table, keys: Sequence[str], clocks: Mapping[str, str]) -> ibis.Table:
    """Position and values of the rows found, of each the newest revision seen."""
    revisions = revisions.filter(~revisions.retracted).view()
    found = found.filter(found.event_time.notnull())
    rows = found.join(
        revisions,
        [
            *(found[key] == revisions[key] for key in keys),
            found.event_time == revisions.event_time,
            *(revisions[column] <= found[moment] for column, moment in clocks.items()),
        ],
        rname="row_{name}",
    )
    newest = ibis.window(group_by=[rows.position], order_by=[ibis.desc(rows.created_at), ibis.desc(rows.known_at)])
    ranked = rows.mutate(rank=ibis.row_number().over(newest))
    values = [name for name in revisions.columns if name.startswith("value_")]
    return ranked.filter(ranked["rank"] == 0).select("position", *values)
