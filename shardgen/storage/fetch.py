"""The only downloader: released networks into the user's cache folder, resumable and checked."""

from __future__ import annotations

import errno
import http.client
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from shardgen.errors import DownloadFailed, WeightsRefused
from shardgen.storage.atomic import rename_durably
from shardgen.storage.files import FILE_MODE, DiskFiles, is_file, make_folders
from shardgen.storage.released import OnDownload, Released, cached_path, disk_errors, locate, refuse_other

PIECE_BYTES = 1 << 18
TIMEOUT_SECONDS = 60.0
MAX_BYTES = 2 << 30  # a server that never stops sending is not the weights
_NOTHING_KEPT = "ask for the file's new address; nothing was kept"
Checked = TypeVar("Checked")


def fetch(
    released: Released,
    check: Callable[[Path], Checked],
    *,
    on_progress: OnDownload = lambda _done, _total: None,
) -> Checked:
    """Fetch weights unless they are in the cache; return what `check` makes of the file.

    A download that fails leaves a `.part` file, and the next call resumes there. The file gets its final
    name only when its size, digest and structure are right and its bytes are on the disk. Raises
    DownloadFailed, or WeightsRefused if what arrived is not the weights (then nothing of it is kept).
    """
    path = cached_path(released)
    if is_file(path):
        return check(locate(released))
    part = path.with_name(f"{path.name}.part")
    with disk_errors(path), _network_errors(released, path):
        make_folders(path.parent)
        _download(released, part, check, on_progress)
    try:
        refuse_other(released, part, hint=_NOTHING_KEPT)
        weights = check(part)
    except WeightsRefused:
        part.unlink(missing_ok=True)
        raise
    with disk_errors(path):
        rename_durably(DiskFiles(), part, path)
    return weights


def _download(
    released: Released, part: Path, check: Callable[[Path], object], on_progress: OnDownload
) -> None:
    """Bring `part` to its full size, starting over if the server cannot resume it."""
    if part.is_symlink():
        raise OSError(errno.ELOOP, "a link, which is not followed", str(part))
    have = part.stat().st_size if part.exists() else 0
    if released.size_bytes is not None and have > released.size_bytes:
        have = 0
    if have and have == released.size_bytes:
        return
    try:
        _receive(released, part, have, on_progress)
    except _CannotResumeError:
        _receive(released, part, 0, on_progress)
    found = part.stat().st_size
    if released.size_bytes is not None and found != released.size_bytes:
        _refuse_size(released, part, check, found)


def _refuse_size(released: Released, part: Path, check: Callable[[Path], object], found: int) -> None:
    # The structure check names a web page or a truncated file; of the right structure, it is another file.
    try:
        check(part)
    finally:
        part.unlink()
    raise WeightsRefused(
        f"{released.url}: {found:,} bytes (expected {released.size_bytes:,}): not the released file",
        hint=_NOTHING_KEPT,
        problems=("size",),
    )


class _CannotResumeError(Exception):
    """The server has no such range any more, or another size than when the download began."""


def _receive(released: Released, part: Path, have: int, on_progress: OnDownload) -> None:
    request = urllib.request.Request(released.url, headers={"User-Agent": "shardgen"})  # noqa: S310  our own addresses
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.build_opener(_NoDowngrade).open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                raise _CannotResumeError from error
        raise
    with response:
        have, total = _where_it_starts(released, response, have)
        # A link that somebody put there is not followed: what it leads to would be overwritten.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, FILE_MODE), "r+b") as file:
            file.seek(have)
            file.truncate()
            try:
                _copy(response, file, total, limit=released.size_bytes or MAX_BYTES, on_progress=on_progress)
            finally:
                file.flush()
                os.fsync(file.fileno())


def _where_it_starts(
    released: Released, response: http.client.HTTPResponse, have: int
) -> tuple[int, int | None]:
    """The offset of the first byte that comes, and the whole file's size if it is known."""
    if have and response.status == http.client.PARTIAL_CONTENT:
        match = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
        )
        if match is None or int(match[1]) != have:
            raise _CannotResumeError
        total = None if match[2] == "*" else int(match[2])
        if released.size_bytes is not None and total not in (None, released.size_bytes):
            raise _CannotResumeError
        return have, total
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows a redirection of an https address to https only."""

    def redirect_request(  # noqa: PLR0913, PLR0917 - the signature is the library's
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirected from https to {newurl[:200]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    total: int | None,
    *,
    limit: int,
    on_progress: OnDownload,
) -> None:
    done = file.tell()
    while piece := response.read(PIECE_BYTES):
        file.write(piece)
        done += len(piece)
        if done > limit + PIECE_BYTES:  # a little more shows that it is another file
            raise http.client.HTTPException(f"more than {limit:,} bytes")
        on_progress(done, total)
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)


@contextmanager
def _network_errors(released: Released, path: Path) -> Iterator[None]:
    """Whatever goes wrong with the network becomes one DownloadFailed that says what to do by hand."""
    try:
        yield
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
        ssl.SSLError,
    ) as error:
        reason = getattr(error, "reason", None) or error
        what = f"{released.url}: {reason or type(error).__name__}"
        if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError):
            host = urllib.parse.urlsplit(released.url).netloc
            what = f"no connection to {host} for the {released.name} weights ({reason.strerror or reason})"
        raise DownloadFailed(
            what,
            hint=f"run it again to resume; without a network, download {released.url} elsewhere "
            f"and put it at {path}, or {released.otherwise}",
        ) from error
