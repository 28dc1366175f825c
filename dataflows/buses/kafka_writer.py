"""Messages to a topic of Kafka's, each exactly once: how far a writer has come is written in the same transaction.

A writer has a name, and by it a transactional id and a group that nobody joins. The group's only offset counts what the
writer has written, and moves in the transaction that writes. So a call that is repeated, after whatever crash, finds
the offset moved and does nothing. Of two writers of one name the younger one fences the older: whose transaction the
brokers refuse asks for the offset anew, and sees what the other has done.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from dataflows.buses.kafka_reasons import code_of, in_plain_words
from dataflows.observability.events import PlaceForgotten, tell
from operators.errors import ConfigError, FatalError, HeadraceError, ResumeError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dataflows.buses.kafka_cluster import KafkaCluster
    from operators.messages import Message

PROMISED = {"acks": "all", "enable.idempotence": "true"}
"""Properties that exactly-once rests on; nobody may set them otherwise."""

NAME = "headrace-{writer}-{topic}"
"""Transactional id of a writer, and its group."""

_TUNED = {
    "client.id": "headrace",
    "compression.type": "lz4",
    "linger.ms": "5",
    "log_level": "0",
    "message.max.bytes": "134217728",
    "partitioner": "murmur2_random",
    "queue.buffering.max.kbytes": "65536",
    "queue.buffering.max.messages": "131072",
    "reconnect.backoff.max.ms": "2000",
    "socket.keepalive.enable": "true",
    "transaction.timeout.ms": "60000",
}
"""message.max.bytes: the topic's own limit decides. partitioner: the one of Java clients."""

_STEP_S = 10.0
_ROUND_S = 20.0
_ANSWER_S = 1.0
_PAUSES_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
_REFUSALS_MAX = 20
"""How often brokers that answer may refuse an append before it fails; while none answers it waits on."""

_MISSING_AFTER = 5
"""Brokers that have just started do not know yet what is there: they are asked so often, 2 seconds in all."""

_TOPIC_AGE_S = 60.0
_LAST_S = 15.0
"""How long an append may still wait once the run has been told to stop."""

_KEEP_S = 6 * 3600.0
_KEEP_AGAIN_S = 60.0
"""Brokers forget offsets that do not move, after a week by default: the offset is written again before that."""

_DENIED = {29, 30, 31, 53}
"""Codes: this user may not write to the topic, use the group, the cluster, the transactional id."""

_MISSING = {3, -188}
_TOO_LARGE = {10, 18}
_REBOOTSTRAPS = 0x020B00FF
"""Version of librdkafka from which on it leaves all brokers and begins anew when none answers."""

_PURGED = {-151, -152}
_INVALID_ARGUMENT = -186


def producer_properties(brokers: str, properties: Mapping[str, str]) -> dict[str, str]:
    """What a producer is made with. Raises ConfigError if `properties` would break a promise."""
    for name in (*PROMISED, "delivery.report.only.error", "transactional.id"):
        if name in properties:
            raise ConfigError(f"KAFKA_CONFIG may not set `{name}`: exactly-once rests on it")
    return {**_TUNED, **properties, **PROMISED, "bootstrap.servers": brokers}


class _TooLargeError(ConfigError):
    """A message, or a batch of some, is larger than the topic takes."""


