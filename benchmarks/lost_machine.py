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
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.runs import make_run, sha256_of, shardgen
from tests.shared_folder.late_worker import faults_of
from tests.shared_folder.mounted import Records

MACHINES = ("one", "two", "three")
PLAIN_SECONDS = 2.0  # what stands for a lag where there is none
PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many batches a segment has; a slice has four segments, and there are 12 slices in 2 shards."""

    segment_batches: int = 16

    @property
    def killed_after(self) -> int:
        """Batches: two segments are published, half of the third waits."""
        return 2 * self.segment_batches + self.segment_batches // 2

    @property
    def plan(self) -> dict[str, str]:
        """The settings; 1,536 samples for segments of 16 batches."""
        return {
            "compose.grid": f"[{self.segment_batches}, 8]",
            "shards.size": str(48 * self.segment_batches),
            "shards.slice_batches": str(4 * self.segment_batches),
            "shards.batch": "2",
        }


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


WHOLE = Size()


def _settings(size: Size, unit: float) -> dict[str, str]:
    return size.plan | {
        "manifest.url": '"folder:"',
        "folder.scan_seconds": f"{max(0.5, unit / 4):g}",
        "folder.settle_seconds": f"{3 * unit:g}",
        "folder.segment_seconds": f"{2 * unit:g}",
        "folder.segment_batches": str(size.segment_batches),
        "folder.silent_seconds": f"{12 * unit:g}",
    }


class Trial:
    """One shared folder and its machines."""

    def __init__(self, folder: Path, size: Size, *, lag: float | None, seed: int = 1) -> None:
        self._folder = folder
        self._size = size
        self._lag = lag
        self._seed = seed
        self._unit = PLAIN_SECONDS if lag is None else lag
        self._records = folder / "records"
        (folder / "shared").mkdir()
        self.run: RunDirectory = make_run(
            folder / "shared", changes=_settings(size, self._unit), foregrounds=3
        )
        self._call("owner", "plan")
        self.run = RunDirectory.open(self.run.path)

    def disk(self, machine: str) -> Path:
        """A machine's cache folder."""
        return self._folder / "disks" / machine

    def _environment(self, machine: str) -> dict[str, str]:
        return {"SHARDGEN_CACHE": str(self.disk(machine))}

    def _call(self, machine: str, verb: str, *words: str | Path) -> str:
        ran = shardgen(verb, self.run.path, *words, environment=self._environment(machine))
        if ran.returncode != 0:
            raise RuntimeError(f"shardgen {verb}: {ran.stderr}")
        return ran.stdout

    @contextmanager
    def worker(self, machine: str) -> Iterator[warm.Command]:
        """A worker process, ended at the end in any case."""
        module, words = "shardgen", ["worker", str(self.run.path), "--id", machine]
        if self._lag is not None:
            module, pace = "tests.shared_folder.late_worker", self._lag / self._size.segment_batches
            words = [str(self.run.path), str(self._records), machine]
            words += [str(self._lag), str(self._seed), str(pace)]
        log = self._folder / f"{machine}.log"
        process = warm.start(module, words, environment=self._environment(machine), said=log)
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


def prove(folder: Path, *, lag: float | None, undisturbed: str, size: Size = WHOLE) -> Proof:
    """Play it. `undisturbed` is the sha256 to compare with."""
    trial = Trial(folder, size, lag=lag)
    first, *others = MACHINES
    began = time.monotonic()
    with trial.worker(first) as doomed, trial.worker(others[0]) as second, trial.worker(others[1]) as third:
        _wait(
            lambda: trial.made(first) >= size.killed_after or doomed.poll() is not None,
            lambda: trial.said(first),
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


def undisturbed_sha256(folder: Path, size: Size = WHOLE) -> str:
    """Of the zip of the same plan, made by one worker with a manifest in SQLite."""
    run = make_run(folder, changes=size.plan, foregrounds=3)
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
