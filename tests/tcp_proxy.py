"""A bad network: a TCP proxy that stalls, cuts, refuses and delays what goes through it, in threads."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

CHUNK_BYTES = 1 << 16
FETCH = 1
"""Kafka's number of the request that reads messages."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close at once, with a reset."""


class Connection:
    """One connection through the proxy: two sockets, and a thread for each way."""

    def __init__(self, proxy: TcpProxy, near: socket.socket, far: socket.socket) -> None:
        """near: the client's side; far: the server's."""
        self.fetches = False
        self._sockets = (near, far)
        ways = ((near, far, "requests"), (far, near, "answers"))
        self.threads = [threading.Thread(target=self._carry, args=(proxy, *way), daemon=True) for way in ways]
        for thread in self.threads:
            thread.start()

    def cut(self) -> None:
        """Reset both sides; what is on its way is lost."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _carry(self, proxy: TcpProxy, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if way == "requests" and len(data) >= 6 and int.from_bytes(data[4:6]) == FETCH:
                    self.fetches = True
                proxy.hold(self, way, len(data))
                sink.sendall(data)
        self.cut()
        proxy.forget(self)


class TcpProxy:
    """Carries every connection to `port` of loopback on to a server, as well or as badly as it is told."""

    def __init__(self, port: int, server: str) -> None:
        """server: `host:port`. Listens at once."""
        host, _, number = server.rpartition(":")
        self._server = (host, int(number))
        self.address = f"127.0.0.1:{port}"
        self.carried_bytes = 0
        self._changed = threading.Condition()
        self._open: set[Connection] = set()
        self._stalled: Callable[[Connection, str], bool] = lambda _connection, _way: False
        self._delay_s = 0.0
        self._refuses = False
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all connections and threads."""
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        left = self.connections()
        self.cut()
        for connection in left:
            for thread in connection.threads:
                thread.join()

    def connections(self) -> list[Connection]:
        """Those that are open."""
        with self._changed:
            return list(self._open)

    def stall(self, *ways: str, fetches_only: bool = False) -> None:
        """Let no byte through, and break nothing; ways: `requests`, `answers`, default both.

        fetches_only: of the connections that messages are read through; others go on.
        """
        with self._changed:
            self._stalled = lambda connection, way: (
                (not ways or way in ways) and (connection.fetches or not fetches_only)
            )

    def go_on(self) -> None:
        """Be a good network from now on; what was held back comes first."""
        with self._changed:
            self._stalled = lambda _connection, _way: False
            self._refuses = False
            self._delay_s = 0.0
            self._changed.notify_all()

    def delay(self, seconds: float) -> None:
        """Hold back everything that is read from a socket for so long."""
        self._delay_s = seconds

    def cut(self, *, refuse: bool = False) -> None:
        """Reset all connections. refuse: new ones too, until it is told to go on."""
        self._refuses = refuse
        for connection in self.connections():
            self.forget(connection)
            connection.cut()

    def hold(self, connection: Connection, way: str, size: int) -> None:
        """Return when these bytes may go on. Raises OSError if they never may."""
        if self._delay_s > 0:
            self._closed.wait(self._delay_s)
        with self._changed:
            while self._stalled(connection, way) and connection in self._open:
                self._changed.wait()
            if connection not in self._open or self._closed.is_set():
                raise OSError("the connection was cut")
            self.carried_bytes += size

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed.is_set():
                near, _ = self._listener.accept()
                try:
                    far = None if self._refuses else socket.create_connection(self._server, 5)
                except OSError:
                    far = None
                if far is None:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    near.close()
                    continue
                far.settimeout(None)
                for each in (near, far):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._changed:
                    self._open.add(Connection(self, near, far))
