"""What `plan --calibrate` forecasts beside what a whole `run` of one worker then does.

    python -m benchmarks.forecast [--settings small,full,masks-only] [--rounds 3]

`small` is the network that ships, `full` a random one of the released size, `masks-only` makes no depth. The
rate of a run is that between its first receipt and its last; its bytes are those of the merged zip without
the contact sheet.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.beside.table import aligned, markdown
from shardgen.operations.demo import write_photographs
from shardgen.operations.forecast import Forecast, read_forecast
from shardgen.operations.plan import make_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import settings_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A run whose work takes a minute or so on two cores."""

    preset: str = "grid600"
    weights: str | None
    grid: str


SETTINGS = {
    "small": Setting(weights="small", grid="[4, 3]"),
    "full": Setting(weights="random:1664", grid="[2, 2]"),
    "masks-only": Setting(preset="masks-only", weights=None, grid="[40, 20]"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Samples per second and bytes of the zip for each sample: forecast, and then true."""

    forecast_rate: float
    true_rate: float
    forecast_bytes: float
    true_bytes: float


def measure(folder: Path, setting: Setting) -> Found:
    """Plan, calibrate, run and merge in new processes, as a person would type it.

    Calibrates once more after the run: on a busy machine the mean of both is nearer to what the run met.
    """
    foregrounds, backgrounds = write_photographs(folder)
    path = folder / "run"
    path.mkdir()
    text = settings_text(
        preset=setting.preset,
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        weights=setting.weights,
        changes={"sources.mask": '"grabcut"', "compose.grid": setting.grid},
    )
    (path / "shardgen.toml").write_text(text, encoding="utf-8")
    before = _calibrated(path)
    run = RunDirectory.open(path)
    rate = _rate_of(run)
    after = _calibrated(path)
    samples = run.plan().samples
    planned = make_plan(run, {})
    return Found(
        forecast_rate=(before.rate + after.rate) / 2,
        true_rate=rate,
        forecast_bytes=planned.bytes_in_zip(before.bytes),
        true_bytes=_bytes_without_sheet(path / "dataset.zip") / samples,
    )


def _calibrated(path: Path) -> Forecast:
    command = [sys.executable, "-m", "shardgen", "plan", str(path), "--calibrate"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own interpreter and module
    forecast = read_forecast(RunDirectory.open(path))
    if forecast is None:
        raise SystemExit("no forecast was made")
    return forecast


def _bytes_without_sheet(path: Path) -> int:
    """Of a zip; its contact sheet is as large for few samples as for many."""
    with zipfile.ZipFile(path) as archive:
        return path.stat().st_size - archive.getinfo("contact_sheet.png").file_size


def _rate_of(run: RunDirectory) -> float:
    """Run it to its end; samples a second from its first receipt to its last."""
    command = [sys.executable, "-m", "shardgen", "run", str(run.path), "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own interpreter and module
    with sqlite3.connect(run.path / "manifest.sqlite") as connection:
        query = "SELECT batch, recorded_at FROM receipt ORDER BY recorded_at"
        receipts = connection.execute(query).fetchall()
    (first, began), (_, ended) = receipts[0], receipts[-1]
    plan = run.plan()
    return (plan.samples - len(plan.layout.batch_samples(first))) / float(ended - began)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    options = parser.parse_args()
    medians = []
    for name in options.settings.split(","):
        rates, sizes = [], []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder), SETTINGS[name])
            rates.append(found.forecast_rate / found.true_rate)
            sizes.append(found.forecast_bytes / found.true_bytes)
            print(
                f"{name:<11} {found.forecast_rate:>9.2f} {found.true_rate:>10.2f} {rates[-1]:>6.2f}   "
                f"{found.forecast_bytes:>9,.0f} {found.true_bytes:>10,.0f} {sizes[-1]:>6.2f}",
                file=sys.stderr,
                flush=True,
            )
        every = ", ".join(f"{rate:.2f}" for rate in sorted(rates))
        medians.append((name, f"{statistics.median(rates):.2f}", every, f"{statistics.median(sizes):.2f}"))
    header = ("setting", "samples/s, forecast / true: median", "by round", "bytes, forecast / true")
    print((markdown if options.markdown else aligned)(header, medians))


if __name__ == "__main__":
    main()
