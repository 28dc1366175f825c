"""What Kafka and the way to it may do to a run: topics of any kind, producers that go on, bad networks, full disks."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from operators.errors import UnavailableError
from tests.flows import LIMIT_S, SOAK, Log, Run, until
from tests.kafka_flows import KafkaLog, KafkaPlace, on_kafka
from tests.kafka_server import Broker, kafka_jars

QUICK_S = 2
IMPATIENT = f"fetch.wait.max.ms=20,socket.timeout.ms={QUICK_S * 1000},reconnect.backoff.max.ms=500"
"""KAFKA_CONFIG of a run that takes a broker for lost after seconds, not after a minute."""


def read_to_the_end(place: KafkaPlace, run: Run) -> None:
    """Wait until everything is read and remembered; brokers that have just come back cannot tell yet where that is."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            place.wait_until_read(run)
        except UnavailableError:
            assert time.monotonic() < deadline, "the broker does not come to itself"
        else:
            return


def seconds(short: float, long: float) -> float:
    """How long a fault lasts: `long` under `make soak`."""
    return long if SOAK > 0 else short


def times(short: int, long: int) -> int:
    """How often a fault comes: `long` under `make soak`."""
    return long if SOAK > 0 else short


def pause(length_s: float) -> None:
    """Let a fault last."""
    threading.Event().wait(length_s)


@contextmanager
def lineage(root: Path, address: str, log: Log, partitions: int) -> Iterator[tuple[KafkaPlace, KafkaLog]]:
    """A lineage, and the log as it will stand in a topic of its own, which is empty."""
    numbered = on_kafka(log, address, partitions)
    with KafkaPlace(root / "place", address=address, topic_name=numbered.topic) as place:
        yield place, numbered


@dataclass(frozen=True)
class TopicLog(KafkaLog):
    """What is in a topic, with the offsets at which it stands."""

    offsets: tuple[int, ...] = ()

    @property
    def _placed(self) -> Iterator[tuple[str, int, bytes]]:
        for (partition, line), offset in zip(self.lines, self.offsets, strict=True):
            yield partition, offset, line

    def part(self, partition: str, *, before: int = sys.maxsize, start: int = 0) -> TopicLog:
        """The lines of a partition within these offsets."""
        kept = [
            (line, offset)
            for line, offset in zip(self.lines, self.offsets, strict=True)
            if line[0] == partition and start <= offset < before
        ]
        return TopicLog(tuple(line for line, _ in kept), self.topic, tuple(offset for _, offset in kept))

    def __add__(self, other: TopicLog) -> TopicLog:
        """Both, one after the other."""
        return TopicLog(self.lines + other.lines, self.topic, self.offsets + other.offsets)


def written(address: str, topic: str) -> TopicLog:
    """What a reader of committed messages sees of the topic now, through the client library's own consumer."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    properties = {"group.id": "witness", "isolation.level": "read_committed", "enable.partition.eof": "true"}
    more = {"enable.auto.commit": "false", "auto.offset.reset": "error", "fetch.wait.max.ms": "10", "log_level": 0}
    consumer = Consumer({"bootstrap.servers": address, **properties, **more})
    with contextlib.closing(consumer):
        left = sorted(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
        lines: list[tuple[str, bytes]] = []
        offsets: list[int] = []
        deadline = time.monotonic() + LIMIT_S
        while left:
            assert time.monotonic() < deadline, f"partitions {left} of {topic} do not end"
            for message in consumer.consume(1000, 0.1):
                if message.error() is None:
                    lines.append((str(message.partition()), message.value() or b""))
                    offsets.append(message.offset())
                else:
                    assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                    left.remove(message.partition())
    return TopicLog(tuple(lines), topic, tuple(offsets))


class Producing:
    """A producer that writes a log over some seconds, in a thread, whatever becomes of its broker meanwhile."""

    def __init__(
        self, address: str, log: KafkaLog, *, lasts_s: float, properties: Mapping[str, object] | None = None
    ) -> None:
        """properties: of the producer, in place of idempotence."""
        from confluent_kafka import Producer

        guarded = {"enable.idempotence": True} if properties is None else dict(properties)
        patient = {"socket.timeout.ms": 3000, "message.timeout.ms": 300_000, "reconnect.backoff.max.ms": 500}
        self._producer: Any = Producer(
            {"bootstrap.servers": address, "acks": "all", "log_level": 0, **patient, **guarded}
        )
        self._log = log
        self._gap_s = lasts_s / max(1, len(log.lines))
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait until all is acknowledged; after an error just leave."""
        if kind is None:
            self._thread.join(LIMIT_S)
            assert not self._thread.is_alive(), "the producer does not come to its end"
            assert self._refused == []

    def _write(self) -> None:
        begun = time.monotonic()
        for number, (partition, line) in enumerate(self._log.lines):
            while (early_s := begun + number * self._gap_s - time.monotonic()) > 0:
                self._producer.poll(min(early_s, 0.05))
            self._producer.produce(self._log.topic, line, partition=int(partition), on_delivery=self._heed)
            self._producer.poll(0)
        if self._producer.flush(LIMIT_S) > 0:
            self._refused.append("messages without an answer")

    def _heed(self, error: Any, _message: object) -> None:  # noqa: ANN401  # the library carries no types
        if error is not None:
            self._refused.append(str(error))


