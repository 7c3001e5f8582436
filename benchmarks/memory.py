"""Peak memory of a process with a network, beside what is reckoned with before workers are started.

    python -m benchmarks.memory [--widths 64,1664] [--micro-batches 1,2,4,8] [--markdown]

Each measurement is a fresh process that loads random weights, builds the graph on the CPU and computes three
micro-batches of black images of 640 x 480 pixels. Memory does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from benchmarks.beside.table import aligned, markdown
from shardgen.depth.base import NetworkChoice, NetworkPlan, Precision, Upsampling
from shardgen.depth.densedepth.family import DenseDepth

HEADER = ("decoder width", "micro-batch", "peak", "reckoned", "ratio")
INPUT_SIZE = (640, 480)
ROUNDS = 3


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


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", default="64,1664")
    parser.add_argument("--micro-batches", default="1,2,4,8")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(*measure(*options.measure))
        return
    rows = []
    for width in options.widths.split(","):
        for micro_batch in options.micro_batches.split(","):
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", width, micro_batch]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
            peak, estimate = map(int, answer.stdout.split())
            mib = [f"{value / 2**20:,.0f} MiB" for value in (peak, estimate)]
            rows.append([width, micro_batch, *mib, f"{estimate / peak:.2f}"])
    print((markdown if options.markdown else aligned)(HEADER, rows))


if __name__ == "__main__":
    main()
