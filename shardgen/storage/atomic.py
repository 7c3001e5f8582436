"""Files that are complete under their final name or not there: the only code that stages, syncs and names."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardgen.domain.steps import BatchStep, OnStep, ignore_step
from shardgen.storage.files import DiskFiles, storage_error, storing

_STAGED = re.compile(r"\..+\.(?:zip|sqlite|jsonl|mask\.png)\.[0-9a-z]{8}\.part")

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


def random_part() -> str:
    """Draw 8 random characters: two attempts never share a name."""
    return secrets.token_hex(4)


def publish_file(path: Path, data: bytes, *, files: DiskFiles | None = None) -> bool:
    """Write a small file once, durably; False, changing nothing, when the name exists already."""
    files = files or DiskFiles()
    staged = path.with_name(f".{path.name}.{random_part()}")
    with storing(path):
        return publish_staged(files, data, staged=staged, target=path, on_step=ignore_step)


def rename_durably(files: DiskFiles, staged: Path, target: Path) -> None:
    """Let a synced file replace whatever has its name, for good."""
    files.rename(staged, target)
    files.fsync_folder(target.parent)


def give_name(files: DiskFiles, staged: Path, target: Path) -> bool:
    """Let a synced file have its name in one step; False, changing nothing, when the name exists already."""
    try:
        files.link(staged, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without links nothing refuses an existing name atomically: of an artifact its random part does.
        if target.exists():
            return False
        files.rename(staged, target)
    return True


def publish_staged(files: DiskFiles, data: bytes, *, staged: Path, target: Path, on_step: OnStep) -> bool:
    """Stage, sync, link; whatever fails, the staged file is gone and the target is whole or absent.

    A staged file that somebody else removes before the link is FileNotFoundError; after it, nothing is lost.
    """
    is_staged = False
    try:
        descriptor = files.create(staged)
        is_staged = True
        try:
            files.write(descriptor, data)
            files.fsync(descriptor)
        finally:
            files.close(descriptor)
        on_step(BatchStep.STAGED)
        if not give_name(files, staged, target):
            return False
        on_step(BatchStep.LINKED)
    finally:
        if is_staged:
            with suppress(FileNotFoundError):  # swept away
                files.unlink(staged)
    files.fsync_folder(target.parent)
    on_step(BatchStep.PUBLISHED)
    return True


@contextmanager
def staged_beside(output: Path, *, files: DiskFiles) -> Iterator[tuple[int, Path]]:
    """Open a new file beside `output`, removed again unless the caller renames it away.

    It stays locked while it is written: what a killed command left behind is not, and is removed first.
    """
    ours = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-z]{{8}}\.part")
    for leftover in _files_named(output.parent, ours):
        remove_abandoned(leftover)
    descriptor, staged = _create_locked(output, files=files)
    try:
        yield descriptor, staged
    finally:
        # While it is locked: once it is not, somebody else may take it for abandoned and remove it first.
        try:
            if staged.exists():
                files.unlink(staged)
        finally:
            files.close(descriptor)


def _create_locked(output: Path, *, files: DiskFiles) -> tuple[int, Path]:
    while True:
        staged = output.with_name(f".{output.name}.{random_part()}.part")
        descriptor = files.create(staged)
        if _is_locked_in_time(descriptor, staged):
            return descriptor, staged
        files.close(descriptor)
        with suppress(FileNotFoundError):
            files.unlink(staged)


def _is_locked_in_time(descriptor: int, staged: Path) -> bool:
    """Lock a new file; False when somebody saw it unlocked before that, and took it for abandoned."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # some network file systems have no locks; nothing is taken there
        if error.errno == errno.EWOULDBLOCK:
            return False
    try:
        return os.path.samestat(staged.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def abandoned_files(folder: Path) -> list[Path]:
    """Staged zips, backups, lists and masks in a folder that no running command has locked to write them.

    Those of another name than `.zip`, `.sqlite`, `.jsonl` or `.mask.png` are not told from other people's
    files, and left out.
    """
    try:
        return [path for path in _files_named(folder, _STAGED) if _is_abandoned(path)]
    except OSError as error:
        raise storage_error(error, error.filename or folder) from error


def remove_abandoned(path: Path) -> None:
    """Remove such a file, unless it is gone or somebody has it locked."""
    with storing(path):
        _is_abandoned(path, remove=True)


def _files_named(folder: Path, name: re.Pattern[str]) -> list[Path]:
    with os.scandir(folder) as entries:
        found = [
            entry.name
            for entry in entries
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    return [folder / name for name in sorted(found)]


def _is_abandoned(path: Path, *, remove: bool = False) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        return False
    finally:
        os.close(descriptor)
    return True
