"""A wire to a store that can be cut around any PUT, that answers in the store's place, or is not there."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

_PUT = "PUT"


class Cut(StrEnum):
    """When the wire is cut."""

    BEFORE = "before the request arrives"
    AFTER = "after the request, before its answer arrives"


class Refusal(NamedTuple):
    """What is answered in the store's place."""

    status: int
    code: str


SLOW_DOWN = Refusal(503, "SlowDown")
TOO_MANY = Refusal(429, "TooManyRequests")
DENIED = Refusal(403, "AccessDenied")
EXPIRED = Refusal(400, "ExpiredToken")
UNKNOWN = Refusal(401, "Unauthorized")

Cuts = Callable[[int, str], Cut | None]
"""Whether the wire is cut around the n-th PUT (from 1) and how; its second argument is the path."""


class Proxy:
    """Passes requests on to a server on loopback. What is set may be set at any time, by any thread."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.cuts: Cuts = lambda _number, _path: None
        self.delay_seconds = 0.0
        """Before each request is passed on."""
        self.before_put: Callable[[str], None] = lambda _path: None
        """Called with the path of each PUT before anything else becomes of it; it may wait."""
        self.puts = 0
        self.cut = 0
        self.refused = 0
        self.paths: list[str] = []
        """Of the PUTs, in order."""
        self._refusal: Refusal | None = None
        self._refusals_left = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    @property
    def port(self) -> int:
        """Where clients come; it stays."""
        return self._port

    def connect(self) -> None:
        """Let clients come again."""
        if self._server is not None:
            return
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = int(self._server.server_address[1])
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def disconnect(self) -> None:
        """Refuse connections, and break those that are open."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def refuse(self, refusal: Refusal | None, *, times: int = sys.maxsize) -> None:
        """Answer this to so many requests from now on; None: to none."""
        with self._lock:
            self._refusal, self._refusals_left = refusal, times

    def refusal(self) -> Refusal | None:
        """What the next request is to be answered instead of being passed on; it is counted."""
        with self._lock:
            if self._refusal is None or not self._refusals_left:
                return None
            self._refusals_left -= 1
            self.refused += 1
            return self._refusal

    def decide(self, path: str) -> Cut | None:
        """Count a PUT, and say what becomes of it."""
        with self._lock:
            self.puts += 1
            self.paths.append(path)
            cut = self.cuts(self.puts, path)
            self.cut += cut is not None
            return cut

    def opened(self, connection: socket.socket, *, is_open: bool) -> None:
        """A client has come, or gone."""
        with self._lock:
            (self._open.add if is_open else self._open.discard)(connection)


def once_each(how: Cut = Cut.AFTER) -> Cuts:
    """Around every PUT once: the same one, tried again, passes."""
    waiting: set[str] = set()

    def cuts(_number: int, path: str) -> Cut | None:
        if path in waiting:
            waiting.discard(path)
            return None
        waiting.add(path)
        return how

    return cuts


def at(number: int, how: Cut = Cut.AFTER) -> Cuts:
    """Around one PUT only."""
    return lambda this, _path: how if this == number else None


def some(share: float, source: random.Random) -> Cuts:
    """Around that share of the PUTs, in either way."""
    return lambda _number, _path: source.choice(list(Cut)) if source.random() < share else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Broken connections are what it is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    proxy: Proxy
    upstream: http.client.HTTPConnection | None = None

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        self.proxy.opened(self.connection, is_open=True)

    def finish(self) -> None:
        self.proxy.opened(self.connection, is_open=False)
        if self.upstream is not None:
            self.upstream.close()
        super().finish()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.proxy.delay_seconds)
        refusal = self.proxy.refusal()
        if refusal is not None:
            self._refuse(refusal)
            return
        cut = None
        if self.command == _PUT:
            self.proxy.before_put(self.path)
            cut = self.proxy.decide(self.path)
        if cut is not Cut.BEFORE:
            answer = self._asked(data)
        if cut is not None:
            self._break()
            return
        status, headers, body = answer
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT  # noqa: N815 - as the library calls them

    def _asked(self, data: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        for is_last in (False, True):
            is_new = self.upstream is None
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port)
                self.upstream.connect()
                self.upstream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self.upstream.request(self.command, self.path, body=data or None, headers=headers)
                answer = self.upstream.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except (OSError, http.client.HTTPException):
                # The server has closed a connection that lay idle: the same request on a new one.
                self.upstream.close()
                self.upstream = None
                if is_new or is_last:
                    raise
        raise AssertionError

    def _refuse(self, refusal: Refusal) -> None:
        code = refusal.code
        body = f"<Error><Code>{code}</Code><Message>The tests say {code}.</Message></Error>".encode()
        self.send_response_only(refusal.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
