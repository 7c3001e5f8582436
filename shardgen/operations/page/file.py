"""The page as one file, for Drive, mail or a bucket."""

from __future__ import annotations

import shlex
from pathlib import Path

from shardgen.coordination.artifact_folder import open_store
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict
from shardgen.operations.page.look import Look
from shardgen.operations.page.render import self_contained
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import rename_durably, staged_beside
from shardgen.storage.files import (
    DiskFiles,
    is_file,
    is_folder,
    is_there,
    refuse_unusable_folder,
    storage_error,
    storing,
)

_MARK = b'<meta name="generator" content="shardgen">'
_MARK_WITHIN = 200  # bytes of the file's beginning


def refuse_page(run: RunDirectory, path: Path) -> None:
    """Say before anything is read that the page could not be written there.

    Refuses to replace anything but a page, a place among the artifacts, and a name of another format.
    """
    refuse_unusable_folder(path.parent, makes=0, otherwise="choose another folder with --html")
    if is_folder(path):
        raise InputMissing(f"{path}: a folder, not a file", hint="name a file: --html status.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidSettings(
            f"{path}: the page is HTML, so its name must end in .html",
            hint=f"--html {shlex.quote(f'{path}.html')}",
        )
    if open_store(run).contains(path):
        raise PlanConflict(f"{path}: lies in the artifact folder", hint="choose another folder with --html")
    if is_there(path) and not (is_file(path) and _MARK in _start_of(path)):
        raise PlanConflict(
            f"{path}: is not a page of shardgen, so it is not replaced",
            hint="choose another name with --html, such as --html status.html",
        )


def write_page(path: Path, look: Look) -> int:
    """Write the page, whole or not at all, in the place of an earlier one. Returns its bytes."""
    data, files = self_contained(look), DiskFiles()
    with storing(path), staged_beside(path, files=files) as (descriptor, staged):
        files.write(descriptor, data)
        files.fsync(descriptor)
        rename_durably(files, staged, path)
    return len(data)


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MARK_WITHIN)
    except OSError as error:
        raise storage_error(error, path) from error
