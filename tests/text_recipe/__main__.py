from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from shardgen.cli.app import main
from shardgen.recipes.registry import register
from tests.text_recipe import HEAVY, IMPORTED, Text


class NoteHeavy:
    """Leaves a file for every heavy library that this process imports."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in HEAVY and IMPORTED in os.environ:
            (Path(os.environ[IMPORTED]) / f"{name}-{sys.argv[1]}-{os.getpid()}").touch()
        return None


sys.meta_path.insert(0, NoteHeavy)
register(Text())
main()
