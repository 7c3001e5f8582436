"""How many different outputs one network gives for one input: 1 is what promise 2 (same bytes) needs.

    python -m benchmarks.determinism [--rounds 20] [--weights random:64 small] [--threads 1x1 2x1 2x2]

Two processes at once, so that both cores of a small machine are busy, each run the network `rounds` times for
every micro-batch, arithmetic and number of threads. INTRAxINTER: threads inside an operation, and operations
at once; a worker with threads of its own has Nx1, a lone one as many of both as there are cores. The last
column counts the different outputs over all of them. `TF_ENABLE_ONEDNN_OPTS=1` tries the other library.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from shardgen.depth import device
from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth.family import RANDOM, SHIPPED
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network
from shardgen.depth.densedepth.random_weights import random_weights
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights

MICRO_BATCHES = (1, 2, 4, 8, 32)
PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads inside an operation, and operations at once; 0 is TensorFlow's own choice."""

    intra: int
    inter: int

    def __str__(self) -> str:
        return f"{self.intra}x{self.inter}"

    @classmethod
    def parse(cls, text: str) -> Threads:
        """Of `2x1`."""
        intra, inter = text.split("x")
        return cls(int(intra), int(inter))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A graph; `weights` is the name of a network that needs no download, or a weights file."""

    weights: str
    shape: GraphShape


def weights_of(name: str) -> WeightsFile:
    """The weights of a case."""
    if name.startswith(RANDOM):
        return random_weights(name)
    return read_weights(SHIPPED.get(name, Path(name)))


def digests(cases: Sequence[Case], threads: Threads, rounds: int) -> list[list[str]]:
    """The sha256 of every output, by case; in this process, whose first use of TensorFlow it must be."""
    device.prepare("cpu", intra_op=threads.intra, inter_op=threads.inter)
    loaded = {name: weights_of(name) for name in {case.weights for case in cases}}
    found = []
    for case in cases:
        width, height = case.shape.input_size
        images = np.random.default_rng(0).integers(
            0, 256, (case.shape.micro_batch, height, width, 3), dtype=np.uint8
        )
        network = build_network(loaded[case.weights], case.shape)
        found.append(
            [hashlib.sha256(np.asarray(network(images)).tobytes()).hexdigest() for _ in range(rounds)]
        )
    return found


def different_outputs(cases: Sequence[Case], threads: Threads, rounds: int) -> list[set[str]]:
    """The different digests of each case, over processes that run at the same time."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        # Each process takes one: it is busy until long after the other has started.
        found = pool.starmap(digests, [(cases, threads, rounds)] * PROCESSES, chunksize=1)
    return [{one for process in found for one in process[index]} for index in range(len(cases))]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="in each process")
    parser.add_argument("--weights", nargs="+", default=["random:64", "small"], metavar="NAME")
    parser.add_argument("--input", type=int, nargs=2, default=(96, 64), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--micro-batches", type=int, nargs="+", default=MICRO_BATCHES)
    parser.add_argument("--arithmetics", type=Arithmetic, nargs="+", default=list(Arithmetic))
    parser.add_argument("--threads", type=Threads.parse, nargs="+", default=[Threads(1, 1), Threads(2, 2)])
    options = parser.parse_args()
    cases = [
        Case(
            weights=name,
            shape=GraphShape(
                micro_batch=micro_batch,
                input_size=tuple(options.input),
                upsampling=Upsampling.ALIGNED,
                arithmetic=arithmetic,
            ),
        )
        for name, arithmetic, micro_batch in product(
            options.weights, options.arithmetics, options.micro_batches
        )
    ]
    columns = {threads: different_outputs(cases, threads, options.rounds) for threads in options.threads}
    print(f"{device.describe_cpu()}; input {options.input[0]}x{options.input[1]}; "
          f"different outputs of {options.rounds} calls in each of {PROCESSES} processes")  # fmt: skip
    print(f"{'weights':12} {'arithmetic':18} {'micro-batch':>11}"
          + "".join(f" {threads!s:>5}" for threads in columns) + "   all")  # fmt: skip
    for index, case in enumerate(cases):
        found = [column[index] for column in columns.values()]
        counts = "".join(f" {len(one):5}" for one in [*found, set().union(*found)])
        print(f"{case.weights:12} {case.shape.arithmetic.value:18} {case.shape.micro_batch:11}{counts}")


if __name__ == "__main__":
    main()
