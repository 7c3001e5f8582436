from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from shardgen.coordination.open import open_run
from shardgen.errors import InvalidSettings, MachineUnfit
from shardgen.operations.page import look as looking
from shardgen.operations.page import server
from shardgen.operations.page.server import Address, PageServer, parse_address, token_for
from shardgen.settings.run_directory import RunDirectory
from tests.page.conftest import serving
from tests.page.test_look import Watched

TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105
FORECAST = json.dumps(
    {
        "version": 1,
        "fingerprint": "PLAN",
        "made_at": "2026-03-01T15:04:30Z",
        "device_model": "A100",
        "threads": 0,
        "micro_batch": 8,
        "rate": 2.5,
        "rate_spread": 0.1,
        "batches": 4,
        "seconds": 9.0,
        "bytes": {"fgbg": 100.0},
        "bytes_spread": 0.1,
        "artifact_bytes": 10.0,
        "samples": 20,
    }
)
EVERY_ANSWER = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture(scope="module")
def planned(planned_template: Path) -> RunDirectory:
    return RunDirectory.open(planned_template / "run")


@pytest.fixture(scope="module")
def page(planned: RunDirectory) -> Iterator[PageServer]:
    with serving(planned) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(planned: RunDirectory) -> Iterator[PageServer]:
    """Listens here, and takes itself for one that all the world can reach."""
    with serving(planned, token=TOKEN) as found:
        found.address = Address(host="0.0.0.0", port=found.address.port)  # noqa: S104 - only by name
        yield found


class Answer:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/") else 0
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        self.raw = raw


