"""A whole worker whose network costs nothing: what it makes a CPU-second, and its time under the lock.

    python -m benchmarks.feeding [--batches 12] [--rounds 5] [--threads 2] [--before DIR] [--markdown]

Both sides lease, compose, encode, publish (fsync included) and record the reference recipe; "plainly"
resizes whole canvases, decodes every file again (tests/imaging/plain_composites.py) and gives threads one
sample at a turn. Each round is a process of its own with photographs in memory; the sides take turns. While
a thread has the interpreter's lock no other one runs Python: 1000 divided by those milliseconds is the most
that a process makes in a second, on any number of cores. On a busy machine they hold waits for a core, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
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
BEFORE_HEADER = ("a worker whose network costs nothing", "before", "now", "times")
ROOT = Path(__file__).parent.parent
_MICRO_BATCH = 8
_SLICES = 3  # of a worker of another version, after one that fills its caches
_OF_A_VERSION = """
import json, os, sys, tempfile, time
from pathlib import Path
import numpy as np
from benchmarks.worker import Bench, planned_run
from shardgen.depth.densedepth.network import depth_of
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator
from shardgen.recipes.base import DeviceChoice
from shardgen.recipes.composites.plan import CompositesPlan
from tests.plans import depth_in
outputs, batches, slices, threads = np.load(sys.argv[1]), *map(int, sys.argv[2:])
# Before it could be asked ahead, a network gave its outputs at once.
is_asked_ahead = hasattr(DepthEstimator, "begin")
answer = (lambda: outputs) if is_asked_ahead else outputs
with tempfile.TemporaryDirectory() as folder:
    run = planned_run(Path(folder), "small", batches)
    on = Device(kind="cpu", model="none", library="none", version="0")
    bench = Bench(run, DeviceChoice(device="cpu", threads=threads))
    bench.estimator = DepthEstimator(
        lambda _size, _precision: lambda _pictures: answer, depth_of, depth_in(run.plan()),
        micro_batch=len(outputs), on=on)
    for sample in CompositesPlan(run.plan()).covering(48):
        bench.composer.compose(sample)
    bench.worker(1)
    began, used = time.perf_counter(), time.process_time()
    images = bench.worker(slices)
    print(json.dumps([images, time.perf_counter() - began, time.process_time() - used]))
"""


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
    plain, now = ([made for made, _ in spent[name]] for name in sides)
    rows = [_row(what, figure, plain, now) for what, figure in _RATES.items()]
    locked = [
        [1000 * share * made.wall_seconds / made.images for made, share in spent[name]] for name in sides
    ]
    ratio = statistics.median(a / b for a, b in zip(*locked, strict=True))
    middle = (f"{statistics.median(side):.3g}" for side in locked)
    rows.append(("ms an image under the interpreter's lock", *middle, f"{ratio:.2f}"))
    return rows


def measure_versions(
    folder: Path, before: Path, *, batches: int, rounds: int, choice: DeviceChoice
) -> list[tuple[str, ...]]:
    """The rows of the table beside another version."""
    np.save(outputs := folder / "outputs.npy", likely_outputs(_MICRO_BATCH, (320, 240)))
    checkouts = {"before": before, "now": ROOT}
    spent: dict[str, list[Spent]] = {name: [] for name in checkouts}
    words = [str(outputs), *map(str, (batches, _SLICES, choice.threads))]
    for number in range(rounds):
        for name in list(checkouts)[:: -1 if number % 2 else 1]:
            answer = subprocess.run(  # noqa: S603
                [sys.executable, "-c", _OF_A_VERSION, *words],
                check=True,
                stdout=subprocess.PIPE,
                cwd=checkouts[name],
            )
            spent[name].append(Spent(*json.loads(answer.stdout)))
            print(f"round {number + 1} of {rounds}, {name}: {spent[name][-1]}", file=sys.stderr)
    return [_row(what, figure, spent["before"], spent["now"]) for what, figure in _RATES.items()]


def _row(
    what: str, figure: Callable[[Spent], float], one: list[Spent], other: list[Spent]
) -> tuple[str, ...]:
    rates = [[figure(made) for made in side] for side in (one, other)]
    ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
    return (what, *(f"{statistics.median(side):.3g}" for side in rates), f"{ratio:.2f}")


_RATES: dict[str, Callable[[Spent], float]] = {
    "images a CPU-second": lambda made: made.images / made.cpu_seconds,
    "images a second": lambda made: made.images / made.wall_seconds,
}


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
    parser.add_argument("--before", type=Path, metavar="DIR", help="a checkout of another version")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    options = parser.parse_args()
    table = markdown if options.markdown else aligned
    with tempfile.TemporaryDirectory() as folder:
        choice = DeviceChoice(device="cpu", threads=options.threads)
        size = {"batches": options.batches, "rounds": options.rounds}
        if options.before is None:
            print(table(HEADER, measure(Path(folder), **size, choice=choice)))
        else:
            rows = measure_versions(Path(folder), options.before, **size, choice=choice)
            print(table(BEFORE_HEADER, rows))


if __name__ == "__main__":
    main()
