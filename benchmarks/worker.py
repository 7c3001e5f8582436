"""A worker's images per second beside the bare network on the same batches, interleaved; and its memory.

    python -m benchmarks.worker [--weights random:64] [--batches 6] [--rounds 3]
    python -m benchmarks.worker --weights narrow --memory 10,100
    python -m benchmarks.worker --weights small --masks-only

The worker composes, estimates, encodes, publishes (fsync included) and records; the bare network only
estimates the same network inputs, composed beforehand. With --masks-only the other side is a worker whose
recipe makes no depth. CPU-seconds are user + system of the process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.base import Seat
from shardgen.coordination.database import DatabaseCoordinator
from shardgen.depth.base import Estimator
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerState
from shardgen.machine.processes import new_identity
from shardgen.operations.demo import write_photographs
from shardgen.operations.plan import make_plan
from shardgen.recipes.base import DeviceChoice
from shardgen.recipes.composites.maker import CompositesMaker
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.depth import DEPTH
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import settings_text
from shardgen.storage.files import make_folders
from shardgen.worker.batch import BatchMaker, Stages
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.pipeline import Pipeline
from tests.legacy_weights import write_legacy_weights
from tests.worker.parts import load_network, maker_of, open_composer


@dataclass(frozen=True)
class Spent:
    """What making some images took."""

    images: int
    wall_seconds: float
    cpu_seconds: float


def measured(work: Callable[[], int]) -> Spent:
    """Run it; it returns how many images it made."""
    began, used = time.perf_counter(), os.times()
    images = work()
    now = os.times()
    cpu = now.user + now.system - used.user - used.system
    return Spent(images=images, wall_seconds=time.perf_counter() - began, cpu_seconds=cpu)


def planned_run(folder: Path, weights: str | None, slice_batches: int) -> RunDirectory:
    """The demo's photographs with the reference recipe (600x600 canvas, 640x480 input, batches of 32).

    Without weights no depth is made.
    """
    foregrounds, backgrounds = write_photographs(folder)
    (folder / "run").mkdir()
    if weights == "narrow":
        weights = str(write_legacy_weights(folder / "narrow.h5"))
    text = settings_text(
        preset="masks-only" if weights is None else "grid600",
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        weights=weights,
        changes={
            "sources.mask": '"grabcut"',
            "compose.grid": "[20, 20]",
            "shards.slice_batches": str(slice_batches),
            "lease.stall_seconds": "3600",
        },
    )
    (folder / "run" / "shardgen.toml").write_text(text, encoding="utf-8")
    run = RunDirectory.open(folder / "run")
    return run.planned(make_plan(run, {}).plan)


class Bench:
    """One process with a worker's parts, used either whole or down to the bare network."""

    def __init__(self, run: RunDirectory, choice: DeviceChoice, *, network: Estimator | None = None) -> None:
        self.run = run
        self.plan: Plan = run.plan()
        has_depth = any(output.name == DEPTH for output in self.plan.outputs)
        self.estimator = load_network(run, choice) if has_depth and network is None else network
        self.composer = open_composer(run)
        self.threads = choice.threads

    def decode_photographs(self) -> None:
        """Fill the caches: cutting out a foreground by GrabCut alone takes seconds, once a process."""
        for sample in CompositesPlan(self.plan).covering(48):
            self.composer.compose(sample)

    def slice_inputs(self, first: BatchIndex, count: int) -> list[list[NDArray[np.uint8]]]:
        """The network inputs of `count` batches from `first` on."""
        return [
            [
                self.composer.compose(SampleIndex(sample)).network_input
                for sample in self.plan.layout.batch_samples(BatchIndex(batch))
            ]
            for batch in range(first, first + count)
        ]

    def bare(self, inputs: list[list[NDArray[np.uint8]]]) -> int:
        """Only the network."""
        for images in inputs:
            if self.estimator is not None:
                self.estimator.outputs(images)
        return sum(len(images) for images in inputs)

    def maker(self) -> CompositesMaker:
        """What makes the samples."""
        return maker_of(self.plan, self.composer, self.estimator)

    def worker(self, slices: int, *, on_batch: Callable[[int], None] = lambda _made: None) -> int:
        """Lease and make so many slices, as a worker does."""
        identity = new_identity("benchmark")
        policy = self.run.settings.lease_policy
        made = 0
        with self.run.manifest(self.plan) as manifest:
            manifest.workers.register(identity)
            make_folders(self.run.artifacts)
            store = FolderStore(self.run.artifacts)
            coordinator = DatabaseCoordinator(manifest, store, Seat(identity=identity))
            with Heartbeat(coordinator, policy) as heartbeat:
                stages = Stages(
                    recipe=recipe_of(self.plan),
                    maker=self.maker(),
                    store=store,
                    manifest=manifest,
                    heartbeat=heartbeat,
                    between=lambda _done: heartbeat.progress(),
                    on_step=lambda step: on_batch(1) if step.value == "recorded" else None,
                    threads=self.threads,
                )
                with BatchMaker(stages) as maker, Pipeline(maker, begin_batch=lambda: True) as pipeline:
                    for _ in range(slices):
                        lease = manifest.leases.lease(identity.id, policy)
                        if isinstance(lease, NoLease):
                            break
                        heartbeat.holds(lease)
                        heartbeat.now_is(WorkerState.WORKING)
                        batches = manifest.receipts.pending_batches(lease)
                        pipeline.make(lease, batches)
                        heartbeat.holds(None)
                        made += sum(len(self.plan.layout.batch_samples(batch)) for batch in batches)
        return made


