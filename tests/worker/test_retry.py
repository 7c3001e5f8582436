from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.lease import Lease
from shardgen.errors import (
    InputMissing,
    LeaseLost,
    ManifestBusy,
    ManifestGone,
    ShardgenError,
    StorageFailed,
)
from shardgen.launch.allocation import Share
from shardgen.launch.local import LocalLauncher
from shardgen.launch.supervisor import RunOptions, run_workers
from shardgen.operations.status import report
from shardgen.operations.verify import check_run
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import DiskFiles
from shardgen.worker.publish import BatchStore
from shardgen.worker.retry import Retry
from tests.artifacts.attempts import WORKERS
from tests.dataset.made_runs import batch_content
from tests.logged import logged
from tests.plans import make_plan as made_plan
from tests.runs import make_run, plan_run, start
from tests.warm import Command

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 2 * 2 * 2 * 100
FOLDER = "/mount/artifacts"


class World:
    """A clock that only pauses move, and what was said."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.said: list[str] = []
        self.pauses = 0
        self.retry = Retry(between=self._between, monotonic=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _between(self) -> None:
        self.pauses += 1

    def failing(self, error: ShardgenError, *, until: float = float("inf")) -> Callable[[], str]:
        def call() -> str:
            if self.now < until:
                raise error
            return "done"

        return call


@pytest.mark.parametrize("kind", [StorageFailed, ManifestBusy, InputMissing])
def test_a_worker_waits_two_minutes_for_what_may_pass_and_speaks_twice(kind: type[ShardgenError]) -> None:
    world = World()
    with logged(world.said.append):
        assert world.retry(world.failing(kind(f"{FOLDER}: away"), until=1100)) == "done"
    assert world.said[0] == f"{FOLDER}: away; trying again for about 2 minutes"
    assert world.said[1].startswith("continuing after 10")
    assert len(world.said) == 2
    assert world.pauses > 10  # its heartbeat hears of it: a worker that waits does not hang


def test_after_two_minutes_the_error_ends_the_worker_and_what_it_still_has_to_say_is_tried_once() -> None:
    world = World()
    with pytest.raises(StorageFailed):
        world.retry(world.failing(StorageFailed("full")))
    assert 1120 <= world.now < 1126
    ended = world.now
    with pytest.raises(ManifestBusy):  # its release, on the same disk
        world.retry(world.failing(ManifestBusy("locked")))
    assert world.now == ended


@pytest.mark.parametrize("kind", [ManifestGone, LeaseLost])
def test_what_does_not_pass_is_not_waited_for(kind: type[ShardgenError]) -> None:
    world = World()
    with logged(world.said.append), pytest.raises(kind):
        world.retry(world.failing(kind("gone")))
    assert (world.now, world.said) == (1000.0, [])


class LateFailure(DiskFiles):
    """A disk that fails once, when the new name is there already and only its folder is not synced."""

    def __init__(self) -> None:
        self.failures = 1

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self.failures, fails = 0, self.failures
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_attempt_to_publish_that_failed_late_is_not_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, recorded = made_plan(), list[object]()
    monkeypatch.setattr(BatchStore, "_content", lambda _store, _made: batch_content(plan, 0))
    store = FolderStore(tmp_path, files=LateFailure())
    manifest = SimpleNamespace(record=lambda _lease, record: recorded.append(record))
    lease = Lease(
        shard=ShardIndex(0),
        slice=SliceIndex(0),
        worker=WORKERS["a"],
        fence=Fence(1),
        expires_at=datetime.max.replace(tzinfo=UTC),
    )
    keeper = BatchStore(plan, store, manifest, World().retry)
    keeper.keep(lease, SimpleNamespace(batch=BatchIndex(0)), on_step=lambda _step: None)  # type: ignore[arg-type]
    assert len(recorded) == 1
    assert len(list(tmp_path.glob("shard-*/*.zip"))) == 2  # one is an orphan


@pytest.fixture
def middling_run(tmp_path: Path) -> RunDirectory:
    """800 samples in batches of 4: some seconds of work."""
    run = make_run(tmp_path, changes={"compose.grid": "[10, 10]", "shards.size": "400"})
    return plan_run(run)


def read_until(worker: Command | subprocess.Popen[str], words: str, said: list[str]) -> None:
    assert worker.stderr is not None
    for line in worker.stderr:
        said.append(line.rstrip())
        if words in line:
            return
    raise AssertionError("\n".join(said))


def until_stored(run: RunDirectory) -> None:
    deadline = time.monotonic() + 60
    while not report(run).stored:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", [".", "artifacts"], ids=["run directory", "artifacts"])
def test_a_folder_that_goes_away_and_comes_back_costs_no_restart(
    middling_run: RunDirectory, tmp_path: Path, name: str
) -> None:
    folder, away, said = (middling_run.path / name).resolve(), tmp_path / "away", list[str]()
    with start(["worker", middling_run.path]) as worker:
        try:
            until_stored(middling_run)
            folder.rename(away)
            read_until(worker, "trying again for about", said)
            time.sleep(1.5)  # as a person would who mounts it again
            away.rename(folder)
            read_until(worker, f"made {SAMPLES} samples", said)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
    waited = sum("trying again for about" in line for line in said)
    assert waited in (1, 2), said  # who stores and who leases may both have come upon it
    assert sum("continuing after" in line for line in said) == waited, said
    found = report(middling_run)
    assert (found.stored, len(found.workers)) == (SAMPLES, 1)
    with sqlite3.connect(middling_run.path / "manifest.sqlite") as connection:
        assert connection.execute("SELECT count(*), sum(deaths) FROM slice WHERE fence > 1").fetchone() == (
            0,
            None,
        )


@pytest.mark.slow
def test_a_mount_that_goes_away_before_the_first_batch_is_waited_for_and_not_written_beside(
    run: RunDirectory, tmp_path: Path
) -> None:
    away, said = tmp_path / "away", list[str]()
    with start(["worker", run.path]) as worker:
        try:
            read_until(worker, "checking the sources", said)  # its folder is claimed
            run.artifacts.rename(away)
            run.artifacts.mkdir()
            read_until(worker, "trying again for about", said)
            run.artifacts.rmdir()  # empty still
            away.rename(run.artifacts)
            read_until(worker, "continuing after", said)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
    assert check_run(run).findings == ()


@pytest.mark.slow
def test_a_full_disk_that_gets_free_costs_no_restart(middling_run: RunDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, str(middling_run.path), str(SAMPLES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full" in done.stdout or "No space left" in done.stdout
    assert done.stdout.count("continuing after") == 1
    assert f"made {SAMPLES} samples" in done.stdout


ON_A_FULL_DISK = """
import shutil, sys
from pathlib import Path
from tests.bad_input.stage import ImpossibleHereError, _full
from tests.runs import start

