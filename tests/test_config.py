"""Settings: their defaults, what they refuse in which words, and the table that documents show."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dataflows.config import Settings, load_settings, settings_table
from operators.errors import ConfigError
from tests.commands import environment

DEFAULTS = {
    "BUS_DIR": "data/bus",
    "BUS_FOLLOW": "1",
    "TOPIC_SIGNALS": "signals",
    "TOPIC_LATE": "late",
    "TOPIC_DLQ": "dlq",
    "WATERMARK_SECONDS": "5",
    "LATE_EVENT_POLICY": "drop",
    "ALLOWED_LATENESS_SECONDS": "60",
    "FEATURE_WINDOWS": "",
    "FEATURE_SET_VERSION": "",
    "FEATURE_SETS_PATH": "feature_repo/feature_sets.toml",
    "EXACTLY_ONCE_SINK": "1",
    "OFFLINE_DATA_PATH": "data/offline",
    "OFFLINE_FORMAT": "parquet",
    "ONLINE_STORE": "feast",
    "FEAST_REPO_PATH": "feature_repo",
    "RECOVERY_DIR": "data/recovery",
}
"""What others rely on: a change here is a change for users."""


def load(**variables: str) -> Settings:
    """The settings that an environment of these variables gives."""
    with environment(variables):
        return load_settings()


def refusal(**variables: str) -> str:
    """What is said of these variables."""
    with pytest.raises(ConfigError) as caught:
        load(**variables)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_those_that_others_rely_on() -> None:
    """Without any setting everything stands in ./data, and the names and defaults of the interface are kept."""
    table = {name: default for name, default, _ in settings_table()}
    assert {name: table[name] for name in DEFAULTS} == DEFAULTS


def test_the_table_says_what_the_settings_are() -> None:
    """Every setting has a row, in order, with a sentence; writing a default down changes nothing."""
    table = settings_table()
    assert [name.lower() for name, _, _ in table] == list(Settings.model_fields)
    assert all(meaning.endswith(".") and "|" not in meaning for _, _, meaning in table)
    assert load(**{name: default for name, default, _ in table}) == load()


def test_a_variable_that_is_empty_is_not_set() -> None:
    """An empty variable, as compose files and charts make them, means the default."""
    assert load(WATERMARK_SECONDS="", FEATURE_WINDOWS="") == load()


def test_values_are_read() -> None:
    """Numbers, switches and paths come in the usual spellings; log levels in any case."""
    settings = load(
        WATERMARK_SECONDS="0.25",
        BUS_FOLLOW="false",
        EXACTLY_ONCE_SINK="0",
        BUS_DIR="/var/bus",
        FEATURE_SET_VERSION="3",
        LOG_LEVEL="INFO",
        ONLINE_STORE="none",
    )
    assert settings.watermark_us == 250_000
    assert (settings.bus_follow, settings.exactly_once_sink) == (False, False)
    assert settings.bus_dir == Path("/var/bus")
    assert settings.feature_set_version == 3
    assert (settings.log_level, settings.online_store) == ("info", "none")


def test_settings_do_not_change() -> None:
    """Settings are read once: nobody alters them, and a later change of the environment is not seen."""
    with environment({"WATERMARK_SECONDS": "7"}):
        settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.watermark_seconds = 1.0
    assert settings.watermark_seconds == 7


def test_an_override_wins_over_the_environment() -> None:
    """What a command decides by itself is not undone by a variable."""
    with environment({"WATERMARK_SECONDS": "7"}):
        assert load_settings(watermark_seconds=1.0).watermark_seconds == 1


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("WATERMARK_SECONDS", "abc", "a valid number"),
        ("WATERMARK_SECONDS", "-1", "greater than or equal to 0"),
        ("WATERMARK_SECONDS", "nan", "0"),
        ("WATERMARK_IDLE_SECONDS", "inf", "finite"),
        ("STREAM_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("STREAM_BATCH_SIZE", "1.5", "a valid integer"),
        ("STREAM_CONCURRENCY", "65", "less than or equal to 64"),
        ("SIGNAL_SHARDS", "0", "greater than or equal to 1"),
        ("SNAPSHOT_SECONDS", "0", "greater than or equal to 1"),
        ("EVENT_BYTES_MAX", "1", "greater than or equal to 64"),
        ("BUS_FOLLOW", "perhaps", "a valid boolean"),
        ("TOPIC_SIGNALS", "../signals", "match pattern"),
        ("TOPIC_LATE", "a/b", "match pattern"),
        ("FEATURE_SET_VERSION", "0", "greater than or equal to 1"),
        ("OFFLINE_FORMAT", "csv", "'parquet'"),
        ("ONLINE_STORE", "redis", "'feast' or 'none'"),
        ("ALLOWED_LATENESS_SECONDS", "inf", "less than or equal to 31622400"),
        ("ALLOWED_LATENESS_SECONDS", "-1", "greater than or equal to 0"),
        ("LATE_EVENT_POLICY", "ignore", "'drop'"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'auto', 'json' or 'console'"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(name: str, value: str, says: str) -> None:
    """The complaint holds the setting, the value seen and what is allowed."""
    message = refusal(**{name: value})
    assert f"{name} is `{value}`: " in message
    assert says in message


def test_all_wrong_settings_are_named_at_once() -> None:
    """Whoever mends one setting is not sent back for the next."""
    message = refusal(WATERMARK_SECONDS="abc", STREAM_BATCH_SIZE="0")
    assert "WATERMARK_SECONDS" in message
    assert "STREAM_BATCH_SIZE" in message


def test_topics_must_differ() -> None:
    """A flow whose late events went to the topic it reads would never end."""
    message = refusal(TOPIC_LATE="signals")
    assert "TOPIC_SIGNALS is `signals`, TOPIC_LATE is `signals`" in message
    assert "must differ" in message


def test_feature_sets_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is missing, a folder, or not text is named with its setting."""
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    for path, says in (("none.toml", "No such file"), ("", "Is a directory"), ("latin.toml", "is not UTF-8")):
        with pytest.raises(ConfigError, match="FEATURE_SETS_PATH") as caught:
            load(FEATURE_SETS_PATH=str(tmp_path / path)).feature_sets()
        assert says in str(caught.value)
