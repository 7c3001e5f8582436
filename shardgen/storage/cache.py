"""The user's cache folder: fetched weights, and indexes of shared folders. All of it can be made again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from shardgen.errors import MachineUnfit

CACHE_VARIABLE = "SHARDGEN_CACHE"


def cache_folder() -> Path:
    """`$SHARDGEN_CACHE`, else the user's cache folder of this system.

    Raises MachineUnfit for a user without a home folder, as containers have who start under any number.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    try:
        folder = Path(platformdirs.user_cache_dir("shardgen"))
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # of the path `~/.cache` nothing was replaced
        raise MachineUnfit(
            "no folder for the cache: $HOME is not set, and this user has no home folder",
            hint=f"export {CACHE_VARIABLE}=DIR, a folder of yours",
        )
    return folder


def index_folder(run_dir: Path, fingerprint: str) -> Path:
    """This machine's own folder for a run whose directory is not its own: one for each plan and each path."""
    path_digest = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()
    return cache_folder() / "shared" / f"{fingerprint[:16]}-{path_digest[:8]}"
