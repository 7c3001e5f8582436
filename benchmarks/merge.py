"""Merge beside `cat` of the same artifacts into one file, and a sync of it.

    python -m benchmarks.merge --folder /tmp/merge-benchmark [--samples 408040] [--rounds 3] [--markdown]
        [--before CHECKOUT]

Merged twice: with labels that the plan tells alone, and with 11 facts a sample beside them. All take turns,
and each measurement is a fresh process, so that peak memory is its own; artifacts are in the page cache for
all alike. With `--before` the code of another checkout merges them, too. Needs about 18 KB of disk per sample
(7 GB at full size), removes what it wrote.
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
import zipfile
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import ClassVar

from benchmarks.beside.table import aligned, markdown
from shardgen.artifacts.archive import BatchContent, build_artifact
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, WorkerId
from shardgen.domain.lease import Attempt
from shardgen.domain.plan import Output, Plan
from shardgen.domain.receipt import (
    ArtifactRef,
    BatchRecord,
    DeadLetter,
    Facts,
    OutputSums,
    Provenance,
    Receipt,
    Sums,
)
from shardgen.domain.sample import member_name
from shardgen.recipes.composites.recipe import CompositesRecipe
from tests.plans import make_plan

FOREGROUNDS, PLACES = 101, 20
MEMBER_BYTES = {"fgbg": 3000, "mask": 683, "depth": 2000}
NOISE = os.urandom(1 << 20)
PLANNED = ("background", "foreground", "flip", "column", "row", *(f"frame_{n}" for n in range(4)))
ROW = "park_0123.jpg,anna_0456.png,0,3,2,300,200,120,240"
FACTS = 11
HEADER = ("samples", "", "time", "CPU time", "peak memory", "speed of `cat`")


def simulated_plan(sample_count: int) -> Plan:
    """A plan as large as asked for, rounded down to whole backgrounds."""
    backgrounds = max(1, sample_count // (FOREGROUNDS * PLACES))
    return make_plan(backgrounds=backgrounds, foregrounds=FOREGROUNDS)


class WithoutFacts(CompositesRecipe):
    """Labels that follow from the plan."""

    label_columns = ("sample", *PLANNED)
    fact_columns: ClassVar[tuple[str, ...]] = ()

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """As long as those of composites without their facts."""
        del facts
        return "".join(f"{sample},{ROW}{tail}" for sample in samples if sample not in without)


class WithFacts(WithoutFacts):
    """The same, each with the sample's facts."""

    fact_columns = tuple(f"fact_{number}" for number in range(FACTS))
    label_columns = ("sample", *PLANNED, *fact_columns)

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """One row a sample."""
        if facts is None:
            return super().label_rows(samples, tail="," * FACTS + tail, without=without, facts=None)
        row = f"%d,{ROW}{',%d' * FACTS}{tail}"
        return "".join(
            row % (sample, *facts[SampleIndex(sample)]) for sample in samples if sample not in without
        )


class SimulatedRun:
    """Receipts of the first backgrounds of a run; rows are made anew at each pass, as a manifest would."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._rows = folder / "receipts.txt"

    def write(self, store: FolderStore) -> None:
        """Make every artifact, without the cost of syncing it."""
        plan = self._plan
        with self._rows.open("w") as rows:
            for number in range(plan.layout.batch_count):
                batch = BatchIndex(number)
                data, name, record = self._artifact(batch)
                path = store.root / str(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                sha256 = hashlib.sha256(data).hexdigest()
                row = (name, len(data), sha256, record.members_stop, record.members_sha256)
                rows.write(" ".join(map(str, row)) + "\n")

    def receipts(self) -> Iterator[Receipt]:
        """Every receipt, batches ascending."""
        with self._rows.open() as rows:
            for number, row in enumerate(rows):
                name, size_bytes, sha256, members, members_sha256 = row.split()
                batch = BatchIndex(number)
                shard = self._plan.layout.shard_of_batch(batch)
                yield Receipt(
                    shard=shard,
                    slice=self._plan.layout.slice_of_batch(batch),
                    fence=Fence(1),
                    worker=WorkerId("bench-1-00000000"),
                    artifact=ArtifactRef(name=name, size_bytes=int(size_bytes), sha256=sha256),
                    record=BatchRecord(
                        batch=batch,
                        members_start=0,
                        members_stop=int(members),
                        members_sha256=members_sha256,
                        sums=_sums(self._plan.outputs, int(members) // 3),
                        dead_letters=(),
                        provenance=_PROVENANCE,
                    ),
                )

    def dead_letters(self) -> Iterator[DeadLetter]:
        """None in this run."""
        return iter(())

    def image(self, name: str, sample: int, place: int) -> bytes:
        """Noise."""
        size = MEMBER_BYTES[name]
        start = (sample * 7919 + place) % (len(NOISE) - size)
        return NOISE[start : start + size]

    def _artifact(self, batch: BatchIndex) -> tuple[bytes, ArtifactName, BatchRecord]:
        plan = self._plan
        samples = plan.layout.batch_samples(batch)
        members: list[tuple[str, bytes]] = []
        for sample in samples:
            for output in plan.outputs:
                name = member_name(output, SampleIndex(sample), digits=plan.name_digits)
                members.append((name, self.image(output.name, sample, len(members))))
        shard = plan.layout.shard_of_batch(batch)
        attempt = Attempt(
            shard=shard,
            slice=plan.layout.slice_of_batch(batch),
            fence=Fence(1),
            worker=WorkerId("bench-1-00000000"),
        )
        content = BatchContent(
            batch=batch,
            members=members,
            sums=_sums(plan.outputs, len(samples)),
            dead_letters=(),
            provenance=_PROVENANCE,
            facts={SampleIndex(sample): _facts(sample) for sample in samples},
        )
        data, receipt = build_artifact(plan.fingerprint, attempt, [content])
        name_of = ArtifactName(
            shard=shard, batches=range(batch, batch + 1), fence=Fence(1), worker="0" * 8, random="0" * 8
        )
        return data, name_of, receipt.batches[0]


_PROVENANCE = Provenance.of(
    {"device_model": "simulated", "tensorflow": "0", "opencv": "0", "precision": "float32", "micro_batch": 1}
)


def _facts(sample: int) -> tuple[int, ...]:
    """Boxes of a person on the canvas and in the picture, with their areas."""
    x, y, area = sample * 7 % 480, sample * 11 % 360, 9000 + sample * 13 % 9000
    return (x, y, 120, 240, area, 1000, x // 3, y // 3, 40, 80, area // 9)


@lru_cache
def _sums(outputs: tuple[Output, ...], images: int) -> Sums:
    return {
        output.name: OutputSums(
            images=images,
            pixels=40_000 * images,
            sum=(5_000_000 * images,) * output.channels,
            squares=(900_000_000 * images,) * output.channels,
        )
        for output in outputs
    }


def measure_cat(folder: Path, sample_count: int) -> float:
    """Copy every artifact into one file with `cat`; the file is synced, as a merge's is."""
    run = SimulatedRun(folder, simulated_plan(sample_count))
    names = "\0".join(f"artifacts/{receipt.artifact.name}" for receipt in run.receipts())
    start = time.perf_counter()
    with (folder / "cat.bin").open("wb") as output:
        command = ["xargs", "--null", "cat"]
        subprocess.run(command, check=True, cwd=folder, input=names.encode(), stdout=output)  # noqa: S603
        os.fsync(output.fileno())
    return time.perf_counter() - start


