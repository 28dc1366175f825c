"""The fast lane to Kafka: librdkafka's own batch call, its messages copied into columns by compiled code.

The library is the one that confluent-kafka has loaded. Its consumer is the simple one: a queue a partition, started at
an offset and stopped again by itself, no group and so no rebalancing.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from dataflows.buses.kafka_lane import HEADERS, PARTITION_EOF, TAKE_BYTES, Taken, nothing
from operators.errors import ConfigError, FatalError
from operators.foreign_messages import copy_messages, give_back, total_length
from operators.records import Headers
from operators.simd import PAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_SLICE = 4096
_CONSUMER = 1
_CLOSE_AT_ONCE = 0x8
_TEXT_BYTES = 512

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_conf_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_conf_set": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "rd_kafka_destroy_flags": (None, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_last_error": (ctypes.c_int, []),
    "rd_kafka_err2str": (ctypes.c_char_p, [ctypes.c_int]),
    "rd_kafka_topic_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]),
    "rd_kafka_topic_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_queue_new": (ctypes.c_void_p, [ctypes.c_void_p]),
    "rd_kafka_queue_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_consume_start_queue": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p],
    ),
    "rd_kafka_consume_stop": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_consume_batch_queue": (
        ctypes.c_ssize_t,
        [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t],
    ),
    "rd_kafka_message_timestamp": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_void_p]),
    "rd_kafka_message_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_message_headers": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    "rd_kafka_header_get_last": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p],
    ),
}
"""What is used of the library: (result, arguments). All of it is its public, stable interface."""


def load_library() -> ctypes.CDLL | None:
    """The librdkafka that confluent-kafka uses, or None if its functions cannot be reached."""
    from confluent_kafka import cimpl

    try:
        library = ctypes.CDLL(cimpl.__file__)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None  # built otherwise than usual: the plain lane does without
    return library


class FastLane:
    """A Lane through ctypes and compiled code."""

    def __init__(self, library: ctypes.CDLL, properties: Mapping[str, str]) -> None:
        """Connect in the background. Raises ConfigError naming a property that the library refuses."""
        self.library = library
        conf = library.rd_kafka_conf_new()
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        for name, value in properties.items():
            if library.rd_kafka_conf_set(conf, name.encode(), value.encode(), text, _TEXT_BYTES) != 0:
                library.rd_kafka_conf_destroy(conf)
                raise ConfigError(f"Kafka's client does not know the property `{name}`, or not this value of it")
        self._handle = library.rd_kafka_new(_CONSUMER, conf, text, _TEXT_BYTES)
        if not self._handle:
            library.rd_kafka_conf_destroy(conf)
            raise ConfigError(f"Kafka's client does not start: {text.value.decode('utf-8', 'replace')}")
        self._topics: dict[str, int] = {}
        self._lock = threading.Lock()

    def open(self, topic: str, partition: int, offset: int) -> FastTap:
        """See Lane."""
        with self._lock:
            if topic not in self._topics:
                made = self.library.rd_kafka_topic_new(self._handle, topic.encode(), None)
                if not made:
                    raise ConfigError(f"`{topic}` cannot be the name of a topic")
                self._topics[topic] = made
            handle = self._topics[topic]
        return FastTap(self.library, self.library.rd_kafka_queue_new(self._handle), handle, partition, offset)

    def close(self) -> None:
        """See Lane."""
        if not self._handle:
            return
        for handle in self._topics.values():
            self.library.rd_kafka_topic_destroy(handle)
        self.library.rd_kafka_destroy_flags(self._handle, _CLOSE_AT_ONCE)
        self._topics.clear()
        self._handle = None


class FastTap:
    """A Tap with a queue of the library's."""

    def __init__(self, library: ctypes.CDLL, queue: int, topic: int, partition: int, offset: int) -> None:
        """Begin to read ahead. queue, topic: handles; the queue becomes the tap's own."""
        self._library = library
        self._queue: int | None = queue
        self._topic = topic
        self._partition = partition
        self._held = np.zeros(0, np.int64)
        self._calls = [
            ctypes.cast(function, ctypes.c_void_p).value
            for function in (library.rd_kafka_message_timestamp, library.rd_kafka_message_destroy)
        ]
        if library.rd_kafka_consume_start_queue(topic, partition, offset, queue) != 0:
            why = library.rd_kafka_err2str(library.rd_kafka_last_error()).decode()
            library.rd_kafka_queue_destroy(queue)
            raise FatalError(f"partition `{partition}` cannot be read at {offset}: {why}")

    def take(self, events_max: int) -> Taken:
        """See Tap."""
        if self._queue is None:
            return nothing()
        self._give_back()
        messages = np.empty(events_max, np.int64)
        count = size = 0
        while count < events_max and size < TAKE_BYTES:
            want = min(_SLICE, events_max - count)
            at = messages.ctypes.data + 8 * count
            found = self._library.rd_kafka_consume_batch_queue(self._queue, 0, at, want)
            if found <= 0:
                break
            size += int(total_length(messages[count : count + found]))
            count += found
        return self._copied(messages[:count], size) if count > 0 else nothing()

    def close(self) -> None:
        """See Tap."""
        self._give_back()
        if self._queue is not None:
            self._library.rd_kafka_consume_stop(self._topic, self._partition)
            self._library.rd_kafka_queue_destroy(self._queue)
            self._queue = None

    def _give_back(self) -> None:
        held, self._held = self._held, self._held[:0]
        give_back(held, self._calls[1])

    def _headers(self, index: int) -> Headers:
        """Headers of message `index` of the last take: the library unpacks them only when it is asked."""
        headers, value, size = ctypes.c_void_p(), ctypes.c_char_p(), ctypes.c_size_t()
        if self._library.rd_kafka_message_headers(int(self._held[index]), ctypes.byref(headers)) != 0:
            return Headers()
        found: list[bytes | None] = []
        for names in HEADERS:
            found.append(None)
            for name in names:
                place = (ctypes.byref(value), ctypes.byref(size))
                missing = self._library.rd_kafka_header_get_last(headers, name.encode(), *place) != 0
                if not missing and value.value is not None:
                    found[-1] = ctypes.string_at(value, size.value)
                    break
        return Headers(*found)

    def _copied(self, messages: NDArray[np.int64], size: int) -> Taken:
        data = np.empty(size + PAD, np.uint8)
        columns = np.empty((4, len(messages)), np.int64)
        starts, lengths, offsets, timestamps = columns
        errors = np.empty((len(messages), 2), np.int64)
        count = int(copy_messages(messages, data, starts, lengths, offsets, timestamps, errors, *self._calls))
        self._held = messages[:count]
        code, offset = errors[-1].tolist()
        eof = offset if code == PARTITION_EOF else None
        others = () if count == len(messages) else tuple(int(e) for e in errors[:, 0] if e not in (0, PARTITION_EOF))
        taken = (data, starts[:count], lengths[:count], offsets[:count], timestamps[:count])
        return Taken(*taken, errors=others, eof=eof, headers=self._headers)
