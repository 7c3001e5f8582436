"""Where a SQLite file belongs, and whether it is there: its folder may go away and come back at any time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shardgen.storage.files import storing

_LOOK = getattr(os, "O_PATH", os.O_RDONLY)  # which Linux alone has, and which needs no right to list
Inode = tuple[int, int]
"""Of a file or a folder: its device, and its number there."""


class Standing(StrEnum):
    """What is found in a file's place."""

    HERE = "here"
    AWAY = "away"
    """The folder is not there, or is another one: a mount comes back."""
    GONE = "gone"
    """The folder is there, and the file is not in it: that does not come back by itself."""
    UNFINISHED = "unfinished"
    """The file is there, and so is the journal of a commit that was cut short and is still to be undone."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file's path, and the folder that it was in: an empty mount point is another one."""

    path: Path
    folder: Inode | None = None

    @classmethod
    def of(cls, path: Path) -> Place:
        """As it is now; the folder must be there. Raises StorageFailed."""
        return cls(path, _inode_of(path.parent))

    def inode(self) -> Inode:
        """Of the file that is there now. Raises StorageFailed."""
        return _inode_of(self.path)

    def look(self, inode: Inode | None = None) -> Standing:
        """What is there now; if an inode is given, no other file counts. Raises StorageFailed.

        UNFINISHED is certain only while this process has a lock on the file: without one, the journal may be
        that of a commit that is under way.
        """
        # By a descriptor: the folder's name may come and go between two looks, and what lies in it stays.
        with storing(self.path.parent):
            try:
                folder = os.open(self.path.parent, _LOOK | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return Standing.AWAY
            try:
                return self._look_into(folder, inode)
            finally:
                os.close(folder)

    def _look_into(self, folder: int, inode: Inode | None) -> Standing:
        try:
            found = _inode(os.stat(self.path.name, dir_fd=folder))
        except FileNotFoundError:
            found = None
        if found is None or inode not in (None, found):
            is_same = self.folder in (None, _inode(os.fstat(folder)))
            return Standing.GONE if is_same else Standing.AWAY
        return Standing.UNFINISHED if _has_header(f"{self.path.name}-journal", folder) else Standing.HERE


def _inode(found: os.stat_result) -> Inode:
    return found.st_dev, found.st_ino


def _inode_of(path: Path) -> Inode:
    with storing(path):
        return _inode(path.stat())


def _has_header(journal: str, folder: int) -> bool:
    """Whether it is complete: SQLite writes its first bytes last, and only while nobody else has a lock."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return False
    try:
        return os.read(descriptor, 1) not in (b"", b"\0")
    finally:
        os.close(descriptor)
