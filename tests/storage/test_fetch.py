from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shardgen.depth.densedepth.family import RELEASED
from shardgen.depth.densedepth.trial import read_untrusted
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.errors import DownloadFailed, InputMissing, StorageFailed, WeightsRefused
from shardgen.storage import fetch as download
from shardgen.storage.released import OnDownload, Released, cached_path, locate
from tests.legacy_weights import write_legacy_weights


@dataclass
class Server:
    """A real HTTP server on the loopback; a test says how it misbehaves."""

    content: bytes
    honours_range: bool = True
    drop_after: int | None = None
    status: int = 200
    port: int = 0
    ranges: list[str | None] = field(default_factory=list)

    def released(self, size_bytes: int | None = None, sha256: str | None = None) -> Released:
        return Released(
            name="nyu",
            url=f"http://127.0.0.1:{self.port}/nyu.h5",
            size_bytes=size_bytes,
            sha256=sha256,
            otherwise="do without",
        )


def handler_for(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.ranges.append(wanted)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.honours_range else 0  # type: ignore[index]
            if server.status != 200 or (start and start >= len(server.content)):
                self.send_error(416 if start else server.status)
                return
            body = server.content[start:]
            self.send_response(206 if start else 200)
            if start:
                total = len(server.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body if server.drop_after is None else body[: server.drop_after]
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


def fetch(released: Released, *, on_progress: OnDownload = lambda _done, _total: None) -> WeightsFile:
    return download.fetch(released, read_weights, on_progress=on_progress)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write_legacy_weights(tmp_path / "served.h5").read_bytes()


@pytest.fixture
def server(content: bytes) -> Iterator[Server]:
    made = Server(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(made)) as http:
        made.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))  # how soon it ends, in seconds
        thread.start()
        yield made
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PIECE_BYTES", 4096)
    return tmp_path / "cache"


def test_fetched_weights_lie_in_the_cache_with_their_sha256(server: Server, cache: Path) -> None:
    told: list[tuple[int, int | None]] = []
    total = len(server.content)
    weights = download.fetch(
        server.released(total), read_untrusted, on_progress=lambda done, of: told.append((done, of))
    )
    assert (cache / "nyu.h5").read_bytes() == server.content
    assert weights.sha256 == hashlib.sha256(server.content).hexdigest()
    assert told[-1] == (total, total)
    assert len(told) > 10
    assert [path.name for path in cache.iterdir()] == ["nyu.h5"]
    assert locate(RELEASED["nyu"]) == cache / "nyu.h5"


def test_fetching_twice_asks_the_server_once(server: Server) -> None:
    assert fetch(server.released()).sha256 == fetch(server.released()).sha256
    assert server.ranges == [None]


def test_a_download_dropped_half_way_is_kept_and_resumed(server: Server, cache: Path) -> None:
    server.drop_after = 100_000
    with pytest.raises(DownloadFailed) as caught:
        fetch(server.released(len(server.content)))
    assert str(cache / "nyu.h5") in caught.value.hint
    assert server.released().url in caught.value.hint
    assert (cache / "nyu.h5.part").stat().st_size == 100_000
    assert not (cache / "nyu.h5").exists()
    server.drop_after = None
    fetch(server.released(len(server.content)))
    assert server.ranges == [None, "bytes=100000-"]
    assert (cache / "nyu.h5").read_bytes() == server.content


def test_a_server_that_ignores_ranges_starts_over(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "nyu.h5.part").write_bytes(b"stale" * 1000)
    server.honours_range = False
    fetch(server.released(len(server.content)))
    assert server.ranges == ["bytes=5000-"]
    assert (cache / "nyu.h5").read_bytes() == server.content


def test_a_range_that_the_server_no_longer_has_starts_over(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "nyu.h5.part").write_bytes(bytes(len(server.content) + 7))
    fetch(server.released())
    assert server.ranges == [f"bytes={len(server.content) + 7}-", None]
    assert (cache / "nyu.h5").read_bytes() == server.content


def test_a_file_that_changed_its_size_starts_over_and_is_refused(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "nyu.h5.part").write_bytes(server.content[:50_000])
    with pytest.raises(WeightsRefused, match="not the released file"):
        fetch(server.released(len(server.content) + 1))
    assert server.ranges == ["bytes=50000-", None]
    assert list(cache.iterdir()) == []


def test_a_whole_part_file_is_checked_and_renamed_without_a_network(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "nyu.h5.part").write_bytes(server.content)
    fetch(server.released(len(server.content)))
    assert server.ranges == []
    assert (cache / "nyu.h5").exists()


@pytest.mark.parametrize("size_bytes", [None, 172_897_376])
def test_a_web_page_is_refused_and_nothing_of_it_is_kept(
    server: Server, cache: Path, size_bytes: int | None
) -> None:
    server.content = b"<!DOCTYPE html><html>sign in to the network first</html>"
    with pytest.raises(WeightsRefused, match="web page"):
        fetch(server.released(size_bytes))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_of_the_server_says_what_to_put_where(server: Server, cache: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DownloadFailed) as caught:
        fetch(server.released())
    by_hand = f"download {server.released().url} elsewhere and put it at {cache / 'nyu.h5'}"
    assert by_hand in caught.value.hint
    assert caught.value.hint.endswith(", or do without")


def test_without_a_network_the_hint_says_what_to_download_and_where_to_put_it(cache: Path) -> None:
    nobody = Released(name="kitti", url="http://127.0.0.1:9/kitti.h5", size_bytes=None, otherwise="")
    with pytest.raises(DownloadFailed) as caught:
        fetch(nobody)
    assert str(caught.value) == "no connection to 127.0.0.1:9 for the kitti weights (Connection refused)"
    assert "http://127.0.0.1:9/kitti.h5" in caught.value.hint
    assert str(cache / "kitti.h5") in caught.value.hint


def test_a_file_of_another_digest_is_refused_and_nothing_of_it_is_kept(server: Server, cache: Path) -> None:
    pinned = hashlib.sha256(server.content).hexdigest()
    other = bytearray(server.content)
    other[-1] ^= 1
    server.content = bytes(other)
    with pytest.raises(WeightsRefused, match="not the released file"):
        fetch(server.released(len(other), pinned))
    assert list(cache.iterdir()) == []


def test_a_fetched_file_that_was_changed_is_refused_with_what_to_type(server: Server, cache: Path) -> None:
    released = server.released(len(server.content), hashlib.sha256(server.content).hexdigest())
    fetch(released)
    (cache / "nyu.h5").write_bytes(server.content[:-1])
    for use in (locate, fetch):
        with pytest.raises(WeightsRefused) as caught:
            use(released)
        assert caught.value.hint == f"rm -f {cache / 'nyu.h5'}; shardgen weights fetch nyu"


def test_a_cache_that_cannot_be_made_is_a_storage_failure(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageFailed) as caught:
        fetch(server.released())
    assert "SHARDGEN_CACHE" in caught.value.hint


def test_weights_that_were_never_fetched_name_the_command() -> None:
    with pytest.raises(InputMissing) as caught:
        locate(RELEASED["kitti"])
    assert caught.value.hint == "shardgen weights fetch kitti"


def test_the_published_addresses_and_size_are_those_of_the_authors(cache: Path) -> None:
    assert RELEASED["nyu"].url == "https://s3-eu-west-1.amazonaws.com/densedepth/nyu.h5"
    assert RELEASED["nyu"].size_bytes == 172_897_376
    assert RELEASED["kitti"].url == "https://s3-eu-west-1.amazonaws.com/densedepth/kitti.h5"
    assert cached_path(RELEASED["kitti"]) == cache / "kitti.h5"
