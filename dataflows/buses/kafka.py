"""The bus on Kafka: a partition's name is its number, its offset is Kafka's own.

Offsets may have gaps: compaction and transactions leave them. Only committed messages are read. A consumer of this
process reads every partition by itself, from the offset in its position; no group of Kafka's has a say in that.
"""

from __future__ import annotations

import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from dataflows.buses.kafka_cluster import KafkaCluster
from dataflows.buses.kafka_fast import FastLane, load_library
from dataflows.buses.kafka_lane import Lane, Taken, Tap, lane_properties, nothing
from dataflows.buses.kafka_lookup import Lookup
from dataflows.buses.kafka_plain import PlainLane
from dataflows.buses.kafka_writer import KafkaWriter, producer_properties
from dataflows.observability.events import PartitionReset, tell
from operators.errors import ConfigError, FatalError, ResumeError, UnavailableError
from operators.records import RawChunk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dataflows.buses.port import PartitionReader, Position
    from operators.messages import Message

OffsetReset = Literal["error", "earliest", "latest"]
LaneName = Literal["fast", "plain"]

_START_WAIT_S = 30.0
_WAIT_S = 0.25
_DOUBT_S = 2.0
"""A broker that has just started, or become a leader, may not know yet what is there: it is asked again for so long."""

_RETRY_S = 0.5
_SURE_S = 1.0
_SURE_AFTER_END_S = 0.1
"""How old an answer about a topic may be; younger where a log has ended, since there it may have been made anew."""

_MEMORY_KIB = 256 << 10
_QUEUE_KIB = (1 << 10, 4 << 10)

_DENIED = {29}
"""TOPIC_AUTHORIZATION_FAILED"""

_PASSING = {1, 2, 3, 5, 6, 7, 9, 13, 56, 74, 75, 76, 78, 100, 103}
"""Codes of the brokers' that a look at the partition clears up: no leader, gone offsets, unknown topic and the like."""


