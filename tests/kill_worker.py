"""A worker process that kills itself at a named step: `python -m tests.kill_worker RUN_DIR STEP NTH`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from shardgen.domain.steps import Step
from shardgen.rundir import RunDirectory
from shardgen.working import WorkerOptions, work


def main() -> None:
    """Work, and die by SIGKILL when the step is passed for the nth time."""
    run_dir, name, nth = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    passed = 0

    def on_step(step: Step) -> None:
        nonlocal passed
        if f"{type(step).__name__}.{step.name}" == name:
            passed += 1
            if passed == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    work(RunDirectory.open(run_dir), WorkerOptions(), say=lambda _line: None, on_step=on_step)
    os._exit(0)


main()