folder = Path(sys.argv[1])
try:
    _full(folder, 100_000_000)
except ImpossibleHereError as error:
    print(error)
    sys.exit(77)
ballast = folder / "ballast"
ballast.write_bytes(bytes(shutil.disk_usage(folder).free - 400_000))
with start(["worker", folder]) as worker:
    for line in worker.stderr:
        print(line, end="")
        if "trying again for about" in line:
            ballast.unlink()
    sys.exit(worker.wait(60))
"""


@pytest.mark.slow
def test_run_starts_workers_for_ten_minutes_without_progress_and_ends_with_their_reason(
    run: RunDirectory,
) -> None:
    with run.manifest(run.plan()) as manifest:
        manifest.folder.claim("0" * 32)
    began, said = time.monotonic(), list[str]()
    options = RunOptions(monotonic=lambda: began + 60 * (time.monotonic() - began))
    launcher = LocalLauncher(run, [Share(device="cpu")], say=said.append)
    with pytest.raises(StorageFailed, match=r"kept ending \(exit code 31\) for 10 minutes") as caught:
        run_workers(run, run.plan(), launcher, options, say=said.append)
    assert f"{run.artifacts}: the folder" in str(caught.value)
    assert "mount it" in caught.value.hint
    assert time.monotonic() - began >= 10
    assert sum("starts again" in line for line in said) >= 2


@pytest.mark.slow
def test_run_goes_on_when_the_folder_comes_back_after_its_workers_gave_up(
    run: RunDirectory, tmp_path: Path
) -> None:
    from shardgen.coordination.artifact_folder import claim_folder  # noqa: PLC0415

    with run.manifest(run.plan()) as manifest:
        claim_folder(FolderStore(run.artifacts), manifest.folder)
    away = Path(shutil.move(run.artifacts, tmp_path / "away"))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "starts again" in line and sum("starts again" in one for one in said) == 2:
            away.rename(run.artifacts)

    launcher = LocalLauncher(run, [Share(device="cpu")], say=say)
    found = run_workers(run, run.plan(), launcher, RunOptions(), say=say)
    assert found.pending == 0
    assert sum("starts again" in line for line in said) == 2


def test_run_looks_again_for_ten_minutes_and_ends_with_the_manifests_own_trouble(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardgen.manifest.manifest import Manifest  # noqa: PLC0415

    seen, looks, said = Manifest.overview, list[float](), list[str]()
    began = time.monotonic()

    def clock() -> float:
        return began + 500 * (time.monotonic() - began)

    def overview(manifest: Manifest) -> object:
        looks.append(clock())
        if len(looks) > 1:
            raise ManifestBusy("locked", hint="look for a stopped process")
        return seen(manifest)

    monkeypatch.setattr(Manifest, "overview", overview)
    options = RunOptions(monotonic=clock)
    launcher = LocalLauncher(run, [Share(device="cpu")], say=said.append)
    with pytest.raises(ManifestBusy, match="locked; giving up after 10 minutes") as caught:
        run_workers(run, run.plan(), launcher, options, say=said.append)
    assert caught.value.hint == "look for a stopped process"
    assert looks[-1] - looks[1] >= 600
    assert said == ["locked; trying again for 10 minutes"]
