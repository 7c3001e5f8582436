"""Three worker processes over one shared folder, of which one is killed and its disk is lost; then a merge.

    python -m benchmarks.lost_machine [--lag 60]

Real photographs, the small network and real processes, each with a cache folder of its own for a disk.
Without `--lag` they are `shardgen worker` commands on a plain folder. With it they see the folder through the
tests' double of a drive (`tests/shared_folder/mounted.py`): every file reaches each other machine after a lag
of its own with that median, and what is not uploaded yet is lost with its machine. All times of the run are
multiples of the lag (a batch 1/16, a segment 1, a slice 4, a silent worker 12), so `--lag 2` plays the same
in a few minutes.

`twice` counts every batch that any process has made, published or not, the lost ones included. The command
ends with 0 when no sample is lost and the zip has the sha256 of one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardgen.settings.run_directory import RunDirectory
from tests.runs import make_run, sha256_of, shardgen
from tests.shared_folder.late_worker import faults_of
from tests.shared_folder.mounted import Records

MACHINES = ("one", "two", "three")
SLICE_BATCHES = 64
SEGMENT_BATCHES = 16
KILLED_AFTER = 2 * SEGMENT_BATCHES + 8  # batches: two segments are published, half of the third waits
PLAN = {
    "compose.grid": "[16, 8]",
    "shards.size": "768",
    "shards.slice_batches": str(SLICE_BATCHES),
    "shards.batch": "2",
}  # 1,536 samples in 2 shards, of 6 slices each
PLAIN_SECONDS = 2.0  # what stands for a lag where there is none
PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What came of it. `lost` are samples, the rest batches."""

    lost: int
    batches: int
    made: int
    gone: int
    is_equal: bool
    seconds: float

    @property
    def twice(self) -> float:
        """The share of batches that were made again."""
        return (self.made - self.batches) / self.batches

    def __str__(self) -> str:
        again = self.made - self.batches
        sha256 = "equal to" if self.is_equal else "OTHER THAN"
        return (
            f"samples lost {self.lost}; made twice {self.twice:.1%} ({again} of {self.batches} batches, "
            f"{self.gone} of which only the lost disk had); sha256 {sha256} the undisturbed run's; "
            f"{self.seconds:.0f} s"
        )


def _settings(unit: float) -> dict[str, str]:
    return PLAN | {
        "manifest.url": '"folder:"',
        "folder.scan_seconds": f"{max(0.5, unit / 4):g}",
        "folder.settle_seconds": f"{3 * unit:g}",
        "folder.segment_seconds": f"{2 * unit:g}",
        "folder.segment_batches": str(SEGMENT_BATCHES),
        "folder.silent_seconds": f"{12 * unit:g}",
    }


