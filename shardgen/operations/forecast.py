"""Forecast: how fast one worker on this machine would be, measured before the long run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shardgen.coordination.report import Report
from shardgen.domain.wording import Say, counted, duration
from shardgen.errors import ManifestBusy, ShardgenError
from shardgen.machine.file_systems import file_system_of, has_trusted_locks
from shardgen.recipes.base import Folders
from shardgen.settings.plan_file import replace_file
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.bounded import read_regular
from shardgen.storage.cache import cache_folder
from shardgen.storage.files import entries, make_folders, storing

FILE_NAME = "forecast.json"
_SCRATCH = ".forecast"
_MAX_BYTES = 1 << 16

OnMade = Callable[[int], None]
"""Called with the number of samples made since the last call."""
_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Forecast(BaseModel):
    """What one worker makes, as `forecast.json` keeps it: docs/formats.md, section 9.

    `rate` is in samples per second, `rate_spread` and `bytes_spread` are shares of their figures, 0 where not
    known. `bytes` are those of a sample's files by output; `artifact_bytes` is what an artifact has for each
    sample beside them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    version: Literal[1] = 1
    fingerprint: str
    made_at: Annotated[AwareDatetime, Field(strict=False)]
    device_model: str
    threads: Annotated[int, Field(ge=0)]
    micro_batch: Annotated[int, Field(ge=0)]
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    rate_spread: _Number
    batches: Annotated[int, Field(gt=0)]
    seconds: _Number
    bytes: Mapping[str, _Number]
    bytes_spread: _Number
    artifact_bytes: _Number
    samples: Annotated[int, Field(gt=0)]

    @property
    def sample_bytes(self) -> float:
        """Of all files of a sample together."""
        return sum(self.bytes.values())

    def seconds_for(self, samples: int, workers: int = 1) -> float:
        """How long so many such workers take, each on a machine or GPU of its own."""
        return samples / (self.rate * workers)

    def as_json(self) -> dict[str, Any]:
        """Its part of `status --json` (docs/formats.md section 6)."""
        return {
            "samples_per_second": round(self.rate, 3),
            "device_model": self.device_model,
            "threads": self.threads,
            "micro_batch": self.micro_batch,
            "bytes_per_sample": {name: round(size, 1) for name, size in self.bytes.items()},
            "made_at": self.made_at.isoformat(),
        }


def read_forecast(run: RunDirectory) -> Forecast | None:
    """The forecast of the plan that counts; None where there is none, or one of another plan, or damaged."""
    try:
        data = read_regular(run.notes / FILE_NAME, limit=_MAX_BYTES)
        found = Forecast.model_validate_json(data)
        plan = run.current_plan
    except (OSError, ValidationError, ShardgenError):
        return None
    return found if plan is not None and found.fingerprint == plan.fingerprint else None


def status_json(found: Report, forecast: Forecast | None) -> dict[str, object]:
    """The schema of `status --json` (docs/formats.md section 6), with the forecast where there is one."""
    return found.as_json() | ({} if forecast is None else {"forecast": forecast.as_json()})


def rate_text(rate: float) -> str:
    """Samples per second with as many decimals as tell two forecasts apart."""
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2f}"


def forecast_line(forecast: Forecast, report: Report) -> str:
    """What was forecast and what is measured, in samples per second; the time is that of the whole plan."""
    line = (
        f"forecast {rate_text(forecast.rate)} samples/s a worker, "
        f"{duration(forecast.seconds_for(report.plan.samples))} for one"
    )
    making = sum(one.rate > 0 for one in report.workers)
    return f"{line}; measured {rate_text(report.rate)} by {counted(making, 'worker')}" if making else line


def make_forecast(
    run: RunDirectory, given: Folders, *, say: Say, on_made: OnMade = lambda _samples: None
) -> Forecast:
    """Measure on this machine what a worker makes of the plan, and note it beside the run.

    Nothing else of the run changes. Raises what a worker would, and ManifestBusy while another command
    measures here.
    """
    from shardgen.launch.calibration import calibrate  # noqa: PLC0415 - `status` reads forecasts only

    plan = run.plan()
    with _scratch_folder(_place(run)) as scratch:
        found = calibrate(run, plan, run.folders(given), scratch, say=say, on_made=on_made)
    forecast = Forecast(
        fingerprint=plan.fingerprint,
        made_at=datetime.now(UTC).replace(microsecond=0),
        device_model=found.device_model,
        threads=found.threads,
        micro_batch=found.micro_batch,
        rate=found.rate.mean,
        rate_spread=found.rate.spread,
        batches=found.batches,
        seconds=found.seconds,
        bytes=found.outputs,
        bytes_spread=found.sample_bytes.spread,
        artifact_bytes=found.beside_bytes,
        samples=found.samples,
    )
    path = run.notes / FILE_NAME
    with storing(path):
        make_folders(path.parent)
        replace_file(path, forecast.model_dump_json(indent=1).encode() + b"\n")
    return forecast


def _place(run: RunDirectory) -> Path:
    """Beside the notes of the run, or in the cache where SQLite must not write."""
    notes = run.notes
    return notes if has_trusted_locks(file_system_of(notes)) else cache_folder()


@contextmanager
def _scratch_folder(place: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards; what a killed command has left in it goes first."""
    path = place / _SCRATCH
    with storing(path):
        make_folders(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ManifestBusy(
                f"{path}: another `plan --calibrate` is measuring",
                hint="wait until it has finished: two at once slow each other down",
            ) from None
        with storing(path):
            for entry in entries(path):
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else Path(entry).unlink()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
