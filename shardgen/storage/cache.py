"""Where this user keeps what can be had again: fetched weights, and the indexes of shared folders."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "SHARDGEN_CACHE"


def cache_folder() -> Path:
    """`$SHARDGEN_CACHE`, else the user's cache folder of this system."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("shardgen"))


def index_folder(run_dir: Path, fingerprint: str) -> Path:
    """This machine's own folder for a run in a shared folder: one for each plan and each path of it."""
    path_digest = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()
    return cache_folder() / "shared" / f"{fingerprint[:16]}-{path_digest[:8]}"
