"""A worker that waits at a step: `python -m tests.halted_worker RUN_DIR FOLDER STEP NTH [HOW]`.

It makes FOLDER/there when it gets to the step for the nth time, and goes on when FOLDER/go appears. What it
says is in FOLDER/said. HOW is `unfenced` (it heeds no fence) or `another-machine` (as which it shows itself).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from shardgen.domain.steps import Step
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import WorkerOptions, work
from tests.broken import take_the_fence_away
from tests.logged import logged

THERE, GO, SAID = "there", "go", "said"


def main() -> None:
    """Work, and wait once on the way."""
    run_dir, folder, name, nth = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if sys.argv[5:] == ["unfenced"]:
        take_the_fence_away()
    if sys.argv[5:] == ["another-machine"]:
        socket.gethostname = lambda: sys.argv[5]
    passed = 0

    def on_step(step: Step) -> None:
        nonlocal passed
        if f"{type(step).__name__}.{step.name}" != name:
            return
        passed += 1
        if passed == nth:
            (folder / THERE).touch()
            while not (folder / GO).exists():
                time.sleep(0.02)

    def hear(line: str) -> None:
        with (folder / SAID).open("a", encoding="utf-8") as said:
            said.write(line + "\n")

    with logged(hear):
        work(RunDirectory.open(run_dir), WorkerOptions(), on_step=on_step)
    os._exit(0)


if __name__ == "__main__":
    main()
