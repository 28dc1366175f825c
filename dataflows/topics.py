"""The topics that the settings ask for: which there are, and how those that lack are made."""

from __future__ import annotations

import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dataflows.buses.kafka_cluster import KafkaCluster
from dataflows.wiring import kafka_properties
from operators.errors import ConfigError, FatalError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from dataflows.config import Settings

_WAIT_S = 20.0
_DAY_MS = 86_400_000
_REPLICATION = 3
"""Copies of a partition, where there are so many brokers."""

_ENVELOPE_BYTES = 1 << 16
"""What key, headers and envelope may add to a message."""

_SHOWN = ("cleanup.policy", "max.message.bytes", "message.timestamp.type", "retention.bytes", "retention.ms")

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic of the settings. reads: whether it is read from, not written to. config: what it is made with."""

    name: str
    setting: str
    config: Mapping[str, str]
    reads: bool = False


def wanted_topics(settings: Settings) -> list[WantedTopic]:
    """Every topic that the settings name and something uses.

    Signals are stamped by the broker, since MAX_FUTURE_SECONDS holds a message against its stamp. A dead letter is its
    message and headers, a late event is written anew with an envelope round it: these may be larger.
    """
    once = str(settings.event_bytes_max + _ENVELOPE_BYTES)
    twice = str(2 * settings.event_bytes_max + _ENVELOPE_BYTES)
    stamped = {"message.timestamp.type": "LogAppendTime"}
    kept = {"retention.ms": str(30 * _DAY_MS), **stamped}
    found = [
        WantedTopic(settings.topic_signals, "TOPIC_SIGNALS", {"max.message.bytes": once, **stamped}, reads=True),
        WantedTopic(settings.topic_docs, "TOPIC_DOCS", {"max.message.bytes": once}, reads=True),
        WantedTopic(settings.topic_late, "TOPIC_LATE", {"max.message.bytes": twice, **kept}),
        WantedTopic(settings.topic_dlq, "TOPIC_DLQ", {"max.message.bytes": once, **kept}),
    ]
    if settings.kafka_results:
        results = {"retention.ms": str(7 * _DAY_MS)}
        found.append(WantedTopic(settings.topic_results, "TOPIC_RESULTS", results))
    return found


def reached(settings: Settings, wait_s: float = _WAIT_S) -> KafkaCluster:
    """The brokers, once they have answered. Raises ConfigError if they refuse, UnavailableError if none answers."""
    if not settings.kafka_brokers:
        raise ConfigError("KAFKA_BROKERS is not set: topics are folders below BUS_DIR, which need not be made")
    cluster = KafkaCluster(settings.kafka_brokers, kafka_properties(settings))
    cluster.reach(wait_s=wait_s)
    return cluster


def answers(futures: Mapping[Key, Future[Any]], wait_s: float) -> dict[Key, Any]:
    """What became of each question: its answer, or a KafkaError; all together wait no longer than `wait_s`."""
    from confluent_kafka import KafkaError, KafkaException

    deadline = time.monotonic() + wait_s
    found: dict[Key, Any] = {}
    for key, future in futures.items():
        try:
            found[key] = future.result(max(0.01, deadline - time.monotonic()))
        except KafkaException as error:
            found[key] = error.args[0]
        except (TimeoutError, FutureTimeoutError):
            found[key] = KafkaError(KafkaError._TIMED_OUT)  # noqa: SLF001  # public, in spite of the name
    return found


def described(cluster: KafkaCluster, names: Sequence[str], wait_s: float = _WAIT_S) -> dict[str, Any]:
    """Topic → its TopicDescription, with what this user may do, or the KafkaError in its place."""
    from confluent_kafka import TopicCollection

    asked = cluster.admin.describe_topics(
        TopicCollection(list(names)), include_authorized_operations=True, request_timeout=wait_s
    )
    return answers(asked, wait_s)


def configured(cluster: KafkaCluster, names: Sequence[str], wait_s: float = _WAIT_S) -> dict[str, dict[str, str]]:
    """Topic → what it is configured with; a topic whose configuration may not be seen is left out."""
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import ConfigResource, ResourceType

    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found = answers(cluster.admin.describe_configs(resources, request_timeout=wait_s), wait_s) if names else {}
    return {
        resource.name: {name: str(entry.value) for name, entry in config.items() if name in _SHOWN}
        for resource, config in found.items()
        if not isinstance(config, KafkaError)
    }


def bounds(cluster: KafkaCluster, found: Mapping[str, Any], spec: Any, wait_s: float = _WAIT_S) -> dict[Any, Any]:  # noqa: ANN401  # the library carries no types
    """(topic, partition) → an offset of the kind that `spec` asks for, with its timestamp, for described topics."""
    from confluent_kafka import KafkaError, TopicPartition

    places = [TopicPartition(name, p.id) for name, topic in found.items() for p in topic.partitions]
    if not places:
        return {}
    told = answers(cluster.admin.list_offsets(dict.fromkeys(places, spec), request_timeout=wait_s), wait_s)
    return {(p.topic, p.partition): offset for p, offset in told.items() if not isinstance(offset, KafkaError)}


def create_topics(settings: Settings, *, partitions: int, replication: int | None) -> list[dict[str, object]]:
    """Make what is missing, and tell of every topic: `topic, setting, done, partitions, replication`.

    done: `created`, or `there`, which is then left as it is. replication: default is 3, or as many as there are
    brokers. Safe to repeat. Raises ConfigError if this user may not or the brokers cannot.
    """
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import NewTopic

    cluster = reached(settings)
    copies = replication or min(_REPLICATION, len(cluster.admin.list_topics(timeout=_WAIT_S).brokers))
    wanted = {topic.name: topic for topic in wanted_topics(settings)}
    before = described(cluster, list(wanted))
    missing = [name for name, topic in before.items() if isinstance(topic, KafkaError) and is_missing(topic)]
    safe = {"min.insync.replicas": "2"} if copies >= _REPLICATION else {}
    new = [NewTopic(name, partitions, copies, config={**wanted[name].config, **safe}) for name in missing]
    made = answers(cluster.admin.create_topics(new, request_timeout=_WAIT_S), _WAIT_S) if new else {}
    records: list[dict[str, object]] = []
    for name, topic in wanted.items():
        failed = made.get(name) if name in made else before[name]
        if isinstance(failed, KafkaError) and failed.code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise _refusal(name, failed, settings.kafka_brokers)
        is_new = name in made and failed is None
        known = before[name] if not isinstance(before[name], KafkaError) else None
        records.append(
            {
                "topic": name,
                "setting": topic.setting,
                "done": "created" if is_new else "there",
                "partitions": len(known.partitions) if known else partitions,
                "replication": _copies(known) if known else copies,
            }
        )
    return records


def list_topics(settings: Settings) -> list[dict[str, object]]:
    """The topics of the settings: `topic, setting, partitions, replication, messages, retention_seconds, bytes_max`.

    partitions: 0 if there is no such topic, None if this user may not see it. messages: offsets between beginning and
    end, so gaps count. What is not known is None; retention_seconds −1 is for ever.
    """
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import OffsetSpec

    cluster = reached(settings)
    wanted = wanted_topics(settings)
    told = described(cluster, [topic.name for topic in wanted])
    found = {name: topic for name, topic in told.items() if not isinstance(topic, KafkaError)}
    configs = configured(cluster, list(found))
    ends, begins = (bounds(cluster, found, spec) for spec in (OffsetSpec.latest(), OffsetSpec.earliest()))
    records: list[dict[str, object]] = []
    for topic in wanted:
        known = found.get(topic.name)
        config = configs.get(topic.name, {})
        places = [(topic.name, p.id) for p in known.partitions] if known else []
        readable = all(place in ends and place in begins for place in places)
        count = sum(ends[place].offset - begins[place].offset for place in places) if readable else None
        retention_ms = int(config["retention.ms"]) if "retention.ms" in config else None
        unseen = known is None and not is_missing(told[topic.name])
        records.append(
            {
                "topic": topic.name,
                "setting": topic.setting,
                "partitions": None if unseen else len(places),
                "replication": _copies(known) if known else None,
                "messages": count if known else None,
                "retention_seconds": retention_ms if retention_ms in (None, -1) else retention_ms // 1000,
                "bytes_max": int(config["max.message.bytes"]) if config else None,
            }
        )
    return records


def is_missing(error: Any) -> bool:  # noqa: ANN401  # the library carries no types
    """Whether the KafkaError says that there is no such topic."""
    from confluent_kafka import KafkaError

    return error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}  # noqa: SLF001  # as above


def _copies(topic: Any) -> int:  # noqa: ANN401  # as above
    return min((len(p.replicas) for p in topic.partitions), default=0)


def _refusal(name: str, error: Any, brokers: str) -> Exception:  # noqa: ANN401  # as above
    from confluent_kafka import KafkaError

    code = error.code()
    if code in {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}:
        return ConfigError(f"this user may not make the topic `{name}`: grant it DESCRIBE and CREATE on the topic")
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        return ConfigError(f"topic `{name}` cannot have so many copies, there are fewer brokers: lower --replication")
    if code in {KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION, KafkaError.INVALID_PARTITIONS}:
        return ConfigError(f"KAFKA_BROKERS `{brokers}` refuse the topic `{name}`: {error.str()}")
    if error.retriable() or code == KafkaError._TIMED_OUT:  # noqa: SLF001  # as above
        return UnavailableError(f"KAFKA_BROKERS `{brokers}` did not make the topic `{name}`: {error.str()}; try again")
    return FatalError(f"topic `{name}` cannot be made: {error.str()}")