class KafkaBus:
    """A WritableBus over the topics of a Kafka cluster."""

    counts_bytes = False

    def __init__(  # noqa: PLR0913  # what a bus may be told, each once
        self,
        brokers: str,
        *,
        properties: Mapping[str, str],
        offset_reset: OffsetReset = "error",
        listing_s: float = 1.0,
        lane: LaneName | None = None,
        at_least_once: bool = False,
        stopped: threading.Event | None = None,
    ) -> None:
        """Check the properties; nothing is asked of the brokers yet.

        brokers: `host:port` with commas between. properties: librdkafka's, on top of ours. offset_reset: what to do
        about a position whose messages are gone. listing_s: how old, in seconds, a list of partitions may be. lane:
        default is the fast one where it can be had. at_least_once, stopped: see KafkaWriter.
        """
        self._brokers = brokers
        self._properties = dict(properties)
        self._listing_s = listing_s
        self._lane_name = lane
        self._partitions = 1
        lane_properties(brokers, properties, queue_kib=0)
        self._writing = producer_properties(brokers, properties)
        self._at_least_once = at_least_once
        self._stopped = threading.Event() if stopped is None else stopped
        self._writers: dict[tuple[str, str], KafkaWriter] = {}
        self.offset_reset = offset_reset
        self.cluster = KafkaCluster(brokers, properties)
        self._lock = threading.Lock()
        self._lookup_lock = threading.Lock()
        self._opened: list[Lane] = []

    def partitions(self, topic: str) -> tuple[str, ...]:
        """See Bus. The first call waits for the brokers; later ones fall back on what was heard last.

        Raises UnavailableError if they do not answer the first call in 30 seconds, ConfigError if they refuse.
        """
        known = self.cluster.known(topic)
        try:
            wait_s = _START_WAIT_S if known is None else _WAIT_S
            found = self.cluster.topic(topic, age_s=self._listing_s, wait_s=wait_s)
        except UnavailableError:
            if known is None:
                raise
            found = known
        if found is None:
            return ()
        self._partitions = max(self._partitions, len(found.led))
        return tuple(sorted(str(p) for p in found.led))

    def reader(self, topic: str, partition: str, position: Mapping[str, object] | None) -> PartitionReader:
        """See Bus. While the brokers do not answer the reader waits, and so may raise ResumeError later, in `poll`."""
        return KafkaReader(self, topic, partition, position)

    def fetch(self, topic: str, partition: str, offset: int) -> bytes:
        """See Bus. Raises UnavailableError if the brokers do not answer in 60 seconds."""
        with self._lookup_lock:
            return self._lookup.message(topic, _number(partition), offset)

    def end(self, topic: str, partition: str) -> int:
        """See Bus: the last stable offset. Raises UnavailableError if the brokers do not answer."""
        bounds = self.cluster.bounds(topic, _number(partition), wait_s=_START_WAIT_S)
        return 0 if bounds is None else bounds[1]

    def first(self, topic: str, partition: str) -> int:
        """See BoundedBus."""
        bounds = self.cluster.bounds(topic, _number(partition), wait_s=_START_WAIT_S)
        return 0 if bounds is None else bounds[0]

    def position_at(self, topic: str, partition: str, offset: int) -> Position:
        """See BoundedBus."""
        bounds = self.cluster.bounds(topic, _number(partition), wait_s=_START_WAIT_S)
        if bounds is None or not bounds[0] <= offset <= bounds[1]:
            held = "does not exist" if bounds is None else f"holds {bounds[0]} to {bounds[1]} only"
            raise ResumeError(f"partition `{partition}` of topic `{topic}` {held}, not offset {offset}")
        return {"offset": offset, "topic_id": ""}

    def append(self, topic: str, writer: str, messages: Sequence[Message], *, at: int) -> int:
        """See WritableBus. Waits for brokers that are away."""
        return self._writer(topic, writer).append(messages, at=at)

    def written(self, topic: str, writer: str) -> int:
        """See WritableBus."""
        return self._writer(topic, writer).written()

    def close(self) -> None:
        """See Bus."""
        for writer in self._writers.values():
            writer.close()
        if "_lookup" in self.__dict__:
            self._lookup.close()
        for lane in self._opened:
            lane.close()
        self._opened.clear()

    @property
    def lane(self) -> Lane:
        """The connection that all readers share."""
        with self._lock:
            return self._lane

    @cached_property
    def _lane(self) -> Lane:
        least, most = _QUEUE_KIB
        return self._connect(max(least, min(most, _MEMORY_KIB // self._partitions)))

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self._connect(_QUEUE_KIB[0]))

    def _writer(self, topic: str, writer: str) -> KafkaWriter:
        with self._lock:
            if (topic, writer) not in self._writers:
                self._writers[topic, writer] = KafkaWriter(
                    self.cluster,
                    self._writing,
                    topic,
                    writer,
                    stopped=self._stopped,
                    at_least_once=self._at_least_once,
                )
            return self._writers[topic, writer]

    def _connect(self, queue_kib: int) -> Lane:
        properties = lane_properties(self._brokers, self._properties, queue_kib=queue_kib)
        library = None if self._lane_name == "plain" else load_library()
        if library is None and self._lane_name == "fast":
            raise ConfigError(
                "the fast lane to Kafka needs a confluent-kafka with the library inside, as its wheels have"
            )
        lane: Lane = PlainLane(properties) if library is None else FastLane(library, properties)
        self._opened.append(lane)
        return lane


class KafkaReader:
    """A PartitionReader over one partition. Its position holds the next offset and the topic's id."""

    def __init__(self, bus: KafkaBus, topic: str, partition: str, position: Mapping[str, object] | None) -> None:
        """Find the position in the log, or the log's beginning, and begin to read ahead."""
        self._bus = bus
        self._topic = topic
        self._partition = partition
        self._number = _number(partition)
        self._topic_id = "" if position is None else str(position["topic_id"])
        begun = position is not None and (self._topic_id or position["offset"])
        self._offset = int(str(position["offset"])) if position is not None and begun else None
        self._tap: Tap | None = None
        self._spent: Tap | None = None
        self._try_at = 0.0
        self._doubt_since: float | None = None
        self._at_end = False
        self._outages = -1
        while not self._start(_DOUBT_S) and self._is_in_doubt():
            threading.Event().wait(_RETRY_S)

    def poll(self, events_max: int) -> RawChunk | None:
        """See PartitionReader."""
        if self._spent is not None:
            self._spent.close()
            self._spent = None
        if self._tap is None and not self._start(_WAIT_S):
            return self._chunk(nothing())
        assert self._tap is not None  # it has just been opened
        taken = self._tap.take(events_max)
        if len(taken.offsets) > 0:
            self._check_id(_SURE_AFTER_END_S if self._at_end else _SURE_S)
            self._offset = int(taken.offsets[-1]) + 1
            self._at_end = False
        if taken.eof is not None:
            self._offset = taken.eof
            self._at_end = True
            self._outages = self._bus.cluster.outages
        if taken.errors:
            self._heed(taken.errors)
        if len(taken.offsets) == 0 and self._at_end and self._is_sure():
            return None
        return self._chunk(taken)

    def position(self) -> Position:
        """See PartitionReader."""
        return {"offset": self._offset or 0, "topic_id": self._topic_id}

    def close(self) -> None:
        """See PartitionReader."""
        for tap in (self._tap, self._spent):
            if tap is not None:
                tap.close()
        if self._tap is not None:
            self._try_at = float("inf")
        self._tap = self._spent = None

    def _chunk(self, taken: Taken) -> RawChunk:
        columns = (taken.data, taken.starts, taken.lengths, taken.offsets, taken.timestamps)
        return RawChunk(self._partition, *columns, taken.headers)

    def _start(self, wait_s: float) -> bool:
        """Open the tap at the position; False if the brokers do not answer or must be asked again soon."""
        if time.monotonic() < self._try_at:
            return False
        self._try_at = time.monotonic() + _RETRY_S
        cluster = self._bus.cluster
        try:
            topic = cluster.topic(self._topic, age_s=0.0, wait_s=wait_s)
            bounds = cluster.bounds(self._topic, self._number, wait_s=wait_s)
        except UnavailableError:
            self._doubt_since = None
            return False
        if topic is None or bounds is None:
            if self._doubt():
                return False
            raise self._missing()
        self._adopt(topic.topic_id)
        if self._offset is not None and self._offset > bounds[1] and self._doubt():
            return False
        self._doubt_since = None
        self._offset = self._offset_within(*bounds)
        self._at_end = False
        self._tap = self._bus.lane.open(self._topic, self._number, self._offset)
        return True

    def _doubt(self) -> bool:
        """What the brokers say is bad news, which a second look may correct: whether it has not been long so."""
        now = time.monotonic()
        if self._doubt_since is None:
            self._doubt_since = now
        return now - self._doubt_since < _DOUBT_S

    def _is_in_doubt(self) -> bool:
        return self._doubt_since is not None

    def _offset_within(self, first: int, end: int) -> int:
        """Where to begin, given what the log holds. Raises ResumeError if the position is gone."""
        if self._offset is None:
            return first
        if first <= self._offset <= end:
            return self._offset
        reset = self._bus.offset_reset
        if reset == "error":
            raise ResumeError(
                f"{self._place} was read up to offset {self._offset}, but holds {first} to {end} only: set"
                " KAFKA_OFFSET_RESET to earliest or latest to go on from there without what is gone, or start anew with"
                " an empty RECOVERY_DIR"
            )
        chosen = first if reset == "earliest" else end
        tell(PartitionReset(self._partition, self._offset, chosen))
        return chosen

    def _adopt(self, topic_id: str) -> None:
        """Note the topic's id. Raises ResumeError if it is another topic of the same name."""
        if topic_id and self._topic_id and topic_id != self._topic_id:
            raise ResumeError(
                f"topic `{self._topic}` was deleted and made anew (its id was {self._topic_id}, is {topic_id}) since"
                f" partition `{self._partition}` was read up to offset {self._offset}: its offsets mean other messages"
                " now; start anew with an empty RECOVERY_DIR"
            )
        self._topic_id = topic_id or self._topic_id

    def _check_id(self, age_s: float) -> None:
        """Before messages are handed out: are they of the topic that was read? Raises ResumeError if not.

        The brokers would serve another topic of the same name without a word, once it is long enough.
        """
        try:
            topic = self._bus.cluster.topic(self._topic, age_s=age_s, wait_s=_WAIT_S)
        except UnavailableError:
            return  # the messages came before that
        if topic is not None:
            self._adopt(topic.topic_id)

    def _heed(self, errors: tuple[int, ...]) -> None:
        """What came in place of messages: reading stops until the partition has been looked at again."""
        for code in errors:
            if code in _DENIED:
                raise ConfigError(f"this user may not read {self._place}: grant it READ on the topic")
            if code > 0 and code not in _PASSING:
                raise FatalError(f"{self._place} cannot be read at offset {self._offset}: Kafka's error {code}")
        self._at_end = False
        if self._tap is not None:
            self._spent, self._tap = self._tap, None  # closed by the next poll: what it gave is still looked at

    def _is_sure(self) -> bool:
        """Whether the end that was seen is the end still: not if the brokers or the leader are away, or were.

        A connection that hangs, or a process that was stopped for a while, has the same end as ever: the brokers are
        asked how far the log goes by now.
        """
        cluster = self._bus.cluster
        try:
            topic = cluster.topic(self._topic, age_s=_SURE_S, wait_s=_WAIT_S)
            if topic is None and not self._doubt():
                raise self._missing()
            if topic is None or not topic.led.get(self._number, False):
                self._outages = -1
                return False
            self._doubt_since = None
            self._adopt(topic.topic_id)
            if self._outages != cluster.outages and time.monotonic() >= self._try_at:
                self._try_at = time.monotonic() + _RETRY_S
                outages = cluster.outages
                bounds = cluster.bounds(self._topic, self._number, wait_s=_WAIT_S)
                if bounds is not None and bounds[1] == self._offset:
                    self._outages = outages
            ends = cluster.ends(self._topic, age_s=_SURE_S, wait_s=_WAIT_S)
            if ends.get(self._number, 0) > (self._offset or 0):
                return False  # messages have come that the connection does not bring
        except UnavailableError:
            self._doubt_since = None
            return False
        return self._outages == cluster.outages

    def _missing(self) -> ResumeError:
        return ResumeError(f"{self._place} does not exist (any more): restore the topic, or name another one")

    @property
    def _place(self) -> str:
        return f"partition `{self._partition}` of topic `{self._topic}`"


def _number(partition: str) -> int:
    """The partition's number. Raises ConfigError if the name is none."""
    if not (partition.isascii() and partition.isdigit()):
        raise ConfigError(f"`{partition}` is no partition of Kafka's: those are numbers")
    return int(partition)
