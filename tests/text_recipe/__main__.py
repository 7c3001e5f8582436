from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from shardgen.cli.app import main
from shardgen.recipes.registry import register
from tests.text_recipe import IMPORTED, Text


def note_imports() -> None:
    """Leave the names of the heavy libraries that this process has imported."""
    folder = os.environ.get(IMPORTED)
    if folder:
        heavy = sorted({"cv2", "tensorflow", "keras", "h5py"} & set(sys.modules))
        (Path(folder) / f"{os.getpid()}.txt").write_text(" ".join(heavy), encoding="utf-8")


atexit.register(note_imports)
register(Text())
main()
