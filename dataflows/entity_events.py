"""Every message of an entity with what became of it: out of the archive, or out of the whole log."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dataflows.forget_late import is_forgotten
from dataflows.late_log import read_messages, row_of
from operators.arrow_messages import originals
from operators.decode import Decoder
from operators.hashes import murmur3_bytes
from operators.intake import Intake
from operators.records import TIMESTAMP
from stores.archive.port import FINAL, ArchiveSelection, Verdict
from stores.archive.reading import judged, partitions

if TYPE_CHECKING:
    from collections.abc import Collection

    from dataflows.buses.port import Bus
    from operators.feature_sets import FeatureSets
    from operators.records import RawChunk
    from operators.retained import Lateness
    from stores.archive.port import Archive
    from stores.holding.port import Holding

EVENTS = pa.schema(
    [
        pa.field("partition", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("event_time", TIMESTAMP),
        pa.field("verdict", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("known_at", TIMESTAMP),
        pa.field("value", pa.binary()),
    ]
)
"""Columns of an entity's messages, dead ones left out; see stores.archive.reading.JUDGED. In no order."""

_Place = tuple[str, int, int]
"""Partition, offset, and row in a message of many signals or -1."""

_READ_EVENTS = 1 << 16
_RELEASED_EVENTS = 4096


@dataclass(frozen=True, slots=True)
class LogPlan:
    """The log, and who knows what became of its late events.

    bus: with the archive before it, if there is one. late_bus, topic_late: of the late topic. holding: under `hold`.
    """

    bus: Bus
    topic: str
    sets: FeatureSets
    bound_us: int
    lateness: Lateness | None
    event_bytes_max: int
    late_bus: Bus
    topic_late: str
    holding: Holding | None
    max_future_us: int | None = None


def archived_events(archive: Archive, entities: Collection[str]) -> dict[str, pa.Table]:
    """What the archive has of these entities, a table of EVENTS each; of one entity little more than that is read.

    Messages of many signals are left out.
    """
    one = ArchiveSelection(entity_id=next(iter(entities))) if len(entities) == 1 else ArchiveSelection()
    wanted = pa.array(sorted(entities), pa.string())
    found = []
    for rows in judged(archive, one):
        rows = rows.filter(pc.is_null(rows["rows"]))  # noqa: PLW2901  # of messages of many the log is asked
        if len(entities) > 1:
            rows = rows.filter(pc.is_in(rows["entity_id"].cast(pa.string()), value_set=wanted))  # noqa: PLW2901  # the same rows, fewer
        if rows.num_rows:
            found.append(rows)
    return _by_entity(found, entities)


def is_archived(archive: Archive) -> bool:
    """Whether the archive has any message."""
    return bool(partitions(archive))


def logged_events(plan: LogPlan, archive: Archive, entities: Collection[str]) -> dict[str, pa.Table]:
    """Read the whole log for the messages of these entities, a table of EVENTS each.

    What the archive says of a message is so; of the others their partition's own watermark, the late topic and the
    held events tell whether they are late.
    """
    late = _set_aside(plan)
    found: dict[str, list[pa.Table]] = {entity: [] for entity in entities}
    for partition in plan.bus.partitions(plan.topic):
        decoder = Decoder(plan.sets, event_bytes_max=plan.event_bytes_max)
        intake = Intake(partition, decoder, plan.bound_us, None, plan.lateness, max_future_us=plan.max_future_us)
        with closing(plan.bus.reader(plan.topic, partition, None)) as reader:
            while (chunk := reader.poll(_READ_EVENTS)) is not None:
                if len(chunk.lengths) == 0:  # some are on their way
                    threading.Event().wait(0.002)
                for entity, rows in _of_chunk(plan, chunk, intake, late, entities):
                    found[entity].append(rows)
    told = archived_events(archive, entities)
    return {entity: _replaced(_joined(rows), told[entity]) for entity, rows in found.items()}


