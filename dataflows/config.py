"""Settings: the only reader of the environment (the Feast repo, which Feast runs alone, is the exception)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from operators.errors import ConfigError
from operators.feature_sets import FeatureSets, parse_feature_sets
from operators.shard import SHARDS_MAX

_TOPIC = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class Settings(BaseSettings):
    """Every setting, its unit, default and reason. Read once; immutable."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False)

    bus_dir: Path = Field(Path("data/bus"), description="Folder bus: one folder a topic, one .jsonl file a partition.")
    bus_follow: bool = Field(True, description="1 = wait for more; 0 = stop at the end of the log and close all windows.")
    topic_signals: str = Field("signals", pattern=_TOPIC, description="Topic that signals are read from.")
    topic_late: str = Field("late", pattern=_TOPIC, description="Topic that late events go to.")
    topic_dlq: str = Field("dlq", pattern=_TOPIC, description="Folder of the bus that keeps the dead letters.")
    stream_concurrency: int = Field(1, ge=1, le=64, description="Worker threads of one process.")
    stream_batch_size: int = Field(65_536, ge=1, le=1 << 20, description="Events that are read and decoded at once, at most.")
    event_bytes_max: int = Field(1 << 20, ge=64, le=1 << 26, description="A message of more bytes is a dead letter.")
    watermark_seconds: float = Field(5.0, ge=0, le=366 * 86_400, description="How much older than the newest an event may be.")
    watermark_idle_seconds: float = Field(
        30.0, ge=0, description="A partition at the end of its log for so long is left out of the watermark; 0 = never."
    )
    late_event_policy: Literal["drop"] = Field("drop", description="drop = late events go to TOPIC_LATE, counted and replayable.")
    feature_windows: str | None = Field(None, description="Window specs, comma-separated, in place of those of every feature set.")
    feature_set_version: int | None = Field(None, ge=1, description="Version in place of that of every feature set.")
    feature_sets_path: Path = Field(Path("feature_repo/feature_sets.toml"), description="What is computed.")
    exactly_once_sink: bool = Field(
        True, description="1 = rows are visible once their snapshot is durable; 0 = at once, and again after a crash."
    )
    signal_shards: int = Field(12, ge=1, le=SHARDS_MAX, description="Shards of entities; fixed for a recovery folder.")
    offline_data_path: Path = Field(Path("data/offline"), description="Root of the feature history.")
    offline_format: Literal["parquet"] = Field("parquet", description="Format of the feature history.")
    online_store: Literal["feast", "none"] = Field("feast", description="feast = newest row an entity; none = no online features.")
    feast_repo_path: Path = Field(Path("feature_repo"), description="Feast repository with feature_store.yaml.")
    recovery_dir: Path = Field(Path("data/recovery"), description="Snapshots of positions and state: Bytewax's -r.")
    snapshot_seconds: int = Field(10, ge=1, le=3600, description="Whole seconds between two snapshots: Bytewax's -s.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level of the logs on stderr.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto = console on a terminal, JSON elsewhere.")

    @field_validator("watermark_seconds", "watermark_idle_seconds")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number of seconds")
        return value

    @property
    def watermark_us(self) -> int:
        """WATERMARK_SECONDS in microseconds."""
        return round(self.watermark_seconds * 1_000_000)

    def feature_sets(self) -> FeatureSets:
        """Read and check feature_sets.toml, with FEATURE_WINDOWS and FEATURE_SET_VERSION on top.

        Raises ConfigError if the file is missing or wrong; the message names the line and the key.
        """
        try:
            text = self.feature_sets_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = f"FEATURE_SETS_PATH `{self.feature_sets_path}` cannot be read: {error}"
            raise ConfigError(message) from error
        where = str(self.feature_sets_path)
        return parse_feature_sets(text, where=where, windows=self.feature_windows, version=self.feature_set_version)


def load_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` win over it.

    Raises ConfigError naming every setting that is wrong, the value seen and what is allowed.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])).upper()} is `{e['input']}`: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise ConfigError(f"settings are wrong: {wrong}") from error
