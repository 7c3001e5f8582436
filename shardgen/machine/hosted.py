"""Hosted: whether this is a hosted runtime, and whether a folder lies on a mounted Google Drive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shardgen.machine.file_systems import Mounts, file_system_of

DRIVE = "fuse.drive"  # the type of the file system that Colab's drive.mount() mounts
_HOSTNAME_FILE = Path("/var/colab/hostname")


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
