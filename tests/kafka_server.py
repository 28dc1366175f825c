"""A real Apache Kafka for tests: one KRaft node on loopback, from Maven Central, run by Java.

Workers of pytest-xdist share one broker: a process of its own keeps it (`python -m tests.kafka_server …`) and stops it
once no process that has signed in is alive. A test that kills or restarts a broker starts a `Broker` of its own.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.flows import ROOT, free_ports

VERSION = "4.3.0"
JAVA_MIN = 17
STARTS_S = 60.0
FETCH_S = 300.0
POM = Path(__file__).with_name("kafka_server.pom.xml")

_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listeners={doors},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={doors}
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={data}
auto.create.topics.enable=false
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=1500
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
log.initial.task.delay.ms=200
log.retention.check.interval.ms=300
log.cleaner.backoff.ms=200
log.segment.delete.delay.ms=100
"""


@dataclass(frozen=True)
class Security:
    """Who may come in and how. doors: Kafka's security protocols, a port each, PLAINTEXT among them.

    properties: of the server, on top. users: name → password, for SCRAM-SHA-512.
    """

    doors: tuple[str, ...] = ("PLAINTEXT",)
    properties: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)


class Broker:
    """One Kafka node whose data stay in its folder: it may be killed and started again, on the same port."""

    def __init__(self, folder: Path, jars: Path, security: Security | None = None) -> None:
        """Format an empty folder; nothing runs yet. Without `security` there is one door, in the clear."""
        self._folder = folder
        self._classpath = f"{jars}/*"
        self._process: subprocess.Popen[bytes] | None = None
        security = security or Security()
        *ports, controller = free_ports(len(security.doors) + 1)
        self.addresses = {door: f"127.0.0.1:{port}" for door, port in zip(security.doors, ports, strict=True)}
        self.address = self.addresses["PLAINTEXT"]
        folder.mkdir(parents=True)
        text = _PROPERTIES.format(
            doors=",".join(f"{door}://{address}" for door, address in self.addresses.items()),
            protocols=",".join(f"{door}:{door}" for door in self.addresses),
            controller=controller,
            data=folder / "data",
        )
        more = "".join(f"{name}={value}\n" for name, value in security.properties.items())
        (folder / "server.properties").write_text(text + more, "utf-8")
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]
        format_ = ["kafka.tools.StorageTool", "format", "--standalone", "-c", "server.properties"]
        format_.append(f"--cluster-id={cluster}")  # in one word: it may begin with a dash
        for name, password in security.users.items():
            format_ += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
        done = subprocess.run(self._java(*format_), cwd=folder, capture_output=True, timeout=STARTS_S, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "broker.log").open("ab") as log:
            command = self._java("kafka.Kafka", "server.properties")
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # it calls nothing of Python's that threads hold
            )
        deadline = time.monotonic() + STARTS_S
        while not _answers(self.address):
            assert self._process.poll() is None, f"the broker ended: {self.log[-2000:]}"
            assert time.monotonic() < deadline, f"the broker does not answer: {self.log[-2000:]}"

    def kill(self) -> None:
        """Kill it (-9)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in peace; safe to call twice."""
        self._end(signal.SIGTERM)

    def freeze(self, *, frozen: bool) -> None:
        """Stop its clock, or let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "broker.log").read_text("utf-8", "replace")

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _java(self, *arguments: str) -> list[str]:
        lean = [
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        ]
        return ["java", *lean, "-cp", self._classpath, *arguments]


@contextlib.contextmanager
def own_broker(folder: Path, security: Security | None = None) -> Iterator[Broker]:
    """A running broker for one test, which may do with it what it likes."""
    broker = Broker(folder / "kafka", kafka_jars(), security)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def shared_broker(folder: Path) -> str:
    """Address of the broker that all workers of a run share. folder: the same for all of them."""
    jars = kafka_jars()
    home = folder / "kafka"
    with _locked(folder / "kafka.lock"):
        (home / "users").mkdir(parents=True, exist_ok=True)
        (home / "users" / str(os.getpid())).touch()
        address = home / "address"
        if not address.exists():
            command = [sys.executable, "-m", "tests.kafka_server", str(home), str(jars)]
            with (home / "keeper.log").open("wb") as log:
                subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, check=True)
            deadline = time.monotonic() + 2 * STARTS_S
            while not address.exists():
                assert not (home / "failed").exists(), (home / "keeper.log").read_text("utf-8")
                assert time.monotonic() < deadline, "the broker does not start"
                threading.Event().wait(0.05)
    return address.read_text("utf-8")


def leave_broker(folder: Path) -> None:
    """Say that this process no longer needs the shared broker."""
    (folder / "kafka" / "users" / str(os.getpid())).unlink(missing_ok=True)


def keep(home: Path, jars: Path) -> None:
    """Run the shared broker as long as anybody who has signed in is alive."""
    if os.fork() > 0:
        os._exit(0)  # whoever started it need not wait for it
    broker = None
    try:
        broker = Broker(home / "node", jars)
        broker.start()
        (home / "address.part").write_text(broker.address, "utf-8")
        (home / "address.part").rename(home / "address")
        while any(psutil.pid_exists(int(user.name)) for user in (home / "users").iterdir()):
            threading.Event().wait(0.5)
    finally:
        (home / "failed").touch()
        if broker is not None:
            broker.stop()


def kafka_jars() -> Path:
    """The folder of Kafka's jars, fetched once by Maven. Where they cannot be had it skips, or under CI fails."""
    missing = [] if shutil.which("mvn") else ["Maven"]
    if _java_version() < JAVA_MIN:
        missing.append(f"Java {JAVA_MIN} or newer")
    if missing:
        _cannot(f"for want of {' and '.join(missing)}")
    folder = _cache() / f"kafka-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not (folder / "complete").exists():
            where = [f"-DoutputDirectory={folder / 'jars'}", f"-Dmaven.repo.local={folder / 'repository'}"]
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", *where]
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=FETCH_S, check=False)
            if done.returncode != 0:
                _cannot(f"Maven cannot fetch it: {done.stdout.decode()[:500]}")
            shutil.rmtree(folder / "repository", ignore_errors=True)
            (folder / "complete").touch()
    return folder / "jars"


