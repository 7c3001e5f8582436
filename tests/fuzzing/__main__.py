"""Fuzz one reader with coverage as a guide: `python -m tests.fuzzing zip -max_total_time=600`.

Needs atheris (`python -m pip install atheris`; it has wheels for some versions of Python on Linux). What is
written behind the name goes to libFuzzer. It starts from files of our own making, and keeps what reaches new
code in the cache folder of the user; a failure is written to `crash-…` in the current folder.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

_USAGE = "python -m tests.fuzzing READER [LIBFUZZER_OPTION...]; READER is one of "


def main() -> None:
    """Run until the time is over, or something is found."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["shardgen"]):
        targets = importlib.import_module("tests.fuzzing.targets")
        guarded = importlib.import_module("tests.fuzzing.guarded")
    limits: Any = importlib.import_module("shardgen.imaging.containers.base")
    limits.MAX_PIXELS = 4_000_000
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in targets.TARGETS:
        sys.exit(_USAGE + ", ".join(targets.TARGETS))
    target = targets.TARGETS[name]
    corpus = Path(platformdirs.user_cache_dir("shardgen-fuzzing"), name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            guarded.guarded_read(target, data, Path(folder))

    atheris.Setup([sys.argv[0], str(corpus), f"-timeout={guarded.SECONDS}", *sys.argv[2:]], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
