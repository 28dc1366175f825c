"""A Redis server for the tests of Feast's online store."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.feature_rows import feature_repository

REDIS_YAML = """
project: headrace
provider: local
registry: ../data/registry.db
online_store:
  type: redis
  connection_string: "127.0.0.1:{port}"
offline_store:
  type: duckdb
entity_key_serialization_version: 3
"""


class Redis:
    """A Redis server of our own on a free port; skips the test if one cannot be had."""

    def __init__(self, folder: Path) -> None:
        """Choose the port and start."""
        missing = ["redis-server"] if shutil.which("redis-server") is None else []
        missing += ["the Python package redis"] if importlib.util.find_spec("redis") is None else []
        if missing:
            pytest.skip(f"Feast on Redis is NOT tested here, for want of {' and '.join(missing)}")
        self._folder = folder
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = int(probe.getsockname()[1])
        self.start()

    def start(self) -> None:
        """Start the server, empty, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command = ["redis-server", "--port", str(self.port), *options]
        self._server = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 20
        while not _answers(self.port):
            assert time.monotonic() < limit, "redis-server does not answer"
            assert self._server.poll() is None, "redis-server ended"

    def repository(self) -> Path:
        """A Feast repository whose online store is this server."""
        repository = feature_repository(self._folder)
        (repository / "feature_store.yaml").write_text(REDIS_YAML.format(port=self.port), "utf-8")
        return repository

    def close(self) -> None:
        """Stop the server."""
        self._server.terminate()
        self._server.wait(20)


def _answers(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), 1)):
            return True
    except OSError:
        return False
