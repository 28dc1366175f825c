"""Kafka behind TLS, users and access rules: who is right gets in, who is wrong is told so, and no secret is told."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from dataflows import doctor_kafka
from tests.commands import Done, headrace
from tests.flows import Log, clean_log
from tests.kafka_flows import KafkaPlace, on_kafka
from tests.kafka_security import PASSWORD, STRANGER, Castle, castle
from tests.kafka_server import create_topic
from tests.outcomes import batch_digests, prove
from tests.test_doctor import told, wrong

WRONG_PASSWORD = "wr0ng-s3cret"  # noqa: S105  # nobody's
LOG = clean_log(events=300)


@pytest.fixture(scope="module")
def stronghold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Castle]:
    """A broker with doors of every kind, whose user may run flows over topics that begin with `signals-`."""
    with castle(tmp_path_factory.mktemp("castle")) as opened:
        opened.allow_a_run("signals-")
        yield opened


@dataclass
class Guest(KafkaPlace):
    """A lineage that comes in by one of the doors."""

    door: dict[str, object] | None = None

    def environment(self, **settings: object) -> dict[str, str]:
        """See KafkaPlace; None leaves a setting out."""
        mine = {**(self.door or {}), **settings}
        kept = super().environment(**{name: value for name, value in mine.items() if value is not None})
        return {name: value for name, value in kept.items() if not (name in mine and mine[name] is None)}


@pytest.fixture
def guest(tmp_path: Path, stronghold: Castle) -> Iterator[Guest]:
    """A lineage over a log in topics of its own; the door is to be chosen."""
    with Guest(tmp_path / "place", address=stronghold.broker.address) as place:
        yield place


def bring(guest: Guest, log: Log) -> Log:
    """Put the log on topics of the guest's."""
    numbered = on_kafka(log, guest.address, 1)
    guest.topic_name = numbered.topic
    guest.write(numbered)
    return numbered


def secrets_in(guest: Guest, done: Done) -> list[str]:
    """Where a secret was told: on stdout, on stderr, or in a file that was left."""
    told_to = {"stdout": done.out, "stderr": done.err.encode()}
    told_to |= {str(path): path.read_bytes() for path in guest.root.rglob("*") if path.is_file()}
    secrets = (PASSWORD.encode(), WRONG_PASSWORD.encode())
    return [place for place, content in told_to.items() if any(secret in content for secret in secrets)]


@pytest.mark.parametrize(
    ("door", "more"),
    [
        ("SSL", {}),
        ("SASL_PLAINTEXT", {}),
        ("SASL_SSL", {}),
        ("SASL_SSL", {"KAFKA_SASL_MECHANISM": "PLAIN"}),
    ],
    ids=["TLS", "SCRAM", "SCRAM in TLS", "PLAIN in TLS"],
)
def test_who_is_right_gets_in(guest: Guest, stronghold: Castle, door: str, more: dict[str, object]) -> None:
    """Through every door the same digest, with no more rights than a run needs; what is left holds no secret."""
    log = bring(guest, Log((*LOG.lines, ("p-0", b"{broken"))))
    guest.door = stronghold.settings(door, **more)
    run = guest.signals(LOG_LEVEL="debug")
    assert run.done()["dead"] == 1
    prove(guest, log, batch_digests(Log((*LOG.lines, ("p-0", b"{broken")))))
    assert secrets_in(guest, Done(0, b"", run.errors)) == []


def test_the_doctor_and_the_producer_get_in_too(guest: Guest, stronghold: Castle) -> None:
    """Every check is ok with the rights that a run needs, and signals can be sent."""
    bring(guest, LOG)
    guest.door = stronghold.settings("SASL_SSL")
    sent = headrace(guest, "produce", "--rate", "1e6", "--events", "50", "--json")
    assert sent.records[-1]["sent"] == 50
    done = headrace(guest, "doctor", "--json")
    states = {record["check"]: record["state"] for record in told(done)}
    assert {check for check, state in states.items() if state == "wrong"} == {"sizes"}, done.text
    assert "through TLS as `alice`" in done.text
    assert secrets_in(guest, done) == []


class Case(NamedTuple):
    """A mistake: the door, what is set wrong, and what is said of it."""

    door: str
    wrong: dict[str, object]
    says: str


