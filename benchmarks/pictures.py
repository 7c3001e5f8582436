"""What a folder of very many pictures costs: its plan, `status`, a worker's start, its labels.

    python -m benchmarks.pictures --folder /tmp/pictures-benchmark [--pictures 400000]

Pictures are made once (4 KB of disk each) and kept; each differs in a comment. Each command is a process of
its own, so that peak memory is its own; twelve pictures beside it show what a command costs anyway.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FEW = 12
_IN_A_FOLDER = 1000
_SETTINGS = """\
[recipe]
kind = "depth"
[sources]
pictures = "{pictures}"
[depth]
weights = "small"
input = [64, 64]
micro_batch = 1
[shards]
batch = 4
"""
_LABELS = """\
import sys
from pathlib import Path
from shardgen.dataset.labels import planned_rows
from shardgen.settings.run_directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
print(sum(map(len, planned_rows(run.recipe(run.plan()), without=()))))
"""
_FIRST = """\
import sys
from pathlib import Path
from shardgen.recipes.pictures.maker import prepare_picture
from shardgen.settings.run_directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
recipe, folders = run.recipe(run.plan()), run.folders({})
recipe.check_sources(folders, on_file=lambda _name, _of: None)
print(len(prepare_picture(recipe.pictures, folders["pictures"], run.plan().samples // 2).image))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a process, those of them in which a core worked for it, and the most memory that it had."""

    seconds: float
    core_seconds: float
    peak_bytes: int


def write_pictures(folder: Path, count: int) -> None:
    """As many JPEGs of 64x48 pixels, whose comments tell them apart; what is there stays."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    picture = cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    for number in range(count):
        path = folder / f"{number // _IN_A_FOLDER:04d}" / f"picture-{number:07d}.jpg"
        if number % _IN_A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        comment = f"{number:012d}".encode()
        with path.open("wb") as file:
            file.write(data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + data[2:])


def make_run(folder: Path, count: int) -> Path:
    """A run directory of the first so many pictures; made once."""
    pictures, run = folder / f"pictures-{count}", folder / f"run-{count}"
    if not (pictures / "done").exists():
        write_pictures(pictures, count)
        (pictures / "done").touch()
    run.mkdir(exist_ok=True)
    (run / "shardgen.toml").write_text(_SETTINGS.format(pictures=pictures), encoding="utf-8")
    return run


def cost_of(arguments: Sequence[str | Path], *, until: Callable[[str], bool] | None = None) -> Cost:
    """Run Python with these arguments to its end, or until it writes such a line to stderr."""
    started = time.monotonic()
    with subprocess.Popen(  # noqa: S603 (our own interpreter)
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        seconds = None
        for line in process.stderr or ():
            if seconds is None and until is not None and until(line):
                seconds = time.monotonic() - started
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments}: exit code {process.returncode}")
    return Cost(
        seconds=seconds or time.monotonic() - started,
        core_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def measure(folder: Path, count: int) -> dict[str, Cost]:
    """What each step costs with so many pictures."""
    run = make_run(folder, count)
    shardgen = ("-m", "shardgen")
    return {
        "plan": cost_of([*shardgen, "plan", run]),
        "plan again": cost_of([*shardgen, "plan", run]),
        "status": cost_of([*shardgen, "status", run]),
        "worker until ready": cost_of(
            [*shardgen, "worker", run, "--max-batches", "1"], until=lambda line: "ready" in line
        ),
        "first picture, no network": cost_of(["-c", _FIRST, run]),
        "all rows of labels": cost_of(["-c", _LABELS, run]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=400_000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    few, many = (measure(arguments.folder, count) for count in (FEW, arguments.pictures))
    print(f"| | {FEW} pictures | | | {arguments.pictures:,} pictures | | |\n|---|---|---|---|---|---|---|")
    for name, cost in many.items():
        cells = (
            f"{one.seconds:.1f} s | {one.core_seconds:.1f} core s | {one.peak_bytes / 1e6:.0f} MB"
            for one in (few[name], cost)
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
