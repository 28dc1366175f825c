"""Made-up signals for trying: as sensors send them, at a steady rate, to Kafka or to the folder."""

from __future__ import annotations

import math
import random
import re
import signal
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from operators.errors import ConfigError, FatalError, UnavailableError
from operators.messages import Message

if TYPE_CHECKING:
    from types import FrameType

    from dataflows.buses.port import WritableBus
    from dataflows.config import Settings
    from operators.feature_sets import FeatureSets

PARTITION = "produced-0"
"""Where signals go in a folder."""

_TICK_S = 0.02
_FOLDER_TICK_S = 0.25
"""Lines of a folder are synced to the disk, which is not done fifty times a second."""

_SLICE = 4096
_LEVELS = 1000
"""So many entities have levels of their own; further ones share them."""

_FLUSH_S = 30.0
_SOURCE = "headrace/produce"
_PERIOD_S = 600.0
_NOISE = 0.02
_DISORDER = 0.4
"""Share of WATERMARK_SECONDS by which signals come out of order, at most: so none of these is late."""

_LATE_S = 30.0
"""How much more than WATERMARK_SECONDS a late signal is late, at most."""

Pair = tuple[bytes, bytes]
"""(entity, message)"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is sent. rate: signals a second; fields: default those of the feature sets; late: share that comes late."""

    rate: float
    entities: int
    fields: tuple[str, ...] = ()
    events: int = 0
    seed: int = 0
    late: float = 0.0


class Outlet(Protocol):
    """Where signals go."""

    tick_s: float

    def send(self, signals: Sequence[Pair]) -> None:
        """Take them; raises UnavailableError or FatalError if it cannot."""
        ...

    def finish(self) -> int:
        """Wait until what was taken is acknowledged; return how many signals were not."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of sensor: what its entities are called, what they measure, what they say that they are part of."""

    name: str
    fields: tuple[str, ...]
    source: str


def kinds_of(sets: FeatureSets) -> list[Kind]:
    """A kind for each feature set, whose signals it takes."""
    return [Kind(s.name, s.fields, _fitting(s.sources[0]) if s.sources else _SOURCE) for s in sets.sets]


class Sensors:
    """Made-up signals, a pure function of the recipe and of each one's time; entities are of all kinds in turn."""

    def __init__(self, recipe: Recipe, kinds: Sequence[Kind], watermark_s: float) -> None:
        """watermark_s: how late is late."""
        self._recipe = recipe
        self._kinds = list(kinds)
        self._watermark_s = watermark_s
        self._chance = random.Random(recipe.seed)  # noqa: S311  # values to try things with
        self._sequences = [0] * recipe.entities
        self._width = len(str(recipe.entities - 1))
        self._levels = [
            (self._chance.uniform(10.0, 100.0), self._chance.uniform(0.0, math.tau))
            for _ in range(min(recipe.entities, _LEVELS))
        ]

    def signal(self, at_s: float) -> Pair:
        """The next signal, sent at that time (seconds since the Unix epoch)."""
        chance = self._chance
        number = chance.randrange(self._recipe.entities)
        kind = self._kinds[number % len(self._kinds)]
        self._sequences[number] += 1
        behind = chance.uniform(0.0, _DISORDER * self._watermark_s)
        if self._recipe.late > 0 and chance.random() < self._recipe.late:
            behind = self._watermark_s + chance.uniform(1.0, _LATE_S)
        time_s = at_s - behind
        level, phase = self._levels[number % len(self._levels)]
        angle = math.tau * time_s / _PERIOD_S + phase
        payload = {
            field: round(level * (1.0 + 0.1 * math.sin(angle + i) + chance.gauss(0.0, _NOISE)), 4)
            for i, field in enumerate(kind.fields)
        }
        entity = f"{kind.name}-{number:0{self._width}d}"
        record = {
            "entity_id": entity,
            "event_time": int(time_s * 1000),
            "sequence": self._sequences[number],
            "payload": payload,
            "source": kind.source,
        }
        return entity.encode(), orjson.dumps(record)


