from __future__ import annotations

import threading
from collections.abc import Callable

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.base import Seat
from shardgen.coordination.database import DatabaseCoordinator
from shardgen.domain.lease import Lease
from shardgen.domain.overview import Overview
from shardgen.domain.progress import Progress
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from shardgen.errors import ManifestBusy
from shardgen.machine.processes import new_identity
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.audience import Audience, Lookout
from tests.artifacts.attempts import single
from tests.conformance.conftest import POLICY


class Eyes:
    """An audience that keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: Callable[[], Progress] | None = None
        self.looked = threading.Event()

    def show(self, progress: Callable[[], Progress]) -> None:
        self.shown = progress
        self.looked.set()

    def sees(self) -> Progress:
        assert self.looked.wait(10)
        assert self.shown is not None
        return self.shown()


def record_one(run: RunDirectory, worker: WorkerIdentity) -> None:
    """The first batch of a slice, 4 samples, by this worker at 2.5 samples a second."""
    plan = run.plan()
    with run.manifest(plan) as manifest:
        manifest.workers.register(worker)
        lease = manifest.leases.lease(worker.id, POLICY)
        assert isinstance(lease, Lease)
        (receipt,) = single(manifest.receipts.pending_batches(lease)[0]).publish(plan, run.artifacts)
        manifest.receipts.record(lease, receipt)
        report = WorkerReport(
            state=WorkerState.WORKING, samples_done=4, samples_per_second=2.5, progressed=True
        )
        manifest.workers.beat(worker.id, report)


def coordinator_of(run: RunDirectory, identity: WorkerIdentity) -> DatabaseCoordinator:
    return DatabaseCoordinator(run.manifest(run.plan()), FolderStore(run.artifacts), Seat(identity=identity))


def test_a_worker_sees_the_whole_run_and_its_own_part_of_it(run: RunDirectory) -> None:
    other, own = new_identity("other"), new_identity("own")
    record_one(run, other)
    record_one(run, own)
    eyes, made = Eyes(), [4]
    audience = Audience(doing=print, on_file=print, show=eyes.show, every_seconds=60.0)
    with (
        coordinator_of(run, own) as coordinator,
        Lookout(run, run.plan(), coordinator, audience, made=lambda: made[0]),
    ):
        seen = eyes.sees()
        assert (seen.done, seen.total, seen.rate, seen.workers, seen.own) == (8, 48, 5.0, 2, 4)
        made[0] = 12
        later = eyes.sees()
        assert (later.done, later.own) == (16, 12)
        made[0] = 1000
        assert eyes.sees().done == 48


def test_where_nobody_else_has_made_anything_its_own_part_is_not_said(run: RunDirectory) -> None:
    own = new_identity("own")
    record_one(run, own)
    eyes = Eyes()
    audience = Audience(doing=print, on_file=print, show=eyes.show, every_seconds=60.0)
    with (
        coordinator_of(run, own) as coordinator,
        Lookout(run, run.plan(), coordinator, audience, made=lambda: 4),
    ):
        assert eyes.sees().line().endswith("· 1 worker")


class Away(DatabaseCoordinator):
    """A manifest that is away at the first look."""

    looks = 0

    def overview(self) -> Overview:
        self.looks += 1
        if self.looks == 1:
            raise ManifestBusy("away")
        return super().overview()

    def seconds_between_overviews(self, policy: object) -> float:
        del policy
        return 0.01


def test_a_look_that_fails_is_made_again_and_ends_nothing(run: RunDirectory) -> None:
    own = new_identity("own")
    record_one(run, own)
    eyes = Eyes()
    audience = Audience(doing=print, on_file=print, show=eyes.show, every_seconds=0.0)
    seat = Seat(identity=own)
    with (
        Away(run.manifest(run.plan()), FolderStore(run.artifacts), seat) as coordinator,
        Lookout(run, run.plan(), coordinator, audience, made=lambda: 4),
    ):
        assert eyes.sees().done == 4
        assert coordinator.looks > 1
