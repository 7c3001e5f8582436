from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from shardgen.coordination.database import DatabaseCoordinator
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.worker import ShownState, WorkerReport, WorkerState
from shardgen.errors import LeaseLost, ManifestCorrupt, ManifestMismatch, PlanConflict, ShardgenError
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.heartbeat import EXIT_HUNG, Heartbeat, Pulse, RateWindow
from shardgen.worker.worker import Worker, WorkerOptions
from tests.conformance.conftest import MovableClock, identity
from tests.logged import logged
from tests.plans import make_plan
from tests.runs import coordinated

POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=3600),  # the thread never beats by itself: tests call `beat_once`
    stall=timedelta(seconds=600 * 24),
    max_attempts=6,
)


class World:
    """A manifest, a worker with its lease, and clocks that only the test moves."""

    def __init__(self, folder: Path) -> None:
        self.clock = MovableClock()
        self.monotonic = 1000.0
        self.exits: list[int] = []
        plan = make_plan(shard_size=50, batch=8, slice_batches=3)
        database = DatabaseUrl(url="sqlite:///m.sqlite", run_dir=folder)
        create_manifest(database, plan)
        self.manifest = Manifest(database, plan, clock=self.clock)
        self.worker = identity("me-12345678")
        self.manifest.workers.register(self.worker)
        self.coordinator = coordinated(self.manifest, self.worker)
        self.heartbeat = Heartbeat(
            self.coordinator,
            POLICY,
            pulse=Pulse(monotonic=lambda: self.monotonic, exit_process=self.exits.append),
        )

    def forward(self, seconds: float) -> None:
        self.clock.forward(seconds)
        self.monotonic += seconds

    def lease(self) -> Lease:
        granted = self.manifest.leases.lease(self.worker.id, POLICY)
        assert not isinstance(granted, NoLease)
        self.heartbeat.holds(granted)
        self.heartbeat.now_is(WorkerState.WORKING)
        return granted

    def shown(self) -> ShownState:
        row = self.manifest.overview().workers[0]
        return row.shown_state(self.clock(), POLICY, gone=False)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.manifest.close()


def test_a_beat_renews_the_lease(world: World) -> None:
    world.lease()
    for _ in range(5):
        world.forward(100)
        world.heartbeat.progress()
        world.heartbeat.beat_once()
    assert isinstance(
        world.manifest.leases.lease(world.worker.id, POLICY), Lease
    )  # another slice: the first is held
    assert world.manifest.overview().shards[0].slices.leased == 2


def test_without_progress_the_worker_notes_that_it_hangs_and_exits(world: World) -> None:
    world.lease()
    world.forward(POLICY.stall.total_seconds() - 1)
    world.heartbeat.beat_once()
    assert world.exits == []
    world.forward(1)
    said, goes_on = list[str](), threading.Event()
    threading.Thread(target=goes_on.wait, name="stuck", daemon=True).start()
    with logged(said.append, logging.DEBUG):
        world.heartbeat.beat_once()
    goes_on.set()
    assert world.exits == [EXIT_HUNG]
    assert said[0].startswith("error: this worker hangs: no stage has finished anything for")
    assert any("thread stuck:" in text for text in said)
    row = world.manifest.overview().workers[0]
    assert row.state is WorkerState.HUNG
    assert "no stage has finished" in row.note


def test_a_slow_batch_is_no_stall(world: World) -> None:
    world.lease()
    world.heartbeat.batch_recorded(8, seconds=3000)
    for _ in range(2):
        world.forward(14_990)
        world.heartbeat.beat_once()
        assert world.exits == []
    world.forward(100)
    world.heartbeat.beat_once()
    assert world.exits == [EXIT_HUNG]


def test_a_machine_that_slept_is_no_stall(world: World) -> None:
    world.lease()
    world.forward(100_000)
    world.heartbeat.beat_once()
    assert world.exits == []


def test_a_beat_that_fails_for_good_stops_the_work(tmp_path: Path) -> None:
    world = World(tmp_path)
    policy = LeasePolicy(
        duration=timedelta(seconds=1),
        heartbeat=timedelta(milliseconds=10),
        stall=timedelta(seconds=60),
        max_attempts=6,
    )
    heartbeat = Heartbeat(world.coordinator, policy)
    # A beat in the middle of its transaction sees pages that do not fit together; the next sees no database.
    final = (ManifestMismatch, ManifestCorrupt)
    with contextlib.suppress(*final), heartbeat:
        world.manifest.close()
        (tmp_path / "m.sqlite").write_bytes(b"this is no database any more, and long enough to be read" * 99)
        deadline = time.monotonic() + 60
        while heartbeat._thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(final):
            heartbeat.check_lease()


class StuckCoordinator:
    """The real one, whose next beat of a state waits until the test lets it land, however late."""

    def __init__(self, real: DatabaseCoordinator, state: WorkerState) -> None:
        self._real = real
        self._state = state
        self.is_stuck = threading.Event()
        self.lands = threading.Event()

    def beat(self, report: WorkerReport) -> None:
        if report.state is self._state:
            self.is_stuck.set()
            assert self.lands.wait(60)
        self._real.beat(report)


