"""The page over HTTP: read-only, with a few fixed routes; no part of a request reaches the file system."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self

from shardgen.errors import InvalidSettings, MachineUnfit, note_of
from shardgen.operations.forecast import status_json
from shardgen.operations.page.look import Seen, SharedLook
from shardgen.operations.page.metrics import MEDIA_TYPE, metrics
from shardgen.operations.page.render import Rendered, document, rendered, static

DEFAULT = "127.0.0.1:8765"
TOKEN_VARIABLE = "SHARDGEN_TOKEN"  # noqa: S105 - its name
VIEWERS = 100  # with an open stream of events
_REQUESTS = 32  # at a time beside these
_REQUEST_SECONDS = 10.0  # in which a request must be there
_ANSWER_SECONDS = 60.0  # in which each answer, or event, must be taken
_PING_SECONDS = 15.0
_FIRST_LOOK_SECONDS = 30.0
_TEXT = "text/plain; charset=utf-8"
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_LOG = logging.getLogger(__name__)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")
_STATIC = {
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen: a host name or number and a port, 0 for one that is free."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def in_url(self) -> str:
        """As in `[::1]:8765`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`127.0.0.1:8765`, `[::1]:8765` or `localhost:0`. Raises ValueError."""
    match = _HOST.fullmatch(text)
    if match is None or match[2] is None or int(match[2]) > 65_535:
        raise ValueError(f"{text!r} is not an address with a port, such as {DEFAULT}")
    return Address(host=match[1].strip("[]"), port=int(match[2]))


def token_for(address: Address, *, is_behind_proxy: bool) -> str | None:
    """What whoever comes from elsewhere must bring: `$SHARDGEN_TOKEN`, or drawn; None where nobody may come.

    Raises InvalidSettings for a variable that can be guessed.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and not _TOKEN.fullmatch(given):
        raise InvalidSettings(
            f"${TOKEN_VARIABLE}: at least 16 letters, digits, - and _, and nothing else",
            hint=f'export {TOKEN_VARIABLE}=$(python -c "import secrets; print(secrets.token_urlsafe())")',
        )
    if given or not address.is_loopback or is_behind_proxy:
        return given or secrets.token_urlsafe(24)
    return None


