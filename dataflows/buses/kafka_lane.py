"""What the two lanes to Kafka have in common: how messages are taken from a partition, apart from what they mean.

The fast lane (kafka_fast.py) is compiled, the plain one (kafka_plain.py) is the client library's own Python; which one
runs never shows in what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from operators.errors import ConfigError
from operators.simd import PAD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from operators.records import Headers

TAKE_BYTES = 16 << 20
"""A take stops once it has so many bytes of messages; it may end one message or slice above."""

HEADERS = (("content-type",), ("ce_specversion",), ("ce_traceparent", "traceparent"))
"""Headers that are read, in the order of `Headers`: of several names the first that a message has, of several headers
of one name the last."""

PARTITION_EOF = -191
"""librdkafka's code for: there is nothing behind this message yet."""

PROMISED = {
    "auto.offset.reset": "error",
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "enable.partition.eof": "true",
    "isolation.level": "read_committed",
}
"""Properties that exactly-once rests on; nobody may set them otherwise."""

_TUNED = {
    "check.crcs": "true",
    "client.id": "headrace",
    "fetch.queue.backoff.ms": "5",
    "fetch.wait.max.ms": "100",
    "log_level": "0",
    "reconnect.backoff.max.ms": "2000",
    "socket.keepalive.enable": "true",
}
"""log_level 0: the library would write to stderr; what matters of it is told as an event."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Messages of one partition, and what was said between them.

    data: uint8, with PAD bytes more than the messages need. starts, lengths, offsets, timestamps: int64 (n,);
    timestamps are the broker's, milliseconds since the Unix epoch, -1 if it has none. A message without a value is
    empty. errors: codes of the library. eof: the offset at which the partition had no more, if nothing came after that.
    headers: see RawChunk; until the next take.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    errors: tuple[int, ...] = ()
    eof: int | None = None
    headers: Callable[[int], Headers] | None = None


class Tap(Protocol):
    """One partition that is being read ahead. Used by one thread at a time."""

    def take(self, events_max: int) -> Taken:
        """Return what has arrived, at most `events_max` messages; does not block."""
        ...

    def close(self) -> None:
        """Stop reading ahead; what has arrived is dropped. Safe to call twice."""
        ...


class Lane(Protocol):
    """A connection to the brokers for any number of taps; threads may share it."""

    def open(self, topic: str, partition: int, offset: int) -> Tap:
        """Begin to read ahead at that offset; a partition can have one tap at a time.

        Needs no answer of the brokers. Raises ConfigError for a topic whose name is impossible.
        """
        ...

    def close(self) -> None:
        """Close the connection; all taps must be closed. Safe to call twice."""
        ...


def nothing() -> Taken:
    """A take of no messages."""
    none = np.zeros(0, np.int64)
    return Taken(np.zeros(PAD, np.uint8), none, none, none, none)


def lane_properties(brokers: str, properties: Mapping[str, str], *, queue_kib: int) -> dict[str, str]:
    """What a consumer is made with. queue_kib: KiB that may be read ahead, at most, of each queue.

    Raises ConfigError if `properties` would break a promise.
    """
    for name in (*PROMISED, "bootstrap.servers", "group.id"):
        if name in properties:
            raise ConfigError(f"KAFKA_CONFIG may not set `{name}`: exactly-once, or another setting, rests on it")
    tuned = {**_TUNED, "queued.max.messages.kbytes": str(queue_kib)}
    return {**tuned, **properties, **PROMISED, "bootstrap.servers": brokers}
