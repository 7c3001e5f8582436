"""Exports in every format beside their lower bound: reading the artifacts, hashing and writing their bytes.

    python -m benchmarks.exporting --folder /tmp/export-benchmark [--samples 100000] [--split]

Of made-up samples as large as the demo's: a mask of 200 x 200 pixels, and noise in the place of the two other
images. From the run's artifacts, and from the zip of a merge. Each measurement is a fresh process, so that
peak memory is its own; what it reads is in the page cache. Nothing is removed before the end, since ext4 is
slow to create files for half a minute after many were removed. Needs 100 KB of disk per sample.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.merge import SimulatedRun, simulated_plan
from shardgen.artifacts.folder_store import FolderStore
from shardgen.dataset.export.driver import FORMATS, ExportRequest, export
from shardgen.dataset.export.sources import RunSource, SampleSource, ZipSource
from shardgen.dataset.export.splits import Split
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.domain.plan import Plan
from shardgen.recipes.composites.recipe import CompositesRecipe

SIDE = 200


def mask(sample: int) -> bytes:
    """A person's outline, somewhere."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    x, y = 20 + sample * 7 % 120, 40 + sample * 11 % 80
    cv2.ellipse(image, (x, y), (12, 16), 0, 0, 360, 255, -1)
    cv2.ellipse(image, (x, y + 50), (24, 40), 0, 0, 360, 255, -1)
    return cv2.imencode(".png", image)[1].tobytes()


class MaskedRun(SimulatedRun):
    """The merge's benchmark with masks that decode, which COCO needs."""

    masks = tuple(map(mask, range(97)))

    def image(self, name: str, sample: int, place: int) -> bytes:
        """A mask, or noise."""
        return self.masks[sample % len(self.masks)] if name == "mask" else super().image(name, sample, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement: wall seconds, seconds of user and system time, peak memory, and what it wrote."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    samples: int

    def __str__(self) -> str:
        rate = self.samples / self.seconds
        return (
            f"{self.seconds:6.1f} s, {rate:7,.0f} samples/s, CPU {self.cpu_seconds:6.1f} s, "
            f"{self.peak_mib:4.0f} MiB"
        )


def inputs_of(folder: Path, plan: Plan) -> MergeInputs:
    """The run as a merge takes it."""
    return MergeInputs(
        recipe=CompositesRecipe(plan),
        source=MaskedRun(folder, plan),
        store=FolderStore(folder / "artifacts"),
        contact_sheet=False,
    )


def prepare(folder: Path, sample_count: int) -> int:
    """Write the artifacts and merge them; returns the number of samples."""
    plan = simulated_plan(sample_count)
    folder.mkdir(parents=True)
    MaskedRun(folder, plan).write(FolderStore(folder / "artifacts"))
    merge(inputs_of(folder, plan), folder / "dataset.zip")
    return plan.samples


def measure(folder: Path, sample_count: int, name: str, *, of_zip: bool, split: bool) -> Measured:
    """One export in this process, or without a format its lower bound."""
    before, start = time.process_time(), time.perf_counter()
    plan = simulated_plan(sample_count)
    if not name:
        _read_hash_and_write(folder, plan)
        samples = plan.samples
    elif of_zip:
        with ZipSource(folder / "dataset.zip") as source:
            samples = _export(source, folder / f"{name}-of-zip", name, split=split)
    else:
        samples = _export(RunSource(inputs_of(folder, plan)), folder / f"{name}-of-run", name, split=split)
    return Measured(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - before,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        samples=samples,
    )


def _read_hash_and_write(folder: Path, plan: Plan) -> None:
    """The output is synced, as an export's is."""
    with (folder / "baseline.bin").open("wb") as output:
        for receipt in SimulatedRun(folder, plan).receipts():
            data = (folder / "artifacts" / receipt.artifact.name).read_bytes()
            hashlib.sha256(data).digest()
            output.write(data)
        output.flush()
        os.fsync(output.fileno())


def _export(source: SampleSource, out: Path, name: str, *, split: bool) -> int:
    wanted = Split(parts=(800, 100, 100)) if split else None
    request = ExportRequest(format=name, split=wanted)
    result = export(source, out, request)
    return sum(one.samples for one in result.splits)


def _measured(folder: Path, sample_count: int, name: str, *options: str) -> Measured:
    """One measurement in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.exporting", "--folder", str(folder), "--measure", name]
    command += ["--samples", str(sample_count), *options]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return Measured(**json.loads(answer))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--zip", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        found = measure(
            options.folder, options.samples, options.measure, of_zip=options.zip, split=options.split
        )
        print(json.dumps(asdict(found)))
        return
    folder = options.folder / "shardgen-export-benchmark"
    shutil.rmtree(folder, ignore_errors=True)
    split = ["--split"] if options.split else []
    try:
        print(f"{prepare(folder, options.samples):,} samples")
        print(f"{'read, hash, write':24} {_measured(folder, options.samples, '')}", flush=True)
        for name in FORMATS:
            for subject, more in (("run", []), ("zip", ["--zip"])):
                found = _measured(folder, options.samples, name, *more, *split)
                print(f"{f'{name}, from the {subject}':24} {found}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
