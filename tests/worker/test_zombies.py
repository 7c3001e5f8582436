from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardgen.domain.steps import BatchStep, Step
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.halted_worker import GO, SAID, THERE
from tests.invariants import counter_faults
from tests.runs import make_run, plan_run, sha256_of, shardgen
from tests.stopping import resume, stop_outside_a_commit

pytestmark = pytest.mark.slow
WAIT_SECONDS = 120.0
BATCHES = 6


@pytest.fixture(scope="module")
def one_slice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned run of one slice: whoever loses it has nothing else to change."""
    folder = tmp_path_factory.mktemp("one-slice")
    changes = {
        "shards.size": "48",
        "shards.batch": "8",
        "shards.slice_batches": str(BATCHES),
        "lease.seconds": "3",
        "lease.heartbeat_seconds": "0.3",
    }
    plan_run(make_run(folder, changes=changes))
    return folder / "run"


@pytest.fixture(scope="module")
def sha256_of_one_slice(one_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(one_slice, path)
    done = shardgen("run", path)
    assert done.returncode == 0, done.stderr
    return sha256_of(path / "dataset.zip")


@dataclass(frozen=True)
class Halted:
    """A real worker process that waits at a step, and the folder by which it is told to go on."""

    process: warm.Command
    folder: Path

    def wait_until_there(self) -> None:
        wait_for((self.folder / THERE).exists, self.process)

    def go(self) -> None:
        (self.folder / GO).touch()

    def said(self) -> str:
        path = self.folder / SAID
        return path.read_text(encoding="utf-8") if path.exists() else ""


Start = Callable[..., Halted]


@pytest.fixture
def start(one_slice: Path, tmp_path: Path) -> Iterator[Start]:
    shutil.copytree(one_slice, tmp_path / "run")
    started: list[warm.Command] = []

    def begin(name: str, step: Step, nth: int, *, unfenced: bool = False) -> Halted:
        folder = tmp_path / name
        folder.mkdir()
        arguments = [tmp_path / "run", folder, f"{type(step).__name__}.{step.name}", nth]
        words = [*map(str, arguments), *["unfenced"] * unfenced]
        process = warm.start("tests.halted_worker", words, said=folder / "output")
        started.append(process)
        return Halted(process, folder)

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run(start: Start, tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(tmp_path / "run")


def wait_for(condition: Callable[[], bool], process: warm.Command) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(run: RunDirectory) -> list[object]:
    """Every row that a worker of this slice could change, less what its holder's heartbeat renews."""
    columns = "shard, slice, state, fence, batches_left, deaths, worker, reason"
    queries = [
        f"SELECT {columns} FROM slice",  # noqa: S608
        *(f"SELECT * FROM {name} ORDER BY 1" for name in ("receipt", "shard", "dead_letter", "provenance")),  # noqa: S608
    ]
    with contextlib.closing(sqlite3.connect(run.path / "manifest.sqlite", timeout=30)) as connection:
        return [connection.execute(query).fetchall() for query in queries]


def named_files(run: RunDirectory) -> dict[str, str]:
    """The sha256 of every file that a receipt names."""
    with contextlib.closing(sqlite3.connect(run.path / "manifest.sqlite", timeout=30)) as connection:
        names = [name for (name,) in connection.execute("SELECT artifact FROM receipt")]
    return {name: hashlib.sha256((run.artifacts / name).read_bytes()).hexdigest() for name in names}


def make_a_zombie(start: Start, run: RunDirectory, step: BatchStep, *, unfenced: bool = False) -> Halted:
    """A worker with two receipts, stopped at a step of a later batch, holding the slice."""
    zombie = start("zombie", step, 3, unfenced=unfenced)
    zombie.wait_until_there()
    stop_outside_a_commit(zombie.process.pid, run.path / "manifest.sqlite")
    zombie.go()  # as soon as it wakes
    return zombie


def assert_the_slice_ends_as_if_nothing_had_been(run: RunDirectory, sha256: str) -> None:
    assert counter_faults(run.database, run.plan()) == []
    merged = shardgen("merge", run.path)
    assert merged.returncode == 0, merged.stderr
    assert sha256_of(run.path / "dataset.zip") == sha256
    assert shardgen("verify", run.path).returncode == 0


@pytest.mark.parametrize(
    ("step", "heirs_step", "nth"),
    [
        (BatchStep.COMPUTED, BatchStep.ENCODED, 1),
        (BatchStep.STAGED, BatchStep.RECORDED, 2),
        (BatchStep.PUBLISHED, BatchStep.ENCODED, 1),
        (BatchStep.PUBLISHED, BatchStep.RECORDED, 2),
    ],
)
def test_a_zombie_that_wakes_while_another_is_half_way_through_its_slice_changes_nothing(
    start: Start,
    run: RunDirectory,
    sha256_of_one_slice: str,
    step: BatchStep,
    heirs_step: BatchStep,
    nth: int,
) -> None:
    zombie = make_a_zombie(start, run, step)
    heir = start("heir", heirs_step, nth)
    heir.wait_until_there()  # after the lease has expired
    before, files = rows(run), named_files(run)
    resume(zombie.process.pid)
    wait_for(lambda: "leasing another" in zombie.said(), zombie.process)
    assert "was taken over" in zombie.said()
    assert rows(run) == before
    assert named_files(run) == files
    heir.go()
    assert heir.process.wait(WAIT_SECONDS) == 0
    assert zombie.process.wait(WAIT_SECONDS) == 0  # it waited for the slice, and found it done
    assert_the_slice_ends_as_if_nothing_had_been(run, sha256_of_one_slice)
    orphans = len(list(run.artifacts.glob("shard-*/*.zip"))) - BATCHES
    assert 0 <= orphans <= 1


@pytest.mark.parametrize("step", [BatchStep.COMPUTED, BatchStep.PUBLISHED])
def test_a_zombie_that_wakes_after_another_has_finished_its_slice_changes_nothing(
    start: Start, run: RunDirectory, sha256_of_one_slice: str, step: BatchStep
) -> None:
    zombie = make_a_zombie(start, run, step)
    heir = shardgen("worker", run.path)
    assert heir.returncode == 0, heir.stderr
    before, files = rows(run), named_files(run)
    assert len(files) == BATCHES
    resume(zombie.process.pid)
    assert zombie.process.wait(WAIT_SECONDS) == 0
    assert "was taken over" in zombie.said()
    assert rows(run) == before
    assert named_files(run) == files
    assert_the_slice_ends_as_if_nothing_had_been(run, sha256_of_one_slice)


def test_without_the_fence_a_zombies_receipt_would_count(start: Start, run: RunDirectory) -> None:
    zombie = make_a_zombie(start, run, BatchStep.PUBLISHED, unfenced=True)
    heir = start("heir", BatchStep.ENCODED, 1)
    heir.wait_until_there()
    before = rows(run)
    resume(zombie.process.pid)
    wait_for(lambda: rows(run) != before, zombie.process)
