"""Settings → opened ports: the only place that picks an adapter."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from dataflows.alignment import SLOTS
from dataflows.announcing import Outlets
from dataflows.buses import open_bus
from dataflows.engine import STOP
from dataflows.signal_flow import FLOW, OFFLINE_WRITERS, SignalPlan
from dataflows.signal_source import SourcePlan
from operators.errors import ConfigError
from stores.archive import open_archive
from stores.archive_writer import ArchiveWriter, Background
from stores.deadletters import open_dead_letters
from stores.features import open_features, views_of
from stores.forgotten import open_forgotten
from stores.holding import open_holding
from stores.offline import open_offline

if TYPE_CHECKING:
    from pathlib import Path

    from dataflows.buses.kafka_monitor import KafkaMonitor
    from dataflows.buses.port import Bus, WritableBus
    from dataflows.config import Settings
    from dataflows.engine import Engine
    from operators.feature_sets import FeatureSets
    from operators.forgotten import Forgotten
    from stores.archive.port import Archive
    from stores.deadletters.port import DeadLetters
    from stores.features.port import Features
    from stores.forgotten.port import ForgottenNames
    from stores.holding.port import Holding
    from stores.offline.port import OfflineStore


def bus_of(settings: Settings, *, at_least_once: bool = False) -> WritableBus:
    """The bus of all topics: Kafka if KAFKA_BROKERS are set, else the folder."""
    if not settings.kafka_brokers:
        return open_bus(f"folder:{settings.bus_dir}", event_bytes_max=settings.event_bytes_max)
    return open_bus(
        f"kafka:{settings.kafka_brokers}",
        event_bytes_max=settings.event_bytes_max,
        properties=kafka_properties(settings),
        offset_reset=settings.kafka_offset_reset,
        at_least_once=at_least_once or not settings.exactly_once_sink,
        stopped=STOP,
    )


def outlets_of(settings: Settings, bus: WritableBus) -> Outlets | None:
    """Where dead letters and results are told; None without Kafka. Raises ConfigError if a topic is missing."""
    if not settings.kafka_brokers:
        return None
    results = settings.topic_results if settings.kafka_results else None
    for topic in filter(None, (settings.topic_dlq, results)):
        check_topic(bus, topic)
    return Outlets(bus, settings.topic_dlq, results, settings.event_bytes_max)


def monitor_of(settings: Settings, bus: WritableBus) -> KafkaMonitor | None:
    """What shows others how far signals are read; None without Kafka."""
    if not settings.kafka_brokers:
        return None
    from dataflows.buses.kafka import KafkaBus
    from dataflows.buses.kafka_monitor import KafkaMonitor

    assert isinstance(bus, KafkaBus)  # `bus_of` says so
    return KafkaMonitor(bus.cluster, settings.topic_signals, settings.kafka_group_id)


def check_topic(bus: WritableBus, topic: str) -> None:
    """Raise ConfigError if a topic of Kafka's is to be written to and is not there."""
    if not bus.partitions(topic):
        from dataflows.buses.kafka_writer import missing_topic

        raise missing_topic(topic)


def kafka_properties(settings: Settings) -> dict[str, str]:
    """What librdkafka is told besides the brokers: security first, KAFKA_CONFIG on top. Holds secrets."""
    password = settings.kafka_password
    named = {
        "security.protocol": settings.kafka_security_protocol,
        "sasl.mechanism": settings.kafka_sasl_mechanism if "sasl" in settings.kafka_security_protocol else None,
        "sasl.username": settings.kafka_username or None,
        "sasl.password": None if password is None else password.get_secret_value(),
        "ssl.ca.location": None if settings.kafka_ca_file is None else str(settings.kafka_ca_file),
    }
    return {name: value for name, value in named.items() if value is not None} | settings.kafka_extra


def offline_of(settings: Settings) -> OfflineStore:
    """The store of the feature history. Raises ConfigError unless files can be written there."""
    _check_writable("OFFLINE_DATA_PATH", settings.offline_data_path)
    return open_offline(f"{settings.offline_format}:///{quote(str(settings.offline_data_path))}")


def offline_to_read(settings: Settings) -> OfflineStore:
    """The store of the feature history as it is; nothing is touched."""
    return open_offline(f"{settings.offline_format}:///{quote(str(settings.offline_data_path))}")


def archive_of(settings: Settings) -> Archive:
    """The archive. Raises ConfigError unless files can be written there."""
    _check_writable("ARCHIVE_PATH", settings.archive_path)
    return archive_to_read(settings)


def archive_to_read(settings: Settings) -> Archive:
    """The archive as it is, which may not be there; nothing is touched."""
    return open_archive(f"parquet:///{quote(str(settings.archive_path))}")


