"""Small real run directories for tests: real photographs, the small network, real settings."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.base import Seat
from shardgen.coordination.database import DatabaseCoordinator
from shardgen.domain.steps import Step
from shardgen.domain.worker import WorkerIdentity
from shardgen.manifest.port import Manifest
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import settings_text
from tests import warm
from tests.photographs import write_photographs

SETTINGS = {
    "compose.canvas": "[96, 80]",
    "compose.grid": "[3, 2]",
    "depth.input": "[64, 64]",
    "depth.micro_batch": "2",
    "output.size": "[32, 24]",
    "shards.size": "20",
    "shards.slice_batches": "2",
    "shards.batch": "4",
    "lease.seconds": "30",
    "lease.heartbeat_seconds": "0.5",
}


def make_run(
    folder: Path,
    *,
    changes: Mapping[str, str | None] | None = None,
    foregrounds: int = 2,
    backgrounds: int = 2,
) -> RunDirectory:
    """Photographs, small weights and settings: 48 samples in 3 shards of 20, 20 and 8 unless changed."""
    foreground_folder, background_folder = write_photographs(
        folder / "sources", foregrounds=foregrounds, backgrounds=backgrounds
    )
    path = folder / "run"
    path.mkdir()
    text = settings_text(
        foregrounds=foreground_folder,
        backgrounds=background_folder,
        weights="small",
        changes={**SETTINGS, **(changes or {})},
    )
    (path / "shardgen.toml").write_text(text, encoding="utf-8")
    return RunDirectory.open(path)


def plan_run(run: RunDirectory) -> RunDirectory:
    """Plan it in this process; what to go on with."""
    from shardgen.operations.plan import make_plan  # noqa: PLC0415 - keeps OpenCV out of tests that only read

    return run.planned(make_plan(run, {}).plan)


def coordinated(manifest: Manifest, identity: WorkerIdentity) -> DatabaseCoordinator:
    """A worker's part in an opened manifest, for tests that publish by themselves."""
    return DatabaseCoordinator(manifest, FolderStore(Path("nowhere")), Seat(identity=identity))


def shardgen(
    *arguments: str | Path, environment: dict[str, str] | None = None, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own, and wait for it; stdout and stderr are captured."""
    return warm.run("shardgen", arguments, environment=environment, timeout=timeout)


def start(arguments: Sequence[str | Path]) -> warm.Command:
    """Start the real command and leave it running; its stderr can be read line by line."""
    return warm.start("shardgen", arguments)


def at_step(
    verb: str, run_dir: Path, step: str, *, nth: int = 1, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process that kills itself when it passes a step for the nth time; `-`: never."""
    return warm.run("tests.kill_at", [verb, run_dir, step, str(nth)], environment=environment)


def die_at(
    verb: str, run_dir: Path, step: Step, *, nth: int = 1, environment: dict[str, str] | None = None
) -> None:
    """Run a verb that is killed at a step."""
    name = f"{type(step).__name__}.{step.name}"
    died = at_step(verb, run_dir, name, nth=nth, environment=environment)
    assert died.returncode == -signal.SIGKILL, died.stderr


def sha256_of(path: Path) -> str:
    """Of a whole file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
