"""Drive is a plain folder, `$FAKE_DRIVE`; a mount is a link to it, and gone after a flush."""

import os
from pathlib import Path

from google.colab import journal


def mount(mountpoint: str, force_remount: bool = False, timeout_ms: int = 120_000) -> None:  # noqa: FBT001, FBT002
    """As Colab's: refuses a blank in the name and a folder that is not empty; twice is harmless."""
    point = Path(mountpoint)
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    if (point / "MyDrive").is_dir() and not force_remount:
        return
    if not point.parent.is_dir():
        raise ValueError("Mountpoint must be in a directory that exists")
    if point.exists():
        raise ValueError("Mountpoint must not already contain files")
    point.symlink_to(os.environ["FAKE_DRIVE"], target_is_directory=True)
    journal.note(f"mount {mountpoint}")


def flush_and_unmount(timeout_ms: int = 86_400_000) -> None:
    """Take away every link to Drive."""
    for line in journal.lines():
        verb, _, mountpoint = line.partition(" ")
        if verb == "mount" and Path(mountpoint).is_symlink():
            Path(mountpoint).unlink()
    journal.note("flush")
