"""Demo: a whole run with real photographs, including a killed worker."""

from __future__ import annotations

import os
import signal
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardgen.coordination.report import Report
from shardgen.domain.plan import Plan
from shardgen.domain.wording import Say
from shardgen.domain.worker import ShownState
from shardgen.errors import InputMissing, PlanConflict
from shardgen.imaging.codec import encode
from shardgen.imaging.options import ImageFormat
from shardgen.launch.allocation import Wanted, settle_workers
from shardgen.launch.local import LocalLauncher
from shardgen.launch.supervisor import RunOptions, run_workers
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import FILE_NAME
from shardgen.settings.template import settings_text
from shardgen.storage.atomic import publish_file
from shardgen.storage.files import entries, is_file, is_folder, is_there, make_folders

WEIGHTS = "small"
_SETTINGS = {
    "sources.mask": '"grabcut"',
    "compose.grid": "[2, 2]",
    "shards.size": "48",
    "shards.slice_batches": "3",
    "shards.batch": "4",
    "lease.seconds": "15",
    "lease.heartbeat_seconds": "2",
}


def sample_photographs() -> dict[str, dict[str, NDArray[np.uint8]]]:
    """The demo's 3 `foregrounds` and 4 `backgrounds` by name, uint8 (H, W, 3) RGB, from installed packages.

    Raises InputMissing when the packages of the extra are not installed.
    """
    try:
        from skimage import data  # noqa: PLC0415 - part of an extra
        from sklearn.datasets import load_sample_image  # noqa: PLC0415 - part of an extra
    except ImportError as error:
        raise InputMissing(
            f"the demo's photographs come with packages that are not installed ({error.name})",
            hint='python -m pip install -e ".[demo]"',
        ) from error
    return {
        # Cropped so that the subject fills the middle, and is narrow enough to be placed left and right.
        "foregrounds": {
            "astronaut": data.astronaut()[0:330, 90:368],
            "cat": data.cat()[:, 20:400],
            "cup": data.coffee()[:, 70:490],
        },
        "backgrounds": {
            "temple": load_sample_image("china.jpg"),
            "flower": load_sample_image("flower.jpg"),
            "garage": data.stereo_motorcycle()[0],
            "rocket": data.rocket(),
        },
    }


def write_photographs(folder: Path) -> tuple[Path, Path]:
    """Write the demo's photographs as PNG; returns the folders of foregrounds and backgrounds.

    Raises as `sample_photographs`.
    """
    for kind, pictures in sample_photographs().items():
        make_folders(folder / kind)
        for name, pixels in pictures.items():
            publish_file(folder / kind / f"{name}.png", encode(pixels, ImageFormat.PNG, 100))
    return folder / "foregrounds", folder / "backgrounds"


def prepare(folder: Path) -> RunDirectory:
    """Make the demo's photographs and run directory; an earlier demo there is gone on with."""
    run_dir = folder / "run"
    if is_there(folder) and not is_folder(folder):
        raise PlanConflict(f"{folder}: a file, not a folder", hint="name another folder: shardgen demo DIR")
    if entries(folder) and not is_file(run_dir / FILE_NAME):
        raise PlanConflict(
            f"{folder}: not empty, and not an earlier demo", hint="name another folder: shardgen demo DIR"
        )
    foregrounds, backgrounds = write_photographs(folder)
    make_folders(run_dir)
    text = settings_text(
        foregrounds=foregrounds.resolve(),
        backgrounds=backgrounds.resolve(),
        weights=WEIGHTS,
        changes=_SETTINGS,
    )
    publish_file(run_dir / FILE_NAME, text.encode())
    return RunDirectory.open(run_dir)


class KillHalfway:
    """Watches a run, kills one of two working workers when half is stored, and sees who takes its slice."""

    def __init__(self, plan: Plan, *, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._killed: str | None = None
        self._slice: tuple[int, int] | None = None
        self._killed_at = 0.0
        self.taken_over_after: float | None = None

    def look(self, found: Report, pids: Mapping[int, int]) -> None:
        """Take `run_workers`' look at the run."""
        if self._killed is None:
            self._maybe_kill(found, pids)
        elif self.taken_over_after is None:
            self._maybe_taken(found)

    def _maybe_kill(self, found: Report, pids: Mapping[int, int]) -> None:
        working = [
            one for one in found.workers if one.state is ShownState.WORKING and one.row.shard is not None
        ]
        if 2 * found.stored < self._plan.samples or len(working) < 2:
            return
        victim = next((one for one in working if one.row.identity.pid in pids.values()), None)
        if victim is None or victim.row.shard is None or victim.row.slice is None:
            return
        os.kill(victim.row.identity.pid, signal.SIGKILL)
        self._killed, self._slice = victim.row.identity.id, (victim.row.shard, victim.row.slice)
        self._killed_at = time.monotonic()
        self._say(
            f"  half is stored: killing {self._killed} (SIGKILL), in the middle of shard {victim.row.shard} "
            f"slice {victim.row.slice}"
        )

    def _maybe_taken(self, found: Report) -> None:
        for one in found.workers:
            holds = (one.row.shard, one.row.slice)
            if holds == self._slice and one.row.identity.id != self._killed:
                self.taken_over_after = time.monotonic() - self._killed_at
                self._say(
                    f"  {one.row.identity.id} has taken that slice over, after {self.taken_over_after:.0f} s"
                )


def work(run: RunDirectory, plan: Plan, *, say: Say, on_look: Callable[[Report], None]) -> KillHalfway:
    """Two workers with one core each, one of which is killed half-way."""
    killer = KillHalfway(plan, say=say)

    def look(found: Report, pids: Mapping[int, int]) -> None:
        on_look(found)
        killer.look(found, pids)

    wanted = Wanted(workers=2, device="cpu", threads_per_worker=1)
    launcher = LocalLauncher(run, settle_workers(run, plan, wanted, (), say=say), say=say)
    run_workers(run, plan, launcher, RunOptions(), say=say, on_look=look)
    return killer


def extract_contact_sheet(zip_path: Path, folder: Path) -> Path:
    """Copy `contact_sheet.png` out of the finished zip, to be looked at. Returns its path."""
    path = folder / "contact_sheet.png"
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(zip_path) as archive:
        publish_file(path, archive.read("contact_sheet.png"))
    return path
