"""What a run needs of Kafka, looked at with no message written: brokers, topics, rights, sizes, lag, clock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from dataflows.buses.kafka_writer import NAME, producer_properties
from dataflows.doctor import Check
from dataflows.topics import answers, bounds, configured, described, is_missing, reached, wanted_topics
from dataflows.wiring import kafka_properties
from operators.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataflows.buses.kafka_cluster import KafkaCluster
    from dataflows.config import Settings
    from dataflows.doctor import Findings
    from dataflows.topics import WantedTopic

_REACH_S = 8.0
_WAIT_S = 4.0
_LIMIT_S = 12.0
_AGAIN_S = 0.1
_CLOCK_S = 1.0
_ENVELOPE_BYTES = 1 << 16


def kafka_checks(settings: Settings) -> list[Check]:
    """Everything that is looked at, in the order in which one thing rests on another."""
    look = _Look(settings)
    brokers = f"KAFKA_BROKERS `{settings.kafka_brokers}`"
    named: list[tuple[str, Callable[[], Findings]]] = [
        ("brokers", look.brokers),
        ("topics", look.topics),
        ("rights", look.rights),
        ("group", look.group),
        ("transactions", look.transactions),
        ("sizes", look.sizes),
        ("lag", look.lag),
        ("clock", look.clock),
    ]
    return [Check(name, brokers, check, _LIMIT_S) for name, check in named]


class _Look:
    """What was learned so far: each check needs what those before it have found."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wanted = wanted_topics(settings)
        self._cluster: KafkaCluster | None = None
        self._found: dict[str, Any] = {}
        self._configs: dict[str, dict[str, str]] = {}

    def brokers(self) -> Findings:
        """Whether they answer and let this client in."""
        settings = self._settings
        cluster = reached(settings, _REACH_S)
        told = cluster.reach(wait_s=_WAIT_S)
        self._cluster = cluster
        ways = {"ssl": " through TLS", "sasl_ssl": " through TLS"}
        way = ways.get(settings.kafka_security_protocol, "")
        user = f" as `{settings.kafka_username}`" if "sasl" in settings.kafka_security_protocol else ""
        return [("ok", f"cluster {told.cluster_id} of {len(told.nodes)} answers{way}{user}")]

    def topics(self) -> Findings:
        """Whether every topic is there and each of its partitions is led."""
        from confluent_kafka import KafkaError

        if self._cluster is None:
            return _UNREACHED
        told = described(self._cluster, [topic.name for topic in self._wanted], _WAIT_S)
        self._found = {name: topic for name, topic in told.items() if not isinstance(topic, KafkaError)}
        found: list[tuple[Any, str]] = []
        good = []
        for topic in self._wanted:
            answer = told[topic.name]
            place = f"{topic.setting} `{topic.name}`"
            if topic.name in self._found:
                idle = [str(p.id) for p in answer.partitions if p.leader is None or p.leader.id < 0]
                if idle:
                    found.append(("wrong", f"{place} has no leader for partition {', '.join(idle)}: is a broker away?"))
                good.append(f"`{topic.name}` ({len(answer.partitions)})")
                continue
            says = f"{place} does not exist: `headrace topics create` makes it"
            if not is_missing(answer):
                says = f"{place} may not be seen by this user ({answer.name()}): grant it DESCRIBE"
            if topic.setting == "TOPIC_DOCS":
                found.append(("skipped", f"{says}; only documents that are told of on Kafka need it"))
            else:
                found.append(("wrong", says))
        return [("ok", f"with partitions: {', '.join(good)}"), *found] if good else found

    def rights(self) -> Findings:
        """Whether this user may read what is read, and write what is written."""
        known = [topic for topic in self._wanted if topic.name in self._found]
        if not known:
            return _UNREACHED if self._cluster is None else [("skipped", "there is no topic to ask about")]
        found: list[tuple[Any, str]] = []
        for topic in known:
            granted = self._found[topic.name].authorized_operations
            if granted is None:
                return [("skipped", "these brokers do not tell what a user may do")]
            right = "READ" if topic.reads else "WRITE"
            if right not in {operation.name for operation in granted}:
                found.append(("wrong", f"this user may not {right} {topic.setting} `{topic.name}`: grant it {right}"))
        return found or [("ok", "this user may read and write what it has to")]

    def group(self) -> Findings:
        """Whether offsets may be shown under the group, and nobody else shows there."""
        from confluent_kafka import KafkaError

        group = self._settings.kafka_group_id
        if self._cluster is None or not group:
            return _UNREACHED if group else [("skipped", "KAFKA_GROUP_ID is empty: no offsets are shown")]
        told = _described_group(self._cluster, group)
        if _may_read(told) is False:
            return [
                ("wrong", f"this user may not use the group `{group}`: grant it READ on it, or empty KAFKA_GROUP_ID")
            ]
        if isinstance(told, KafkaError):
            if told.code() == KafkaError.GROUP_ID_NOT_FOUND:
                return [("ok", f"`{group}` is free")]
            return [("skipped", f"the brokers do not tell of `{group}`: {told.name()}")]
        if told.members:
            return [("wrong", f"others consume as the group `{group}`: name another one in KAFKA_GROUP_ID")]
        return [("ok", f"`{group}` may be committed to")]

    def transactions(self) -> Findings:
        """Whether this user may write in transactions, as exactly-once needs: tried with a name of the doctor's own."""
        written = [topic.name for topic in self._wanted if not topic.reads and topic.name in self._found]
        if self._cluster is None or not written:
            return _UNREACHED if self._cluster is None else [("skipped", "there is no topic to write to")]
        if not self._settings.exactly_once_sink:
            return [("skipped", "EXACTLY_ONCE_SINK is off: nothing is written in transactions")]
        name = NAME.format(writer="doctor", topic=written[0])
        prefix = NAME.partition("{")[0]
        found: list[tuple[Any, str]] = []
        if _may_read(_described_group(self._cluster, name)) is False:
            found.append(("wrong", f"this user may not use groups named `{prefix}…`: grant it READ on them, by prefix"))
        refusal = _transaction_refused(self._settings, name)
        if refusal is not None:
            told = f"this user may not write in transactions named `{prefix}…` ({refusal})"
            found.append(("wrong", f"{told}: grant it WRITE and DESCRIBE on transactional ids, by prefix"))
        return found or [("ok", f"tried with the name `{name}`: may be used")]

    def sizes(self) -> Findings:
        """Whether what the topics take fits EVENT_BYTES_MAX, and that signals are not compacted away."""
        if not self._found or self._cluster is None:
            return _UNREACHED if self._cluster is None else [("skipped", "there is no topic to ask about")]
        self._configs = configured(self._cluster, list(self._found), _WAIT_S)
        found: list[tuple[Any, str]] = []
        unseen = [f"`{name}`" for name in self._found if name not in self._configs]
        for topic in self._wanted:
            if topic.name in self._configs:
                found += [("wrong", told) for told in self._misfits(topic, self._configs[topic.name])]
        if unseen:
            found.append(
                ("skipped", f"the configuration of {', '.join(unseen)} may not be seen: grant DESCRIBE_CONFIGS")
            )
        return found or [("ok", f"messages up to EVENT_BYTES_MAX ({self._settings.event_bytes_max:,} bytes) fit")]

    def lag(self) -> Findings:
        """Whether Kafka still holds what is to be read next, and for how long."""
        topic = self._settings.topic_signals
        if topic not in self._found or self._cluster is None:
            return _UNREACHED if self._cluster is None else [("skipped", "there are no signals to ask about")]
        from confluent_kafka.admin import OffsetSpec

        signals = {topic: self._found[topic]}
        begins, ends = (
            bounds(self._cluster, signals, s, _WAIT_S) for s in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
        read = self._read()
        if not read or not begins or not ends:
            return [
                ("skipped", "no run has told yet how far it has read" if begins and ends else "no offsets are told")
            ]
        retention_ms = int(self._configs.get(topic, {}).get("retention.ms", "-1"))
        soon = {}
        if retention_ms > 0:
            half = OffsetSpec.for_timestamp(int(time.time() * 1000) - retention_ms // 2)
            soon = bounds(self._cluster, signals, half, _WAIT_S)
        found: list[tuple[Any, str]] = []
        behind = 0
        for place, end in sorted(ends.items()):
            at = max(read.get(place[1], 0), 0)
            behind += max(0, end.offset - max(at, begins[place].offset))
            if place[1] in read and at < begins[place].offset:
                gone = f"was read up to offset {at}, but begins at {begins[place].offset} now"
                found.append(
                    ("wrong", f"partition {place[1]} of `{topic}` {gone}: KAFKA_OFFSET_RESET says what a run does")
                )
            elif place in soon and at < (soon[place].offset if soon[place].offset >= 0 else end.offset):
                left = f"in less than half of its {retention_ms // 3_600_000} h of retention"
                found.append(("wrong", f"partition {place[1]} of `{topic}`: what is to be read next is deleted {left}"))
        return [*found, ("ok", f"{behind:,} messages are to be read in {len(ends)} partitions")]

    def clock(self) -> Findings:
        """Whether this clock is behind the newest stamp of a message: all that can be seen without writing one."""
        topic = self._settings.topic_signals
        if topic not in self._found or self._cluster is None:
            return _UNREACHED if self._cluster is None else [("skipped", "there are no signals to compare with")]
        from confluent_kafka.admin import OffsetSpec

        newest = bounds(self._cluster, {topic: self._found[topic]}, OffsetSpec.max_timestamp(), _WAIT_S)
        stamps = [told.timestamp for told in newest.values() if told.timestamp > 0]
        if not stamps:
            return [("skipped", "there is no message yet to compare with")]
        ahead = max(stamps) / 1000 - time.time()
        by_broker = self._configs.get(topic, {}).get("message.timestamp.type") == "LogAppendTime"
        whose = "the broker's" if by_broker else "a producer's"
        if ahead > _CLOCK_S:
            return [("wrong", f"this clock is {ahead:,.1f} s behind {whose}: keep both with NTP")]
        return [("ok", f"not behind {whose}, whose newest stamp is {-ahead:,.0f} s old; whether ahead cannot be seen")]

    def _misfits(self, topic: WantedTopic, config: dict[str, str]) -> list[str]:
        limit = int(config.get("max.message.bytes", "0"))
        most = self._settings.event_bytes_max
        place = f"{topic.setting} `{topic.name}`"
        found = []
        if topic.reads and limit > most + _ENVELOPE_BYTES:
            found.append(
                f"{place} takes messages of {limit:,} bytes, EVENT_BYTES_MAX refuses above {most:,}: make them agree"
            )
        needed = int(topic.config.get("max.message.bytes", "0"))
        if not topic.reads and limit < needed:
            found.append(
                f"{place} takes {limit:,} bytes, one of EVENT_BYTES_MAX may need {needed:,}: raise max.message.bytes"
            )
        if topic.reads and "compact" in config.get("cleanup.policy", ""):
            found.append(f"{place} is compacted, which drops older messages of a key: set cleanup.policy to delete")
        return found

    def _read(self) -> dict[int, int]:
        """Partition of signals → the next offset to read, as the group or else the recovery folder knows it."""
        from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError

        assert self._cluster is not None  # asked by the caller
        group = self._settings.kafka_group_id
        if group:
            asked = [ConsumerGroupTopicPartitions(group)]
            told = answers(self._cluster.admin.list_consumer_group_offsets(asked, request_timeout=_WAIT_S), _WAIT_S)[
                group
            ]
            if not isinstance(told, KafkaError):
                places = [p for p in told.topic_partitions if p.topic == self._settings.topic_signals and p.offset >= 0]
                if places:
                    return {p.partition: p.offset for p in places}
        return _positions(self._settings)


def _described_group(cluster: KafkaCluster, group: str) -> Any:  # noqa: ANN401  # the library carries no types
    """The group's description or KafkaError; asked again while a coordinator is being found for it."""
    from confluent_kafka import KafkaError

    passing = {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
    deadline = time.monotonic() + _WAIT_S
    while True:
        asked = cluster.admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=_WAIT_S
        )
        told = answers(asked, _WAIT_S)[group]
        if not isinstance(told, KafkaError) or told.code() not in passing or time.monotonic() > deadline:
            return told
        threading.Event().wait(_AGAIN_S)


def _may_read(group: Any) -> bool | None:  # noqa: ANN401  # the library carries no types
    """Whether the right READ was granted on a described group; None if the brokers do not tell."""
    from confluent_kafka import KafkaError

    if isinstance(group, KafkaError):
        return False if group.code() == KafkaError.GROUP_AUTHORIZATION_FAILED else None
    granted = group.authorized_operations
    return None if granted is None else "READ" in {operation.name for operation in granted}


def _transaction_refused(settings: Settings, name: str) -> str | None:
    """What the brokers say against transactions of that name; None if nothing. Begins none."""
    from confluent_kafka import KafkaException, Producer

    made = producer_properties(settings.kafka_brokers, kafka_properties(settings))
    producer = Producer({**made, "transactional.id": name, "error_cb": lambda _error: None})
    try:
        producer.init_transactions(2 * _WAIT_S)
    except KafkaException as error:
        return str(error.args[0].name())
    return None


def _positions(settings: Settings) -> dict[int, int]:
    """Partition → the next offset, as the snapshots have it; nothing if they cannot be read by this user."""
    import os

    import orjson

    from dataflows.recovery import Recovery
    from dataflows.signal_flow import FLOW

    folder = settings.recovery_dir
    try:
        if not (folder / "headrace.json").exists() or folder.stat().st_uid != os.geteuid():
            return {}  # opening another user's databases would leave files that it cannot write to
        states = Recovery(folder).states(f"{FLOW}.read").values()
    except (HeadraceError, OSError):
        return {}
    feeds = [item for state in states for item in orjson.loads(state).items()]
    return {int(name): int(feed["position"]["offset"]) for name, feed in feeds if name.isdecimal()}


_UNREACHED: Findings = [("skipped", "the brokers were not reached")]