def _of_chunk(
    plan: LogPlan, chunk: RawChunk, intake: Intake, late: dict[_Place, str | None], entities: Collection[str]
) -> list[tuple[str, pa.Table]]:
    decoded = intake.decode(chunk)
    piece = intake.take(chunk, (), decoded)
    batch = decoded.batch
    hashes = np.array([int.from_bytes(murmur3_bytes(e.encode())[:8], "little") for e in entities], np.uint64)
    by_rule = set(piece.set_aside.tolist())
    lines: dict[str, list[tuple[object, ...]]] = {}
    for i in np.flatnonzero(np.isin(batch.entity_hash, hashes)).tolist():
        entity = batch.entity(i)
        if entity not in entities:
            continue
        offset = int(batch.offset[i])
        reason = late.get((chunk.partition, offset, -1 if decoded.rows is None else int(decoded.rows[i])), "")
        if reason == "" and i in by_rule:
            reason = "late" if plan.lateness is None or not plan.lateness.corrects else "too_old"
        verdict = FINAL[Verdict.LATE if reason else Verdict.USED]
        (message,) = originals(chunk, decoded, np.array([i]))
        line = (chunk.partition, offset, int(batch.event_time[i]), verdict, reason or None, None, message)
        lines.setdefault(entity, []).append(line)
    return [(entity, _table(some)) for entity, some in lines.items()]


def _set_aside(plan: LogPlan) -> dict[_Place, str | None]:
    """Place of each event that was set aside → the reason; None for one that was released since."""
    found: dict[_Place, str | None] = {}
    for message in read_messages(plan.late_bus, plan.topic_late):
        if is_forgotten(message):
            continue
        event = orjson.loads(message)
        if event["id"].startswith(f"{plan.topic}/"):
            found[event["partition"], int(event["offset"]), row_of(event)] = event["reason"]
    if plan.holding is not None:
        last = 0
        while some := plan.holding.released(last, limit=_RELEASED_EVENTS):
            last = some[-1][0]
            for _, event in some:
                found.setdefault((event.partition, event.offset, event.row), None)
        for event in plan.holding.list(limit=max(1, plan.holding.count())):
            found[event.partition, event.offset, event.row] = event.reason
    return found


def _by_entity(found: list[pa.Table], entities: Collection[str]) -> dict[str, pa.Table]:
    out = {entity: EVENTS.empty_table() for entity in entities}
    if not found:
        return out
    names = pa.concat_tables([t.select(["entity_id"]).cast(pa.schema([("entity_id", pa.string())])) for t in found])
    rows = pa.concat_tables([t.select(EVENTS.names).cast(EVENTS) for t in found])
    if len(out) == 1:
        return dict.fromkeys(out, rows)
    code = pc.index_in(names["entity_id"], value_set=pa.array(list(out), pa.string())).to_numpy()
    order = np.argsort(code, kind="stable")
    edges = np.searchsorted(code[order], np.arange(len(out) + 1))
    for number, entity in enumerate(out):
        out[entity] = rows.take(pa.array(order[edges[number] : edges[number + 1]]))
    return out


def _replaced(logged: pa.Table, told: pa.Table) -> pa.Table:
    """The messages of the log, those that the archive has as it says.

    But not that one was late when it was read, if nothing is archived that was found out later: it may be corrected.
    """
    told = told.filter(pc.or_(pc.is_valid(told["known_at"]), pc.not_equal(told["verdict"], FINAL[Verdict.LATE])))
    known = set(zip(told["partition"].to_pylist(), told["offset"].to_pylist(), strict=True))
    places = zip(logged["partition"].to_pylist(), logged["offset"].to_pylist(), strict=True)
    fresh = np.array([place not in known for place in places], np.bool_)
    return pa.concat_tables([told, logged.filter(pa.array(fresh))])


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([EVENTS.empty_table(), *tables])


def _table(lines: list[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*lines, strict=True))
    arrays = [
        pa.array(column, pa.int64()).cast(field.type) if field.type == TIMESTAMP else pa.array(column, field.type)
        for column, field in zip(columns, EVENTS, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=EVENTS)
