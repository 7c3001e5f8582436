"""What a GPU gives, and what it waits for: for a machine with one, in about eight minutes.

    python -m benchmarks.gpu [--weights random:1664] [--markdown]
    python -m benchmarks.gpu --artificial 4

Four tables: how far the GPU is from this machine's CPU, in grey levels; images a second by precision and
micro-batch; the whole worker beside the bare network, which tells whether the CPU keeps up; two workers on
the one GPU. The network is fed as a worker feeds it: batches of 32, the next one given before the last is
fetched.

With `--artificial MS` no GPU and no TensorFlow is needed: a device that has a queue and sleeps so long for
each image. Everything else is a worker's: composed, encoded, published (fsync included), recorded. It tells
what part of the time the device has something to do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.beside.table import aligned, markdown
from benchmarks.worker import Bench, measured, planned_run
from shardgen.depth.base import Estimator, NetworkPlan, Precision
from shardgen.depth.families import find_family
from shardgen.domain.identifiers import BatchIndex
from shardgen.errors import ShardgenError
from shardgen.machine.cores import usable_cores
from shardgen.recipes.base import DeviceChoice
from shardgen.recipes.network import network_choice
from shardgen.settings.run_directory import RunDirectory
from tests.depth.queued_device import QueuedDevice
from tests.plans import depth_in

BATCH = 32
SLICE_BATCHES = 16
MICRO_BATCHES = (1, 4, 8, 16, 32)
PHOTOGRAPHS = 10
Rows = list[tuple[str, ...]]


def _network(run: RunDirectory, precision: Precision, micro_batch: int, device: str) -> Estimator:
    """The run's network on a device, in a precision that need not be the plan's."""
    plan: NetworkPlan = replace(depth_in(run.plan()), precision=precision)
    found = find_family(plan.model).find(network_choice(run.local))
    network = found.load(plan, micro_batch=micro_batch, on=found.prepare(device, threads=0))
    network.warm_up()
    return network


def _grey(network: Estimator, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Relative depth stretched to 0-255 over each picture, not rounded."""
    depth = np.stack([network.depth_of(raw) for raw in network.outputs(pictures) if raw is not None])
    depth = depth.astype(np.float64)
    low, high = depth.min((1, 2), keepdims=True), depth.max((1, 2), keepdims=True)
    return np.asarray(255 * (depth - low) / (high - low))


