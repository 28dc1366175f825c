"""What the brokers are asked about topics: their ids, their partitions, and where a partition begins and ends."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataflows.buses.kafka_reasons import SILENCE, in_plain_words
from dataflows.observability.events import BusAway, BusBack, tell
from operators.errors import ConfigError, FatalError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_STEP_S = 0.25
_PAUSE_S = 1.0
"""After a question without an answer the next ones are not asked for so long: asking blocks."""

_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
"""An id of zeros: the brokers are older than topic ids."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers know it. topic_id: "" if they have none; led: partition → whether it has a leader."""

    topic_id: str
    led: Mapping[int, bool]


_OPEN = {"security.protocol", "sasl.mechanism", "ssl.ca.location"}
"""Properties that are no secret, with values that are parts of the library's own words."""


class _NoAnswerError(UnavailableError):
    """Nobody is there, as opposed to one who has no answer to this question now."""


class KafkaCluster:
    """Answers about topics, the last one of each kept; threads may share it.

    Tells BusAway once when the brokers cease to answer, and BusBack when they do again.
    """

    def __init__(self, brokers: str, properties: Mapping[str, str], now: Callable[[], float] = time.monotonic) -> None:
        """Nothing is asked yet. Raises ConfigError if the client library refuses a property."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        self._brokers = brokers
        self._now = now
        self._reason = ""
        self._denied = False
        self.connection = {"log_level": "0", "socket.timeout.ms": "10000", **properties, "bootstrap.servers": brokers}
        try:
            self._admin = AdminClient({**self.connection, "error_cb": self._hear})
        except KafkaException as error:
            raise ConfigError(
                "Kafka's client refuses one of the properties in KAFKA_CONFIG, or a setting about security:"
                f" {in_plain_words(_without(properties, error.args[0].str()))}"
            ) from None  # its text may hold the value
        self._topics: dict[str, tuple[float, Topic | None]] = {}
        self._ends: dict[str, tuple[float, Mapping[int, int]]] = {}
        self._asked_at = now() - _PAUSE_S
        self._away_at: float | None = None
        self._lock = threading.RLock()
        self.outages = 0

    def topic(self, name: str, *, age_s: float, wait_s: float) -> Topic | None:
        """The topic, or None if there is none of that name; what was heard in the last `age_s` seconds will do.

        Raises UnavailableError after `wait_s` seconds, at once if the brokers have just failed to answer; ConfigError
        if they refuse this client.
        """
        from confluent_kafka import TopicCollection

        with self._lock:
            heard_at, known = self._topics.get(name, (None, None))
            if heard_at is not None and self._now() - heard_at <= age_s:
                return known
            asked = self._ask(lambda s: self._admin.describe_topics(TopicCollection([name]), request_timeout=s), wait_s)
            found = None
            if asked is not None:
                topic_id = str(asked.topic_id)
                led = {p.id: p.leader is not None and p.leader.id >= 0 for p in asked.partitions}
                found = Topic("" if topic_id == _NO_ID else topic_id, led)
            self._topics[name] = (self._now(), found)
            return found

    def reach(self, *, wait_s: float) -> Any:  # noqa: ANN401  # the library carries no types
        """What the brokers say of their cluster, and what this user may do there. Raises as `topic` does."""
        with self._lock:
            return self._ask(
                lambda s: {"": self._admin.describe_cluster(include_authorized_operations=True, request_timeout=s)},
                wait_s,
            )

    @property
    def admin(self) -> Any:  # noqa: ANN401  # the library carries no types
        """The client itself, for what only a person asks."""
        return self._admin

    def known(self, name: str) -> Topic | None:
        """What was last heard of the topic; does not ask."""
        return self._topics.get(name, (0.0, None))[1]

    def bounds(self, name: str, partition: int, *, wait_s: float) -> tuple[int, int] | None:
        """(first offset, end) of a partition as a reader of committed messages sees it; None if there is none.

        Raises as `topic` does.
        """
        from confluent_kafka.admin import OffsetSpec

        topic = self.topic(name, age_s=_PAUSE_S, wait_s=wait_s)
        if topic is None or partition not in topic.led:
            return None
        with self._lock:
            first = self._offsets(name, [partition], OffsetSpec.earliest(), wait_s).get(partition)
            end = self._offsets(name, [partition], OffsetSpec.latest(), wait_s).get(partition)
            return None if first is None or end is None else (first, end)

    def ends(self, name: str, *, age_s: float, wait_s: float) -> Mapping[int, int]:
        """Partition → its end, as `bounds` gives it, of all partitions of a topic in one go; {} if there is none.

        What was asked in the last `age_s` seconds will do. Raises as `topic` does.
        """
        from confluent_kafka.admin import OffsetSpec

        with self._lock:
            asked_at, known = self._ends.get(name, (-math.inf, {}))
            now = self._now()
            if now - asked_at <= age_s:
                return known
            topic = self.topic(name, age_s=age_s, wait_s=wait_s)
            partitions = [] if topic is None else [partition for partition, led in topic.led.items() if led]
            if not partitions:
                return {}
            ends = self._offsets(name, partitions, OffsetSpec.latest(), wait_s)
            self._ends[name] = (now, ends)
            return ends

    def _offsets(self, name: str, partitions: Sequence[int], spec: Any, wait_s: float) -> dict[int, int]:  # noqa: ANN401  # as above
        """Partition → offset, as a reader of committed messages sees it, of those that there are."""
        from confluent_kafka import IsolationLevel, TopicPartition

        places = {TopicPartition(name, partition): spec for partition in partitions}
        isolation = IsolationLevel.READ_COMMITTED
        found = self._ask_all(
            lambda s: self._admin.list_offsets(places, isolation_level=isolation, request_timeout=s), wait_s
        )
        return {place.partition: int(answer.offset) for place, answer in found.items() if answer is not None}

    def _ask(self, ask: Callable[[float], dict[Any, Future[Any]]], wait_s: float) -> Any:  # noqa: ANN401  # as above
        """The answer to one question about one thing; None if the thing does not exist."""
        (answer,) = self._ask_all(ask, wait_s).values()
        return answer

    def _ask_all(self, ask: Callable[[float], dict[Any, Future[Any]]], wait_s: float) -> dict[Any, Any]:
        """The answers to one question about several things; None for each that does not exist."""
        if self._away_at is not None and self._now() - self._asked_at < _PAUSE_S:
            raise UnavailableError(self._said(), retry_after_s=_PAUSE_S)
        try:
            found = {thing: self._wait(answer, wait_s) for thing, answer in ask(max(wait_s, _STEP_S)).items()}
        except _NoAnswerError:
            self._asked_at = self._now()
            self.outages += 1
            if self._away_at is None:
                self._away_at = self._now()
                tell(BusAway(self._brokers, self._reason or "no answer"))
            raise
        if self._away_at is not None:
            tell(BusBack(self._brokers, self._now() - self._away_at))
            self._away_at, self._reason = None, ""
        return found

    def _wait(self, answer: Future[Any], wait_s: float) -> Any:  # noqa: ANN401  # as above
        from confluent_kafka import KafkaException

        deadline = self._now() + wait_s
        while True:
            try:
                return answer.result(min(_STEP_S, max(0.0, deadline - self._now()) + 0.01))
            except (TimeoutError, FutureTimeoutError):
                self._admin.poll(0)
                if self._denied:
                    raise ConfigError(f"KAFKA_BROKERS `{self._brokers}` cannot be used: {self._reason}") from None
                if self._now() >= deadline:
                    raise _NoAnswerError(self._said(), retry_after_s=_PAUSE_S) from None
            except KafkaException as error:
                return self._judge(error)

    def _judge(self, error: Any) -> None:  # noqa: ANN401  # as above
        """None for what does not exist. Raises UnavailableError or ConfigError for all else."""
        from confluent_kafka import KafkaError

        told = error.args[0]
        missing = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}  # noqa: SLF001  # public, in spite of the names
        if told.code() in missing:
            return
        if told.code() in {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}:
            raise ConfigError(
                f"KAFKA_BROKERS `{self._brokers}` do not let this user in ({told.name()}): grant it DESCRIBE and READ"
                " on the topic"
            ) from error
        if told.code() == KafkaError.TOPIC_EXCEPTION:
            raise ConfigError("Kafka refuses the name of a topic: look at the TOPIC_ settings") from error
        if told.code() == KafkaError._FATAL:  # noqa: SLF001  # as above
            raise FatalError(f"Kafka's client gave up: {told.str()}") from error
        if told.code() in {KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}:  # noqa: SLF001  # as above
            self._reason = self._reason or in_plain_words(told.str())
            raise _NoAnswerError(self._said(), retry_after_s=_PAUSE_S) from error
        raise UnavailableError(f"KAFKA_BROKERS `{self._brokers}` cannot tell: {told.str()}") from error

    def _hear(self, error: Any) -> None:  # noqa: ANN401  # as above
        from confluent_kafka import KafkaError

        if error.code() in {KafkaError._AUTHENTICATION, KafkaError._SSL}:  # noqa: SLF001  # as above
            self._denied = True
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001  # as above
            self._reason = in_plain_words(error.str())

    def _said(self) -> str:
        return f"KAFKA_BROKERS `{self._brokers}` do not answer: {self._reason or SILENCE}"


def _without(properties: Mapping[str, str], text: str) -> str:
    """The text without any of the values that may be secret."""
    for value in sorted((v for n, v in properties.items() if n not in _OPEN), key=len, reverse=True):
        text = text.replace(value, "…") if value else text
    return text
