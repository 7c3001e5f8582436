"""Files in a folder that other machines see late: each is written once, by one writer, never changed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from shardgen.storage.bounded import read_regular
from shardgen.storage.files import DiskFiles, make_folders

_MAX_NOTICE_BYTES = 1 << 24
_MAX_SEGMENT_BYTES = 1 << 32  # an artifact's limit
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_UPLOAD_ID = "user.drive.id"  # Google Drive's mount gives a file its id here; see docs/colab.md
_NOT_UPLOADED = b"local"


class FolderFiles(Protocol):
    """What may be asked of a shared folder; paths are relative to it, with `/`.

    No rename, no change in place, no deletion, no link, no lock: none of these can be trusted there.
    """

    def write(self, path: str, data: bytes) -> None:
        """Write a new file and sync it as far as the file system can; missing folders are made. OSError."""
        ...

    def read(self, path: str) -> bytes:
        """All bytes of a file, perhaps fewer than were written. OSError: it may be there all the same."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names that are visible in a folder; none when it is not visible itself. OSError."""
        ...

    def is_uploaded(self, path: str) -> bool | None:
        """Whether the file has left this machine; None where that cannot be known."""
        ...


class DiskFolder:
    """A folder of a mounted file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, data: bytes) -> None:
        """Create, write, sync; FileExistsError for a name that is visible already."""
        target = self._root / path
        files = DiskFiles()
        make_folders(target.parent)
        descriptor = files.create(target)
        try:
            files.write(descriptor, data)
            _sync(descriptor)
        finally:
            files.close(descriptor)

    def read(self, path: str) -> bytes:
        """All bytes that are visible; of a link, a device or a file larger than any of ours, OSError."""
        limit = _MAX_NOTICE_BYTES if path.endswith(".json") else _MAX_SEGMENT_BYTES
        return read_regular(self._root / path, limit=limit, follow=False)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted."""
        try:
            return sorted(path.name for path in (self._root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_uploaded(self, path: str) -> bool | None:
        """By the id that Google Drive's mount gives a file: one that begins with `local` is not Drive's."""
        try:
            return not os.getxattr(self._root / path, _UPLOAD_ID).startswith(_NOT_UPLOADED)
        except OSError:
            return None


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
