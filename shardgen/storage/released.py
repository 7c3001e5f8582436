"""Published files of networks, fetched into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardgen.errors import InputMissing, StorageFailed, WeightsRefused
from shardgen.storage.bounded import open_regular
from shardgen.storage.cache import CACHE_VARIABLE, cache_folder
from shardgen.storage.files import is_file

OnDownload = Callable[[int, int | None], None]
"""Called with the bytes on disk and the bytes expected (None if the server does not say)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A published file, fetched into the cache folder; size and digest are None where nobody pinned them.

    `name` is what `shardgen weights fetch` calls it. `otherwise` ends the hint for users who cannot fetch it
    at all.
    """

    name: str
    url: str
    size_bytes: int | None
    otherwise: str
    sha256: str | None = None


def cached_path(released: Released) -> Path:
    """Where the weights lie once they are fetched."""
    return cache_folder() / f"{released.name}{Path(released.url).suffix}"


def locate(released: Released) -> Path:
    """The file of fetched weights; raises InputMissing if they were not fetched yet, or WeightsRefused."""
    path, name = cached_path(released), released.name
    if not is_file(path):
        raise InputMissing(f"{path}: the {name} weights are not there", hint=f"shardgen weights fetch {name}")
    refuse_other(released, path, hint=f"rm -f {shlex.quote(str(path))}; shardgen weights fetch {name}")
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the cache's disk becomes StorageFailed."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"{path}: {error.strerror or error}",
            hint=f"free some disk space, or set {CACHE_VARIABLE} to another folder",
        ) from error


def refuse_other(released: Released, path: Path, *, hint: str) -> None:
    """Refuse a file of another digest than the pinned one."""
    if released.sha256 is None:
        return
    with disk_errors(path), os.fdopen(open_regular(path), "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != released.sha256:
        raise WeightsRefused(
            f"{path}: sha256 {found[:12]} (expected {released.sha256[:12]}): not the released file",
            hint=hint,
            problems=("sha256",),
        )