class PageServer:
    """Serves one run's page from threads of its own. Use it as a context manager; `url` has the token.

    Raises MachineUnfit when it cannot listen there.
    """

    def __init__(self, look: SharedLook, address: Address, *, token: str | None = None) -> None:
        self.look = look
        self.token = token
        self.streams = threading.BoundedSemaphore(VIEWERS)
        self.start = secrets.token_hex(4)
        """What tells its looks from those of an earlier server in the same place."""
        try:
            self._http = _HttpServer(self, address)
        except OSError as error:
            raise MachineUnfit(
                f"{address.in_url}: cannot listen there: {error.strerror or error}",
                hint=f"another command may have the port; take a free one with --serve {address.host}:0",
            ) from error
        self.address = Address(host=address.host, port=self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, name="page-server", daemon=True)
        self._rendered: tuple[int, Rendered] | None = None
        self._rendering = threading.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """What to open in a browser."""
        at = self.address if self.address.host not in ("0.0.0.0", "::") else self._by_name()  # noqa: S104
        needs = self.token is not None and not self.address.is_loopback
        return f"http://{at.in_url}/" + (f"?token={self.token}" if needs else "")

    def _by_name(self) -> Address:
        return Address(host=socket.gethostname(), port=self.address.port)

    def version(self, seen: Seen) -> str:
        """What tells a look from every other."""
        return f"{self.start}-{seen.version}"

    def rendered(self, seen: Seen) -> Rendered:
        """The parts of the page of what was seen; each look is rendered once, for all viewers."""
        with self._rendering:
            if self._rendered is None or self._rendered[0] != seen.version:
                self._rendered = seen.version, rendered(seen)
            return self._rendered[1]


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, page: PageServer, address: Address) -> None:
        self.page = page
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.reading: dict[socket.socket, float] = {}
        """The connections whose request is not there yet, and since when."""
        self._places = threading.BoundedSemaphore(VIEWERS + _REQUESTS)
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """Bind. HTTPServer's own would ask a name server for this machine's name, which may take long."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Nobody waits for a place: who comes while all are taken is sent away."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self.reading[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:  # there was no thread to be had
            self.reading.pop(request, None)
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.reading.pop(request, None)
            self._places.release()

    def service_actions(self) -> None:
        """Hang up, twice a second, on those who send their request letter by letter."""
        for connection, since in list(self.reading.items()):
            if time.monotonic() - since > _REQUEST_SECONDS:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that goes away in the middle is nobody's concern."""


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Handler(BaseHTTPRequestHandler):
    """Answers one request and closes the connection."""

    server: _HttpServer
    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_SECONDS

    @property
    def _page(self) -> PageServer:
        return self.server.page

    def do_GET(self) -> None:
        """Answer what may be asked."""
        self.close_connection = True
        self.server.reading.pop(self.connection, None)
        self.connection.settimeout(_ANSWER_SECONDS)
        try:
            self._answer()
        except _Refused as refused:
            self._send(refused.status, _TEXT, f"{refused.text}\n".encode(errors="backslashreplace"))
        except OSError:  # the viewer has gone
            raise
        except Exception as error:  # noqa: BLE001 - a fault of the page must not end what it serves
            _LOG.warning("the page: %s", note_of(error))
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"the page cannot be shown\n")

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def version_string(self) -> str:
        """No version of anything."""
        return "shardgen"

    def log_message(self, *_: object) -> None:
        """Nothing: a request's path may hold the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """In words of our own: the library's repeat the request."""
        del message, explain
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:  # whatever the method is
            code = HTTPStatus.METHOD_NOT_ALLOWED
        if not hasattr(self, "request_version") or self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.1"
        more = {"Allow": "GET, HEAD"} if code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        text = f"{HTTPStatus(code).phrase}\n".encode()
        self._send(HTTPStatus(code), _TEXT, text, more)

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        is_page = path == "/"
        self._check(query, is_page=is_page)
        page = self._page
        if is_page:
            if self._has_token(query, in_query_only=True):  # it goes from the address bar into a cookie
                cookie = f"{self._cookie}={page.token}; Path=/; HttpOnly; SameSite=Lax"
                self._send(HTTPStatus.SEE_OTHER, _TEXT, b"", {"Location": "./", "Set-Cookie": cookie})
                return
            seen = self._seen(pictures=True)
            html = document(page.rendered(seen), version=page.version(seen))
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", html.encode())
        elif path in _STATIC:
            name, media_type = _STATIC[path]
            self._send(HTTPStatus.OK, media_type, static(name))
        elif path == "/events":
            self._stream(query)
        elif path == "/status.json":
            found = self._seen().look
            text = json.dumps(status_json(found.report, found.forecast) if found else {}, indent=2)
            self._send(HTTPStatus.OK, "application/json", f"{text}\n".encode())
        elif path == "/metrics":
            self._send(HTTPStatus.OK, MEDIA_TYPE, metrics(page.look.fresh()).encode())
        elif path.startswith("/pictures/"):
            self._picture(path.removeprefix("/pictures/"))
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _check(self, query: str, *, is_page: bool) -> None:
        """Who asks, under which name, and from which page. Raises _Refused."""
        hosts = self.headers.get_all("Host", [])
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            raise _Refused(HTTPStatus.BAD_REQUEST, "one Host is needed")
        at = self._page.address
        is_here = at.is_loopback and match[1].lower() in (*_LOOPBACK_NAMES, at.host)
        if not is_here and not self._has_token(query):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "open the address that the command printed, token included"
                if self._page.token
                else f"this page is for this machine only; to open it by another name set ${TOKEN_VARIABLE}",
            )
        origins = self.headers.get_all("Origin", [])
        if any(origin.partition("://")[2] != hosts[0] for origin in origins):
            raise _Refused(HTTPStatus.FORBIDDEN, "asked by another site")
        is_visit = is_page and self.headers.get("Sec-Fetch-Mode", "") == "navigate"
        is_ours = self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        if not is_ours and not (is_visit and self.headers.get("Sec-Fetch-Dest", "") == "document"):
            raise _Refused(HTTPStatus.FORBIDDEN, "asked by another site")

    @property
    def _cookie(self) -> str:
        return f"shardgen-{self._page.address.port}"

    def _has_token(self, query: str, *, in_query_only: bool = False) -> bool:
        token = self._page.token
        if token is None:
            return False
        offered = [value for name, _, value in _pairs(query, "&") if name == "token"]
        if not in_query_only:
            offered.append(self.headers.get("Authorization", "").removeprefix("Bearer "))
            cookies = _pairs(self.headers.get("Cookie", ""), ";")
            offered += [value for name, _, value in cookies if name == self._cookie]
        return any([_is_same(one, token) for one in offered])  # noqa: C419 - all, whichever is right

    def _seen(self, *, pictures: bool = False) -> Seen:
        seen = self._page.look.fresh(timeout=_FIRST_LOOK_SECONDS, pictures=pictures)
        if seen.look is None:
            raise _Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the run cannot be read yet: {seen.failure or 'wait a moment'}",
            )
        return seen

    def _picture(self, key: str) -> None:
        look = self._page.look.seen.look
        for sample in () if look is None else look.samples:
            for picture in sample.pictures:
                if picture.key == key:
                    self._send(HTTPStatus.OK, picture.media_type, picture.data)
                    return
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such picture any more")

    def _stream(self, query: str) -> None:
        """Events until the viewer goes: the parts that have changed, and a comment now and then."""
        if not self._page.streams.acquire(blocking=False):
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many viewers already")
        try:
            self._headers(HTTPStatus.OK, {"Content-Type": "text/event-stream"})
            if self.command != "HEAD":
                with self._page.look.viewing():
                    self._send_events(query)
        finally:
            self._page.streams.release()

    def _send_events(self, query: str) -> None:
        page = self._page
        known = [self.headers.get("Last-Event-ID", "")]
        known += [value for name, _, value in _pairs(query, "&") if name == "from"]
        seen, shown, version = page.look.seen, None, -1
        if seen.look is not None and page.version(seen) in known:
            shown, version = page.rendered(seen), seen.version
        self._write(": welcome\n\n")
        while not seen.is_over:
            seen = page.look.after(version, timeout=_PING_SECONDS)
            if seen.look is None or seen.version == version:
                self._write(": still here\n\n")
            else:
                found = page.rendered(seen)
                changes = json.dumps(_changes(shown, found))
                self._write(f"event: look\nid: {page.version(seen)}\ndata: {changes}\n\n")
                shown = found
            version = seen.version
        self._write("event: over\ndata: {}\n\n")

    def _write(self, text: str) -> None:
        self.wfile.write(text.encode())

    def _send(
        self, status: HTTPStatus, media_type: str, data: bytes, more: Mapping[str, str] | None = None
    ) -> None:
        self._headers(status, {"Content-Type": media_type, "Content-Length": str(len(data)), **(more or {})})
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(data)

    def _headers(self, status: HTTPStatus, more: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | dict(more) | {"Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()


def _changes(before: Rendered | None, after: Rendered) -> dict[str, Any]:
    parts = {
        key: html for key, html in after.parts.items() if before is None or before.parts.get(key) != html
    }
    lists = {key: keys for key, keys in after.lists.items() if before is None or before.lists[key] != keys}
    return {"parts": parts, "lists": lists, "title": after.title}


def _pairs(text: str, separator: str) -> list[tuple[str, str, str]]:
    """The first few of `a=b&c=d`. Nothing that we look for needs an escape."""
    return [part.strip().partition("=") for part in text.split(separator, 50)[:50]]


def _is_same(offered: str, token: str) -> bool:
    return hmac.compare_digest(offered.encode(errors="surrogateescape"), token.encode())
