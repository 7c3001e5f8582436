"""A worker that waits is no worker that hangs: the real watchdog and leases on a clock that a test moves."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardgen.coordination.base import Seat
from shardgen.coordination.folder import leases
from shardgen.coordination.folder.files import DiskFolder
from shardgen.coordination.folder.leases import opened_view
from shardgen.coordination.folder.records import publish_waiting
from shardgen.coordination.folder.run import FolderRun
from shardgen.coordination.open import open_run
from shardgen.domain.lease import WAIT_LIMIT, Lease, LeasePolicy, NoLease
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import StorageFailed
from shardgen.manifest.manifest import Manifest
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.heartbeat import EXIT_HUNG, Heartbeat, Pulse
from tests.artifacts.attempts import WORKERS, single
from tests.conformance.conftest import identity
from tests.logged import logged
from tests.plans import make_plan

POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),  # by `World.forward`: no thread beats
    stall=timedelta(seconds=60),
    max_attempts=6,
)
WAIT = WAIT_LIMIT.total_seconds()


class SlowFolder(DiskFolder):
    """A folder on a disk, whose calls take as long as a test says."""

    def __init__(self, root: Path, forward: Callable[[float], None]) -> None:
        super().__init__(root)
        self.forward = forward
        self.listing = self.writing = 0.0
        self.uploading = 0.0  # until that instant nothing has left the machine
        self.now: Callable[[], float] = lambda: 0.0

    def write(self, path: str, data: bytes) -> None:
        self.forward(self.writing)
        super().write(path, data)

    def names(self, folder: str) -> list[str]:
        self.forward(self.listing)
        return super().names(folder)

    def is_uploaded(self, path: str) -> bool | None:
        del path
        return self.now() >= self.uploading


class World:
    """A worker of a shared folder with a slice made and nothing published yet."""

    def __init__(self, run: RunDirectory, stack: ExitStack) -> None:
        self.now = 1000.0
        self.exits: list[int] = []
        self.notes: list[str] = []  # what its row said after each beat
        self.said: list[str] = []
        self.run = run
        self.files = SlowFolder(run.path, self.forward)
        self.files.now = lambda: self.now
        stack.enter_context(logged(self.said.append))
        me = identity(WORKERS["a"], host="boot-1/pid:[4]/gpu-1")
        seat = Seat(identity=me, files=self.files, stopping=self)  # type: ignore[arg-type]
        self.leases = stack.enter_context(FolderRun(run).coordinator(seat))
        self.manifest = self.leases.manifest
        pulse = Pulse(monotonic=lambda: self.now, exit_process=self.exits.append)
        self.heartbeat = Heartbeat(self.leases, POLICY, pulse=pulse)

    def make_slice(self) -> Lease:
        """As the pipeline does."""
        self.leases.join(self.heartbeat.waits)
        self.heartbeat.now_is(WorkerState.WORKING)
        granted = self.leases.lease(POLICY)
        assert not isinstance(granted, NoLease)
        for batch in self.manifest.receipts.pending_batches(granted):
            (receipt,) = single(batch, fence=granted.fence).publish(self.run.plan(), self.run.artifacts)
            self.manifest.receipts.record(granted, receipt)
        self.heartbeat.progress()
        return granted

    @property
    def note(self) -> str:
        """What its row says."""
        return self.manifest.overview().workers[0].note

    def forward(self, seconds: float) -> None:
        """Let time pass, with a beat every half minute."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 30.0)
            self.heartbeat.beat_once()
            self.notes.append(self.note)

    def wait(self, seconds: float) -> bool:
        """As `Event.wait`, of a worker that nobody stops."""
        self.forward(seconds)
        return False

    def leave(self) -> None:
        self.leases.leave(self.heartbeat.last_word(None))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    plan = make_plan(shard_size=50, batch=8, slice_batches=3)
    path = tmp_path / "run"
    path.mkdir()
    settings = '[compose]\nflips = "none"\n[manifest]\nurl = "folder:"\n[folder]\nsegment_batches = 1\n'
    (path / "shardgen.toml").write_text(settings, encoding="utf-8")
    (path / "plan.json").write_bytes(plan.canonical_json)
    monkeypatch.setattr(RunDirectory, "check_settings", lambda *_: None)
    run = RunDirectory.open(path)
    monkeypatch.setattr(leases.FolderCoordinator, "_look", lambda _self: None)  # one thread moves the clock
    with ExitStack() as stack:
        made = World(run, stack)
        clock = SimpleNamespace(monotonic=lambda: made.now, sleep=made.forward)
        monkeypatch.setattr(leases, "time", clock)
        monkeypatch.setattr(leases, "_UPLOAD_LOOK_SECONDS", 30.0)
        monkeypatch.setattr(leases, "_LOCK_LOOK_SECONDS", 30.0)
        yield made


