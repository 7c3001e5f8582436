"""Back up: a consistent copy of the manifest, there completely or not at all."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from shardgen.coordination.open import open_run
from shardgen.errors import InputMissing, PlanConflict
from shardgen.settings.plan_file import copy_beside
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import give_name, staged_beside
from shardgen.storage.files import DiskFiles, is_folder, storage_error


def back_up(run: RunDirectory, output: Path | None, *, files: DiskFiles | None = None) -> Path:
    """Copy the manifest to a new file, `RUN_DIR/manifest-<UTC>.sqlite` if none is named; returns its name.

    Files that the plan names beside it are copied first, where the copy lies in another folder. Durable when
    this returns; workers may go on meanwhile. Raises PlanConflict when the file exists,
    InvalidSettings for a database on a server, ManifestMismatch for a shared folder, ManifestCorrupt for a
    damaged manifest, StorageFailed for a folder that cannot be looked at or written.
    """
    files = files or DiskFiles()
    opened = open_run(run)
    backend = opened.to_back_up()
    target = output or run.path / f"manifest-{datetime.now(UTC):%Y%m%d-%H%M%S}.sqlite"
    if os.path.lexists(target):
        raise _in_the_way(target)
    if not is_folder(target.parent):
        raise InputMissing(f"{target.parent}: is not a folder", hint=f"mkdir -p {target.parent}")
    try:
        with staged_beside(target, files=files) as (descriptor, staged):
            backend.copy_to(staged)
            with run.manifest(opened.plan, read_only=True):
                pass
            files.fsync(descriptor)
            for file in run.recipe(opened.plan).files:
                copy_beside(run.path, target.parent, file)
            if not give_name(files, staged, target):
                raise _in_the_way(target)
        files.fsync_folder(target.parent)
    except OSError as error:
        raise storage_error(error, target) from error
    return target


def _in_the_way(target: Path) -> PlanConflict:
    return PlanConflict(
        f"{target}: already exists, and a backup never replaces a file", hint="choose another name with -o"
    )
