"""How files and folders are made: never writable for everybody, whatever the umask, and no file a program."""

from __future__ import annotations

from pathlib import Path

FILE_MODE = 0o664
FOLDER_MODE = 0o775
"""Both before the umask, which takes from them what the user wants."""


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises OSError."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folders(folder.parent)
        folder.mkdir(FOLDER_MODE, exist_ok=True)
