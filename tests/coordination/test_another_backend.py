from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from shardgen.coordination import open as opening
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import BatchStep, LeaseStep, OnStep, Step, ignore_step
from shardgen.machine.processes import new_identity
from shardgen.manifest.urls import OWN_INDEX
from shardgen.operations.merge import merge_run
from shardgen.operations.plan import make_plan
from shardgen.operations.requeue import RequeueChoice, requeue
from shardgen.operations.verify import check_run
from shardgen.recipes import registry
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.cache import CACHE_VARIABLE
from shardgen.worker.worker import Ending, Worker, WorkerOptions
from tests.coordination.claim_files import URL, Files, FilesRun
from tests.runs import sha256_of
from tests.text_recipe import Text

pytestmark = pytest.mark.slow

SLICE = 8
PATIENCE_SECONDS = 60.0
SETTINGS = f"""
[recipe]
kind = "text"
[text]
lines = "lines"
[shards]
size = 32
slice_batches = {SLICE}
batch = 2
[lease]
seconds = 600
heartbeat_seconds = 200
[manifest]
url = """
FIRST = (ShardIndex(0), SliceIndex(0))

Machine = Callable[[str], RunDirectory]


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    """The recipe and the backend, to this process while these tests run."""
    registry.register(Text())
    opening.register(URL, FilesRun)
    yield
    del registry._KINDS["text"], opening._BACKENDS[URL]
    OWN_INDEX.remove(URL)


def new_run(folder: Path, url: str) -> Path:
    (folder / "lines").mkdir(parents=True)
    (folder / "lines" / "lines.txt").write_text("\n".join(f"line {n}" for n in range(20)), encoding="utf-8")
    (folder / "shardgen.toml").write_text(f'{SETTINGS}"{url}"\n', encoding="utf-8")
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Opens the one run directory as another machine: with an index of its own."""
    path = new_run(tmp_path / "run", URL)

    def opened(name: str) -> RunDirectory:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / name))
        run = RunDirectory.open(path)
        if run.plan_file is None:
            run = run.planned(make_plan(run, {}).plan)
        assert run.index is not None
        assert run.index.is_relative_to(tmp_path / name)
        return run

    return opened


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the same plan's zip, made by one worker on a database."""
    run = RunDirectory.open(new_run(tmp_path_factory.mktemp("undisturbed"), "sqlite:///manifest.sqlite"))
    run = run.planned(make_plan(run, {}).plan)
    finish(run)
    return merged(run)


def merged(run: RunDirectory) -> str:
    (run.path / "dataset.zip").unlink(missing_ok=True)
    merge_run(run, None, allow_dead_letters=False)
    assert check_run(run).findings == ()
    return sha256_of(run.path / "dataset.zip")


def worker(run: RunDirectory, name: str, on_step: OnStep = ignore_step) -> Worker:
    return Worker(run, WorkerOptions(identity=new_identity(name)), on_step=on_step)


def finish(run: RunDirectory, name: str = "b", on_step: OnStep = ignore_step) -> None:
    assert worker(run, name, on_step).work().ending is Ending.FINISHED


def claims(run: RunDirectory) -> list[str]:
    return sorted(claim.name for claim in (run.path / "claims").iterdir())


def made(run: RunDirectory) -> int:
    return len(list(Files(run).store.names()))


def recorded(run: RunDirectory) -> list[Receipt]:
    with open_run(run).records() as found:
        return list(found.source.receipts())


def expire(run: RunDirectory) -> None:
    """As if nothing had been heard for long of who claimed the first slice."""
    os.utime(Files(run).path(FIRST, Fence(1)), (0, 0))


def first_slice(run: RunDirectory) -> list[Receipt]:
    return [receipt for receipt in recorded(run) if (receipt.shard, receipt.slice) == FIRST]


class Halted:
    """Worker a, in a thread, which stays where it takes a step for the second time until it may go on."""

    def __init__(self, run: RunDirectory, step: Step) -> None:
        self._step, self._left = step, 2
        self.is_there, self.may_go = threading.Event(), threading.Event()
        self.worker = worker(run, "a", self._on_step)
        self._endings: list[Ending] = []
        self._thread = threading.Thread(target=lambda: self._endings.append(self.worker.work().ending))

    def _on_step(self, step: Step) -> None:
        self._left -= step is self._step
        if step is self._step and self._left == 0:
            self.is_there.set()
            assert self.may_go.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.is_there.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let it go on, and no further than it must."""
        self.worker.stop.event.set()
        self.may_go.set()
        self._thread.join(PATIENCE_SECONDS)
        assert self._endings == [Ending.STOPPED]


def test_two_machines_share_a_run_by_files_and_one_takes_over_what_the_other_leaves(
    machine: Machine, undisturbed: str
) -> None:
    first, second = machine("first"), machine("second")
    seen: list[list[str]] = []
    with Halted(first, BatchStep.RECORDED) as halted:

        def on_step(step: Step) -> None:
            if step is LeaseStep.GRANTED:
                seen.append(claims(second))
                halted.stop()

        finish(second, "b", on_step)
    assert seen[0] == ["0-0.f1", "0-1.f1"]  # nobody claims what somebody is at
    assert claims(second) == ["0-0.f1", "0-0.f2", "0-1.f1", "1-0.f1", "1-1.f1"]
    attempts = [(receipt.worker[0], receipt.fence) for receipt in first_slice(second)]
    assert attempts == sorted(attempts)
    assert set(attempts) == {("a", 1), ("b", 2)}
    assert made(second) == len(recorded(second))  # none twice
    assert merged(second) == undisturbed
    assert merged(machine("a third, which only merges")) == undisturbed

    batch = BatchIndex(SLICE + 1)
    assert requeue(first, RequeueChoice(batches=(batch,))).batches == (batch,)
    assert [open_run(run).report().pending for run in (first, second)] == [2, 2]
    with open_run(second).watching() as watcher:
        assert watcher.report().pending == 2
        slices = watcher.details(newest=0).slices  # as its index knows them
        assert [one.state for one in slices if one.batches_done < one.batches] == ["open"]
    finish(first, "c")
    assert {one.record.batch: one.fence for one in recorded(second)}[batch] == 2
    assert merged(second) == undisturbed


def test_what_was_published_between_a_look_and_a_claim_is_not_made_again(
    machine: Machine, undisturbed: str
) -> None:
    first, second = machine("first"), machine("second")
    with Halted(first, BatchStep.STAGED) as halted:
        expire(first)
        finish(second, on_step=lambda step: halted.stop() if step is LeaseStep.GRANTED else None)
    assert [receipt.fence for receipt in first_slice(second)][:2] == [1, 1]
    assert made(second) == len(recorded(second))
    assert merged(second) == undisturbed


def test_what_an_expired_worker_publishes_late_is_not_taken(machine: Machine, undisturbed: str) -> None:
    first, second = machine("first"), machine("second")
    with Halted(first, BatchStep.STAGED):
        expire(first)
        finish(second)
        before = recorded(second)
        assert [receipt.fence for receipt in first_slice(second)] == [1] + [2] * (SLICE - 1)
    late = [name for name in Files(first).store.names() if name.fence == 1 and name.shard == 0]
    assert BatchIndex(1) in [name.batches[0] for name in late]
    assert recorded(second) == before
    assert merged(first) == undisturbed