def measure_merge(folder: Path, sample_count: int, recipe: type[CompositesRecipe] = WithoutFacts) -> float:
    """The whole verb, its passes over the receipts included."""
    plan = simulated_plan(sample_count)
    inputs = MergeInputs(
        recipe=recipe(plan),
        source=SimulatedRun(folder, plan),
        store=FolderStore(folder / "artifacts"),
        contact_sheet=False,
    )
    start = time.perf_counter()
    merge(inputs, folder / "dataset.zip")
    return time.perf_counter() - start


MEASUREMENTS: dict[str, Callable[[Path, int], float]] = {
    "cat": measure_cat,
    "merge": measure_merge,
    "facts": partial(measure_merge, recipe=WithFacts),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement: wall seconds, seconds of user and system time, and peak memory."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def _measure(what: str, folder: Path, sample_count: int, checkout: Path | None = None) -> Measured:
    """One measurement in a fresh process."""
    for name in ("cat.bin", "dataset.zip"):
        (folder / name).unlink(missing_ok=True)
    os.sync()  # so that no measurement pays for the pages of the one before
    command = [sys.executable, "-m", "benchmarks.merge", "--measure", what]
    command += ["--folder", str(folder.resolve()), "--samples", str(sample_count)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout)  # noqa: S603
    return Measured(**json.loads(answer.stdout))


def _run(folder: Path, sample_count: int, *, rounds: int, before: Path | None) -> list[list[str]]:
    plan = simulated_plan(sample_count)
    SimulatedRun(folder, plan).write(FolderStore(folder / "artifacts"))
    turns: dict[str, tuple[str, Path | None]] = {
        "`cat` and sync": ("cat", None),
        "merge": ("merge", None),
        "merge, 11 facts a sample": ("facts", None),
    }
    if before is not None:
        turns |= {"merge, before": ("merge", before), "merge, 11 facts a sample, before": ("facts", before)}
    found: dict[str, list[Measured]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, (what, checkout) in turns.items():
            one = _measure(what, folder, sample_count, checkout)
            found[name].append(one)
            print(f"round {number + 1}: {name}: {one}", file=sys.stderr, flush=True)
    return [_row(plan.samples, name, found[name], next(iter(found.values()))) for name in turns]


def _row(samples: int, name: str, found: list[Measured], base: list[Measured]) -> list[str]:
    speed = median(cat.seconds / one.seconds for cat, one in zip(base, found, strict=True))
    return [
        f"{samples:,}",
        name,
        f"{median(one.seconds for one in found):.2f} s",
        f"{median(one.cpu_seconds for one in found):.2f} s",
        f"{max(one.peak_mib for one in found):.0f} MiB",
        f"{speed:.2f}",
    ]


def _check_with_readers(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
        print(f"zipfile: {len(archive.infolist()):,} members, first bad one: {bad}", file=sys.stderr)
    for command in (["unzip", "-tqq", str(path)], ["7z", "t", str(path)]):
        if shutil.which(command[0]) is None:
            print(f"{command[0]}: not installed", file=sys.stderr)
            continue
        answer = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
        lines = [line for line in answer.stdout.splitlines() if "Ok" in line or "Warn" in line]
        print(f"{' '.join(command[:2])}: exit code {answer.returncode} {' '.join(lines)}", file=sys.stderr)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=408_040)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        start = _cpu_seconds()
        seconds = MEASUREMENTS[options.measure](options.folder, options.samples)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        measured = Measured(seconds=seconds, cpu_seconds=_cpu_seconds() - start, peak_mib=peak_mib)
        print(json.dumps(asdict(measured)))
        return
    folder = options.folder / "shardgen-merge-benchmark"
    rows = []
    try:
        for sample_count in (options.samples // 4, options.samples):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            rows += _run(folder, sample_count, rounds=options.rounds, before=options.before)
        _check_with_readers(folder / "dataset.zip")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print((markdown if options.markdown else aligned)(HEADER, rows))


def _cpu_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
