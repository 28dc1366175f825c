"""An entity is taken out of everything that the signal path keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflows.forget import ByteSearch, Erased, Receipt, Step, beside, carry_out, held, recovery_folders
from dataflows.forget_late import rewrite_lines, silenced
from dataflows.signal_flow import FLOW
from dataflows.wiring import archive_of, bus_of, dead_letters_of, holding_of, offline_of
from operators.arrow_messages import without_name
from operators.decode import Decoder
from operators.erasure import shard_without
from operators.errors import HeadraceError
from operators.forgotten import REASON
from operators.naming import Named
from stores.archive.port import ArchiveSelection
from stores.erased_state import messages_changed, rows_blanked, rows_without
from stores.features import open_features
from stores.forgotten.memory import MemoryForgotten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataflows.buses.port import Bus
    from dataflows.config import Settings
    from dataflows.recovery import Recovery
    from operators.records import DeadLetter

_SCAN_EVENTS = 65_536
_SILENT_S = 30.0
_OFFSETS_TOLD = 20


def forget_entity(settings: Settings, entity_id: str) -> Receipt:
    """Take the entity out of every place, and keep it from coming back. Safe to repeat, and after a kill.

    Raises ConfigError, with nothing changed, while a run is on, and RetryableError if others are at work.
    """
    folders = [folder for folder in recovery_folders(settings) if folder.name != "documents"]
    search = ByteSearch(entity_id, _common(settings))
    with held(folders) as recoveries:
        steps = [
            *(_snapshots(recovery, entity_id, search) for recovery in recoveries),
            _history(settings, entity_id, search),
            *_archive(settings, entity_id, search),
            *_online(settings, entity_id),
            *_late(settings, entity_id, search),
            *_letters(settings, entity_id, search),
        ]
        return carry_out(settings, "entity", entity_id, steps, [*_logs(settings, entity_id), *_results(settings)])


def _common(settings: Settings) -> set[str]:
    """Words that stand in files though nobody is called so: of the declaration, and partitions."""
    sets = settings.feature_sets()
    words = {*sets.fields, *(s.name for s in sets.sets), settings.topic_signals, settings.topic_late}
    with suppress(HeadraceError), closing(bus_of(settings)) as bus:
        words |= set(bus.partitions(settings.topic_signals))
    return words


def without_entity(entity_id: str, step: str, state: bytes) -> bytes | None:
    """The snapshot of a step of the flow without the entity; None if there is nothing of it."""
    match step.removeprefix(f"{FLOW}."):
        case "windows":
            return shard_without(state, entity_id)
        case "offline" | "online":
            return rows_without(state, entity_id)
        case "results":
            return rows_blanked(state, entity_id)
        case "late":
            return messages_changed(state, lambda message: silenced(message, entity_id))
        case "dlq" | "failed":
            named = Named(entity_id)
            empty = lambda message: b"{}".ljust(len(message)) if named.in_message(message) else None  # noqa: E731  # of one use
            return messages_changed(state, empty)
        case _:
            return None


def _snapshots(recovery: Recovery, entity_id: str, search: ByteSearch) -> Step:
    def look() -> int:
        return recovery.rewrite(lambda step, state: without_entity(entity_id, step, state)) + len(
            search.files(recovery.folder)
        )

    change = partial(without_entity, entity_id)
    return Step(f"recovery {recovery.folder}", "snapshots", lambda: recovery.rewrite(change), look)


def _history(settings: Settings, entity_id: str, search: ByteSearch) -> Step:
    def erase() -> int:
        with closing(offline_of(settings)) as store:
            return store.forget(entity_id)

    def look() -> int:
        with closing(offline_of(settings)) as store:
            tables = (rows for _, rows in store.scan(columns=["entity_id"]))
            rows = sum(int(pc.sum(pc.equal(t["entity_id"], entity_id)).as_py() or 0) for t in tables)
        return rows + len(search.files(settings.offline_data_path))

    return Step(f"history {settings.offline_data_path}", "rows", erase, look)


def _archive(settings: Settings, entity_id: str, search: ByteSearch) -> Iterator[Step]:
    if not settings.archive_path.exists():
        return
    takes = messages_of(entity_id)

    def erase() -> int:
        with closing(archive_of(settings)) as archive:
            return archive.blank(takes, lambda message: without_name(message, entity_id))

    def look() -> int:
        with closing(archive_of(settings)) as archive:
            segments = archive.segments("signals", ArchiveSelection(entity_id=entity_id))
            columns = ["partition", "offset", "entity_id", "verdict", "reason", "rows", "value"]
            tables = [archive.read(segment, columns) for segment in segments]
            found = sum(int(np.count_nonzero(takes(rows))) + _of_many(rows, entity_id) for rows in tables)
        return found + len(search.files(settings.archive_path))

    yield Step(f"archive {settings.archive_path}", "messages", erase, look)


def _of_many(rows: pa.Table, entity_id: str) -> int:
    """How many messages of many signals have one of the entity."""
    values = rows.filter(pc.is_valid(rows["rows"]))["value"].to_pylist()
    return sum(without_name(value, entity_id) is not None for value in values)


def messages_of(entity_id: str) -> Callable[[pa.Table], NDArray[np.bool_]]:
    """Says which archived messages are the entity's: its signals, and refused messages that name it."""
    named = Named(entity_id)

    def takes(rows: pa.Table) -> NDArray[np.bool_]:
        mine: NDArray[np.bool_] = pc.fill_null(pc.equal(rows["entity_id"], entity_id), False).to_numpy().copy()  # noqa: FBT003  # a value
        dead = pc.equal(rows["verdict"].cast(pa.string()), "dead").to_numpy()
        for row in np.flatnonzero(dead).tolist():
            mine[row] = named.in_message(rows["value"][row].as_py())
        return mine

    return takes