REFUSED = {
    "wrong password": Case("SASL_SSL", {"KAFKA_PASSWORD": WRONG_PASSWORD}, "no such user with this password"),
    "wrong password, PLAIN": Case(
        "SASL_PLAINTEXT",
        {"KAFKA_PASSWORD": WRONG_PASSWORD, "KAFKA_SASL_MECHANISM": "PLAIN"},
        "no such user with this password",
    ),
    "unknown user": Case("SASL_PLAINTEXT", {"KAFKA_USERNAME": "nobody"}, "no such user with this password"),
    "no password": Case("SASL_SSL", {"KAFKA_PASSWORD": None}, "KAFKA_USERNAME and KAFKA_PASSWORD must be set"),
    "another mechanism": Case("SASL_SSL", {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"}, "it knows SCRAM-SHA-512, PLAIN"),
    "another authority": Case("SASL_SSL", {"KAFKA_CA_FILE": "OTHER"}, "signed by no authority that is known here"),
    "the system's authorities": Case("SSL", {"KAFKA_CA_FILE": None}, "signed by no authority that is known here"),
    "no such file": Case("SSL", {"KAFKA_CA_FILE": "/nowhere/ca.pem"}, "KAFKA_CA_FILE cannot be read"),
    "a user where none is wanted": Case("SASL_PLAINTEXT", {"KAFKA_BROKERS": "CLEAR"}, "wants no user at this port"),
    "a stranger": Case("SASL_SSL", {"KAFKA_USERNAME": STRANGER}, "grant it"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_who_is_wrong_is_told_so(guest: Guest, stronghold: Castle, mistake: str) -> None:
    """A run and the doctor say in one sentence what is wrong and which setting to look at, and tell no secret."""
    door, settings, says = REFUSED[mistake]
    bring(guest, Log(LOG.lines[:5]))
    paths = {"OTHER": str(stronghold.other_authority), "CLEAR": stronghold.broker.address}
    guest.door = stronghold.settings(door, **{n: paths.get(str(v), v) if v else v for n, v in settings.items()})
    done = headrace(guest, "signals", "--json", LOG_LEVEL="debug")
    assert (done.code, done.out) == (2, b"")
    sentence = done.err.splitlines()[-1]
    assert sentence.startswith("headrace: ")
    assert says in sentence
    assert secrets_in(guest, done) == []
    looked = headrace(guest, "doctor", "--json")
    assert says in " ".join(wrong(looked).values())
    assert secrets_in(guest, looked) == []
    assert headrace(guest, "produce", "--rate", "1").code == 2


@pytest.mark.parametrize("protocol", ["plaintext", "ssl"])
def test_a_door_of_another_kind(
    guest: Guest, stronghold: Castle, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Clear text at a TLS port and TLS at a clear one: no answer comes, and the protocol is what is to be looked at."""
    monkeypatch.setattr(doctor_kafka, "_REACH_S", 2.0)
    wrong_door = {"plaintext": "SSL", "ssl": "PLAINTEXT"}[protocol]
    guest.door = stronghold.settings(wrong_door, KAFKA_SECURITY_PROTOCOL=protocol, KAFKA_CA_FILE=stronghold.authority)
    assert "KAFKA_SECURITY_PROTOCOL" in wrong(headrace(guest, "doctor", "--json"))["brokers"]


def test_rights_that_lack(guest: Guest, stronghold: Castle) -> None:
    """Each right that a run needs and the user lacks is named by the doctor, before a run would fail for want of it."""
    name = f"bare-{uuid.uuid4().hex}"
    for kind in ("signals", "docs", "late", "dlq", "results"):
        create_topic(stronghold.broker.address, f"{name}.{kind}", 1)
    names = {f"TOPIC_{kind}": f"{name}.{kind.lower()}" for kind in ("SIGNALS", "DOCS", "LATE", "DLQ", "RESULTS")}
    guest.door = stronghold.settings("SASL_SSL", **names)
    found = [record["says"] for record in told(headrace(guest, "doctor", "--json")) if record["check"] == "topics"]
    assert len(found) == 5
    assert all("grant it DESCRIBE" in says for says in found)
    stronghold.allow("TOPIC", name, "DESCRIBE", by_prefix=True)
    records = told(headrace(guest, "doctor", "--json"))
    rights = [record["says"] for record in records if record["check"] == "rights"]
    assert [says.rpartition(" ")[2] for says in rights] == ["READ", "READ", "WRITE", "WRITE", "WRITE"]
    assert [record["state"] for record in records if record["check"] == "sizes"] == ["skipped"]
    found = [
        record["says"]
        for record in told(headrace(guest, "doctor", "--json", KAFKA_USERNAME=STRANGER))
        if record["check"] in {"topics", "group"}
    ]
    assert any("may not use the group" in says for says in found)


def test_topics_need_the_right_to_make_them(guest: Guest, stronghold: Castle) -> None:
    """Without CREATE nothing is made, and the right is named."""
    guest.door = stronghold.settings("SASL_SSL", TOPIC_SIGNALS="signals-not-allowed")
    done = headrace(guest, "topics", "create", "--json")
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert "DESCRIBE and CREATE" in done.err


def test_secrets_in_other_properties(guest: Guest, stronghold: Castle) -> None:
    """What stands in KAFKA_CONFIG is not told either, neither when it is refused nor when it fails."""
    for config in (f"no.such.property={PASSWORD}", f"ssl.key.password={PASSWORD},ssl.key.location=/nowhere"):
        guest.door = stronghold.settings("SSL", KAFKA_CONFIG=config)
        for words in (("signals", "--json"), ("doctor", "--json"), ("produce", "--rate", "1"), ("topics", "list")):
            done = headrace(guest, *words, LOG_LEVEL="debug")
            assert done.code in {1, 2}
            assert secrets_in(guest, done) == []
            assert all(orjson.loads(line) for line in done.out.splitlines())