def send(page: PageServer, data: bytes) -> Answer:
    """Bytes as they are, and what comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", page.address.port), timeout=20) as connection:
        connection.sendall(data)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return Answer(b"".join(parts))


def ask(
    page: PageServer, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    wanted = {"Host": f"127.0.0.1:{page.address.port}", **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items())]
    return send(page, ("\r\n".join(lines) + "\r\n\r\n").encode())


class Stream:
    """The events of a page, one by one."""

    def __init__(
        self, page: PageServer, path: str = "/events", headers: Mapping[str, str] | None = None
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", page.address.port, timeout=20)
        self._connection.request("GET", path, headers=headers or {})
        self.answer = self._connection.getresponse()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._connection.close()

    def next(self) -> dict[str, str]:
        """Field by field; of a comment under ""."""
        found = {}
        while line := self.answer.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            found[name.rstrip(":")] = value
        return found

    def next_look(self) -> dict[str, Any]:
        while "data" not in (event := self.next()):
            pass
        return {**json.loads(event["data"]), "id": event["id"]}


def test_what_there_is(page: PageServer) -> None:
    for path, media_type, words in (
        ("/", "text/html; charset=utf-8", b"48 samples"),
        ("/page.css", "text/css; charset=utf-8", b".shardgen"),
        ("/page.js", "text/javascript; charset=utf-8", b"EventSource"),
        ("/icon.svg", "image/svg+xml", b"<svg"),
        ("/status.json", "application/json", b'"planned": 48'),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", b"shardgen_planned_samples 48"),
    ):
        found = ask(page, path)
        assert (found.status, found.headers["content-type"]) == (200, media_type), path
        assert words in found.body
        assert len(found.body) == int(found.headers["content-length"])
        head = ask(page, path, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == media_type


def test_the_status_is_that_of_the_command(page: PageServer, planned: RunDirectory) -> None:
    served, printed = json.loads(ask(page, "/status.json").body), open_run(planned).report().as_json()
    for found in (served, printed):
        found.pop("taken_at")
    assert served == json.loads(json.dumps(printed))


def test_the_status_has_the_forecast(run: RunDirectory) -> None:
    (run.notes / "forecast.json").write_text(FORECAST.replace("PLAN", run.plan().fingerprint))
    with serving(run) as page:
        assert json.loads(ask(page, "/status.json").body)["forecast"]["samples_per_second"] == 2.5


def test_a_place_is_free_again_where_there_was_no_thread_to_be_had(
    planned: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server, "VIEWERS", 1)
    monkeypatch.setattr(server, "_REQUESTS", 1)
    with serving(planned) as page:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", full)
            for _ in range(3):
                assert send(page, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").raw == b""
        assert ask(page, "/").status == 200


def test_every_answer_is_guarded(page: PageServer, guarded: PageServer) -> None:
    answers = [ask(page, path) for path in ("/", "/page.js", "/metrics", "/nowhere", "/pictures/x")]
    answers += [ask(page, "/", method="POST"), ask(guarded, "/"), send(page, b"rubbish\r\n\r\n")]
    assert [one.status for one in answers] == [200, 200, 200, 404, 404, 405, 403, 400]
    for one in answers:
        assert EVERY_ANSWER.items() <= one.headers.items()
        policy = one.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert one.headers["server"] == "shardgen"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_it_is_read_only(page: PageServer, method: str) -> None:
    for path in ("/", "/events", "/status.json"):
        found = ask(page, path, method=method, headers={"Content-Length": "0"})
        assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:8765", "127.0.0.1:8765"])
def test_this_machine_may_look_by_any_port(page: PageServer, host: str) -> None:
    assert ask(page, "/", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0",  # noqa: S104
        "127.0.0.2", "[::2]", "10.0.0.1",
    ],
)  # fmt: skip
def test_another_name_is_refused_where_there_is_no_token(page: PageServer, host: str) -> None:
    for path in ("/", "/status.json", "/metrics", "/events", "/page.js"):
        assert ask(page, path, headers={"Host": host}).status == 403


def test_one_host_is_needed(page: PageServer) -> None:
    assert send(page, b"GET / HTTP/1.1\r\n\r\n").status == 400
    assert send(page, b"GET / HTTP/1.0\r\n\r\n").status == 400
    assert send(page, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").status == 400
    for host in ("", "local host", "localhost/x", "evil@localhost", "localhost:port"):
        assert send(page, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 400
    assert b"samples" not in send(page, b"GET /status.json\r\n\r\n").raw


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
def test_another_site_is_refused(page: PageServer, headers: dict[str, str]) -> None:
    for path in ("/", "/status.json", "/events", "/page.js"):
        assert ask(page, path, headers=headers).status == 403, path


def test_a_link_on_another_site_may_lead_here(page: PageServer) -> None:
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(page, "/", headers=visit).status == 200
    assert ask(page, "/status.json", headers=visit).status == 403
    own = {"Origin": f"http://127.0.0.1:{page.address.port}", "Sec-Fetch-Site": "same-origin"}
    assert ask(page, "/status.json", headers=own).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1:8765", "x-8765.colab.example"])
def test_whoever_comes_from_elsewhere_needs_the_token(guarded: PageServer, host: str) -> None:
    wrong = [
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN[:-1]}, {"Authorization": "Bearer "},
        {"Cookie": f"shardgen-{guarded.address.port}=wrong"}, {"Cookie": f"shardgen-1={TOKEN}"},
        {"Cookie": f"token={TOKEN}"}, {"X-Token": TOKEN},
    ]  # fmt: skip
    for headers in wrong:
        for path in ("/", "/status.json", "/metrics", "/events", "/page.css", "/pictures/x", "/nowhere"):
            found = ask(guarded, path, headers={"Host": host, **headers})
            assert found.status == 403, (path, headers)
            assert TOKEN.encode() not in found.raw
    for path in ("/?token=wrong", "/?token=", f"/?token={TOKEN[:-1]}", f"/?x={TOKEN}", f"/?token={TOKEN}x"):
        assert ask(guarded, path, headers={"Host": host}).status == 403, path
    right = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
    assert ask(guarded, "/status.json", headers=right).status == 200
    assert ask(guarded, f"/metrics?token={TOKEN}", headers={"Host": host}).status == 200


def test_the_token_moves_from_the_address_into_a_cookie(guarded: PageServer) -> None:
    first = ask(guarded, f"/?token={TOKEN}", headers={"Host": "10.0.0.1"})
    assert (first.status, first.headers["location"]) == (303, "./")
    cookie, *rules = first.headers["set-cookie"].split("; ")
    assert set(rules) == {"Path=/", "HttpOnly", "SameSite=Lax"}
    others = f"a=b; {cookie}; c=d"
    assert ask(guarded, "/", headers={"Host": "10.0.0.1", "Cookie": others}).status == 200
    with Stream(guarded, headers={"Cookie": cookie}) as stream:
        assert "progress" in stream.next_look()["parts"]


def test_a_token_also_lets_in_by_another_name_to_a_server_on_this_machine(planned: RunDirectory) -> None:
    with serving(planned, token=TOKEN) as page:
        assert ask(page, "/").status == 200
        assert ask(page, "/", headers={"Host": "x.colab.example"}).status == 403
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(page, "/", headers={"Host": "x.colab.example", **bearer}).status == 200
        assert page.url == f"http://127.0.0.1:{page.address.port}/"


def test_no_error_repeats_the_request(guarded: PageServer) -> None:
    secret = TOKEN.encode()
    for request in (
        b"GET /?token=%s HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET /?token=%s x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"%s\r\n\r\n",
        b"POST /?token=%s HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /nowhere?token=%s HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /?token=%s" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: %s" + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" * 200 + b"\r\n",
    ):
        found = send(guarded, request.replace(b"%s", secret))
        assert 400 <= found.status <= 505, request[:50]
        assert secret not in found.raw


def test_no_path_of_a_request_reaches_the_file_system(page: PageServer) -> None:
    opened: list[str] = []
    is_watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if is_watching and event in ("open", "os.listdir", "os.scandir") and arguments:
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        for path in (
            "/../../../../etc/passwd", "/pictures/../../plan.json", "/pictures/..%2f..%2fplan.json",
            "/pictures//etc/passwd", "/page.css/../../render.py", "//etc/passwd", "/static/page.css",
            "/%2e%2e/etc/passwd", "/pictures/", "/pictures/" + "0" * 32, "/page.css%00.html", "/plan.json",
            "file:///etc/passwd", "http://127.0.0.1/etc/passwd",
            "/shardgen.toml", "/artifacts/", "*", "?", "/;",
            "/\u00e4\udcff".encode(errors="surrogateescape").decode("latin-1"),
        ):  # fmt: skip
            assert ask(page, path).status in (400, 404), path
    finally:
        is_watching = False
    assert not [name for name in opened if "etc" in name or "page.css" in name or "plan.json" in name]


def test_events_bring_what_there_is_and_then_what_has_changed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "SECONDS", 0.2)
    with serving(run) as page, Stream(page) as stream:
        assert stream.answer.getheader("Content-Type") == "text/event-stream"
        first, second = stream.next_look(), stream.next_look()
        assert set(first["parts"]) > {"progress", "next", "shards", "workers", "shard-0", "seen"}
        assert first["lists"]["shards"] == ["shard-0", "shard-1", "shard-2"]
        assert set(second["parts"]) <= {"seen"}
        assert second["lists"] == {}
        with Stream(page, headers={"Last-Event-ID": second["id"]}) as again:
            assert set(again.next_look()["parts"]) <= {"seen"}
        with Stream(page, headers={"Last-Event-ID": "another-server-7"}) as again:
            assert "progress" in again.next_look()["parts"]
        version = re.search(rb'data-version="([^"]+)"', ask(page, "/").body)
        assert version is not None
        with Stream(page, path=f"/events?from={version[1].decode()}") as again:
            assert set(again.next_look()["parts"]) <= {"seen"}


def test_a_silent_stream_has_a_comment_now_and_then(
    planned: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "SECONDS", 60.0)
    monkeypatch.setattr(server, "_PING_SECONDS", 0.1)
    with serving(planned) as page, Stream(page) as stream:
        stream.next_look()
        assert stream.next() == {"": "still here"}


def test_the_end_of_the_command_is_told(planned: RunDirectory) -> None:
    with ExitStack() as stack:
        page = stack.enter_context(serving(planned))
        stream = Stream(page)
        stream.next_look()
        stack.close()
        while (event := stream.next()).get("event") != "over":
            assert event


def test_many_viewers_share_one_look(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(open_run(run), monkeypatch)
    monkeypatch.setattr(looking, "SECONDS", 0.2)
    with serving(watched.opened) as page, ExitStack() as stack:
        streams = [stack.enter_context(Stream(page)) for _ in range(60)]
        before, began = watched.reports, time.monotonic()
        for _ in range(4):
            for stream in streams:
                stream.next_look()
        assert watched.reports - before <= 2 + (time.monotonic() - began) / 0.2
        assert page.look.viewers == 60
    assert len(watched.watchers) == 1


def test_who_is_one_too_many_is_sent_away(planned: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "VIEWERS", 3)
    monkeypatch.setattr(server, "_REQUESTS", 2)
    with serving(planned) as page:
        with ExitStack() as stack:
            streams = [stack.enter_context(Stream(page)) for _ in range(3)]
            for stream in streams:
                stream.next_look()
            assert ask(page, "/events").status == 503
            assert ask(page, "/").status == 200
            idle = [
                stack.enter_context(socket.create_connection(("127.0.0.1", page.address.port), timeout=20))
                for _ in range(2)
            ]
            assert send(page, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").raw == b""
            del idle
        ends = time.monotonic() + 20
        while not (found := send(page, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).raw:
            assert time.monotonic() < ends
        assert found.status == 200


@pytest.mark.parametrize("sends", [b"", b"G", b"X: y\r\n"])
def test_a_client_that_is_slow_to_ask_is_hung_up_on(
    planned: RunDirectory, monkeypatch: pytest.MonkeyPatch, sends: bytes
) -> None:
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(server._Handler, "timeout", 0.3)
    with serving(planned) as page:
        with socket.create_connection(("127.0.0.1", page.address.port), timeout=0.05) as connection:
            if sends == b"X: y\r\n":
                connection.sendall(b"GET / HTTP/1.1\r\n")
            ends = time.monotonic() + 5
            while not has_hung_up(connection, sends):
                assert time.monotonic() < ends
        assert ask(page, "/").status == 200


def has_hung_up(connection: socket.socket, sends: bytes) -> bool:
    try:
        connection.sendall(sends)
        return not connection.recv(1)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_fault_of_the_page_is_told_and_ends_nothing(
    planned: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(planned) as page:
        with monkeypatch.context() as patch:
            patch.setattr(server, "rendered", lambda _seen: 1 / 0)
            assert ask(page, "/").status == 500
        assert "ZeroDivisionError" in caplog.text
        assert ask(page, "/").status == 200


def test_a_run_that_cannot_be_read_is_said_to_be_so(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_FIRST_LOOK_SECONDS", 1.0)
    monkeypatch.setattr(looking, "SECONDS", 0.2)
    opened = open_run(run)
    (run.path / "manifest.sqlite").unlink()
    with serving(opened) as page:
        found = ask(page, "/")
        assert found.status == 503
        assert b"manifest.sqlite" in found.body
        assert b"shardgen_up 0" in ask(page, "/metrics").body


def test_a_port_that_is_taken_is_said_with_what_to_type(planned: RunDirectory, page: PageServer) -> None:
    with (
        pytest.raises(MachineUnfit, match=f"127.0.0.1:{page.address.port}: cannot listen") as caught,
        looking.SharedLook(open_run(planned), named="people") as look,
    ):
        PageServer(look, page.address)
    assert "--serve 127.0.0.1:0" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["127.0.0.1:0", "localhost:8765", "[::1]:80", "0.0.0.0:65535", "node-7.example:1"]
)
def test_an_address_has_a_host_and_a_port(text: str) -> None:
    assert parse_address(text).in_url == text


@pytest.mark.parametrize(
    "text", ["", "people", "8765", ":8765", "a:b", "a:65536", "::1:80", "a b:1", "s3://b/c:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text)


def test_a_token_is_there_for_whoever_may_come_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    here, everywhere = Address(host="127.0.0.1", port=0), Address(host="0.0.0.0", port=0)  # noqa: S104
    monkeypatch.delenv("SHARDGEN_TOKEN", raising=False)
    assert token_for(here, is_behind_proxy=False) is None
    drawn = [token_for(everywhere, is_behind_proxy=False), token_for(here, is_behind_proxy=True)]
    drawn += [token_for(Address(host="node-7", port=0), is_behind_proxy=False)]
    assert len({*drawn}) == 3
    assert all(re.fullmatch(r"[\w-]{32}", one or "") for one in drawn)
    monkeypatch.setenv("SHARDGEN_TOKEN", TOKEN)
    assert token_for(here, is_behind_proxy=False) == token_for(everywhere, is_behind_proxy=True) == TOKEN
    for weak in ("short", "x" * 15, "with space and more than enough", "<script>aaaaaaaaaaaaaaaaaaa"):
        monkeypatch.setenv("SHARDGEN_TOKEN", weak)
        with pytest.raises(InvalidSettings, match="at least 16") as caught:
            token_for(here, is_behind_proxy=False)
        assert weak not in str(caught.value)


def test_the_url_of_a_page_that_all_may_reach_has_its_token(guarded: PageServer) -> None:
    assert guarded.url == f"http://{socket.gethostname()}:{guarded.address.port}/?token={TOKEN}"
