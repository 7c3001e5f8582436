"""A worker process that sees a plain folder late: what others have written is hidden for a while.

python -m tests.shared_folder.lagging RUN_DIR SEED MEDIAN_LAG_SECONDS
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from pathlib import Path

from shardgen.folder.files import DiskFolder
from shardgen.rundir import RunDirectory
from shardgen.working import WorkerOptions, work


class LaggingFolder(DiskFolder):
    """Shows its own process's files at once, and each of the others' after a delay of its own."""

    def __init__(self, root: Path, *, seed: int, median_lag: float) -> None:
        super().__init__(root)
        self._path = root
        self._seed = seed
        self._median = median_lag
        self._own: set[str] = set()

    def _is_hidden(self, path: str) -> bool:
        full = self._path / path
        if path in self._own or full.is_dir():
            return False
        drawn = random.Random(f"{self._seed}/{path}").gauss(0, 0.5)  # noqa: S311
        try:
            return time.time() < full.stat().st_mtime + self._median * math.exp(drawn)
        except FileNotFoundError:
            return True

    def write(self, path: str, data: bytes) -> None:
        super().write(path, data)
        self._own.add(path)

    def read(self, path: str) -> bytes:
        if self._is_hidden(path):
            raise FileNotFoundError(2, os.strerror(2), path)
        return super().read(path)

    def names(self, folder: str) -> list[str]:
        return [name for name in super().names(folder) if not self._is_hidden(f"{folder}/{name}")]


def main() -> None:
    run = RunDirectory.open(Path(sys.argv[1]))
    files = LaggingFolder(run.path, seed=int(sys.argv[2]), median_lag=float(sys.argv[3]))
    outcome = work(run, WorkerOptions(files=files), say=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    sys.stderr.flush()
    os._exit(0 if outcome.signal_number is None else 128 + outcome.signal_number)


if __name__ == "__main__":
    main()
