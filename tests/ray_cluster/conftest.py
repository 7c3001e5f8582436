from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from sqlalchemy import URL

from shardgen.coordination.report import Report
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests.postgres import new_schema
from tests.runs import make_run, plan_run, sha256_of, shardgen

if TYPE_CHECKING:  # it imports Ray, which takes seconds
    from tests.ray_cluster.cluster import Driver, LocalCluster

ALL = "SHARDGEN_TEST_RAY"
# CI kills an actor and a node of one run; the rest takes minutes and is for a person who asks for it.
collect_ignore = [] if ALL in os.environ else ["test_by_hand.py", "test_launchers.py", "test_refusals.py"]

SAMPLES = 1600
BATCH = 4
BATCHES = SAMPLES // BATCH
SETTINGS = {
    "compose.canvas": "[320, 240]",
    "compose.grid": "[20, 10]",
    "depth.model": '"none"',  # workers that need no TensorFlow start in a third of the time
    "output.size": "[160, 120]",
    "shards.size": "800",
    "shards.slice_batches": "8",
    "lease.seconds": "5",
}
_logger = logging.getLogger(__name__)
MOST_AGAIN = 3  # batches that a lost worker had in its hands: one is prepared, one computed, one published


@pytest.fixture(scope="session")
def started_cluster() -> Iterator[LocalCluster]:
    from tests.ray_cluster.cluster import LocalCluster  # noqa: PLC0415

    cluster = LocalCluster()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(started_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """One cluster for all tests of a process; each finds two nodes of one CPU."""
    yield started_cluster
    started_cluster.restore()


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the zip that nothing disturbed, from this machine alone."""
    run = plan_run(make_run(tmp_path_factory.mktemp("alone"), changes=SETTINGS))
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    return sha256_of(run.path / "dataset.zip")


@dataclass(slots=True)
class ClusterRun:
    """A run that the nodes of a cluster share, and the commands on it."""

    cluster: LocalCluster
    named: str | Path
    run: RunDirectory
    folder: Path
    environment: dict[str, str]
    stack: ExitStack
    drivers: list[Driver] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def begin(self, *options: str | Path) -> Driver:
        """Start one more `shardgen ray`."""
        from tests.ray_cluster.cluster import begin  # noqa: PLC0415

        driver = begin(
            ["ray", self.named, "--address", self.cluster.address, *options],
            self.folder / f"said-{len(self.drivers)}",
            self.environment,
            folder=self.folder,
        )
        self.stack.enter_context(driver)
        self.drivers.append(driver)
        return driver

    def hurry(self) -> None:
        """Let workers be as fast as they are, now that all has happened that is to happen in their run."""
        (self.folder / "begun.slow").unlink()

    def report(self) -> Report:
        """The state of the run."""
        return report(self.run)

    def wait_for(self, is_so: Callable[[Report], bool]) -> Report:
        """Look at the run until it is so."""
        from tests.ray_cluster.cluster import wait_until  # noqa: PLC0415

        found: list[Report] = []

        def look() -> bool:
            found[:] = [self.report()]
            return is_so(found[0])

        wait_until(look, lambda: "\n".join(one.said for one in self.drivers))
        return found[0]

    def wait_for_more(self, samples: int) -> Report:
        """Until so many more are stored."""
        goal = self.report().stored + samples
        assert goal < SAMPLES, "the run is too short for what is to happen in it"
        return self.wait_for(lambda found: found.stored >= goal)

    def workers(self) -> list[psutil.Process]:
        """The worker processes of this run."""
        from tests.ray_cluster.cluster import name_of  # noqa: PLC0415

        words = f"-m shardgen worker {self.named} "
        return [one for one in psutil.process_iter() if words in name_of(one)]

    def worker_on(self, node: Any) -> psutil.Process:
        """The worker on a node, as soon as there is one."""
        from tests.ray_cluster.cluster import raylet_of, wait_until  # noqa: PLC0415

        found: list[psutil.Process] = []

        def look() -> bool:
            for one in self.workers():
                with suppress(psutil.Error):
                    if any(parent.pid == raylet_of(node) for parent in one.parents()):
                        found.append(one)
            return bool(found)

        wait_until(look, lambda: "\n".join(one.said for one in self.drivers))
        return found[0]

    def wait_for_both(self) -> None:
        """Until two workers have stored something each."""
        self.wait_for(lambda found: sum(one.row.samples_done > 0 for one in found.workers) >= 2)

    def wait_for_a_batch_of(self, worker: psutil.Process) -> None:
        """Until this worker has stored something."""
        self.wait_for(
            lambda found: any(
                one.row.identity.pid == worker.pid and one.row.samples_done > 0 for one in found.workers
            )
        )

    def made_again(self) -> int:
        """Batches that were begun more than once, as often as that was."""
        begun = Counter((self.folder / "begun").read_text(encoding="utf-8").split())
        assert len(begun) == BATCHES
        return begun.total() - BATCHES

    def assert_nothing_is_left(self) -> None:
        """Neither a worker of this run nor an actor, a moment after the last command."""
        from tests.ray_cluster.cluster import name_of, wait_until  # noqa: PLC0415

        def left() -> list[psutil.Process]:
            return [*self.workers(), *self.cluster.actors()]

        wait_until(lambda: not left(), lambda: "\n".join(map(name_of, left())), 30)

    def assert_whole(self, sha256: str, *, losses: int) -> None:
        """All is stored once, to the bytes of the undisturbed run, with few batches made again."""
        again = self.made_again()
        seconds = time.monotonic() - self.since
        _logger.info("%d samples, %d lost, %d batches made again, %.0f s", SAMPLES, losses, again, seconds)
        assert self.report().stored == SAMPLES
        assert sha256_of(self.folder / "made.zip") == sha256
        assert again <= MOST_AGAIN * losses
        self.assert_nothing_is_left()


@pytest.fixture
def on_cluster(
    cluster: LocalCluster,
    postgres_servers: Callable[[], URL],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ClusterRun]:
    """A planned run with its manifest on PostgreSQL and its artifacts in a folder that all nodes see."""
    with new_schema(postgres_servers()) as url, ExitStack() as stack:
        monkeypatch.setenv("SHARDGEN_MANIFEST", url)
        run = plan_run(make_run(tmp_path, changes=SETTINGS | {"manifest.url": '"${SHARDGEN_MANIFEST}"'}))
        environment = cluster.environment | {"SHARDGEN_TEST_BEGUN": str(tmp_path / "begun")}
        (tmp_path / "begun.slow").touch()
        yield ClusterRun(cluster, run.path, run, tmp_path, environment, stack)
