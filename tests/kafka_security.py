"""A Kafka with every kind of door, for tests: in the clear, TLS, SASL, both; certificates, users, and what they may do.

Whoever comes without a name may do everything: it is how the tests prepare things. A user may do what `allow` says.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kafka_server import Broker, Security, own_broker

USER = "alice"
PASSWORD = "s3cret-of-alice"  # noqa: S105  # nobody's
STRANGER = "mallory"
"""A user with no rights at all, and the same password."""

_DOORS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MODULES = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Castle:
    """The broker, the authority that signed its certificate, and one that did not."""

    broker: Broker
    authority: Path
    other_authority: Path

    def settings(self, door: str, **more: object) -> dict[str, object]:
        """What Headrace must be told to come in by that door."""
        named: dict[str, object] = {
            "KAFKA_BROKERS": self.broker.addresses[door],
            "KAFKA_SECURITY_PROTOCOL": door.lower(),
        }
        if "SASL" in door:
            named |= {"KAFKA_USERNAME": USER, "KAFKA_PASSWORD": PASSWORD}
        if "SSL" in door:
            named["KAFKA_CA_FILE"] = self.authority
        return named | more

    def allow(self, kind: str, name: str, *operations: str, by_prefix: bool = False) -> None:
        """Grant the user operations (of Kafka's names, as READ) on a TOPIC, GROUP or TRANSACTIONAL_ID."""
        from confluent_kafka.admin import (
            AclBinding,
            AclOperation,
            AclPermissionType,
            AdminClient,
            ResourcePatternType,
            ResourceType,
        )

        bindings = [
            AclBinding(
                ResourceType[kind],
                name,
                ResourcePatternType.PREFIXED if by_prefix else ResourcePatternType.LITERAL,
                f"User:{USER}",
                "*",
                AclOperation[operation],
                AclPermissionType.ALLOW,
            )
            for operation in operations
        ]
        admin = AdminClient({"bootstrap.servers": self.broker.address, "log_level": 0})
        for made in admin.create_acls(bindings).values():
            made.result(30)

    def allow_a_run(self, prefix: str) -> None:
        """Grant the user what a run needs, no more: topics by their prefix, its group, transactions of its names."""
        self.allow("TOPIC", prefix, "DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE", by_prefix=True)
        self.allow("GROUP", "headrace", "READ", by_prefix=True)
        self.allow("TRANSACTIONAL_ID", "headrace-", "DESCRIBE", "WRITE", by_prefix=True)


@contextmanager
def castle(folder: Path) -> Iterator[Castle]:
    """A running broker with all doors, and no rights granted yet."""
    authority, chain = _certificates(folder / "pki")
    other, _ = _certificates(folder / "other")
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(chain),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        **_login("sasl_plaintext"),
        **_login("sasl_ssl"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    users: Mapping[str, str] = {USER: PASSWORD, STRANGER: PASSWORD}
    with own_broker(folder, Security(_DOORS, properties, users)) as broker:
        yield Castle(broker, authority, other)


def _login(door: str) -> dict[str, str]:
    prefix = f"listener.name.{door}"
    plain = " ".join(f'user_{name}="{PASSWORD}"' for name in (USER, STRANGER))
    return {
        f"{prefix}.scram-sha-512.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
        f"{prefix}.plain.sasl.jaas.config": f"{_MODULES}.plain.PlainLoginModule required {plain};",
    }


def _certificates(folder: Path) -> tuple[Path, Path]:
    """(the authority's certificate, a server's key and chain for 127.0.0.1), PEM."""
    folder.mkdir(parents=True)
    authority, key, chain = folder / "ca.pem", folder / "ca.key", folder / "server.pem"
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n", "utf-8")
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    _openssl(*new, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", str(key), "-out", str(authority))
    _openssl(*new, "-subj", "/CN=127.0.0.1", "-keyout", f"{folder}/server.key", "-out", f"{folder}/server.csr")
    signed = ["-CA", str(authority), "-CAkey", str(key), "-CAcreateserial", "-days", "2", "-extfile", f"{folder}/names"]
    _openssl("x509", "-req", "-in", f"{folder}/server.csr", *signed, "-out", f"{folder}/server.crt")
    parts = [folder / "server.key", folder / "server.crt", authority]
    chain.write_bytes(b"".join(part.read_bytes() for part in parts))
    return authority, chain


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
