"""Which file system a file is on, and whether SQLite's locks can be trusted there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from shardgen.errors import ManifestMismatch

DRIVE = "fuse.drive"  # the type of the file system that Colab's drive.mount() mounts
_HOSTNAME_FILE = Path("/var/colab/hostname")

# Locks on these are missing, local to one machine, or known to damage databases.
_WITHOUT_LOCKS = ("nfs", "cifs", "smb", "fuse", "9p", "virtiofs", "lustre", "gpfs", "ceph", "afs", "drvfs")
_LOCAL_FUSE = ("fuseblk", "fuse.fuse-overlayfs")  # a local disk behind a FUSE driver

Mounts = Iterable[tuple[str, str]]
"""Mount points and their file systems' types."""


def mount_table() -> Mounts:
    """This machine's mounts."""
    import psutil

    return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def file_system_of(path: Path, mounts: Mounts | None = None) -> str:
    """The type of the file system that a path is (or would be) on: that of its longest mount point.

    Of several mounts at one point the last is the one that is seen.
    """
    resolved = path.resolve()
    holding = [
        (len(Path(point).parts), order, kind)
        for order, (point, kind) in enumerate(mount_table() if mounts is None else mounts)
        if resolved.is_relative_to(point)
    ]
    return max(holding, default=(0, 0, "unknown"))[2]


def has_trusted_locks(file_system: str) -> bool:
    """Whether several processes may write a SQLite file on it."""
    return file_system in _LOCAL_FUSE or not file_system.startswith(_WITHOUT_LOCKS)


def refuse_untrusted(path: Path, mounts: Mounts | None = None) -> None:
    """Raise ManifestMismatch for a manifest on a network or FUSE file system; reading one is harmless."""
    kind = file_system_of(path, mounts)
    if not has_trusted_locks(kind):
        raise ManifestMismatch(
            f"{path}: on a file system of type {kind}, where SQLite gets damaged",
            hint='[manifest] url = "sqlite:////home/me/run.sqlite" puts it on this machine\'s own disk; '
            'for several machines: "postgresql+psycopg://host/database", or "folder:" without a server',
        )


def hosted_runtime(
    environment: Mapping[str, str] = os.environ, hostname_file: Path = _HOSTNAME_FILE
) -> str | None:
    """The name of the hosted runtime that this process runs in; None outside of those that are known."""
    if environment.get("VERTEX_PRODUCT") == "COLAB_ENTERPRISE":
        return "Colab Enterprise"
    if environment.get("COLAB_RELEASE_TAG") or hostname_file.is_file():
        return "Google Colab"
    return None


def is_on_drive(path: Path, mounts: Mounts | None = None) -> bool:
    """Whether a path is (or would be) on a mounted Google Drive; links are followed."""
    return file_system_of(path, mounts) == DRIVE
