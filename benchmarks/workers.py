"""One worker with all cores beside two with half of them each, warmed up, in rounds that take turns.

    python -m benchmarks.workers [--weights small,random:64] [--rounds 4] [--batches 8]

Every worker is a process of its own with the environment that `run` gives it, and makes whole slices of
`--batches` batches: composed, estimated, published (fsync included), recorded. The one makes as many slices
as all the others together, so both sides do the same work. Tracing the network is not counted.

`makespan` divides all images by the time until the last worker was done, `rates` adds up each worker's own
images per second: a worker that is done first would lease another slice in a run, here it waits. CPU-seconds
are user + system of the processes. Beside other busy programs both sides are not given the same number of
cores, and the clock tells less than the CPU-seconds do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.beside.table import aligned, markdown
from benchmarks.worker import Bench, Spent, measured, planned_run
from shardgen.launch.allocation import Wanted, settle_workers
from shardgen.recipes.base import DeviceChoice
from shardgen.settings.run_directory import RunDirectory

_READY = "ready"


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one side took to make its slices."""

    name: str
    spent: list[Spent]

    @property
    def images(self) -> int:
        """Made by all workers of this side."""
        return sum(one.images for one in self.spent)

    @property
    def makespan(self) -> float:
        """Images per second until the last was done."""
        return self.images / max(one.wall_seconds for one in self.spent)

    @property
    def rates(self) -> float:
        """The workers' images per second, added up."""
        return sum(one.images / one.wall_seconds for one in self.spent)

    @property
    def cores(self) -> float:
        """Cores that the workers had, on average."""
        return sum(one.cpu_seconds / one.wall_seconds for one in self.spent)

    @property
    def per_cpu_second(self) -> float:
        """Images per second of processor time."""
        return self.images / sum(one.cpu_seconds for one in self.spent)


def serve(run_dir: Path, connection: Connection) -> None:
    """Be one worker: load and trace, then make as many slices as is asked for, again and again."""
    bench = Bench(RunDirectory.open(run_dir), DeviceChoice.from_environment("cpu"))
    connection.send(_READY)
    while slices := connection.recv():
        connection.send(measured(partial(bench.worker, slices)))


class Crew:
    """Worker processes on one run, each with its share of the cores; they work only inside `make`."""

    def __init__(self, run: RunDirectory, workers: int, stack: ExitStack) -> None:
        self.name = f"{workers} x"
        wanted = Wanted(workers=workers, device="cpu")
        shares = settle_workers(run, run.plan(), wanted, (), say=lambda line: print(line, file=sys.stderr))
        self._pipes: list[Connection] = []
        spawn = multiprocessing.get_context("spawn")
        before = dict(os.environ)
        for share in shares:
            ours, theirs = spawn.Pipe()
            os.environ.update(share.environment(before))
            process = spawn.Process(target=serve, args=(run.path, theirs), daemon=True)
            process.start()
            stack.callback(process.terminate)
            self._pipes.append(ours)
            os.environ.clear()
            os.environ.update(before)
        for pipe in self._pipes:
            pipe.recv()

    def make(self, slices: int) -> Round:
        """Make so many slices together."""
        for pipe in self._pipes:
            pipe.send(slices // len(self._pipes))
        return Round(name=self.name, spent=[pipe.recv() for pipe in self._pipes])


def compare(folder: Path, weights: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Print both sides round by round; the medians of the ratios."""
    crews = []
    with ExitStack() as stack:
        for workers in (1, options.workers):
            place = folder / f"{weights.replace(':', '-')}-{workers}"
            place.mkdir()
            run = planned_run(place, weights, options.batches)
            crews.append(Crew(run, workers, stack))
        for crew in crews:  # the first slices fill the caches of prepared photographs
            crew.make(options.workers)
        print(f"\n{weights}", file=sys.stderr)
        columns = ("images", 6), ("makespan", 9), ("rates", 7), ("/CPU-s", 7), ("cores", 6)
        heads = (f"{name:>{width}}" for name, width in columns)
        print(f"{'round':>5} {'workers':<8}", *heads, file=sys.stderr)
        ratios = []
        for number in range(options.rounds):
            # Whoever comes second may find the machine slower or faster: they take turns.
            order = crews if number % 2 == 0 else crews[::-1]
            made = {crew.name: crew.make(options.workers) for crew in order}
            one, many = (made[crew.name] for crew in crews)
            for side in (one, many):
                print(
                    f"{number:>5} {side.name:<8} {side.images:>6} {side.makespan:>9.2f} {side.rates:>7.2f} "
                    f"{side.per_cpu_second:>7.2f} {side.cores:>6.2f}",
                    file=sys.stderr,
                    flush=True,
                )
            ratios.append(
                (
                    many.makespan / one.makespan,
                    many.rates / one.rates,
                    many.per_cpu_second / one.per_cpu_second,
                )
            )
    return weights, *(f"{statistics.median(column):.2f}" for column in zip(*ratios, strict=True))


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="small,random:64")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=8, help="of 32 images, per slice")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(Path(folder), weights, options) for weights in options.weights.split(",")]
    header = (
        f"{options.workers} workers beside 1, median of {options.rounds}",
        *("images/s until the last is done", "images/s, added up", "images per CPU-second"),
    )
    print((markdown if options.markdown else aligned)(header, rows))


if __name__ == "__main__":
    main()
