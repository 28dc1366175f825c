"""What the commands do, apart from parsing and printing."""

from __future__ import annotations

import base64
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dataflows.announcing import replayed
from dataflows.batch import BatchPlan, run_batch
from dataflows.display import progress_bar
from dataflows.document_wiring import metadata_as_it_is
from dataflows.kernel_cache import drop_stale_kernels
from dataflows.observability.logs import set_up_logs
from dataflows.sources.topic import tried_again
from dataflows.wiring import bus_of, dead_letters_of, features_of, forgotten_of, offline_of
from operators.document_tasks import DOCUMENT_STAGES, EVENT_STAGE
from operators.documents import doc_id
from operators.errors import ConfigError, RetryableError
from operators.forgotten import REASON as FORGOTTEN
from stores.deadletters.port import LetterFilter
from stores.features.port import views_of
from stores.offline.disk import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dataflows.config import Settings
    from dataflows.summary import Summary
    from operators.forgotten import Forgotten
    from operators.records import DeadLetter
    from stores.deadletters.port import DeadLetters
    from stores.offline.port import Withheld

_PAGE = 1000
REPLAY_PARTITION = "replayed-0"


def backfill_files(settings: Settings, paths: Sequence[Path], *, quiet: bool) -> tuple[Summary, Withheld]:
    """Run the batch over the files with the settings of a live run; see `run_batch`."""
    drop_stale_kernels()
    set_up_logs(settings.log_level, settings.log_format)
    sets = settings.feature_sets()
    topic_folder = (settings.bus_dir / settings.topic_signals).resolve()
    forgotten = forgotten_of(settings)

    def topic(path: Path) -> str:
        """A file of the bus is its partition, so that its rejects are the same letters as live."""
        return settings.topic_signals if path.resolve().parent == topic_folder else str(path.resolve())

    with (
        closing(offline_of(settings)) as offline,
        closing(dead_letters_of(settings)) as dead_letters,
        progress_bar("backfill", sum(p.stat().st_size for p in paths), quiet=quiet) as progress,
    ):
        plan = BatchPlan(
            sets=sets,
            shards=settings.signal_shards,
            bound_us=settings.watermark_us,
            batch_size=settings.stream_batch_size,
            event_bytes_max=settings.event_bytes_max,
            offline=offline,
            dead_letters=dead_letters,
            topic=topic,
            lateness=None if settings.late_event_policy == "hold" else settings.lateness,
            forgotten=forgotten,
            still_so=lambda: check_forgotten(settings, forgotten),
        )
        return run_batch(plan, paths, progress)


def check_forgotten(settings: Settings, known: Forgotten | None) -> None:
    """Raise RetryableError if something was forgotten since: what was computed may hold it."""
    now = forgotten_of(settings)
    before = known.names if known is not None else frozenset()
    if now is not None and not now.names <= before:
        raise RetryableError("something was forgotten meanwhile, so nothing was written; run this again")


def online_rows(settings: Settings, entity: str) -> list[dict[str, object]]:
    """The online row of the entity in every view that has one."""
    if settings.online_store == "none":
        raise ConfigError("ONLINE_STORE is `none`: there are no online features to show; set it to feast")
    sets = settings.feature_sets()
    features = features_of(settings, sets)
    assert features is not None  # ONLINE_STORE is not none
    with closing(features):
        rows: list[dict[str, object]] = []
        for view in views_of(sets):
            row = features.read(view, [entity])[0]
            if row is not None:
                rows.append(
                    {
                        "entity_id": entity,
                        "feature_set": view.feature_set.name,
                        "version": view.feature_set.version,
                        "window": view.window.text,
                        "event_time": time_text(row.event_time_us),
                        **row.values,
                    }
                )
        return rows


def compact_history(settings: Settings, *, quiet: bool) -> dict[str, object]:
    """Merge small files of the feature history and say what was done."""
    from stores.offline.compact import compact

    with progress_bar("compact", None, quiet=quiet) as progress:
        return asdict(compact(settings.offline_data_path, progress=lambda _key, _done, _count: progress(1)))


def letters(settings: Settings, *, limit: int, reason: str | None) -> tuple[list[dict[str, object]], int]:
    """The oldest dead letters as `dlq list` shows them, and how many there are in all."""
    which = LetterFilter(reason=reason)
    with closing(dead_letters_of(settings)) as store:
        found = [
            {
                "id": head.letter_id,
                "time": time_text(head.time_us),
                "stage": head.stage,
                "reason": head.reason,
                "source": head.source,
                "partition": head.partition,
                "offset": head.offset,
                "detail": head.detail,
                "size_bytes": head.size_bytes,
            }
            for head in store.list(which, limit=limit)
        ]
        return found, store.count(which)


