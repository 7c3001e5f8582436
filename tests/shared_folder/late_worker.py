"""A worker that sees its shared folder late.

    python -m tests.shared_folder.late_worker RUN RECORDS MACHINE LAG SEED PACE

It says that its host is MACHINE, so that others cannot look for its process, and takes PACE seconds longer
for every batch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import shardgen.machine.processes
from shardgen.domain.steps import BatchStep, Step
from shardgen.machine.processes import new_identity
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import Ending, WorkerOptions, work
from tests.logged import logged
from tests.shared_folder.double import Faults
from tests.shared_folder.mounted import LateFolder, Records


def faults_of(lag: float) -> Faults:
    """A median lag in seconds; the longest is ten times that."""
    return Faults(median_lag=lag, longest_lag=10 * lag)


def main() -> None:
    """Work; the exit code is 0 when nothing is left."""
    run_dir, records_dir, machine, lag, seed, pace = sys.argv[1:]
    shardgen.machine.processes.host_id = lambda: machine
    records = Records(Path(records_dir), seed=int(seed), faults=faults_of(float(lag)))
    options = WorkerOptions(identity=new_identity(machine), files=LateFolder(Path(run_dir), records, machine))

    def on_step(step: Step) -> None:
        if step is BatchStep.RECORDED:
            time.sleep(float(pace))

    run = RunDirectory.open(Path(run_dir))

    with logged(lambda line: sys.stderr.write(f"{line}\n")):
        outcome = work(run, options, on_step=on_step)
    sys.stderr.flush()
    os._exit(0 if outcome.ending is Ending.FINISHED else 1)


if __name__ == "__main__":
    main()