@contextmanager
def gone(broker: Broker, how: str) -> Iterator[None]:
    """The broker is `frozen`, `stopped` or `killed`, and at the end there again."""
    match how:
        case "frozen":
            broker.freeze(frozen=True)
        case "stopped":
            broker.stop()
        case _:
            broker.kill()
    try:
        yield
    finally:
        if how == "frozen":
            broker.freeze(frozen=False)
        else:
            broker.start()


@contextmanager
def far_broker(folder: Path, port: int, *, advertised: str) -> Iterator[Broker]:
    """A running broker with a second door at that port of every network; who enters there is sent to `advertised`."""
    broker = Broker(folder / "kafka", kafka_jars())
    path = folder / "kafka" / "server.properties"
    text = path.read_text("utf-8")
    for name, value in (
        ("listeners", f"FAR://0.0.0.0:{port}"),
        ("advertised.listeners", f"FAR://{advertised}"),
        ("listener.security.protocol.map", "FAR:PLAINTEXT"),
    ):
        text = re.sub(rf"(?m)^({re.escape(name)}=.*)$", rf"\1,{value}", text)
    more = "inter.broker.listener.name=PLAINTEXT\n"
    path.write_text(text + more, "utf-8")
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """A file system of so many KiB in that folder. Needs the right to mount."""
    folder.mkdir(parents=True)
    _system("mount", "-t", "tmpfs", "-o", f"size={kib}k", "headrace-test", str(folder))
    try:
        yield
    finally:
        _system("umount", "-l", str(folder))


def make_room(folder: Path, kib: int) -> None:
    """Enlarge it."""
    _system("mount", "-o", f"remount,size={kib}k", str(folder))


def may_mount() -> bool:
    """Whether this machine lets us mount a file system."""
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


class Namespace:
    """A network of its own, joined to this one by a cable that can be pulled."""

    def __init__(self) -> None:
        """Nothing is made yet."""
        number = os.getpid() % 250
        self.name = f"headrace-{os.getpid()}"
        self._near, self._far = f"hr{os.getpid() % 100_000}a", f"hr{os.getpid() % 100_000}b"
        self.host, self.guest = f"10.213.{number}.1", f"10.213.{number}.2"

    def __enter__(self) -> Self:
        """Make it. Skips the test if this machine does not let us; then the proxy has to do."""
        try:
            _system("ip", "netns", "add", self.name)
            _system("ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
            _system("ip", "address", "add", f"{self.host}/30", "dev", self._near)
            _system("ip", "link", "set", self._near, "up")
            self._inside("ip", "address", "add", f"{self.guest}/30", "dev", self._far)
            self._inside("ip", "link", "set", self._far, "up")
            self._inside("ip", "link", "set", "lo", "up")
        except OSError as error:
            self.__exit__()
            pytest.skip(f"networks between namespaces are NOT tested here: {error}")
        return self

    def __exit__(self, *error: object) -> None:
        """Remove it."""
        for command in (("ip", "link", "del", self._near), ("ip", "netns", "del", self.name)):
            subprocess.run(command, capture_output=True, check=False)

    def plug(self, *, plugged: bool) -> None:
        """Pull the cable at the far end, or put it back: nobody is told, packets vanish."""
        self._inside("ip", "link", "set", self._far, "up" if plugged else "down")

    def command(self, *arguments: str) -> list[str]:
        """The command, run inside."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def _inside(self, *arguments: str) -> None:
        _system(*self.command(*arguments))


@dataclass
class FarPlace(KafkaPlace):
    """A lineage whose runs live in another network than this test. door: how they reach the broker."""

    namespace: Namespace | None = None
    door: str = ""

    def environment(self, **settings: object) -> dict[str, str]:
        """See Place."""
        return super().environment(**{"KAFKA_BROKERS": self.door, **settings})

    def _start(self, arguments: list[str], settings: dict[str, object]) -> Run:
        command = [sys.executable, *arguments]
        if self.namespace is not None:
            command = self.namespace.command(*command)
        run = Run(command, self.environment(**settings), self.root, f"run-{len(self.runs)}")
        self.runs.append(run)
        return run


def _system(*command: str) -> None:
    """Run a command of the system's. Raises OSError if it cannot or may not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def set_config(address: str, topic: str, **config: str) -> None:
    """Change settings of a topic, and wait until the broker shows them."""
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    entries = [ConfigEntry(n, v, incremental_operation=AlterConfigOpType.SET) for n, v in config.items()]
    for done in admin.incremental_alter_configs(
        [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)]
    ).values():
        done.result(30)

    def is_shown() -> bool:
        (shown,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        return all(shown.result(30)[name].value == value for name, value in config.items())

    until(is_shown, f"the settings of {topic}")
