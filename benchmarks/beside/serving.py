"""A server on this machine's loopback address with as many pictures as asked for."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PATIENCE_SECONDS = 600.0


class Pictures:
    """`/NUMBER.jpg` for every number; from `halt_from` on only `halt_after` are served before `go_on`."""

    def __init__(self, *, halt_from: int, halt_after: int) -> None:
        self._halt_from, self._left = halt_from, halt_after
        self._picture = _a_picture()
        self._guard = threading.Lock()
        self._asked: list[int] = []
        self._halted, self._go_on = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def asked(self) -> list[int]:
        """The numbers asked for, in order."""
        with self._guard:
            return list(self._asked)

    @property
    def halted(self) -> bool:
        """Whether somebody waits for `go_on`."""
        return self._halted.is_set()

    def address(self, number: int) -> str:
        """Where a picture is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{number}.jpg"

    @staticmethod
    def number(address: str) -> int:
        """The picture of an address."""
        return int(address.rpartition("/")[2].partition(".")[0])

    def go_on(self) -> None:
        """Serve everything from now on."""
        self._go_on.set()

    def close(self) -> None:
        """Stop serving."""
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def _note(self, number: int) -> None:
        with self._guard:
            self._asked.append(number)
            if number < self._halt_from:
                return
            self._left -= 1
            if self._left >= 0:
                return
        if not self._go_on.is_set():
            self._halted.set()
            self._go_on.wait(_PATIENCE_SECONDS)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pictures = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pictures._note(Pictures.number(self.path))
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "image/jpeg")
                    self.send_header("Content-Length", str(len(pictures._picture)))
                    self.end_headers()
                    self.wfile.write(pictures._picture)
                except ConnectionError:
                    return  # whoever asked was killed

            def log_message(self, *_arguments: object) -> None:
                pass

        return Handler


def _a_picture() -> bytes:
    import cv2  # noqa: PLC0415 - only the comparison with img2dataset needs it
    import numpy as np  # noqa: PLC0415 - the same

    shades = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    encoded, data = cv2.imencode(".jpg", shades)
    if not encoded:
        raise ValueError("OpenCV cannot write a JPEG")
    return data.tobytes()
