"""A whole worker whose network costs nothing: what it makes a CPU-second, and its time under the lock.

    python -m benchmarks.feeding [--batches 12] [--rounds 5] [--threads 2] [--markdown]

Both sides lease, compose, encode, publish (fsync included) and record the reference recipe; "plainly"
resizes whole canvases, decodes every file again (tests/imaging/plain_composites.py) and gives threads one
sample at a turn. Each round is a process of its own with photographs in memory; the sides take turns. While
a thread has the interpreter's lock no other one runs Python: 1000 divided by those milliseconds is the most
that a process makes in a second, on any number of cores. On a busy machine they hold waits for a core, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.beside.lock import Watched
from benchmarks.beside.table import aligned, markdown
from benchmarks.encoding import likely_outputs
from benchmarks.worker import Bench, Spent, measured, planned_run
from shardgen.depth.base import Estimator, Precision
from shardgen.depth.densedepth.network import depth_of
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, Graph
from shardgen.domain.identifiers import SampleIndex
from shardgen.recipes.base import DeviceChoice, Encoded
from shardgen.recipes.composites.composer import ComposedSample
from shardgen.recipes.composites.maker import CompositesMaker
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.network import DepthStage
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker import batch
from tests.imaging.plain_composites import PlainComposer, plain_depth_of, plain_encoded
from tests.plans import depth_in
from tests.worker.parts import open_composer

HEADER = ("a worker whose network costs nothing", "plainly", "now", "times")
_MICRO_BATCH = 8


class PlainMaker(CompositesMaker):
    """Encodes as whole canvases are."""

    def encode(self, sample: SampleIndex, prepared: ComposedSample, computed: NDArray[np.float32]) -> Encoded:
        """All files, decoded again."""
        del sample
        return plain_encoded(prepared, plain_depth_of(computed), self._plan)


class Feeding(Bench):
    """A worker with this network, as it is or plainly."""

    def __init__(
        self, run: RunDirectory, choice: DeviceChoice, network: Estimator, *, is_plain: bool
    ) -> None:
        super().__init__(run, choice, network=network)
        self._is_plain = is_plain
        if is_plain:
            self.composer = open_composer(run, PlainComposer)
        self.decode_photographs()

    def worker(self, slices: int, *, on_batch: Callable[[int], None] = lambda _made: None) -> int:
        """Lease and make so many slices; plainly, with a turn for every sample. In a process of its own."""
        if self._is_plain:
            batch._TURNS = 1 << 20  # noqa: SLF001 - as it was before there were turns
        return super().worker(slices, on_batch=on_batch)

    def maker(self) -> CompositesMaker:
        """What makes the samples."""
        if not self._is_plain or self.estimator is None:
            return super().maker()
        stage = DepthStage(depth_in(self.plan), self.estimator, agreed=None)
        return PlainMaker(CompositesPlan(self.plan), self.composer, stage, cpu="")


def costless(run: RunDirectory) -> Estimator:
    """A network that has its outputs ready; pictures are copied into its micro-batches as into any."""
    plan = depth_in(run.plan())
    width, height = plan.input
    outputs = likely_outputs(_MICRO_BATCH, (width // 2, height // 2))

    def build(_micro_batch: int, _precision: Precision) -> Graph:
        return lambda _pictures: lambda: outputs

    device = Device(kind="cpu", model="none", library="none", version="0")
    return DepthEstimator(build, depth_of, plan, micro_batch=_MICRO_BATCH, on=device)


def measure(folder: Path, *, batches: int, rounds: int, choice: DeviceChoice) -> list[tuple[str, ...]]:
    """The rows of the table."""
    run = planned_run(folder, "small", batches)
    network = costless(run)
    sides = {name: Feeding(run, choice, network, is_plain=name == "plainly") for name in ("plainly", "now")}
    spent: dict[str, list[tuple[Spent, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            watched = Watched(partial(measured, partial(sides[name].worker, 1)))
            spent[name].append((watched.result, watched.share))
            print(f"round {number + 1} of {rounds}, {name}: {watched.result}", file=sys.stderr)
    figures: dict[str, Callable[[Spent, float], float]] = {
        "images a CPU-second": lambda made, _share: made.images / made.cpu_seconds,
        "images a second": lambda made, _share: made.images / made.wall_seconds,
        "ms an image under the interpreter's lock": lambda made, share: (
            1000 * share * made.wall_seconds / made.images
        ),
    }
    rows = []
    for what, figure in figures.items():
        plain, now = ([figure(*one) for one in spent[name]] for name in sides)
        ratio = statistics.median(b / a for a, b in zip(plain, now, strict=True))
        ratio = 1 / ratio if what.startswith("ms") else ratio
        middle = [f"{statistics.median(values):.3g}" for values in (plain, now)]
        rows.append((what, *middle, f"{ratio:.2f}"))
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=12, help="of 32 images, per round and side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=0, help="for preparing and encoding each; 0: one a core"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        choice = DeviceChoice(device="cpu", threads=options.threads)
        rows = measure(Path(folder), batches=options.batches, rounds=options.rounds, choice=choice)
    print((markdown if options.markdown else aligned)(HEADER, rows))


if __name__ == "__main__":
    main()
