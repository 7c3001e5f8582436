"""A SQLite file that is built under another name, and gets its own once it is whole."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardgen.domain.steps import OnStep, RebuildStep
from shardgen.errors import ManifestBusy, ManifestMismatch, StorageFailed
from shardgen.manifest.backend import StillAlone
from shardgen.storage.atomic import give_name
from shardgen.storage.files import DiskFiles

_FILES = DiskFiles()
_JOURNALS = ("-journal", "-wal", "-shm")


@contextmanager
def staged_file(path: Path, *, on_step: OnStep) -> Iterator[Path]:
    """Where to fill a new file, to be closed when this ends: then it gets its name, durably."""
    staged = _staged(path)
    _remove_staged(staged)
    yield staged
    descriptor = _FILES.open(staged)
    try:
        _FILES.fsync(descriptor)
    finally:
        _FILES.close(descriptor)
    on_step(RebuildStep.FILLED)
    _give_name(staged, path)
    on_step(RebuildStep.LINKED)
    staged.unlink(missing_ok=True)
    _FILES.fsync_folder(path.parent)
    on_step(RebuildStep.SYNCED)


def refuse_existing(path: Path) -> None:
    """Raise ManifestMismatch when a manifest, or what a commit on the lost one left, is under its name.

    A rebuild that was killed when it had given the manifest its name left it the hidden one, too: that goes.
    An empty file is none: it is what SQLite leaves of a command that was killed or refused. A journal is
    the other half of a commit that was under way when the manifest was lost: SQLite would apply it to the
    new file, and a process that is still in that commit would remove the journal of a newer one.
    """
    if path.exists() and path.stat().st_size > 0:
        _remove_second_name(path)
        raise ManifestMismatch(
            f"{path}: there is already a manifest, and rebuild does not replace it",
            hint=f"shardgen status RUN_DIR shows it; to give it up: mv {path} {path}.old",
        )
    for suffix in _JOURNALS:
        journal = path.with_name(path.name + suffix)
        if journal.exists():
            raise ManifestMismatch(
                f"{journal}: holds half a commit to the lost manifest, which would damage the new one",
                hint=f"stop every worker of this run, then: mv {journal} {journal}.old",
            )


@contextmanager
def alone_in(folder: Path) -> Iterator[StillAlone]:
    """Neither two rebuilds nor a rebuild and a sweep at once: what one takes, the other may remove."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFailed(
            f"{folder}: cannot be opened ({error.strerror})", hint="check the folder's permissions"
        ) from error
    try:
        _flock(descriptor, folder)
        yield _still_alone
    finally:
        os.close(descriptor)


def _still_alone() -> None:
    """Nothing to look at: such a lock is lost with this process only."""


def _flock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ManifestBusy(
            f"{folder}: another rebuild or sweep is running", hint="wait until it has ended"
        ) from error
    except OSError as error:
        raise StorageFailed(
            f"{folder}: cannot be locked ({error.strerror})",
            hint="put the manifest on this machine's own disk",
        ) from error


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.rebuild")


def _remove_second_name(path: Path) -> None:
    staged = _staged(path)
    with suppress(OSError):  # only tidiness: the manifest is whole with it, too
        if staged.samefile(path):
            staged.unlink()


def _remove_staged(staged: Path) -> None:
    for suffix in ("", *_JOURNALS):
        staged.with_name(staged.name + suffix).unlink(missing_ok=True)


def _give_name(staged: Path, path: Path) -> None:
    """Give the whole file its name; one that appeared meanwhile is refused, not replaced."""
    refuse_existing(path)
    path.unlink(missing_ok=True)  # empty, as was just seen
    if not give_name(_FILES, staged, path):
        refuse_existing(path)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