def _online(settings: Settings, entity_id: str) -> Iterator[Step]:
    if settings.online_store == "none":
        return

    def erase() -> int:
        with closing(open_features(f"feast:{settings.feast_repo_path}")) as features:
            return features.forget(entity_id)

    yield Step(f"online {settings.feast_repo_path}", "rows", erase, erase)


def _late(settings: Settings, entity_id: str, search: ByteSearch) -> Iterator[Step]:
    folder = settings.bus_dir / settings.topic_late
    if not folder.exists():
        return
    logs = sorted(folder.glob("*.jsonl"))

    def erase() -> int:
        return sum(rewrite_lines(path, lambda message: silenced(message, entity_id)) for path in logs)

    yield Step(f"late {folder}", "messages", erase, lambda: erase() + len(search.files(*logs)))
    path = folder / "holding.db"
    if path.exists():

        def forget() -> int:
            with closing(holding_of(settings)) as store:
                return store.forget(entity_id)

        yield Step(f"held {path}", "events", forget, lambda: forget() + len(search.files(*beside(path))))


def _letters(settings: Settings, entity_id: str, search: ByteSearch) -> Iterator[Step]:
    path = settings.bus_dir / settings.topic_dlq / "deadletters.db"
    if not path.exists():
        return
    named = Named(entity_id)

    def takes(letter: DeadLetter) -> bool:
        return named.in_message(letter.original) or f"`{entity_id}`" in letter.detail

    def erase() -> int:
        with closing(dead_letters_of(settings)) as store:
            return store.forget(takes)

    yield Step(f"dead letters {path}", "letters", erase, lambda: erase() + len(search.files(*beside(path))))


def _logs(settings: Settings, entity_id: str) -> Iterator[Erased]:
    """The signals themselves: a log is only appended to, so it is told where they stand."""
    where = settings.kafka_brokers or str(settings.bus_dir)
    place, topic = f"log {where}/{settings.topic_signals}", settings.topic_signals
    try:
        with closing(bus_of(settings)) as bus:
            for partition in bus.partitions(topic):
                offsets = list(_offsets(settings, bus, partition, entity_id))
                if offsets:
                    told = ", ".join(map(str, offsets[:_OFFSETS_TOLD]))
                    more = f" and {len(offsets) - _OFFSETS_TOLD} more" if len(offsets) > _OFFSETS_TOLD else ""
                    note = (
                        f"partition `{partition}`, offsets {told}{more}: logs are only appended to; they stay refused"
                    )
                    yield Erased(place, "messages", kept=len(offsets), note=note)
    except HeadraceError as error:
        yield Erased(place, "messages", note=f"could not be looked at: {error}")


def _offsets(settings: Settings, bus: Bus, partition: str, entity_id: str) -> Iterator[int]:
    names = MemoryForgotten()
    names.add("entity", entity_id, now_us=0)
    decoder = Decoder(settings.feature_sets(), event_bytes_max=settings.event_bytes_max, forgotten=names.load())
    named = Named(entity_id)
    end, silent_since = bus.end(settings.topic_signals, partition), time.monotonic()
    with closing(bus.reader(settings.topic_signals, partition, None)) as reader:
        while (chunk := reader.poll(_SCAN_EVENTS)) is not None:
            if len(chunk.lengths) == 0:
                if time.monotonic() - silent_since > _SILENT_S or int(str(reader.position()["offset"])) >= end:
                    return
                time.sleep(0.01)
                continue
            silent_since = time.monotonic()
            for reject in decoder.decode(chunk).rejects:
                if reject.reason == REASON or named.in_message(reject.original):
                    yield reject.offset


def _results(settings: Settings) -> Iterator[Erased]:
    if settings.kafka_brokers:
        place = f"log {settings.kafka_brokers}"
        note = "what was sent to Kafka (late events, dead letters, results) stays there as long as its topics keep it"
        yield Erased(place, "messages", note=note)