class KafkaWriter:
    """Appends to a topic under a name. Waits for brokers that are away, and may be used by several threads.

    Exactly once by default. at_least_once: no transactions; an append that is repeated is written again.
    """

    def __init__(  # what a writer is made of, each once
        self,
        cluster: KafkaCluster,
        properties: Mapping[str, str],
        topic: str,
        writer: str,
        *,
        stopped: threading.Event,
        at_least_once: bool = False,
    ) -> None:
        """Nothing is asked yet. properties: see producer_properties. stopped: the run is to end."""
        self._cluster = cluster
        self._properties = dict(properties)
        self._topic = topic
        self._name = NAME.format(writer=writer, topic=topic)
        self._stopped = stopped
        self._at_least_once = at_least_once
        self._producer: Any = None
        self._group: Any = None
        self._place: int | None = None
        self._refused: Any = None
        self._begun = False
        self._singly = False
        self._keep_at = 0.0
        self._sure = False
        self._lock = threading.Lock()

    def append(self, messages: Sequence[Message], *, at: int) -> int:
        """See WritableBus. Raises UnavailableError if the run is to end and the brokers are away.

        No messages: `at` is where the writer is; from then on only what has failed is taken for a repeat.
        """
        with self._lock:
            if messages:
                return int(self._patiently(lambda: self._append(messages, at)))
            if at > 0 and not self._at_least_once:
                if not self._sure:
                    self._patiently(lambda: self._check(at, self._known_place()))
                if time.monotonic() >= self._keep_at:
                    self._keep(at)
            self._sure = True
            return at

    def written(self) -> int:
        """See WritableBus; 0 without transactions."""
        with self._lock:
            return self._patiently(self._known_place) or 0

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        with self._lock:
            self._drop()

    def _append(self, messages: Sequence[Message], at: int) -> int:
        after = at + len(messages)
        if self._at_least_once:
            self._open()
            self._send(messages)
            self._flush()
            return after
        place = self._known_place()
        if place is None and at > 0:
            tell(PlaceForgotten(self._topic, self._name, at))
        if place is not None and (place == after or (place > after and not self._sure)):
            return after
        self._check(at, place)
        self._begin()
        self._send(messages)
        self._commit(after)
        return after

    def _check(self, at: int, place: int | None) -> None:
        """Raise ResumeError unless the place where the writer is, if it is known, is this one."""
        if place not in (None, at):
            raise ResumeError(
                f"`{self._name}` has written {place} messages to topic `{self._topic}`, and not {at}: RECOVERY_DIR is"
                " another copy, or two runs share it; start anew with an empty one"
            )

    def _known_place(self) -> int | None:
        """How far the writer has come; None if nothing was written, or Kafka has forgotten it."""
        if self._producer is None or self._place is None:
            self._open()
        return self._place

    def _keep(self, at: int) -> None:
        """Write the offset again, as it is, if the brokers are there."""
        self._keep_at = time.monotonic() + _KEEP_AGAIN_S
        try:
            if self._known_place() == at:
                self._begin()
                self._commit(at)
        except Exception as error:
            self._drop()
            if isinstance(judged := self._judged(error), ConfigError):
                raise judged from error

    def _open(self) -> None:
        """Become the writer of this name: what an older one left unfinished is undone, and the offset is asked for."""
        from confluent_kafka import Consumer, Producer, TopicPartition, libversion

        if self._at_least_once and self._producer is not None:
            return
        self._drop()
        if self._cluster.topic(self._topic, age_s=_TOPIC_AGE_S, wait_s=_STEP_S) is None:
            raise UnavailableError(f"topic `{self._topic}` does not exist")
        hooks = {"on_delivery": self._hear, "delivery.report.only.error": True, "error_cb": lambda _error: None}
        if libversion()[1] >= _REBOOTSTRAPS:
            hooks["metadata.recovery.strategy"] = "none"  # else an offset is sent for ever to a broker that was left
        if self._singly:
            hooks["batch.num.messages"] = 1
        if self._at_least_once:
            self._producer = Producer({**self._properties, **hooks})
            return
        self._producer = Producer({**self._properties, **hooks, "transactional.id": self._name})
        self._producer.init_transactions(_STEP_S)
        reading = {"group.id": self._name, "enable.auto.commit": "false", "isolation.level": "read_committed"}
        mine = {name: value for name, value in self._properties.items() if name not in {*PROMISED, *_TUNED}}
        consumer = Consumer({**mine, **reading, "log_level": "0", "error_cb": lambda _error: None})
        try:
            (found,) = consumer.committed([TopicPartition(self._topic, 0)], timeout=_STEP_S)
            self._group = consumer.consumer_group_metadata()
        finally:
            consumer.close()
        if found.error is not None and found.error.code() not in _MISSING:
            raise UnavailableError(f"the place of `{self._name}` cannot be had: {found.error.str()}")
        self._place = None if found.offset < 0 else int(found.offset)

    def _begin(self) -> None:
        self._place = None  # not known until the transaction is over
        self._producer.begin_transaction()
        self._begun = True

    def _send(self, messages: Sequence[Message]) -> None:
        self._refused = None
        produce, topic = self._producer.produce, self._topic
        for value, key, headers in messages:
            while True:
                try:
                    produce(topic, value, key, headers=list(headers))
                    break
                except BufferError:
                    self._make_room()
                except Exception as error:
                    if code_of(error) in _TOO_LARGE:
                        raise self._too_large(len(value)) from error
                    raise

    def _make_room(self) -> None:
        """Wait until some of what is queued was taken by the brokers."""
        deadline = time.monotonic() + _ROUND_S
        waiting = len(self._producer)
        while len(self._producer) >= waiting:
            self._producer.poll(0.05)
            if self._refused is not None:
                raise self._refused
            if time.monotonic() > deadline:
                raise UnavailableError(f"topic `{self._topic}` takes no messages")

    def _flush(self) -> None:
        left = self._producer.flush(_ROUND_S)
        if self._refused is not None:
            raise self._refused
        if left:
            raise UnavailableError(f"topic `{self._topic}` takes no messages")

    def _commit(self, after: int) -> None:
        from confluent_kafka import TopicPartition

        offsets = [TopicPartition(self._topic, 0, after)]
        self._again(lambda: self._bounded(self._producer, offsets))
        self._again(lambda: self._producer.commit_transaction(_STEP_S))
        self._begun = False
        self._place = after
        self._keep_at = time.monotonic() + _KEEP_S

    def _bounded(self, producer: Any, offsets: list[Any]) -> None:  # noqa: ANN401  # the library carries no types
        """Send the offset, in a thread: the library heeds no limit where the group's broker has left."""
        group, failures = self._group, []

        def send() -> None:
            try:
                producer.send_offsets_to_transaction(offsets, group, _STEP_S)
            except Exception as error:  # noqa: BLE001  # raised by the thread that waits
                failures.append(error)

        sending = threading.Thread(target=send, name="kafka-offsets", daemon=True)
        sending.start()
        sending.join(_ROUND_S)
        if sending.is_alive():
            self._producer, self._begun = None, False  # nobody can let go of it
            raise UnavailableError(f"the group `{self._name}` does not answer")
        if failures:
            raise failures[0]

    def _again(self, call: Callable[[], object]) -> None:
        """Make a call that may be repeated until it is answered."""
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + _ROUND_S
        while True:
            try:
                call()
            except KafkaException as error:
                if self._refused is not None:
                    raise self._refused from error
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
            else:
                return

    def _hear(self, error: Any, message: Any) -> None:  # noqa: ANN401  # the library carries no types
        """A message was refused: keep the first reason, which says more than the transaction's."""
        from confluent_kafka import KafkaException

        if error is not None and self._refused is None and error.code() not in _PURGED:
            size = len(message.value() or b"") + len(message.key() or b"")
            self._refused = self._too_large(size) if error.code() in _TOO_LARGE else KafkaException(error)

    def _patiently(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401  # what the call returns
        """The call's result; tried again with a new connection while brokers are away or change their mind."""
        refusals = tries = 0
        last_at: float | None = None
        while True:
            try:
                done = call()
            except Exception as error:
                judged = self._judged(error)
                self._drop()
                if isinstance(judged, _TooLargeError) and not self._singly:
                    self._singly = True  # it was a batch: only alone is a message too large for certain
                    continue
                if not isinstance(judged, UnavailableError):
                    raise judged from _other(error, judged)
                refusals = refusals + 1 if self._is_answered(missing_is_sure=refusals >= _MISSING_AFTER) else 0
                now = time.monotonic()
                last_at = now + _LAST_S if last_at is None and self._stopped.is_set() else last_at
                if refusals >= _REFUSALS_MAX:
                    raise FatalError(f"topic `{self._topic}` cannot be written to: {judged}") from error
                if last_at is not None and now > last_at:
                    raise judged from _other(error, judged)
            else:
                if self._singly:
                    self._singly = False
                    self._drop()  # the next messages go by the batch again
                return done
            self._stopped.wait(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1

    def _is_answered(self, *, missing_is_sure: bool) -> bool:
        """Whether the brokers answer. Raises ConfigError if they refuse this client, or surely have no such topic."""
        try:
            found = self._cluster.topic(self._topic, age_s=0.0, wait_s=_ANSWER_S)
        except UnavailableError:
            return False
        if found is None and missing_is_sure:
            raise missing_topic(self._topic)
        return True

    def _judged(self, error: Exception) -> HeadraceError:
        """What a failure means to the caller; UnavailableError: try again, with a new connection."""
        if isinstance(error, HeadraceError):
            return error
        code = code_of(error)
        if code is None:
            raise error
        told = error.args[0]
        if code in _DENIED:
            return ConfigError(
                f"KAFKA_BROKERS do not let this user write to topic `{self._topic}` ({told.name()}): grant it WRITE on"
                f" the topic and the transactional id `{self._name}`, and READ on the group of that name"
            )
        if code in _TOO_LARGE:
            return self._too_large(None)
        if code == _INVALID_ARGUMENT:
            return ConfigError(f"Kafka's client refuses a property in KAFKA_CONFIG: {told.name()}")
        return UnavailableError(f"topic `{self._topic}` cannot be written to now: {in_plain_words(told.str())}")

    def _too_large(self, size: int | None) -> _TooLargeError:
        said = "a message" if size is None else f"a message of {size} bytes"
        return _TooLargeError(
            f"{said} is too large for topic `{self._topic}`: raise the topic's `max.message.bytes`"
            " (and `message.max.bytes` in KAFKA_CONFIG, if it is set there)"
        )

    def _drop(self) -> None:
        """Leave the connection with all that was on its way; readers need not wait for a transaction left open."""
        producer, self._producer, self._place = self._producer, None, None
        begun, self._begun = self._begun, False
        if producer is None:
            return
        producer.purge()
        if begun:
            with contextlib.suppress(Exception):  # the next one of this name, or time, ends it
                producer.abort_transaction(_ANSWER_S)


def missing_topic(topic: str) -> ConfigError:
    """The error about a topic that is to be written to and does not exist."""
    return ConfigError(f"topic `{topic}` does not exist on KAFKA_BROKERS; `headrace topics create` makes what lacks")


def _other(error: BaseException, raised: BaseException) -> BaseException | None:
    """What was behind an error, unless that is the error itself: one that is its own cause has no end."""
    return None if error is raised else error
