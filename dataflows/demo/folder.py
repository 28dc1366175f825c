"""The demo's folder: laid out as the project is, so that every command works inside it with no settings at all.

::

    <out>/picture.png
    <out>/feature_repo/              a copy of the declarations
    <out>/data/bus/                  topics: signals, late, dlq
    <out>/data/offline/              what the live run wrote
    <out>/data/offline-batch/        what the batch run wrote
    <out>/data/recovery/             snapshots of the live run
    <out>/data/registry.db, online.db    Feast's own
    <out>/documents/                 READMEs and licences
    <out>/data/metadata.db, vectors/ what is known of them
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from dataflows.config import Settings, load_settings
from dataflows.demo.story import Story
from operators.errors import ConfigError, FatalError

WATERMARK_SECONDS = 10_800
"""Three hours: instruments of this kind report every 5 to 60 minutes, and their gateways store and forward."""

REDACTION = "regex"
"""READMEs name people's addresses."""

_MARK = ".headrace-demo"
_DECLARATIONS = Path(__file__).parents[2] / "feature_repo"
_OTHER_VARIABLES = ("FEAST_FS_YAML_FILE_PATH", "FEATURE_STORE_YAML_BASE64")
"""What would point Feast at another repository."""


class DemoFolder:
    """Names of everything that the demo writes."""

    def __init__(self, root: Path) -> None:
        """Nothing is touched yet."""
        self.root = root
        self.repository = root / "feature_repo"
        self.data = root / "data"
        self.signals = root / "data" / "bus" / "signals"
        self.picture = root / "picture.png"
        self.documents = root / "documents"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder, empty but for the declarations, until the end of the block.

        Raises ConfigError, with nothing touched, if it holds anything and no demo made it, or if another
        demo is at work in it.
        """
        try:
            mine = (self.root / _MARK).exists()
            if not mine and self.root.exists() and any(self.root.iterdir()):
                raise ConfigError(f"`{self.root}` is not empty and no demo made it; name another folder with --out")
            self.root.mkdir(parents=True, exist_ok=True)
            mark = os.open(self.root / _MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"`{self.root}` cannot be the demo's folder: {error.strerror}") from error
        try:
            self._lock(mark)
            self._fill()
            yield
        finally:
            os.close(mark)

    def live_settings(self) -> Settings:
        """Settings of a run that ends with its log, all paths inside the folder."""
        return self._settings("offline")

    def batch_settings(self) -> Settings:
        """The same, with a feature history of its own."""
        return self._settings("offline-batch")

    def document_settings(self) -> Settings:
        """Settings of a look at the documents, all paths inside the folder."""
        return load_settings(
            ingest_sources=str(self.documents),
            pii_redaction=REDACTION,
            bus_dir=self.data / "bus",
            metadata_db_url=f"sqlite:///{quote(str(self.data / 'metadata.db'))}",
            vectorstore_path=self.data / "vectors",
            recovery_dir=self.data / "recovery",
            log_level="error",
        )

    def write_log(self, story: Story) -> int:
        """Put the story on the bus; return its size in bytes."""
        self.signals.mkdir(parents=True)
        return sum(
            (self.signals / name).write_bytes(b"".join(line + b"\n" for line in lines))
            for name, lines in story.partitions.items()
        )

    def _settings(self, offline: str) -> Settings:
        return load_settings(
            bus_dir=self.data / "bus",
            bus_follow=False,
            watermark_seconds=WATERMARK_SECONDS,
            feature_sets_path=self.repository / "feature_sets.toml",
            feast_repo_path=self.repository,
            offline_data_path=self.data / offline,
            recovery_dir=self.data / "recovery",
            log_level="error",
        )

    def _lock(self, mark: int) -> None:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another demo is at work in `{self.root}`; wait for it, or name another --out"
            ) from error

    def _fill(self) -> None:
        try:
            for entry in self.root.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != _MARK:
                    entry.unlink()
            shutil.copytree(_DECLARATIONS, self.repository, ignore=shutil.ignore_patterns("__pycache__"))
        except OSError as error:
            raise FatalError(f"`{self.root}` cannot be emptied and filled anew: {error}") from error


@contextmanager
def no_settings() -> Iterator[None]:
    """Take every setting out of the environment until the end of the block: the demo is the same everywhere."""
    mine = {name for name in os.environ if name.lower() in Settings.model_fields or name in _OTHER_VARIABLES}
    taken = {name: os.environ.pop(name) for name in mine}
    try:
        yield
    finally:
        os.environ.update(taken)
