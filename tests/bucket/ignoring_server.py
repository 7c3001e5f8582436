"""A store that takes `If-None-Match` for nothing, as some do without a word: it must be refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.bucket.servers import S3Server

_WHEN = "Thu, 01 Jan 2026 00:00:00 GMT"
_PAGE = 1_000


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    heeds_offset = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).partition("/")[2].partition("/")[2]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        self.objects[self._key] = data = self._body()
        self._answer(200, headers={"ETag": _tag(data)})

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._answer(200, self._listing({name: values[0] for name, values in query.items()}))
        elif (data := self.objects.get(self._key)) is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, data, {"ETag": _tag(data), "Last-Modified": _WHEN})

    do_HEAD = do_GET  # noqa: N815 - as the library calls it

    def do_DELETE(self) -> None:
        self.objects.pop(self._key, None)
        self._answer(204)

    def do_POST(self) -> None:
        request = ET.fromstring(self._body())  # noqa: S314 - a test's own
        keys = [one.text or "" for one in request.iter() if one.tag.endswith("Key")]
        for key in keys:
            self.objects.pop(key, None)
        gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def _listing(self, query: dict[str, str]) -> bytes:
        after = query.get("continuation-token") or (query.get("start-after", "") if self.heeds_offset else "")
        prefix = query.get("prefix", "")
        keys = sorted(one for one in list(self.objects) if one.startswith(prefix) and one > after)
        page = keys[:_PAGE]
        entries = "".join(
            f"<Contents><Key>{escape(one)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{_tag(self.objects[one])}</ETag><Size>{len(self.objects[one])}</Size></Contents>"
            for one in page
        )
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if keys[_PAGE:] else ""
        is_cut = str(bool(more)).lower()
        return (
            f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{more}{entries}</ListBucketResult>"
        ).encode()


def _tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


@contextmanager
def ignoring_server(*, heeds_offset: bool = True) -> Iterator[S3Server]:
    """As long as this block runs, in this process; without `heeds_offset` it always lists from the start."""
    handler = type("Handler", (_Handler,), {"objects": {}, "heeds_offset": heeds_offset})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield S3Server(name="ignoring", port=server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