def create_topic(
    address: str,
    topic: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    *,
    beside: Sequence[str] = (),
) -> None:
    """Make a topic, and those beside it, of one partition each, and wait until they are there."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    wanted = [NewTopic(topic, partitions, 1, config=dict(config or {})), *(NewTopic(name, 1, 1) for name in beside)]
    for made in admin.create_topics(wanted).values():
        made.result(30)
    for name in (topic, *beside):
        _until_listed(address, name, listed=True)


def delete_topic(address: str, topic: str) -> None:
    """Delete a topic and wait until it is gone."""
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    admin.delete_topics([topic])[topic].result(30)
    _until_listed(address, topic, listed=False)


def produce(address: str, topic: str, partition: int, messages: Sequence[bytes]) -> None:
    """Append messages to a partition, in order, and wait until all are acknowledged."""
    produce_all(address, topic, [(partition, message) for message in messages])


def produce_all(address: str, topic: str, messages: Sequence[tuple[int, bytes]]) -> None:
    """Append (partition, message), in order, and wait until all are acknowledged."""
    from confluent_kafka import Producer

    more = {"linger.ms": 5, "message.max.bytes": 8 << 20, "queue.buffering.max.messages": 1 << 20, "log_level": 0}
    producer = Producer({"bootstrap.servers": address, "acks": "all", "enable.idempotence": True, **more})
    for partition, message in messages:
        producer.produce(topic, value=message, partition=partition)
        producer.poll(0)
    assert producer.flush(60) == 0


def _until_listed(address: str, topic: str, *, listed: bool) -> None:
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    deadline = time.monotonic() + STARTS_S
    while (topic in admin.list_topics(timeout=10).topics) != listed:
        assert time.monotonic() < deadline, f"topic {topic} is {'not ' if listed else ''}there"
        threading.Event().wait(0.02)


def _answers(address: str) -> bool:
    """Whether the broker takes part in its cluster: an open port is not enough."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        return bool(AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=0.5).brokers)
    except KafkaException:
        return False


def _java_version() -> int:
    if shutil.which("java") is None:
        return 0
    said = subprocess.run(["java", "-version"], capture_output=True, timeout=60, check=False).stderr.decode()
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


def _cannot(why: str) -> None:
    said = f"Kafka is NOT tested here, {why}"
    if "CI" in os.environ:
        pytest.fail(said)
    pytest.skip(said)


def _cache() -> Path:
    environment = ROOT / ".venv"
    return environment / ".cache" if environment.is_dir() else Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"


def _die_with_parent() -> None:
    """In the new process: end when the one that started it is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