def test_a_beat_that_lands_after_the_end_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.worker.heartbeat._JOIN_SECONDS", 0.05)
    stuck = StuckCoordinator(world.coordinator, WorkerState.STARTING)
    policy = replace(POLICY, heartbeat=timedelta(milliseconds=10))
    with Heartbeat(stuck, policy) as heartbeat:  # type: ignore[arg-type]
        assert stuck.is_stuck.wait(60)
        world.coordinator.leave(heartbeat.last_word(None))
    assert world.shown() is ShownState.STOPPED
    stuck.lands.set()
    heartbeat._thread.join(60)
    assert not heartbeat._thread.is_alive()
    assert world.shown() is ShownState.STOPPED


def test_a_hung_process_ends_although_its_manifest_hangs_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.worker.heartbeat._LAST_WORD_SECONDS", 0.05)
    stuck = StuckCoordinator(world.coordinator, WorkerState.HUNG)
    world.heartbeat._coordinator = stuck  # type: ignore[assignment]
    world.forward(15 * 60)
    world.heartbeat.beat_once()
    assert stuck.is_stuck.is_set()
    assert world.exits == [EXIT_HUNG]
    stuck.lands.set()


def test_a_wait_that_looks_again_is_no_stall_and_is_told(world: World) -> None:
    world.lease()
    for _ in range(3):
        world.forward(POLICY.stall.total_seconds() + 3600)
        world.heartbeat.waits("the database is locked; trying again")
        world.heartbeat.beat_once()
    row = world.manifest.overview().workers[0]
    assert (row.state, row.note) == (WorkerState.WAITING, "the database is locked; trying again")
    world.heartbeat.progress()
    world.heartbeat.beat_once()
    row = world.manifest.overview().workers[0]
    assert (world.exits, row.state, row.note) == ([], WorkerState.WORKING, "")


@pytest.mark.parametrize("how", ["by its state", "by what it says"])
def test_a_wait_that_does_not_look_again_is_a_hang(world: World, how: str) -> None:
    if how == "by its state":
        world.heartbeat.now_is(WorkerState.WAITING)
    else:
        world.heartbeat.now_is(WorkerState.WORKING)
        world.heartbeat.waits("a file")
    world.forward(POLICY.wait.total_seconds() - 1)
    world.heartbeat.beat_once()
    assert world.exits == []
    world.forward(1)
    world.heartbeat.beat_once()
    assert world.exits == [EXIT_HUNG]


def test_starting_up_has_fifteen_minutes(world: World) -> None:
    world.forward(15 * 60 - 1)
    world.heartbeat.beat_once()
    assert world.exits == []
    world.forward(1)
    world.heartbeat.beat_once()
    assert world.exits == [EXIT_HUNG]


def test_a_lost_lease_is_noticed_at_the_next_beat(world: World) -> None:
    world.lease()
    world.forward(121)
    other = identity("other-12345678")
    world.manifest.workers.register(other)
    assert isinstance(world.manifest.leases.lease(other.id, POLICY), Lease)
    world.heartbeat.progress()
    world.heartbeat.check_lease()
    world.heartbeat.beat_once()
    with pytest.raises(LeaseLost):
        world.heartbeat.check_lease()


def test_status_tells_alive_without_progress_from_an_expired_lease(world: World) -> None:
    lease = world.lease()
    assert world.shown() is ShownState.WORKING
    for _ in range(144):  # beating and renewing, but nothing gets done
        world.forward(100)
        world.manifest.leases.renew(lease, POLICY)
        world.manifest.workers.beat(world.worker.id, WorkerReport(state=WorkerState.WORKING))
    assert world.shown() is ShownState.STALLED
    world.forward(121)
    assert world.shown() is ShownState.EXPIRED


def test_the_rate_counts_the_last_ten_minutes_only() -> None:
    now = 0.0
    window = RateWindow(lambda: now)
    for _ in range(100):
        now += 60
        window.add(60)
    assert window.per_second() == pytest.approx(1.0)
    for _ in range(20):
        now += 60
        window.add(600)
    assert window.per_second() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (PlanConflict("not those of\n  the plan: a.png", hint="copy them"), "not those of the plan: a.png"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_worker_that_ends_by_an_error_notes_it_in_a_line(world: World, error: Exception, note: str) -> None:
    world.coordinator.leave(world.heartbeat.last_word(error))
    row = world.manifest.overview().workers[0]
    assert (row.state, row.note) == (WorkerState.STOPPED, note)


def test_the_last_word_of_a_worker_that_cannot_start_is_why(run: RunDirectory, tmp_path: Path) -> None:
    folders = {"foregrounds": tmp_path / "nowhere"}
    with pytest.raises(ShardgenError, match="nowhere"):
        Worker(run, WorkerOptions(folders=folders)).work()
    (worker,) = report(run).overview.workers
    assert worker.state is WorkerState.STOPPED
    assert "nowhere" in worker.note