def dead_letters_of(settings: Settings) -> DeadLetters:
    """The store of the dead letters: a file in their topic's folder on the bus."""
    return open_dead_letters(_sqlite(settings.bus_dir / settings.topic_dlq / "deadletters.db"))


def holding_of(settings: Settings) -> Holding:
    """The store of the held events: a file in the late topic's folder on the bus."""
    return open_holding(_sqlite(settings.bus_dir / settings.topic_late / "holding.db"))


def forgotten_path(settings: Settings) -> Path:
    """Where it is kept what was forgotten: beside the topics, so that no lost recovery folder takes it away."""
    return settings.bus_dir / "forgotten.db"


def forgotten_of(settings: Settings) -> Forgotten | None:
    """What was forgotten and must not come back; None if nothing was, and then nothing is made."""
    path = forgotten_path(settings)
    if not path.exists():
        return None
    with closing(open_forgotten(_sqlite(path))) as names:
        return names.load()


def forgotten_names_of(settings: Settings) -> ForgottenNames:
    """The list of what was forgotten; made if it is not there."""
    return open_forgotten(_sqlite(forgotten_path(settings)))


def features_of(settings: Settings, sets: FeatureSets) -> Features | None:
    """The online store, prepared for the views of the sets; None if ONLINE_STORE=none.

    Raises ConfigError with the command to type if a person must apply the views first.
    """
    if settings.online_store == "none":
        return None
    features = open_features(f"feast:{settings.feast_repo_path}")
    features.prepare(views_of(sets))
    return features


def identity_of(settings: Settings, sets: FeatureSets) -> dict[str, object]:
    """What a recovery folder belongs to: with anything of this changed its state would be wrong."""
    return {
        "flow": FLOW,
        **({"bus": "kafka"} if settings.kafka_brokers else {}),
        "TOPIC_SIGNALS": settings.topic_signals,
        "TOPIC_LATE": settings.topic_late,
        "EXACTLY_ONCE_SINK": settings.exactly_once_sink,
        "SIGNAL_SHARDS": settings.signal_shards,
        "WATERMARK_SECONDS": settings.watermark_seconds,
        **_policy_of(settings),
        "slots": SLOTS,
        "writers": OFFLINE_WRITERS,
        "feature set": {f"`{s.name}` version {s.version}": asdict(s) for s in sets.sets},
    }


def signal_plan(
    settings: Settings, sets: FeatureSets, engine: Engine, bus: WritableBus, *, history: Bus | None = None
) -> SignalPlan:
    """Open everything that the signal path is made of.

    bus: of all topics. history: what a run beside the others reads in its place; that run tells nobody anything.
    """
    monitor = None if history is not None else monitor_of(settings, bus)
    if history is None and settings.kafka_brokers:
        check_topic(bus, settings.topic_late)
    source = SourcePlan(
        bus=bus if history is None else history,
        topic=settings.topic_signals,
        sets=sets,
        max_future_us=settings.max_future_us,
        show=None if monitor is None else monitor.show,
        bound_us=settings.watermark_us,
        idle_s=settings.watermark_idle_seconds if settings.bus_follow else 0.0,
        batch_size=settings.stream_batch_size,
        event_bytes_max=settings.event_bytes_max,
        follow=settings.bus_follow,
        stop=STOP,
        epoch_s=engine.epoch_s if engine.workers > 1 else None,
        lateness=settings.lateness,
        holding=holding_of(settings) if settings.late_event_policy == "hold" else None,
        forgotten=forgotten_of(settings),
    )
    if settings.archive_signals:
        archive, background = archive_of(settings), Background()

        def open_writer(part: str, resume: bytes | None) -> ArchiveWriter:
            name = f"{engine.lineage}.{part}"
            return ArchiveWriter(archive, background, name, resume, durable=engine.durable)

        source = replace(source, archive=open_writer)
    return SignalPlan(
        source=source,
        shards=settings.signal_shards,
        late_bus=bus,
        topic_late=settings.topic_late,
        offline=offline_of(settings),
        features=features_of(settings, sets),
        dead_letters=dead_letters_of(settings),
        outlets=outlets_of(settings, bus) if history is None else None,
        lineage=engine.lineage,
        durable=engine.durable,
        staged=settings.exactly_once_sink,
        beside=history is not None,
    )


def _check_writable(name: str, folder: Path) -> None:
    """Make the folder; raise ConfigError unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} `{folder}` cannot be written to: {error.strerror}; name a folder of this user's"
        ) from error


def _policy_of(settings: Settings) -> dict[str, object]:
    """The policy for late events and what belongs to it; nothing for the first one that there was."""
    if settings.late_event_policy == "drop":
        return {}
    return {
        "LATE_EVENT_POLICY": settings.late_event_policy,
        "ALLOWED_LATENESS_SECONDS": settings.allowed_lateness_seconds,
    }


def _sqlite(path: Path) -> str:
    return f"sqlite:///{quote(str(path))}"
