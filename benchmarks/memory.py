"""Peak memory of a network and of a whole worker, beside the estimate that `run` compares with what is free.

    python -m benchmarks.memory [--widths 64,1664] [--micro-batches 1,2,4,8] [--workers small,random:64]
        [--markdown]

Each measurement is a fresh process. A network's loads random weights, builds the graph on the CPU and
computes three micro-batches of black images of 640 x 480 pixels. A worker is `shardgen worker` with these
weights, two images at a time, on the demo's photographs (600 x 600 canvas, batches of 32), for three batches.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.beside.table import aligned, markdown
from shardgen.depth.base import NetworkChoice, NetworkPlan, Precision, Upsampling
from shardgen.depth.densedepth.family import DenseDepth

HEADER = ("weights", "micro-batch", "peak", "estimate", "estimate / peak")
INPUT_SIZE = (640, 480)
ROUNDS = BATCHES = 3
OF_A_WORKER = 2


def measure(width: int, micro_batch: int) -> tuple[int, int]:
    """The peak of this process and the estimate, in bytes."""
    import numpy as np  # noqa: PLC0415 - the parent process needs none of it

    name = f"random:{width}"
    network = DenseDepth().find(NetworkChoice(name=name, written=name, file=None, micro_batch=micro_batch))
    plan = NetworkPlan(
        model=DenseDepth.name,
        weights=network.weights,
        input=INPUT_SIZE,
        upsampling=Upsampling.ALIGNED,
        precision=Precision.FLOAT32,
    )
    estimator = network.load(plan, micro_batch=micro_batch, on=network.prepare("cpu", threads=0))
    black = np.zeros((INPUT_SIZE[1], INPUT_SIZE[0], 3), np.uint8)
    for _ in range(ROUNDS):
        estimator.outputs([black] * micro_batch)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, network.memory_bytes(plan, micro_batch)


def measure_worker(weights: str) -> tuple[int, int]:
    """The peak of a worker and the estimate, in bytes."""
    from benchmarks.worker import planned_run  # noqa: PLC0415 - imports all of a worker
    from shardgen.recipes.registry import recipe_of  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        run = planned_run(Path(folder), weights, BATCHES)
        demand = recipe_of(run.plan()).demand(run.local)
        words = ["-m", "shardgen", "worker", str(run.path), "--max-batches", str(BATCHES), "--device", "cpu"]
        with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL) as worker:  # noqa: S603
            _, status, used = os.wait4(worker.pid, 0)
            worker.returncode = os.waitstatus_to_exitcode(status)
        if worker.returncode:
            raise RuntimeError(f"the worker ended with exit code {worker.returncode}")
    return 1024 * used.ru_maxrss, demand.bytes_for(OF_A_WORKER)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", default="64,1664")
    parser.add_argument("--micro-batches", default="1,2,4,8")
    parser.add_argument("--workers", default="small,random:64")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(*measure(*options.measure))
        return
    rows = []
    for width in filter(None, options.widths.split(",")):
        for micro_batch in options.micro_batches.split(","):
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", width, micro_batch]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
            rows.append(_row(f"random:{width}", micro_batch, *map(int, answer.stdout.split())))
    rows += [
        _row(f"{weights}, a worker", str(OF_A_WORKER), *measure_worker(weights))
        for weights in filter(None, options.workers.split(","))
    ]
    print((markdown if options.markdown else aligned)(HEADER, rows))


def _row(weights: str, micro_batch: str, peak: int, estimate: int) -> list[str]:
    mib = [f"{value / 2**20:,.0f} MiB" for value in (peak, estimate)]
    return [weights, micro_batch, *mib, f"{estimate / peak:.2f}"]


if __name__ == "__main__":
    main()
