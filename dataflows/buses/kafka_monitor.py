"""What others may see of how far a topic is read: a consumer group's offsets, and the messages that are left."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from dataflows.observability.events import Behind, OffsetsNotShown, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from dataflows.buses.kafka_cluster import KafkaCluster

_ANSWER_S = 10.0
_BEHIND_S = 1.0


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
        self._moving: Future[Any] | None = None
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
                moving = self._moving
            if moving is None:
                return
            try:
                moving.result(max(0.01, deadline - self._now()))
            except Exception:  # noqa: BLE001  # told by `_moved`, and nothing rests on it
                return

    def _move(self) -> None:
        from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

        if self._moving is not None and self._moving.done():
            self._moving = None
        if self._moving is not None or not self._group or self._durable == self._shown:
            return
        wanted = dict(self._durable)
        offsets = [TopicPartition(self._topic, int(partition), offset) for partition, offset in sorted(wanted.items())]
        asked = ConsumerGroupTopicPartitions(self._group, offsets)
        admin = self._cluster.admin
        self._moving = admin.alter_consumer_group_offsets([asked], request_timeout=_ANSWER_S)[self._group]
        self._moving.add_done_callback(lambda answer: self._moved(answer, wanted))

    def _moved(self, answer: Future[Any], wanted: dict[str, int]) -> None:
        reason = _failure(answer)
        if not reason:
            self._shown = wanted
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
    if not _failure(answer):
        tell(Behind(partition, max(0, int(answer.result().offset) - read)))


def _failure(answer: Future[Any]) -> str:
    """Why there is no answer; "" if there is one."""
    error = answer.exception()
    if error is None:
        partitions = getattr(answer.result(), "topic_partitions", None) or ()
        errors = [p.error for p in partitions if p.error is not None]
        return str(errors[0].str()) if errors else ""
    return str(error.args[0].str()) if hasattr(error.args[0], "str") else str(error)
