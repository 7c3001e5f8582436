"""A wire to the server that can be cut around a commit: before it arrives, or before its answer does."""

from __future__ import annotations

import contextlib
import socket
import threading
from enum import StrEnum
from typing import Self


class Cut(StrEnum):
    """When the wire is cut."""

    BEFORE = "before the commit arrives"
    AFTER = "after the commit, before its answer arrives"


class Proxy:
    """Passes bytes on between clients and a server on loopback."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut: Cut | None = None
        """What happens to the next commit, once."""
        self.cuts = 0
        self.commits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                wire = _Wire(self, client, server)
                threading.Thread(target=wire.pass_on, daemon=True).start()


class _Wire:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._swallow = False

    def pass_on(self) -> None:
        threading.Thread(target=self._pass_answers, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := self._client.recv(65_536):
                if b"COMMIT" in data:
                    self._proxy.commits += 1
                    cut, self._proxy.cut = self._proxy.cut, None
                    if cut is not None:
                        self._proxy.cuts += 1
                        if cut is Cut.BEFORE:
                            break
                        self._swallow = True
                self._server.sendall(data)
        self._close()

    def _pass_answers(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(65_536):
                if self._swallow:
                    break  # the server has answered, so it has committed
                self._client.sendall(data)
        self._close()

    def _close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
