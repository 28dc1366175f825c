"""What others may see of how far a topic is read: a consumer group's offsets, and the messages that are left."""

from __future__ import annotations

import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dataflows.observability.events import Behind, OffsetsNotShown, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from dataflows.buses.kafka_cluster import KafkaCluster

_ANSWER_S = 10.0
_BEHIND_S = 1.0
_PAUSE_S = 0.01


class KafkaMonitor:
    """Moves the offsets of a group that nobody joins, and counts what is left to read. Threads may share it.

    For monitoring alone: nothing is ever read back, nobody waits for it, and what fails is told and tried again.
    """

    def __init__(
        self, cluster: KafkaCluster, topic: str, group: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        """group: "" moves none."""
        self._cluster = cluster
        self._topic = topic
        self._group = group
        self._now = now
        self._lock = threading.Lock()
        self._durable: dict[str, int] = {}
        self._shown: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._is_moving = False
        self._asked_at = -_BEHIND_S
        self._told = ""

    def show(self, durable: Mapping[str, int], read: Mapping[str, int]) -> None:
        """Note next offsets by partition: of the last durable snapshot, and of what was read. Does not wait."""
        with self._lock:
            self._durable |= durable
            self._read |= read
            self._move()
            self._ask()

    def wait(self, limit_s: float) -> None:
        """Wait until what was noted is shown, or for so long."""
        deadline = self._now() + limit_s
        while self._now() < deadline:
            with self._lock:
                self._move()
                if not self._is_moving:
                    return
            threading.Event().wait(_PAUSE_S)

    def _move(self) -> None:
        """Hear what became of the last move, and begin the next one.

        The admin client could move them too, but where the group's broker goes away meanwhile, it ends the process.
        """
        from confluent_kafka import KafkaException, TopicPartition

        if not self._group:
            return
        self._consumer.poll(0)
        if self._is_moving or self._durable == self._shown:
            return
        wanted = dict(self._durable)
        offsets = [TopicPartition(self._topic, int(partition), offset) for partition, offset in sorted(wanted.items())]
        self._is_moving = True
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._moved(error.args[0], [])

    @cached_property
    def _consumer(self) -> Any:  # noqa: ANN401  # the library carries no types
        from confluent_kafka import Consumer

        named = {"group.id": self._group, "enable.auto.commit": "false", "on_commit": self._moved}
        return Consumer({**self._cluster.connection, **named, "error_cb": lambda _error: None})

    def _moved(self, error: Any, places: list[Any]) -> None:  # noqa: ANN401  # as above
        """Called by `poll`, so under the lock."""
        self._is_moving = False
        errors = [e for e in (error, *(place.error for place in places)) if e is not None]
        reason = str(errors[0].str()) if errors else ""
        if not reason:
            self._shown = {str(place.partition): int(place.offset) for place in places}
        if reason and reason != self._told:
            tell(OffsetsNotShown(self._group, reason))
        self._told = reason

    def _ask(self) -> None:
        """Ask where the partitions end, now and then."""
        from confluent_kafka import IsolationLevel, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        if not self._read or self._now() - self._asked_at < _BEHIND_S:
            return
        self._asked_at = self._now()
        places = {TopicPartition(self._topic, int(partition)): OffsetSpec.latest() for partition in self._read}
        isolation = IsolationLevel.READ_COMMITTED
        asked = self._cluster.admin.list_offsets(places, isolation_level=isolation, request_timeout=_ANSWER_S)
        for place, answer in asked.items():
            read = self._read[str(place.partition)]
            answer.add_done_callback(lambda a, place=place, read=read: _tell_behind(str(place.partition), read, a))


def _tell_behind(partition: str, read: int, answer: Future[Any]) -> None:
    if answer.exception() is None:
        tell(Behind(partition, max(0, int(answer.result().offset) - read)))
