"""Settings: the only reader of the environment (the Feast repo, which Feast runs alone, is the exception)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from operators.errors import ConfigError
from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.retained import Lateness
from operators.shard import SHARDS_MAX

_TOPIC = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_BROKER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_CREDENTIALS = re.compile(r"[^,/\s]*@")
"""A user and a password before a host: they are not told to anybody."""


class Settings(BaseSettings):
    """Every setting, its unit, default and reason. Read once; immutable."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False)

    bus_dir: Path = Field(
        Path("data/bus"), description="Folder bus: a folder for each topic, in it a .jsonl file for each partition."
    )
    bus_follow: bool = Field(
        True, description="1 = wait for more; 0 = stop at the end of the log and close all windows."
    )
    kafka_brokers: str = Field(
        "",
        description="Topics are on this Kafka: `host:port` with commas between; empty = in BUS_DIR.",
    )
    kafka_offset_reset: Literal["error", "earliest", "latest"] = Field(
        "error",
        description="If Kafka has deleted what was to be read next: error = stop; earliest, latest = go on without it.",
    )
    kafka_security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="How Kafka is spoken to: in the clear, through TLS, with a user, or both."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the user is proved."
    )
    kafka_username: str = Field("", description="The user.")
    kafka_password: SecretStr | None = Field(None, description="Its password.")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file of the authorities that sign the brokers' certificates, if the system's do not."
    )
    kafka_config: SecretStr | None = Field(
        None, description="Further properties of librdkafka, `name=value` with commas between."
    )
    kafka_group_id: str = Field(
        "headrace",
        max_length=249,
        description="Consumer group that shows others how far durable snapshots have come; empty = show nothing.",
    )
    kafka_results: bool = Field(
        True, description="1 = what was made (feature rows, indexed documents) is told to TOPIC_RESULTS; 0 = not."
    )
    topic_signals: str = Field("signals", pattern=_TOPIC, description="Topic that signals are read from.")
    topic_docs: str = Field("docs", pattern=_TOPIC, description="Topic that tells of documents, on Kafka.")
    topic_results: str = Field("results", pattern=_TOPIC, description="Topic that results go to, on Kafka.")
    topic_late: str = Field("late", pattern=_TOPIC, description="Topic that late events go to.")
    topic_dlq: str = Field("dlq", pattern=_TOPIC, description="Topic of the dead letters, and folder that keeps them.")
    stream_concurrency: int = Field(1, ge=1, le=64, description="Worker threads of one process.")
    stream_batch_size: int = Field(
        65_536,
        ge=1,
        le=1 << 20,
        description="Events that are read and decoded at once, at most. Changes speed and memory, never a row.",
    )
    event_bytes_max: int = Field(
        1 << 20, ge=64, le=1 << 26, description="A message of more bytes becomes a dead letter unread."
    )
    max_future_seconds: float = Field(
        86_400.0,
        gt=0,
        le=366 * 86_400,
        description="An event this far ahead of the time at which Kafka took it is a dead letter.",
    )
    watermark_seconds: float = Field(
        5.0,
        ge=0,
        le=366 * 86_400,
        description="How much older than the newest event of its partition an event may be before it is late.",
    )
    watermark_idle_seconds: float = Field(
        30.0,
        ge=0,
        description="Seconds at the end of its log after which a partition no longer holds others back; 0 = never.",
    )
    late_event_policy: Literal["drop", "hold", "correct"] = Field(
        "drop",
        description="Late events: drop = go to TOPIC_LATE; hold = wait for `headrace late release`; correct = rows that"
        " they change come again as revisions.",
    )
    allowed_lateness_seconds: float = Field(
        60.0,
        ge=0,
        le=366 * 86_400,
        description="How far behind its watermark an event may still correct rows; older ones go to TOPIC_LATE.",
    )
    feature_windows: str | None = Field(
        None, description="Window specs, as `5s,1m/10s,session:30s`, in place of those of every feature set."
    )
    feature_set_version: int | None = Field(None, ge=1, description="Version in place of that of every feature set.")
    feature_sets_path: Path = Field(
        Path("feature_repo/feature_sets.toml"), description="The feature sets: what is computed."
    )
    exactly_once_sink: bool = Field(
        True, description="1 = rows are visible once their snapshot is durable; 0 = at once, and again after a crash."
    )
    signal_shards: int = Field(
        12, ge=1, le=SHARDS_MAX, description="Parts that entities are spread over; fixed for a recovery folder."
    )
    offline_data_path: Path = Field(
        Path("data/offline"), description="Root of the feature history, Parquet files in hive folders."
    )
    offline_format: Literal["parquet"] = Field("parquet", description="Format of the feature history.")
    archive_signals: bool = Field(
        False, description="1 = every message is kept as it came, with what became of it, in ARCHIVE_PATH."
    )
    archive_path: Path = Field(Path("data/archive"), description="Root of the archive, Parquet files by day.")
    online_store: Literal["feast", "none"] = Field(
        "feast", description="feast = the newest row of every entity is served by Feast; none = no online features."
    )
    feast_repo_path: Path = Field(
        Path("feature_repo"), description="Feast repository: the folder of feature_store.yaml."
    )
    recovery_dir: Path = Field(
        Path("data/recovery"),
        description="Snapshots of positions and state, Bytewax's -r; those of documents in its folder `documents`.",
    )
    ingest_sources: str = Field(
        "", description="Documents: folders, files and globs with commas between them, also as `file://` URLs."
    )
    source_include: str = Field(
        "**/*.md,**/*.txt,**/*.pdf", description="Globs on paths below a source: what is a document."
    )
    source_exclude: str = Field("", description="Globs on paths below a source: what is none after all.")
    source_poll_interval_sec: float = Field(
        60.0, gt=0, le=7 * 86_400, description="Seconds from one look at the sources to the next."
    )
    document_bytes_max: int = Field(
        64 << 20, ge=1, le=1 << 30, description="A document of more bytes becomes a dead letter unread."
    )
    pdf_extractor: Literal["pdfium", "pypdf"] = Field(
        "pdfium", description="What reads PDFs: pdfium is 11 to 20 times as fast and keeps the blanks between words."
    )
    pii_redaction: Literal["off", "regex", "presidio"] = Field(
        "off",
        description="What finds e-mail, phone, IP, card, IBAN and national id, which become tags such as `[EMAIL]`.",
    )
    chunk_size: int = Field(1000, ge=1, le=1_000_000, description="Most units of a chunk.")
    chunk_overlap: int = Field(100, ge=0, description="Most units that neighbouring chunks share.")
    chunk_unit: Literal["chars", "tokens"] = Field(
        "chars", description="Unit of both: characters, or the model's tokens."
    )
    embeddings: Literal["local", "stub", "openai"] = Field(
        "local",
        description="local = a model from a package; stub = letters and words alone; openai = a server.",
    )
    openai_base_url: str = Field(
        "https://api.openai.com/v1", description="Any server that speaks OpenAI's API, up to and with `/v1`."
    )
    openai_api_key: SecretStr | None = Field(None, description="Its key; empty for a server that wants none.")
    embedding_model: str = Field("text-embedding-3-small", min_length=1, description="Model of the server.")
    embedding_dim: int | None = Field(
        None, ge=1, le=1 << 14, description="Numbers of a vector, where the model is none of OpenAI's own."
    )
    max_embed_batch: int = Field(64, ge=1, le=2048, description="Texts that are embedded by one call, at most.")
    metadata_db_url: str = Field("sqlite:///data/metadata.db", description="What is known of documents and chunks.")
    vectorstore_backend: Literal["usearch"] = Field("usearch", description="What keeps the vectors.")
    vectorstore_path: Path = Field(Path("data/vectors"), description="Folder of the vectors.")
    vectorstore_element: Literal["f32", "f16", "i8"] = Field(
        "f16", description="How a number of a vector is kept; fixed once something was written."
    )
    snapshot_seconds: int = Field(10, ge=1, le=3600, description="Whole seconds between two snapshots: Bytewax's -s.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level of the logs on stderr."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto = console on a terminal, JSON elsewhere."
    )

    @field_validator(
        "watermark_seconds",
        "watermark_idle_seconds",
        "allowed_lateness_seconds",
        "max_future_seconds",
        "source_poll_interval_sec",
    )
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number of seconds")
        return value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _topics_apart(self) -> Self:
        names = ("topic_signals", "topic_docs", "topic_results", "topic_late", "topic_dlq")
        topics = {name.upper(): getattr(self, name) for name in names}
        shared = [name for name, topic in topics.items() if list(topics.values()).count(topic) > 1]
        if shared:
            said = ", ".join(f"{name} is `{topics[name]}`" for name in shared)
            raise ValueError(f"{said}: they must differ, or the flow would read what it writes")
        return self

    @field_validator("kafka_brokers")
    @classmethod
    def _brokers(cls, value: str) -> str:
        brokers = [part.strip() for part in value.split(",")]
        if value and not all(_BROKER.fullmatch(broker) for broker in brokers):
            raise ValueError("must be `host:port` with commas between")
        return ",".join(brokers)

    @field_validator("kafka_config")
    @classmethod
    def _pairs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all("=" in part for part in _properties(value.get_secret_value())):
            raise ValueError("must be `name=value` with commas between")
        return value

    @property
    def kafka_extra(self) -> dict[str, str]:
        """The properties in KAFKA_CONFIG; they may be secret."""
        text = "" if self.kafka_config is None else self.kafka_config.get_secret_value()
        pairs = [part.partition("=") for part in _properties(text)]
        return {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def watermark_us(self) -> int:
        """WATERMARK_SECONDS in microseconds."""
        return round(self.watermark_seconds * 1_000_000)

    @property
    def max_future_us(self) -> int:
        """MAX_FUTURE_SECONDS in microseconds."""
        return round(self.max_future_seconds * 1_000_000)

    @property
    def lateness(self) -> Lateness | None:
        """What late events may still change: None under `drop`."""
        if self.late_event_policy == "drop":
            return None
        allowed_us = round(self.allowed_lateness_seconds * 1_000_000)
        return Lateness(allowed_us, max(self.watermark_us, 1_000_000), self.late_event_policy == "correct")

    def feature_sets(self) -> FeatureSets:
        """Read and check feature_sets.toml, with FEATURE_WINDOWS and FEATURE_SET_VERSION on top.

        Raises ConfigError if the file is missing or wrong; the message names the line and the key.
        """
        try:
            text = self.feature_sets_path.read_text(encoding="utf-8")
        except OSError as error:
            message = f"FEATURE_SETS_PATH `{self.feature_sets_path}` cannot be read: {error.strerror}"
            raise ConfigError(message) from error
        except UnicodeDecodeError as error:
            message = f"FEATURE_SETS_PATH `{self.feature_sets_path}` is not UTF-8: {error.reason} at byte {error.start}"
            raise ConfigError(message) from error
        where = str(self.feature_sets_path)
        return parse_feature_sets(text, where=where, windows=self.feature_windows, version=self.feature_set_version)


def settings_table() -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every setting as it is written in the environment, in the order of declaration.

    An empty default means: not set.
    """
    return [
        (name.upper(), _written(field.default), str(field.description)) for name, field in Settings.model_fields.items()
    ]


def load_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` win over it.

    Raises ConfigError naming every setting that is wrong, the value seen and what is allowed.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        wrong = "; ".join(_complaint(e["loc"], e["input"], e["msg"]) for e in error.errors())
        raise ConfigError(f"settings are wrong: {wrong}") from error


def _properties(text: str) -> list[str]:
    """`name=value` each; a comma in a value is one that no further `name=` follows."""
    return [part for part in re.split(r",\s*(?=[a-z][a-z0-9._-]*\s*=)", text.strip().strip(",")) if part]


def _complaint(place: tuple[int | str, ...], value: object, message: str) -> str:
    text = message.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:] if text.startswith("Input") else text
    if not place:
        return text
    name = str(place[0])
    secret = SecretStr in get_args(Settings.model_fields[name].annotation)
    shown = "wrong (it is secret and not shown)" if secret else f"`{_CREDENTIALS.sub('…@', str(value))}`"
    return f"{name.upper()} is {shown}: {text}"


def _written(default: object) -> str:
    match default:
        case None:
            return ""
        case bool():
            return str(int(default))
        case float():
            return f"{default:g}"
        case _:
            return str(default)
