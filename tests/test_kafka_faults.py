"""Faults under a whole run over Kafka: brokers, processes, disks and networks that fail and come back."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.flows import SOAK, Log, Run, clean_log, digests, dirty_log, free_ports, until
from tests.kafka_faults import (
    IMPATIENT,
    QUICK_S,
    FarPlace,
    Namespace,
    Producing,
    far_broker,
    gone,
    lineage,
    make_room,
    may_mount,
    pause,
    read_to_the_end,
    seconds,
    small_disk,
    times,
    written,
)
from tests.kafka_flows import KafkaLog, KafkaPlace, on_kafka, slices
from tests.kafka_server import Broker
from tests.outcomes import batch_digests, prove
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.timeout(1800)  # the long forms

FOLLOWING: dict[str, Any] = {
    "BUS_FOLLOW": 1,
    "WATERMARK_IDLE_SECONDS": QUICK_S,
    "STREAM_BATCH_SIZE": 20,
    "KAFKA_CONFIG": IMPATIENT,
}
"""A run that would take partitions for idle after seconds, if it took a fault for silence."""

CARELESS = {
    "enable.idempotence": False,
    "max.in.flight.requests.per.connection": 5,
    "batch.num.messages": 3,
    "linger.ms": 20,
    "retry.backoff.ms": 10,
}
"""A producer that sends what is not answered again, behind what it has sent since."""

KILLED = -signal.SIGKILL
STORE = "stores.offline.parquet:ParquetOfflineStore"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, TcpProxy]]:
    """A broker that tests kill and freeze, and a bad network before its second door; each test leaves both well."""
    port, door = free_ports(2)
    with (
        far_broker(tmp_path_factory.mktemp("broker"), door, advertised=f"127.0.0.1:{port}") as running,
        TcpProxy(port, f"127.0.0.1:{door}") as proxy,
    ):
        yield running, proxy


@pytest.fixture
def broker(site: tuple[Broker, TcpProxy]) -> Broker:
    """The broker alone, reached through its first door."""
    return site[0]


@contextmanager
def behind(proxy: TcpProxy, broker: Broker, root: Path, original: Log) -> Iterator[tuple[KafkaPlace, KafkaLog]]:
    """A lineage whose runs reach the broker through the proxy; the test itself goes past it."""
    with FarPlace(root / "place", address=broker.address, door=proxy.address) as place:
        log = on_kafka(original, broker.address, 3)
        place.topic_name = log.topic
        try:
            yield place, log
        finally:
            proxy.go_on()


def test_a_broker_killed_while_it_is_written_to_and_read(tmp_path: Path, broker: Broker) -> None:
    """Killed (-9) and started again while a producer writes and a run reads: each outage is told at most once."""
    original = dirty_log(seed=11, partitions=3)
    kills = times(2, 10)
    with lineage(tmp_path, broker.address, original, 3) as (place, log):
        run = place.quick(BUS_FOLLOW=1, STREAM_CONCURRENCY=2, STREAM_BATCH_SIZE=20)
        with Producing(broker.address, log, lasts_s=4.0 * kills):
            for _ in range(kills):
                before = place.durable_bytes()
                until(lambda: run.ended or place.durable_bytes() > before, "something to be read")  # noqa: B023  # called at once
                with gone(broker, "killed"):
                    assert run.lives_for(1), run.errors
        read_to_the_end(place, run)
        assert sorted(written(broker.address, log.topic).lines) == sorted(log.lines)
        assert run.errors.count("bus away") == run.errors.count("bus back") <= kills
        run.stop()
        place.quick().done()
        prove(place, log, batch_digests(original))


@pytest.mark.parametrize("how", ["frozen", "stopped"] if SOAK else ["frozen"])
def test_a_leader_that_is_gone_for_longer_than_anybody_waits(tmp_path: Path, broker: Broker, how: str) -> None:
    """Gone amid a backlog, past every timeout: the run waits, no partition becomes idle, and all goes on by itself."""
    original = dirty_log(seed=4, partitions=3)
    gone_s = seconds(3 * QUICK_S, 30)
    with lineage(tmp_path, broker.address, original, 3) as (place, log):
        run = place.quick(**FOLLOWING)
        with Producing(broker.address, log, lasts_s=QUICK_S + 2 + gone_s):
            until(lambda: run.ended or place.durable_bytes() > 100, "something to be read")
            with gone(broker, how):
                assert run.lives_for(gone_s), run.errors
        read_to_the_end(place, run)
        assert "idle" not in run.errors
        assert run.errors.count("bus away") == run.errors.count("bus back") <= 1
        run.stop()
        place.quick().done()
        prove(place, log, batch_digests(original))


POINTS = [
    None,
    "dataflows.signal_source:SignalSlot.snapshot:before:20",
    "stores.writers:OfflineWriter.snapshot:after:9",
    "dataflows.signal_flow:WindowsLogic.snapshot:before:30",
    None,
    f"{STORE}.stage:after:1",
    "dataflows.signal_source:SignalSlot.next_batch:after:60",
    f"{STORE}.publish:before:1",
]
"""Where a process is killed; None: at any time."""


def test_one_process_of_two_killed_again_and_again(tmp_path: Path, kafka: str) -> None:
    """The other one ends by itself with one sentence; started again together, they go on as if nothing was."""
    chance = random.Random(12)
    kills = times(3, 20)
    original = dirty_log(seed=12, events=300 * kills, partitions=4)
    with lineage(tmp_path, kafka, original, 4) as (place, log):
        for number, part in enumerate(slices(log, kills)):
            victim, point = chance.randrange(2), POINTS[number % len(POINTS)]
            pair = two_processes(place, victim, point)
            place.write(part)
            before = place.durable_bytes()
            if point is None:
                until(lambda: ended(pair) or place.durable_bytes() > before, "something to be read")  # noqa: B023  # called at once
                assert pair[victim].lives_for(chance.uniform(0, 1)), pair[victim].errors
                pair[victim].kill()
            until(lambda: ended(pair), f"a kill {point}")  # noqa: B023  # as above
            codes = [run.wait(60) for run in pair]
            assert KILLED in codes, (point, [run.errors for run in pair])
            for survivor in (run for run in pair if run.wait() != KILLED):
                assert survivor.wait() == 1, (point, survivor.errors)
                assert survivor.errors.splitlines()[-1].startswith("headrace: ")
                assert "Traceback" not in survivor.errors
        for run in place.cluster(place.quick):
            run.done()
        prove(place, log, batch_digests(original))


def two_processes(place: KafkaPlace, victim: int, point: str | None) -> list[Run]:
    """A cluster whose victim has a fault; one in the store is had by both, since the engine deals the writers."""
    addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(2))
    settings: dict[str, Any] = {"BYTEWAX_ADDRESSES": addresses, "BUS_FOLLOW": 1, "STREAM_BATCH_SIZE": 20}
    faults = [[point] if point and (number == victim or point.startswith(STORE)) else [] for number in (0, 1)]
    return [place.quick(*faults[number], BYTEWAX_PROCESS_ID=number, **settings) for number in (0, 1)]


def ended(runs: list[Run]) -> bool:
    """Whether any of them has ended."""
    return any(run.ended for run in runs)


@pytest.mark.parametrize("processes", [1, 2] if SOAK else [2])
def test_a_run_frozen_while_producers_go_on(tmp_path: Path, kafka: str, processes: int) -> None:
    """Stopped (SIGSTOP) for longer than partitions may be idle, and continued: what came meanwhile is not late."""
    original = dirty_log(seed=13, partitions=4)
    with lineage(tmp_path, kafka, original, 4) as (place, log):
        first, second = slices(log, 2)
        place.write(first)
        runs = place.cluster(place.quick, **FOLLOWING) if processes == 2 else [place.quick(**FOLLOWING)]
        place.wait_until_read(runs[0])
        runs[0].process.send_signal(signal.SIGSTOP)
        place.write(second)
        pause(seconds(2 * QUICK_S, 60))
        runs[0].process.send_signal(signal.SIGCONT)
        place.wait_until_read(runs[0])
        for run in runs:
            run.process.send_signal(signal.SIGTERM)
        for run in runs:
            run.done()
        place.quick().done()
        prove(place, log, batch_digests(original))


@pytest.mark.parametrize("kib", [450, 2200])
def test_a_full_disk_under_the_recovery_folder(tmp_path: Path, kafka: str, kib: int) -> None:
    """At the start or later: one sentence that says so, and exit 1; with room again the next run is exact."""
    if not may_mount():
        pytest.skip("a small file system can be mounted by root only; tests/crash/test_damage.py limits files instead")
    original = dirty_log(seed=14, partitions=3)
    with lineage(tmp_path, kafka, original, 3) as (place, log), small_disk(place.recovery, kib):
        place.write(log)
        run = place.quick(STREAM_BATCH_SIZE=20)
        assert run.wait() == 1
        assert run.errors.splitlines()[-1].startswith(f"headrace: RECOVERY_DIR `{place.recovery}` has no room for")
        assert "Traceback" not in run.errors
        make_room(place.recovery, 65_536)
        place.quick().done()
        prove(place, log, batch_digests(original))


def test_a_producer_that_repeats_and_reorders(tmp_path: Path, site: tuple[Broker, TcpProxy]) -> None:
    """Answers that get lost make a producer without idempotence write batches twice and in another order: no trace."""
    broker, proxy = site
    original = clean_log(seed=15)
    with behind(proxy, broker, tmp_path, original.spread(3, 1)) as (place, log):
        run = place.quick(BUS_FOLLOW=1, STREAM_BATCH_SIZE=20, KAFKA_BROKERS=broker.address)
        with Producing(proxy.address, log, lasts_s=seconds(3, 30), properties=CARELESS):
            for _ in range(times(5, 50)):
                proxy.stall("answers")
                pause(0.2)
                proxy.cut()
                proxy.go_on()
                pause(0.3)
        found = written(broker.address, log.topic)
        assert len(found.lines) > len(log.lines)
        assert found.late == []
        read_to_the_end(place, run)
        run.stop()
        place.quick().done()
        prove(place, found, batch_digests(found))
        assert digests(place.offline) == batch_digests(original)


@pytest.mark.parametrize("network", ["stalls", "stalls where messages come from", "delays and cuts"])
def test_a_network_that(tmp_path: Path, site: tuple[Broker, TcpProxy], network: str) -> None:
    """No byte for seconds, late bytes, cut connections: the run goes on by itself, and nothing comes late by it."""
    broker, proxy = site
    original = dirty_log(seed=16, partitions=3)
    with behind(proxy, broker, tmp_path, original) as (place, log):
        before = proxy.carried_bytes
        run = place.quick(**FOLLOWING)
        with Producing(broker.address, log, lasts_s=seconds(6, 90)):
            until(lambda: run.ended or place.durable_bytes() > 100, "something to be read")
            trouble(proxy, network)
        proxy.go_on()
        read_to_the_end(place, run)
        assert proxy.carried_bytes - before > sum(len(line) for _, line in log.lines)
        run.stop()
        place.quick().done()
        prove(place, log, batch_digests(original))


def trouble(proxy: TcpProxy, network: str) -> None:
    """Be that network for a while."""
    chance = random.Random(17)
    if network.startswith("stalls"):
        proxy.stall(fetches_only=network != "stalls")
        pause(seconds(3 * QUICK_S, 60))
        return
    proxy.delay(0.1)
    for _ in range(times(6, 60)):
        pause(chance.uniform(0.2, 1))
        proxy.cut(refuse=chance.random() < 0.5)
        pause(chance.uniform(0, 0.5))
        proxy.go_on()
        proxy.delay(chance.uniform(0, 0.2))


def test_a_network_between_namespaces_that_is_pulled(tmp_path: Path) -> None:
    """The cable between the run's network and the broker's is pulled and put back: nothing is lost or twice."""
    original = dirty_log(seed=18, partitions=3)
    with Namespace() as namespace:
        door = f"{namespace.host}:{free_ports(1)[0]}"
        with (
            far_broker(tmp_path, int(door.rpartition(":")[2]), advertised=door) as broker,
            FarPlace(tmp_path / "place", address=broker.address, namespace=namespace, door=door) as place,
        ):
            log = on_kafka(original, broker.address, 3)
            place.topic_name = log.topic
            run = place.quick(**FOLLOWING)
            with Producing(broker.address, log, lasts_s=seconds(6, 90)):
                until(lambda: run.ended or place.durable_bytes() > 100, "something to be read")
                namespace.plug(plugged=False)
                assert run.lives_for(seconds(3 * QUICK_S, 60)), run.errors
                namespace.plug(plugged=True)
            read_to_the_end(place, run)
            run.stop()
            place.quick().done()
            prove(place, log, batch_digests(original))
