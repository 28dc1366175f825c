"""Settings of Kafka: which bus they choose, what the client is told, what stays secret, what belongs to a lineage."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from dataflows.buses.folder import FolderBus
from dataflows.buses.kafka import KafkaBus
from dataflows.config import Settings, load_settings
from dataflows.wiring import bus_of, identity_of, kafka_properties
from operators.errors import ConfigError
from tests.commands import environment
from tests.strategies import two_sets


def load(**variables: str) -> Settings:
    """The settings that an environment of these variables gives."""
    with environment(variables):
        return load_settings()


def test_the_brokers_choose_the_bus(tmp_path: Path) -> None:
    """With KAFKA_BROKERS topics are on Kafka, without in the folder."""
    settings = load(KAFKA_BROKERS="a.example:9092, [::1]:9093", BUS_DIR=str(tmp_path))
    assert settings.kafka_brokers == "a.example:9092,[::1]:9093"
    with closing(bus_of(settings)) as bus:
        assert isinstance(bus, KafkaBus)
    assert isinstance(bus_of(load()), FolderBus)


def test_what_the_client_is_told() -> None:
    """Security by settings of its own, all else through KAFKA_CONFIG, whose values may hold commas and equal signs."""
    settings = load(
        KAFKA_BROKERS="a:1",
        KAFKA_SECURITY_PROTOCOL="sasl_ssl",
        KAFKA_USERNAME="alice",
        KAFKA_PASSWORD="p,w=1",  # noqa: S106  # nobody's
        KAFKA_CA_FILE="/ca.pem",
        KAFKA_CONFIG="debug=broker,fetch, client.rack=r=1",
    )
    assert kafka_properties(settings) == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "alice",
        "sasl.password": "p,w=1",
        "ssl.ca.location": "/ca.pem",
        "debug": "broker,fetch",
        "client.rack": "r=1",
    }
    assert kafka_properties(load(KAFKA_BROKERS="a:1")) == {"security.protocol": "plaintext"}
    assert "p,w=1" not in repr(settings)
    assert "client.rack" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("KAFKA_BROKERS", "nowhere", "`host:port` with commas between"),
        ("KAFKA_BROKERS", "kafka://a:9092", "`host:port` with commas between"),
        ("KAFKA_BROKERS", "alice:s3cret@a:9092", "`host:port` with commas between"),
        ("KAFKA_CONFIG", "s3cret", "`name=value` with commas between"),
        ("KAFKA_OFFSET_RESET", "middle", "'error', 'earliest' or 'latest'"),
    ],
)
def test_wrong_settings_are_named_and_secrets_are_not(name: str, value: str, says: str) -> None:
    """The message names the setting and what is allowed, and shows no secret."""
    with pytest.raises(ConfigError, match=name) as caught:
        load(**{name: value})
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_lineage_belongs_to_its_bus() -> None:
    """Positions in files mean nothing to Kafka: the identity says which it was; which brokers may change."""
    sets = two_sets()
    files, one, other = (identity_of(load(KAFKA_BROKERS=brokers), sets) for brokers in ("", "a:1", "b:2"))
    assert one == other == {"bus": "kafka", **files}
    assert "bus" not in files
