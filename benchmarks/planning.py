"""Plan beside its lower bound: each photograph read, hashed and decoded once, on all cores.

    python -m benchmarks.planning --folder /tmp/planning-benchmark [--photographs 101] [--rounds 3]
        [--markdown] [--before CHECKOUT]

As many backgrounds of 12 megapixels (JPEG) as cut-outs of 3 (PNG with alpha), of composites without depth.
All take turns, and each measurement is a fresh process, whose imports do not count. The bound decodes as
`plan` does. With `--before` the code of another checkout plans them, too. Needs 7 MB of disk a photograph,
removes what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import alembic.command
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.beside.table import aligned, markdown
from shardgen.imaging.codec import decode
from shardgen.imaging.opencv import use_one_thread
from shardgen.machine.cores import usable_cores
from shardgen.operations.plan import make_plan
from shardgen.recipes.composites import estimate
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import settings_text
from shardgen.sources import scanning

HEADER = ("", "time", "CPU time", "peak memory", "times the bound's time", "CPU time")
LOADED = (estimate, scanning, alembic.command)  # by `plan` when it needs them
FOREGROUNDS, BACKGROUNDS = "foregrounds", "backgrounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement: wall seconds, seconds of user and system time, and peak memory."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def write_photographs(folder: Path, count: int) -> None:
    """Smooth pictures with noise, each another."""
    random = np.random.default_rng(1)
    for kind in (FOREGROUNDS, BACKGROUNDS):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        background = _picture(random, 4000, 3000)
        path = folder / BACKGROUNDS / f"{number:04d}.jpg"
        cv2.imwrite(str(path), background, [cv2.IMWRITE_JPEG_QUALITY, 90])
        width, height = 1500, 2000
        alpha = np.zeros((height, width), np.uint8)
        cv2.ellipse(alpha, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 255, -1)
        alpha = cv2.GaussianBlur(alpha, (9, 9), 0).astype(np.uint8)
        cut_out = np.dstack([_picture(random, width, height), alpha])
        cv2.imwrite(str(folder / FOREGROUNDS / f"{number:04d}.png"), cut_out)


def _picture(random: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    coarse = random.integers(0, 256, (height // 100, width // 100, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = random.integers(0, 24, (height, width, 1), dtype=np.uint8)
    return cv2.addWeighted(smooth, 0.9, np.repeat(noise, 3, axis=2), 1.0, 0).astype(np.uint8)


def measure_bound(folder: Path) -> None:
    """Read, hash and decode."""
    use_one_thread()

    def look(path: Path) -> None:
        data = path.read_bytes()
        hashlib.sha256(data).digest()
        decode(data)

    paths = [path for kind in (FOREGROUNDS, BACKGROUNDS) for path in sorted((folder / kind).iterdir())]
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(look, paths))


def measure_plan(folder: Path) -> None:
    """The whole operation, its estimate of sizes, plan and manifest included."""
    path = folder / "run"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    text = settings_text(
        foregrounds=folder / FOREGROUNDS,
        backgrounds=folder / BACKGROUNDS,
        weights="small",
        changes={"depth.model": '"none"'},
    )
    (path / "shardgen.toml").write_text(text, encoding="utf-8")
    make_plan(RunDirectory.open(path), {})


MEASUREMENTS = {"bound": measure_bound, "plan": measure_plan}


def _measure(what: str, folder: Path, checkout: Path | None) -> Measured:
    """One measurement in a fresh process, by this file and the packages of the checkout."""
    run_this = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')"
    command = [sys.executable, "-c", run_this, "--measure", what, "--folder", str(folder.resolve())]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout)  # noqa: S603
    return Measured(**json.loads(answer.stdout))


def _rows(folder: Path, *, rounds: int, before: Path | None) -> list[list[str]]:
    turns: dict[str, tuple[str, Path | None]] = {
        "read, sha256, decode": ("bound", None),
        "plan": ("plan", None),
    }
    if before is not None:
        turns["plan, before"] = ("plan", before)
    found: dict[str, list[Measured]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, (what, checkout) in turns.items():
            one = _measure(what, folder, checkout)
            found[name].append(one)
            print(f"round {number + 1}: {name}: {one}", file=sys.stderr, flush=True)
    bound = next(iter(found.values()))
    return [_row(name, of_it, bound) for name, of_it in found.items()]


def _row(name: str, found: list[Measured], bound: list[Measured]) -> list[str]:
    pairs = list(zip(found, bound, strict=True))
    return [
        name,
        f"{median(one.seconds for one in found):.2f} s",
        f"{median(one.cpu_seconds for one in found):.2f} s",
        f"{max(one.peak_mib for one in found):.0f} MiB",
        f"{median(one.seconds / base.seconds for one, base in pairs):.2f}",
        f"{median(one.cpu_seconds / base.cpu_seconds for one, base in pairs):.2f}",
    ]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--photographs", type=int, default=101, help="of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        start, cpu = time.perf_counter(), time.process_time()
        MEASUREMENTS[options.measure](options.folder)
        measured = Measured(
            seconds=time.perf_counter() - start,
            cpu_seconds=time.process_time() - cpu,
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        print(json.dumps(asdict(measured)))
        return
    folder = options.folder / "shardgen-planning-benchmark"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_photographs(folder, options.photographs)
        rows = _rows(folder, rounds=options.rounds, before=options.before)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print((markdown if options.markdown else aligned)(HEADER, rows))


if __name__ == "__main__":
    main()
