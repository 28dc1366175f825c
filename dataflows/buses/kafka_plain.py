"""The plain lane to Kafka: the client library's own Python, a message at a time; slow, and always there."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dataflows.buses.kafka_lane import HEADERS, PARTITION_EOF, TAKE_BYTES, Taken, nothing
from operators.errors import ConfigError
from operators.records import Headers
from operators.simd import PAD

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONSUME_MAX = 10_000
_WAITING_MAX = 1 << 16
_WAITING_BYTES_MAX = TAKE_BYTES
"""Messages of one partition that wait while others are read: beyond that its fetching pauses."""

_GROUP = "headrace-reader"
"""The library wants a name; no group is ever joined and nothing committed to it."""


class PlainLane:
    """A Lane through one `Consumer` that all taps share."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        """Connect in the background. Raises ConfigError if the library refuses the properties."""
        from confluent_kafka import Consumer, KafkaException

        try:
            self._consumer = Consumer({**properties, "group.id": _GROUP})
        except KafkaException as error:
            raise ConfigError(f"Kafka's client refuses its properties ({error.args[0].name()})") from error
        self._taps: dict[tuple[str, int], PlainTap] = {}
        self._lock = threading.Lock()

    def open(self, topic: str, partition: int, offset: int) -> PlainTap:
        """See Lane."""
        from confluent_kafka import TopicPartition

        with self._lock:
            place = (topic, partition)
            assert place not in self._taps, f"{place} is already read"
            self._consumer.incremental_assign([TopicPartition(topic, partition, offset)])
            self._taps[place] = PlainTap(self, place)
            return self._taps[place]

    def close(self) -> None:
        """See Lane."""
        self._consumer.close()

    def pump(self) -> None:
        """Hand to each tap what has arrived for it."""
        with self._lock:
            for message in self._consumer.consume(_CONSUME_MAX, 0):
                tap = self._taps.get((message.topic(), message.partition()))
                if tap is not None:
                    tap.push(message)
            for place, tap in self._taps.items():
                if tap.paused != tap.is_full:
                    self._hold(place, hold=tap.is_full)
                    tap.paused = tap.is_full

    def drop(self, place: tuple[str, int]) -> None:
        """Forget a tap."""
        from confluent_kafka import TopicPartition

        with self._lock:
            if self._taps.pop(place, None) is not None:
                self._consumer.incremental_unassign([TopicPartition(*place)])

    def _hold(self, place: tuple[str, int], *, hold: bool) -> None:
        from confluent_kafka import TopicPartition

        (self._consumer.pause if hold else self._consumer.resume)([TopicPartition(*place)])


class PlainTap:
    """A Tap whose messages wait in a list."""

    def __init__(self, lane: PlainLane, place: tuple[str, int]) -> None:
        """place: (topic, partition)."""
        self.paused = False
        self._lane = lane
        self._place = place
        self._waiting: deque[Any] = deque()
        self._size = 0

    @property
    def is_full(self) -> bool:
        """Whether no more should be fetched for now; once full, until half of it is taken."""
        share = 2 if self.paused else 1
        return len(self._waiting) * share > _WAITING_MAX or self._size * share > _WAITING_BYTES_MAX

    def push(self, message: Any) -> None:  # noqa: ANN401  # the library's messages carry no type
        """Take a message, or an error that came in its place."""
        self._waiting.append(message)
        self._size += 0 if message.error() else len(message.value() or b"")

    def take(self, events_max: int) -> Taken:
        """See Tap."""
        self._lane.pump()
        values: list[bytes] = []
        places: list[tuple[int, int]] = []
        good: list[Any] = []
        errors: list[int] = []
        eof, size = None, 0
        while self._waiting and len(values) < events_max and size < TAKE_BYTES:
            message = self._waiting.popleft()
            error, eof = message.error(), None
            if error is None:
                values.append(message.value() or b"")
                places.append((message.offset(), message.timestamp()[1]))
                good.append(message)
                size += len(values[-1])
            elif error.code() == PARTITION_EOF:
                eof = message.offset()
            else:
                errors.append(error.code())
        self._size -= size
        if not values:
            return replace(nothing(), errors=tuple(errors), eof=eof)
        lengths = np.array([len(v) for v in values], np.int64)
        offsets, timestamps = np.array(places, np.int64).T
        data = np.frombuffer(b"".join([*values, bytes(PAD)]), np.uint8)
        columns = (data, np.cumsum(lengths) - lengths, lengths, offsets, timestamps)
        return Taken(*columns, errors=tuple(errors), eof=eof, headers=lambda index: _headers(good[index]))

    def close(self) -> None:
        """See Tap."""
        self._lane.drop(self._place)
        self._waiting.clear()


def _headers(message: Any) -> Headers:  # noqa: ANN401  # as above
    try:
        last = dict(message.headers() or ())
    except UnicodeDecodeError:  # a name that no text is
        return Headers()
    return Headers(*(next((last[name] for name in names if last.get(name) is not None), None) for names in HEADERS))
