"""The file calls of this package in one class, so that a test can record their order or make one fail."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from shlex import quote

from shardgen.errors import ArtifactCorrupt, InputMissing, ShardgenError, StorageFailed
from shardgen.storage.bounded import Irregular

FILE_MODE = 0o664
FOLDER_MODE = 0o775
"""Both before the umask, which takes from them what the user wants."""

# For 4 MB at once ext4 looks for memory in pieces of 2 MB, which can take several times the CPU time.
_WRITE_BYTES = 1 << 20

_HINTS = {
    errno.ENOSPC: "free some space on that disk; everything recorded so far is kept",
    errno.EDQUOT: "free some space under that quota; everything recorded so far is kept",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f), or choose another folder",
    errno.EROFS: "mount that disk writable, or choose another folder",
    errno.EACCES: "give this user permission to read and write there, or choose another folder",
    errno.EPERM: "give this user permission to read and write there, or choose another folder",
    errno.EIO: "check the disk (dmesg); everything recorded so far is kept",
}


class DiskFiles:
    """What is asked of a file system. Every call raises OSError; a descriptor is an int as of `os.open`."""

    def create(self, path: Path) -> int:
        """Create a file for writing that must not exist yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def open(self, path: Path | str, *, follow: bool = True) -> int:
        """Open a file for reading; a link in its place is OSError (ELOOP) unless it is to be followed."""
        # Opening a named pipe would wait for its writer; of a regular file O_NONBLOCK changes nothing.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(path, flags if follow else flags | os.O_NOFOLLOW)

    def size(self, descriptor: int) -> int:
        """Tell the file's size in bytes."""
        return os.fstat(descriptor).st_size

    def read_into(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from that offset of the file on; less than its length only at the file's end."""
        filled = 0
        while filled < len(buffer):
            count = os.preadv(descriptor, [buffer[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        return filled

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of it."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:_WRITE_BYTES]) :]

    def start_syncing(self, descriptor: int, start: int, size: int) -> None:
        """Have these bytes on their way to the disk, so that `fsync` finds them there; waits for nothing."""
        if sys.platform == "linux":  # where this writes dirty pages, and can forget only clean ones
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)

    def fsync(self, descriptor: int) -> None:
        """Return when the file's bytes are on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; refuses an existing one."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Move a file, replacing the target."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def make_folder(self, path: Path) -> bool:
        """Create a folder whose parent exists; False when it was there already."""
        try:
            path.mkdir(FOLDER_MODE)
        except FileExistsError:
            return False
        return True

    def fsync_folder(self, path: Path) -> None:
        """Return when the folder's names are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some FUSE file systems (Google Drive's) cannot sync a folder at all.
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(descriptor)

    def free_bytes(self, folder: Path) -> int:
        """Tell how many bytes this user may still write there."""
        return shutil.disk_usage(folder).free

    def free_files(self, folder: Path) -> int | None:
        """Tell how many files this user may still create there; None where nothing says so."""
        return os.statvfs(folder).f_favail or None  # 0 where a file system does not count them


def refuse_unusable_folder(folder: Path, *, makes: int | None, otherwise: str) -> None:
    """Raise InputMissing unless files can be written in a folder, once missing levels of it are made.

    `makes` is how many levels the caller would make, None: all; `otherwise` says where another can be named.
    A disk that is mounted read-only passes: that may be another in a moment, and each write says it.
    """
    try:
        folders = (folder, *folder.parents)
        missing = list(takewhile(lambda one: not one.exists(), folders))
        there = folders[len(missing)]
        dangling = next((one for one in missing if one.is_symlink()), None)
        is_read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    except OSError as error:
        raise InputMissing(
            f"{folder}: cannot be accessed ({error.strerror})",
            hint=f"correct its permissions, or {otherwise}",
        ) from error
    if dangling is not None:
        raise InputMissing(
            f"{dangling}: a link to {dangling.resolve()}, which does not exist",
            hint=f"mkdir -p {quote(str(dangling.resolve()))}, or {otherwise}",
        )
    if not there.is_dir():
        raise InputMissing(f"{there}: a file, not a folder", hint=f"move it away, or {otherwise}")
    if makes is not None and len(missing) > makes:
        wanted = missing[makes]
        raise InputMissing(
            f"{wanted}: there is no such folder", hint=f"mkdir -p {quote(str(wanted))}, or {otherwise}"
        )
    if not os.access(there, os.W_OK | os.X_OK) and not is_read_only:
        raise InputMissing(
            f"{there}: this user may not write there",
            hint=f"chmod u+wx {quote(str(there))}, or {otherwise}",
        )


def storage_error(error: OSError, subject: object) -> ShardgenError:
    """Turn a failed file call into the deliberate error for it; what is no file of ours is no bad disk."""
    if isinstance(error, Irregular):
        return ArtifactCorrupt(f"{subject}: {error.strerror}", hint="put the file itself back in its place")
    fact = os.strerror(error.errno) if error.errno else str(error)
    hint = _HINTS.get(error.errno or 0, "check that disk or mount; everything recorded so far is kept")
    return StorageFailed(f"{subject}: {fact}", hint=hint)


@contextmanager
def storing(subject: object) -> Iterator[None]:
    """Turn a failed file call into `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, subject) from error


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name; nothing when there is no folder. Raises StorageFailed."""
    try:
        with os.scandir(folder) as found:
            listed = sorted(found, key=lambda entry: entry.name)
        for entry in listed:
            entry.is_dir(follow_symlinks=False)  # some file systems must be asked again, once, for the kind
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error(error, folder) from error
    return listed


def is_folder(path: Path) -> bool:
    """Whether a folder, or a link to one, is there. Raises StorageFailed where that cannot be seen."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Whether a regular file, or a link to one, is there. Raises StorageFailed where that cannot be seen."""
    return stat.S_ISREG(_mode(path))


def is_there(path: Path) -> bool:
    """Whether anything is there, at the end of links. Raises StorageFailed where that cannot be seen."""
    return _mode(path) != 0


def is_link(path: Path) -> bool:
    """Whether a link is there. Raises StorageFailed where that cannot be seen."""
    return stat.S_ISLNK(_mode(path, follow=False))


def _mode(path: Path, *, follow: bool = True) -> int:
    """The mode as `os.stat` has it, 0 when nothing is there: no right and a dead mount are no answer."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except ValueError:  # a NUL in the name
        return 0
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise storage_error(error, path) from error


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises OSError."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folders(folder.parent)
        folder.mkdir(FOLDER_MODE, exist_ok=True)
