"""Open a run as what it is: a database or a shared folder, whichever its settings name."""

from __future__ import annotations

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.database import DatabaseRun
from shardgen.settings.run_directory import RunDirectory


def open_run(run: RunDirectory) -> OpenedRun:
    """Raises as `RunDirectory.plan` does."""
    if run.is_shared_folder:
        from shardgen.coordination.folder.run import FolderRun  # noqa: PLC0415 - numpy and more, which no other status needs

        return FolderRun(run)
    return DatabaseRun(run)