def letter(settings: Settings, letter_id: str) -> dict[str, object]:
    """One dead letter with everything that is known of it.

    original: what is not UTF-8 is shown escaped; original_base64 then holds the bytes, else it is None.
    """
    found = _letter(settings, letter_id)
    record = asdict(found)
    del record["original"]
    text = found.original.decode("utf-8", "backslashreplace")
    exact = text.encode() == found.original
    return {
        "id": record.pop("letter_id"),
        "time": time_text(record.pop("time_us")),
        **record,
        "original": text,
        "original_base64": None if exact else base64.b64encode(found.original).decode(),
    }


def original_of(settings: Settings, letter_id: str) -> bytes:
    """The bytes that were refused, as they came."""
    return _letter(settings, letter_id).original


def _letter(settings: Settings, letter_id: str) -> DeadLetter:
    with closing(dead_letters_of(settings)) as store:
        found = store.get(letter_id)
    if found is None:
        raise ConfigError(f"there is no dead letter `{letter_id}`; `headrace dlq list` shows the ids")
    return found


def replay_letters(settings: Settings, ids: Sequence[str] | None) -> int:
    """Have the originals tried again, then forget the letters.

    Signals are appended to the signals topic, in a folder to a partition of their own; documents are forgotten, so that
    the next look at their source finds them. Killed half-way, some are on the topic and still letters: replaying them
    again makes duplicates, which the flow drops. Two replays at once wait for each other, since there is one writer.
    """
    lock = settings.bus_dir / settings.topic_dlq / "replay.lock"
    with closing(bus_of(settings)) as bus, closing(dead_letters_of(settings)) as store, locked(lock):
        done = 0
        for page in _pages(store, ids):
            found = [kept for i in page if (kept := store.get(i)) is not None]
            if ids is None:
                found = [kept for kept in found if kept.reason != FORGOTTEN]
            elif any(kept.reason == FORGOTTEN for kept in found):
                raise ConfigError("the bytes of a forgotten entity's signals are not kept: there is nothing to replay")
            topics = [_topic_of(settings, kept) for kept in found]
            for topic in sorted({topic for topic in topics if topic is not None}):
                originals = [replayed(kept) for kept, of in zip(found, topics, strict=True) if of == topic]
                bus.append(topic, REPLAY_PARTITION, originals, at=bus.written(topic, REPLAY_PARTITION))
            _forget(settings, [kept.partition for kept in found if kept.stage in DOCUMENT_STAGES])
            done += store.drop([kept.letter_id for kept in found])
        return done


def _topic_of(settings: Settings, letter: DeadLetter) -> str | None:
    """The topic that the original is a message of; None if it is none. Raises ConfigError if it cannot be reached."""
    if letter.stage in DOCUMENT_STAGES:
        return None
    if letter.stage != EVENT_STAGE:
        return settings.topic_signals
    if not settings.kafka_brokers:
        raise ConfigError(f"dead letter `{letter.letter_id}` is a message of Kafka's: set KAFKA_BROKERS to replay it")
    return settings.topic_docs


def _forget(settings: Settings, uris: Sequence[str]) -> None:
    """Forget these documents, if they are dead still."""
    if not uris:
        return
    with closing(metadata_as_it_is(settings)) as metadata:
        documents = [document for uri in uris if (document := metadata.document(doc_id(uri))) is not None]
        space = metadata.active_space() or ""  # there is one, or no document
        metadata.apply([tried_again(document, space) for document in documents if document.state == "dead"])


def drop_letters(settings: Settings, ids: Sequence[str] | None) -> int:
    """Forget the letters."""
    with closing(dead_letters_of(settings)) as store:
        return sum(store.drop(page) for page in _pages(store, ids))


def _pages(store: DeadLetters, ids: Sequence[str] | None) -> Iterator[list[str]]:
    """The ids in pages; None means every letter that is there now."""
    if ids is not None:
        missing = [i for i in ids if store.get(i) is None]
        if missing:
            raise ConfigError(f"there is no dead letter `{missing[0]}`; `headrace dlq list` shows the ids")
        yield list(dict.fromkeys(ids))
        return
    after: tuple[int, str] | None = None
    while heads := store.list(limit=_PAGE, after=after):
        after = heads[-1].place
        yield [h.letter_id for h in heads]


def time_text(time_us: int) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000).isoformat()