def produce_signals(settings: Settings, recipe: Recipe, *, quiet: bool) -> dict[str, object]:
    """Send what the recipe says until it ends or SIGTERM or Ctrl-C come; `sent, failed, seconds, rate` are returned.

    All that counts as sent is acknowledged. Raises ConfigError before anything is sent, FatalError if signals were not
    taken.
    """
    from dataflows.display import task_bar

    kinds = kinds_of(settings.feature_sets())
    if recipe.fields:
        kinds = [Kind("sensor", recipe.fields, kinds[0].source)]
    sensors = Sensors(recipe, kinds, settings.watermark_seconds)
    outlet: Outlet = _KafkaOutlet(settings) if settings.kafka_brokers else _FolderOutlet(settings)
    started = time.monotonic()
    with _stop_asked() as stop, task_bar("produce", quiet=quiet) as advanced:
        sent = _send_paced(sensors, outlet, recipe, stop, lambda done: advanced(done, recipe.events))
        failed = outlet.finish()
    seconds = time.monotonic() - started
    if failed:
        raise FatalError(
            f"{failed} of {sent} signals were not taken by topic `{settings.topic_signals}`: `headrace doctor` says why"
        )
    return {"sent": sent, "failed": failed, "seconds": round(seconds, 3), "rate": round(sent / max(seconds, 1e-9), 1)}


def _send_paced(
    sensors: Sensors, outlet: Outlet, recipe: Recipe, stop: threading.Event, advanced: Callable[[int], None]
) -> int:
    """Send signal n at n/rate seconds after the start, however long sending takes: what is behind is caught up."""
    most = recipe.events or sys.maxsize
    wall, clock = time.time(), time.monotonic()
    sent = 0
    while sent < most and not stop.is_set():
        due = min(most, int((time.monotonic() - clock) * recipe.rate) + 1)
        count = min(due - sent, _SLICE)
        if count > 0:
            outlet.send([sensors.signal(wall + (sent + i) / recipe.rate) for i in range(count)])
            sent += count
            advanced(sent)
        if due <= sent < most:
            stop.wait(max(clock + sent / recipe.rate - time.monotonic(), outlet.tick_s))
    return sent


def _fitting(pattern: str) -> str:
    """A text that fits a glob."""

    def fitting(one: re.Match[str]) -> str:
        return next((c for c in string.printable if fnmatchcase(c, one[0])), "x")

    return re.sub(r"\[!?\]?[^]]*\]|[*?]", fitting, pattern)


class _KafkaOutlet:
    """An Outlet to TOPIC_SIGNALS on Kafka, keyed by entity."""

    tick_s = _TICK_S

    def __init__(self, settings: Settings) -> None:
        from confluent_kafka import Producer

        from dataflows.buses.kafka_cluster import KafkaCluster
        from dataflows.buses.kafka_writer import missing_topic, producer_properties
        from dataflows.wiring import kafka_properties

        properties = kafka_properties(settings)
        self._topic = settings.topic_signals
        if KafkaCluster(settings.kafka_brokers, properties).topic(self._topic, age_s=0.0, wait_s=_FLUSH_S) is None:
            raise missing_topic(self._topic)
        made = producer_properties(settings.kafka_brokers, properties)
        self._producer = Producer({**made, "error_cb": lambda _error: None, "on_delivery": self._hear})
        self._failed = 0
        self._reason = ""

    def send(self, signals: Sequence[Pair]) -> None:
        """See Outlet."""
        from confluent_kafka import KafkaException

        for key, value in signals:
            while True:
                try:
                    self._producer.produce(self._topic, value, key)
                    break
                except BufferError:
                    self._producer.poll(0.1)
                except KafkaException as error:
                    raise FatalError(f"topic `{self._topic}` takes no signals: {error.args[0].str()}") from error
        self._producer.poll(0)
        if self._failed:
            raise UnavailableError(f"topic `{self._topic}` takes no signals: {self._reason}")

    def finish(self) -> int:
        """See Outlet."""
        return int(self._producer.flush(_FLUSH_S)) + self._failed

    def _hear(self, error: Any, message: Any) -> None:  # noqa: ANN401  # the library carries no types
        del message
        if error is not None:
            self._failed += 1
            self._reason = str(error.str())


class _FolderOutlet:
    """An Outlet to a partition file; it has one writer at a time."""

    tick_s = _FOLDER_TICK_S

    def __init__(self, settings: Settings) -> None:
        from dataflows.wiring import bus_of
        from stores.offline.disk import locked

        self._bus: WritableBus = bus_of(settings)
        self._topic = settings.topic_signals
        self._lock = ExitStack()
        try:
            self._lock.enter_context(locked(settings.bus_dir / self._topic / ".produce.lock", wait=False))
        except BlockingIOError as error:
            raise ConfigError("another `headrace produce` writes to this folder; stop it first") from error
        self._at = self._bus.end(self._topic, PARTITION)

    def send(self, signals: Sequence[Pair]) -> None:
        """See Outlet."""
        self._at = self._bus.append(self._topic, PARTITION, [Message(value) for _, value in signals], at=self._at)

    def finish(self) -> int:
        """See Outlet."""
        self._lock.close()
        return 0


@contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second Ctrl-C interrupts as usual."""
    stop = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