def on_cpu(run_dir: Path, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """The reference; TensorFlow sees one kind of device in a process, so this runs in one of its own."""
    return _grey(_network(RunDirectory.open(run_dir), Precision.FLOAT32, 2, "cpu"), pictures)


def fidelity(run: RunDirectory, pictures: list[NDArray[np.uint8]], device: str) -> Rows:
    """How far each precision is from float32 on this machine's CPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        reference = pool.apply(on_cpu, (run.path, pictures))
    rows: Rows = []
    for precision in _precisions(run, device):
        error = np.abs(_grey(_network(run, precision, 8, device), pictures) - reference)
        figures = (error.mean(), np.percentile(error, 99), error.max())
        rows.append((precision.value, *(f"{figure:.2f}" for figure in figures)))
    return rows


def _precisions(run: RunDirectory, device: str) -> list[Precision]:
    """Those that the device does not refuse."""
    found = []
    for precision in Precision:
        try:
            _network(run, precision, 1, device)
        except ShardgenError as error:
            print(f"{precision.value}: {error}", file=sys.stderr)
        else:
            found.append(precision)
    return found


def speed(run: RunDirectory, pictures: list[NDArray[np.uint8]], device: str, *, seconds: float) -> Rows:
    """Images a second of the network alone, always with one batch on the queue behind the one waited for."""
    batch = [pictures[row % len(pictures)] for row in range(BATCH)]
    rows: Rows = []
    for precision in _precisions(run, device):
        for micro_batch in MICRO_BATCHES:
            network = _network(run, precision, micro_batch, device)
            network.outputs(batch)
            began, images, begun = time.perf_counter(), 0, network.begin(batch)
            while time.perf_counter() - began < seconds:
                behind = network.begin(batch)
                network.outputs(batch, begun=begun)
                images, begun = images + BATCH, behind
            rate = images / (time.perf_counter() - began)
            rows.append((precision.value, str(micro_batch), str(network.micro_batch), f"{rate:.1f}"))
            print(f"{precision.value}, micro-batch {micro_batch}: {rate:.1f} images/s", file=sys.stderr)
    return rows


def limits(bench: Bench, *, slices: int) -> Rows:
    """The bare network beside the whole worker, on the same pictures."""
    bench.decode_photographs()
    inputs = bench.slice_inputs(BatchIndex(0), 2)
    bare = measured(partial(bench.bare, inputs * (slices * SLICE_BATCHES // 2)))
    worker = measured(partial(bench.worker, slices))
    rows: Rows = []
    for name, spent in (("bare network", bare), ("whole worker", worker)):
        rate, cpu = spent.images / spent.wall_seconds, 1000 * spent.cpu_seconds / spent.images
        rows.append((name, f"{rate:.1f}", f"{cpu:.2f}", f"{spent.cpu_seconds / spent.wall_seconds:.2f}"))
    return rows


def serve(run_dir: Path, device: str, slices: int) -> tuple[int, float]:
    """Be one of several workers: make so many slices; the images, and how long they took."""
    bench = Bench(RunDirectory.open(run_dir), DeviceChoice(device=device))
    spent = measured(partial(bench.worker, slices))
    return spent.images, spent.wall_seconds


def together(run: RunDirectory, workers: int, device: str, *, slices: int) -> Rows:
    """So many workers on the one device at once, after their networks are loaded."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.starmap(serve, [(run.path, device, slices)] * workers, chunksize=1)
    rate = sum(images / seconds for images, seconds in found)
    return [(str(workers), f"{rate:.1f}")]


def artificial(folder: Path, milliseconds: float, *, slices: int) -> Rows:
    """A worker on a device that sleeps; decoding the photographs and a first slice are not counted."""
    run = planned_run(folder, "small", SLICE_BATCHES)
    queued = QueuedDevice(milliseconds / 1000)
    network = queued.estimator(depth_in(run.plan()), micro_batch=BATCH)
    bench = Bench(run, DeviceChoice(device="cpu"), network=network)
    bench.decode_photographs()
    bench.worker(1)
    queued.busy.clear()
    spent = measured(partial(bench.worker, slices))
    gaps = [start - end for (_, end), (start, _) in zip(queued.busy, queued.busy[1:], strict=False)]
    between = sum(gaps[SLICE_BATCHES - 1 :: SLICE_BATCHES])
    whole = queued.busy[-1][1] - queued.busy[0][0]
    return [
        ("of the time the device works", f"{queued.utilisation():.3f}"),
        ("it waits inside slices", f"{(sum(gaps) - between) / whole:.3f}"),
        (f"it waits between slices of {SLICE_BATCHES} batches", f"{between / whole:.3f}"),
        ("images a second", f"{spent.images / spent.wall_seconds:.0f}"),
        ("CPU-ms an image", f"{1000 * spent.cpu_seconds / spent.images:.2f}"),
        ("cores in use", f"{spent.cpu_seconds / spent.wall_seconds:.2f} of {usable_cores()}"),
    ]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="random:1664", help="as in [depth] weights; small is quicker")
    parser.add_argument("--artificial", type=float, metavar="MS", help="a device that sleeps, not a GPU")
    parser.add_argument("--device", default="gpu", help="cpu only shows that the script runs")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each speed")
    parser.add_argument("--slices", type=int, default=4, help="of 512 images")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/benchmarks.md")
    options = parser.parse_args()
    show = markdown if options.markdown else aligned
    with tempfile.TemporaryDirectory() as folder:
        if options.artificial is not None:
            rows = artificial(Path(folder), options.artificial, slices=options.slices)
            print(show((f"a device that takes {options.artificial:g} ms an image", "figure"), rows))
            return
        run = planned_run(Path(folder), options.weights, SLICE_BATCHES)
        bench = Bench(run, DeviceChoice(device=options.device))
        pictures = [picture for batch in bench.slice_inputs(BatchIndex(0), 1) for picture in batch]
        pictures = pictures[:: len(pictures) // PHOTOGRAPHS][:PHOTOGRAPHS]
        found = fidelity(run, pictures, options.device)
        print(show(("precision", "grey levels from the CPU's float32, mean", "99 %", "largest"), found))
        rows = speed(run, pictures, options.device, seconds=options.seconds)
        print("\n" + show(("precision", "micro-batch", "micro-batch that fitted", "images/s"), rows))
        rows = limits(bench, slices=options.slices)
        print("\n" + show(("what", "images/s", "CPU-ms an image", "cores in use"), rows))
        rows = [row for n in (1, 2) for row in together(run, n, options.device, slices=options.slices)]
        print("\n" + show(("workers on the device", "images/s"), rows))


if __name__ == "__main__":
    main()