def beside_the_network(bench: Bench, *, batches: int, rounds: int) -> None:
    """The whole worker beside the bare network."""

    def bare(number: int) -> Callable[[], int]:
        return partial(bench.bare, bench.slice_inputs(BatchIndex(number * batches), batches))

    compare(("bare network", bare), ("worker", lambda _number: partial(bench.worker, 1)), rounds=rounds)


def compare(
    one: tuple[str, Callable[[int], Callable[[], int]]],
    other: tuple[str, Callable[[int], Callable[[], int]]],
    *,
    rounds: int,
) -> None:
    """Print images per second and per CPU-second of two works by name, and their ratio, round by round.

    Each makes its work of a round's number, which is not counted.
    """
    print(f"\n{'round':>5} {'what':<14} {'images':>6} {'images/s':>9} {'images/CPU-s':>12}")
    ratios: list[tuple[float, float]] = []
    for number in range(rounds):
        works = {name: make(number) for name, make in (one, other)}
        # Whoever comes second may find the machine slower or faster: they take turns.
        order = list(works)[:: -1 if number % 2 else 1]
        spent = {name: measured(works[name]) for name in order}
        for name, part in spent.items():
            wall, cpu = part.images / part.wall_seconds, part.images / part.cpu_seconds
            print(f"{number:>5} {name:<14} {part.images:>6} {wall:>9.3f} {cpu:>12.3f}")
        first, second = spent[one[0]], spent[other[0]]
        ratios.append(
            (
                second.images / second.wall_seconds / (first.images / first.wall_seconds),
                second.images / second.cpu_seconds / (first.images / first.cpu_seconds),
            )
        )
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{other[0]} / {one[0]}, median of {rounds}: {wall:.3f} per second, {cpu:.3f} per CPU-second")


def memory(bench: Bench, marks: list[int], slice_batches: int) -> None:
    """Print the process's memory after so many batches."""
    process, made = psutil.Process(), 0
    peak = 0

    def on_batch(count: int) -> None:
        nonlocal made, peak
        made += count
        peak = max(peak, process.memory_info().rss)
        if made in marks:
            now = process.memory_info().rss / 2**20
            print(f"after {made:>4} batches: {now:,.0f} MiB now, peak {peak / 2**20:,.0f} MiB")

    bench.worker(-(-max(marks) // slice_batches), on_batch=on_batch)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="random:64", help="random:1664 is the released size; `narrow` a tiny network"
    )
    parser.add_argument("--batches", type=int, default=6, help="of 32 images, per round and side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="TensorFlow's; 0 is its own choice")
    parser.add_argument("--masks-only", action="store_true", help="beside a worker that makes no depth")
    parser.add_argument("--memory", default="", help="batch counts after which to print memory, as in 10,100")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        marks = [int(mark) for mark in options.memory.split(",") if mark]
        slice_batches = 16 if marks else options.batches
        choice = DeviceChoice(device="cpu", threads=options.threads)
        bench = Bench(planned_run(Path(folder), options.weights, slice_batches), choice)
        if marks:
            memory(bench, marks, slice_batches)
        elif options.masks_only:
            with tempfile.TemporaryDirectory() as other:
                masks = Bench(planned_run(Path(other), None, slice_batches), choice)
                compare(
                    (options.weights, lambda _number: partial(bench.worker, 1)),
                    ("masks only", lambda _number: partial(masks.worker, 1)),
                    rounds=options.rounds,
                )
        else:
            beside_the_network(bench, batches=options.batches, rounds=options.rounds)


if __name__ == "__main__":
    main()