def test_others_see_which_node_a_worker_is_on(world: World) -> None:
    world.make_slice()
    world.forward(30)
    (row,) = open_run(world.run).report().overview.workers
    assert (row.identity.id, row.identity.node) == (WORKERS["a"], "gpu-1")


def test_a_wait_for_the_upload_is_no_hang(world: World) -> None:
    world.make_slice()
    world.files.uploading = world.now + 1500
    world.leave()
    assert world.exits == []
    assert world.now >= world.files.uploading
    assert "files to be uploaded" in world.notes


def test_a_look_at_the_upload_that_never_returns_is_a_hang(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_slice()
    monkeypatch.setattr(world.files, "is_uploaded", lambda _path: world.forward(WAIT + 30))
    world.leave()
    assert world.exits[0] == EXIT_HUNG
    assert "files to be uploaded" in world.note


def test_a_folder_that_is_slow_to_look_through_is_no_hang(world: World) -> None:
    for number in range(12):
        (world.run.path / f"workers/other-{number}").mkdir(parents=True)
    world.files.listing = 100.0
    world.leases.join(world.heartbeat.waits)
    assert world.now > 1000 + WAIT
    assert world.exits == []


@pytest.mark.parametrize(("seconds", "exits"), [(WAIT - 30, []), (WAIT + 30, [EXIT_HUNG])])
def test_a_write_has_its_limit_for_each_file(world: World, seconds: float, exits: list[int]) -> None:
    world.make_slice()
    world.files.writing = seconds
    world.leave()
    assert world.exits[:1] == exits


def test_a_beat_does_not_wait_for_a_write_that_is_stuck(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a folder that hangs would stop the watchdog, which is there for that."""
    lease = world.make_slice()
    is_stuck, goes_on = threading.Event(), threading.Event()

    def write(_path: str, _data: bytes) -> None:
        is_stuck.set()
        goes_on.wait(60)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(world.files, "write", write)
    with ThreadPoolExecutor() as threads:
        ended = threads.submit(world.leases.release, lease)
        assert is_stuck.wait(60)
        beat = threads.submit(world.heartbeat.beat_once)
        wait([beat], timeout=10)
        beat_done = beat.done()
        goes_on.set()
        ended.result()
    assert beat_done


def test_nothing_that_comes_late_follows_the_goodbye(world: World) -> None:
    world.make_slice()
    world.leave()
    world.leases.beat(WorkerReport(state=WorkerState.WORKING))
    world.leases._work.tick()  # as a look that was under way
    with opened_view(world.run, world.run.plan()) as view:
        assert [worker.has_stopped for worker in view.workers.values()] == [True]


@pytest.mark.parametrize("seconds", [1500.0, 2500.0])
def test_a_wait_for_another_process_that_publishes_is_no_hang_and_ends(
    world: World, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_slice()
    other = (world.run.artifacts.parent / "publishing.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    began, notes = world.now, set[str]()

    def sleep(pause: float) -> None:
        world.forward(pause)
        notes.add(world.note)
        if world.now - began > seconds:
            other.close()

    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=sleep)
    monkeypatch.setattr(leases, "time", clock)
    if seconds < 1800:
        world.leave()
        assert isinstance(world.manifest, Manifest)
        assert world.manifest.index.unpublished() == []
    else:
        with pytest.raises(StorageFailed, match="3 batches are made"):
            world.leave()
        assert any("publishes for 30 minutes" in line for line in world.said)
    other.close()
    assert world.exits == []
    assert "another process of this machine publishes" in notes


def test_a_merge_that_waits_for_another_process_that_publishes_says_so_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.make_slice()
    other = (world.run.artifacts.parent / "publishing.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    began = world.now

    def sleep(pause: float) -> None:
        world.now += pause
        if world.now - began > 10:
            other.close()

    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: world.now, sleep=sleep))
    caplog.clear()  # of what the worker that made the slice has said
    with caplog.at_level(logging.WARNING, "shardgen"):
        assert publish_waiting(world.run, world.run.plan()) == 3
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "another process of this machine publishes; trying again for at most 30 minutes"
    ]