class Trial:
    """One shared folder and its machines."""

    def __init__(self, folder: Path, *, lag: float | None, seed: int = 1) -> None:
        self._folder = folder
        self._lag = lag
        self._seed = seed
        self._unit = PLAIN_SECONDS if lag is None else lag
        self._records = folder / "records"
        (folder / "shared").mkdir()
        self.run: RunDirectory = make_run(folder / "shared", changes=_settings(self._unit), foregrounds=3)
        self._call("owner", "plan")
        self.run = RunDirectory.open(self.run.path)

    def disk(self, machine: str) -> Path:
        """A machine's cache folder."""
        return self._folder / "disks" / machine

    def _environment(self, machine: str) -> dict[str, str]:
        return {**os.environ, "SHARDGEN_CACHE": str(self.disk(machine))}

    def _call(self, machine: str, verb: str, *words: str | Path) -> str:
        ran = shardgen(verb, self.run.path, *words, environment=self._environment(machine))
        if ran.returncode != 0:
            raise RuntimeError(f"shardgen {verb}: {ran.stderr}")
        return ran.stdout

    @contextmanager
    def worker(self, machine: str) -> Iterator[subprocess.Popen[str]]:
        """A worker process, ended at the end in any case."""
        words = ["-m", "shardgen", "worker", str(self.run.path), "--id", machine]
        if self._lag is not None:
            pace = self._lag / SEGMENT_BATCHES
            words = ["-m", "tests.shared_folder.late_worker", str(self.run.path), str(self._records), machine]
            words += [str(self._lag), str(self._seed), str(pace)]
        with (self._folder / f"{machine}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, *words], env=self._environment(machine), stderr=log, stdout=log, text=True
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def said(self, machine: str) -> str:
        """What a worker printed."""
        return (self._folder / f"{machine}.log").read_text(encoding="utf-8")

    def made(self, machine: str) -> int:
        """How many batches a machine has made."""
        return sum(1 for _ in self.disk(machine).glob("shared/*/artifacts/shard-*/*.zip"))

    def published(self, machine: str) -> int:
        """How many of them lie in the shared folder."""
        count = 0
        for path in self.run.path.glob(f"workers/{machine}-*/shard-*/*.zip"):
            first, _, last = path.name.split(".")[0].removeprefix("batch-").partition("-")
            count += int(last or first) - int(first) + 1
        return count

    def lose(self, machine: str) -> None:
        """The disk is gone, and what had not left it."""
        shutil.rmtree(self.disk(machine))
        if self._lag is not None:
            records = Records(self._records, seed=self._seed, faults=faults_of(self._lag))
            records.lose(machine, self.run.path)

    def result(self) -> tuple[int, str]:
        """The samples that are not there, and the sha256 of what a machine that did nothing so far merges."""
        found = json.loads(self._call("merger", "status", "--json"))["samples"]
        self._call("merger", "merge", "-o", self._folder / "it.zip")
        return found["planned"] - found["stored"], sha256_of(self._folder / "it.zip")


def _wait(until: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it does not happen: {what()}")
        time.sleep(0.1)


def prove(folder: Path, *, lag: float | None, undisturbed: str) -> Proof:
    """Play it. `undisturbed` is the sha256 to compare with."""
    trial = Trial(folder, lag=lag)
    first, *others = MACHINES
    began = time.monotonic()
    with trial.worker(first) as doomed, trial.worker(others[0]) as second, trial.worker(others[1]) as third:
        _wait(
            lambda: trial.made(first) >= KILLED_AFTER or doomed.poll() is not None, lambda: trial.said(first)
        )
        doomed.kill()
        doomed.wait()
        made = trial.made(first)
        trial.lose(first)
        gone = made - trial.published(first)
        _wait(
            lambda: second.poll() is not None and third.poll() is not None,
            lambda: trial.said(others[0]) + trial.said(others[1]),
        )
        if second.returncode or third.returncode:
            raise RuntimeError(trial.said(others[0]) + trial.said(others[1]))
    seconds = time.monotonic() - began
    lost, sha256 = trial.result()
    return Proof(
        lost=lost,
        batches=trial.run.plan().layout.batch_count,
        made=made + sum(trial.made(machine) for machine in others),
        gone=gone,
        is_equal=sha256 == undisturbed,
        seconds=seconds,
    )


def undisturbed_sha256(folder: Path) -> str:
    """Of the zip of the same plan, made by one worker with a manifest in SQLite."""
    run = make_run(folder, changes=PLAN, foregrounds=3)
    ran = shardgen("run", run.path, "-o", folder / "it.zip", timeout=PATIENCE_SECONDS)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr)
    return sha256_of(folder / "it.zip")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lag", type=float, help="the median lag in seconds; a plain folder without it")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "undisturbed").mkdir()
        (folder / "trial").mkdir()
        undisturbed = undisturbed_sha256(folder / "undisturbed")
        proof = prove(folder / "trial", lag=given.lag, undisturbed=undisturbed)
    where = "a plain folder" if given.lag is None else f"a median lag of {given.lag:g} s"
    print(f"3 workers, {where}, one lost with its disk: {proof}")
    return 0 if proof.is_equal and not proof.lost else 1


if __name__ == "__main__":
    raise SystemExit(main())
