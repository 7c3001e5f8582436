"""Open a run as what its settings' URL says: a shared folder, another registered backend, else a database."""

from __future__ import annotations

from collections.abc import Callable

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.database import DatabaseRun
from shardgen.manifest.database_url import OWN_INDEX, SHARED_FOLDER
from shardgen.settings.run_directory import RunDirectory

Backend = Callable[[RunDirectory], OpenedRun]
_BACKENDS: dict[str, Backend] = {}


def register(url: str, backend: Backend) -> None:
    """Make a backend known to this process: what `[manifest] url` says, and each machine has its index."""
    OWN_INDEX.add(url)
    _BACKENDS[url] = backend


def open_run(run: RunDirectory) -> OpenedRun:
    """Raises as `RunDirectory.plan` does."""
    return _BACKENDS.get(run.url, DatabaseRun)(run)


def _shared_folder(run: RunDirectory) -> OpenedRun:
    from shardgen.coordination.folder.run import FolderRun  # noqa: PLC0415 - numpy and more, which no other status needs

    return FolderRun(run)


register(SHARED_FOLDER, _shared_folder)
