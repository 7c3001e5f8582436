from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardgen.coordination.report import make_report
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.worker import START_LIMIT, WorkerIdentity, WorkerReport, WorkerRow, WorkerState
from shardgen.errors import ManifestBusy
from shardgen.launch.allocation import Share
from shardgen.launch.launcher import ProcessId
from shardgen.launch.local import LocalLauncher, LocalProcess
from shardgen.launch.silence import SilenceWatch
from shardgen.launch.supervisor import RunOptions, _Supervisor
from shardgen.machine.processes import host_id, process_start
from shardgen.manifest.leases import Leases
from shardgen.manifest.port import Manifest
from shardgen.settings.run_directory import RunDirectory

POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=6,
)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = SilenceWatch(POLICY, monotonic=lambda: self.now)

    def look(self, *rows: WorkerRow, pids: tuple[int, ...] = (7,)) -> list[int]:
        processes = [ProcessId("here", pid) for pid in pids]
        return [silence.process.pid for silence in self.watch.silent(processes, rows)]

    def silence(self, seconds: float, *rows: WorkerRow) -> list[int]:
        """Look every second, as `run` does, while nothing changes."""
        found: list[int] = []
        for _ in range(int(seconds)):
            self.now += 1
            found = self.look(*rows)
        return found


def row(
    *, state: WorkerState = WorkerState.WORKING, beat: float = 0.0, host: str = "here", pid: int = 7
) -> WorkerRow:
    return WorkerRow(
        identity=WorkerIdentity(id=WorkerId("w"), host=host, pid=pid, process_started=1.0),
        state=state,
        shard=None,
        slice=None,
        lease_expires_at=None,
        started_at=EPOCH,
        last_beat_at=EPOCH + timedelta(seconds=beat),
        last_progress_at=EPOCH,
        samples_done=0,
        samples_per_second=0.0,
        note="",
    )


@pytest.mark.parametrize(
    ("shown", "limit"),
    [
        ([row()], 630),
        ([row(state=WorkerState.STARTING)], START_LIMIT.total_seconds()),
        ([row(state=WorkerState.STOPPED)], 60),
        ([], START_LIMIT.total_seconds()),
        ([row(host="elsewhere")], START_LIMIT.total_seconds()),
    ],
    ids=["working", "starting", "said that it stopped", "never registered", "another host's row"],
)
def test_a_silent_process_is_found_at_its_limit(shown: list[WorkerRow], limit: float) -> None:
    world = World()
    assert world.look(*shown) == []
    assert world.silence(limit, *shown) == []
    assert world.silence(1, *shown) == [7]


def test_every_beat_starts_the_silence_anew() -> None:
    world = World()
    for beat in range(5):
        assert world.silence(600, row(beat=beat)) == []
    assert world.silence(32, row(beat=4)) == [7]


def test_nobody_is_blamed_for_a_machine_that_stood_still() -> None:
    world = World()
    assert world.silence(600, row()) == []
    world.now += 5000
    assert world.look(row()) == []
    assert world.silence(630, row()) == []
    assert world.silence(1, row()) == [7]


def test_a_new_process_begins_afresh() -> None:
    world = World()
    assert world.silence(600, row()) == []
    assert world.look(pids=()) == []
    assert world.silence(600, row()) == []


_HOLD = """
import sqlite3, sys, time
sys.stdin.readline()
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(600)
"""


class Hung:
    """A process that is a registered worker and then hangs with the manifest's lock, and who watches it."""

    def __init__(self, run: RunDirectory, manifest: Manifest, *, others: int = 0) -> None:
        self.now, self.said = [1000.0], list[str]()
        self.manifest = manifest
        command = [sys.executable, "-c", _HOLD, str(run.database.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.plan = run.plan()
        launcher = LocalLauncher(run, [Share()] * (1 + others), say=self.said.append)
        options = RunOptions(monotonic=lambda: self.now[0])
        self.watcher = _Supervisor(run, self.plan, launcher, options, say=self.said.append)
        self.watcher._silence = SilenceWatch(run.settings.lease_policy, monotonic=lambda: self.now[0])
        self.sit(0, self.process)

    def sit(self, seat: int, process: subprocess.Popen[str]) -> None:
        started = process_start(process.pid)
        who = WorkerIdentity(
            id=WorkerId(f"w-{seat}aaaaaaa"), host=host_id(), pid=process.pid, process_started=started
        )
        self.manifest.workers.register(who)
        self.manifest.workers.beat(who.id, WorkerReport(state=WorkerState.WORKING))
        self.watcher._seats[seat].process = LocalProcess(process)

    def hang(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "held\n"


@pytest.fixture
def hung(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hung]:
    monkeypatch.setattr("shardgen.manifest.sqlite._BUSY_TIMEOUT_SECONDS", 0.1)
    with run.manifest(run.plan()) as manifest:
        world = Hung(run, manifest, others=1)
        with world.process as process:
            try:
                yield world
            finally:
                process.kill()


def test_a_process_that_hangs_with_the_manifests_lock_is_killed_all_the_same(
    run: RunDirectory, hung: Hung
) -> None:
    hung.hang()
    found = make_report(run, hung.plan, hung.manifest.overview())
    for _ in range(int(POLICY.stall.total_seconds()) + 60):
        hung.now[0] += 1
        try:
            hung.watcher._kill_silent(found, hung.manifest)
        except ManifestBusy:
            hung.now[0] += 40  # as the wait for the lock took
            hung.watcher._silence.stay_awake()
        if hung.process.poll() is not None:
            break
    assert hung.process.returncode == -signal.SIGKILL
    (row,) = hung.manifest.overview().workers
    assert row.state is WorkerState.HUNG
    assert len(hung.said) == 1


def test_it_is_killed_also_when_another_worker_has_ended_and_cannot_be_noted(
    hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Leases.free_slices_of

    def free_slices_of(self: Leases, *args: Any, **options: Any) -> int:
        try:
            return real(self, *args, **options)
        except ManifestBusy:
            hung.now[0] += 40  # as the wait for the lock took
            raise

    monkeypatch.setattr(Leases, "free_slices_of", free_slices_of)
    command = [sys.executable, "-c", "input(); raise SystemExit(30)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as other:
        hung.sit(1, other)
        hung.hang()
        other.communicate("\n")
        watcher = hung.watcher
        for _ in range(30):
            hung.now[0] += 9
            try:
                watcher._look(hung.manifest, lambda _report, _pids: None)
            except ManifestBusy:
                assert not watcher._blind.is_too_long()
                watcher._silence.stay_awake()
            if watcher._seats[1].process is None:
                break
    assert hung.process.returncode == -signal.SIGKILL
    assert watcher._seats[1].process is None
    states = {row.identity.pid: row.state for row in hung.manifest.overview().workers}
    assert states[hung.process.pid] is WorkerState.HUNG
    assert states[other.pid] is not WorkerState.HUNG


_DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(8)"


def test_what_does_not_end_when_killed_is_named_and_not_waited_for(run: RunDirectory, hung: Hung) -> None:
    command, watcher = [sys.executable, "-c", _DEAF], hung.watcher
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as deaf,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("shardgen.launch.supervisor._DYING_SECONDS", 0.1)
        patch.setattr("shardgen.launch.supervisor._STOP_MARGIN_SECONDS", 0.0)
        patch.setattr(deaf, "send_signal", lambda _number: None)  # as in an uninterruptible sleep
        assert deaf.stdout is not None
        deaf.stdout.readline()
        hung.sit(1, deaf)
        watcher._seats[0].process = None
        found = make_report(run, hung.plan, hung.manifest.overview())
        hung.hang()
        for _ in range(640):
            hung.now[0] += 1
            with contextlib.suppress(ManifestBusy):
                watcher._kill_silent(found, hung.manifest)
        watcher._options = RunOptions(grace_seconds=0.0)
        watcher._stop_all(signal.SIGTERM)
        assert deaf.poll() is None
        patch.undo()
        deaf.kill()
    assert [line for line in hung.said if str(deaf.pid) in line] == hung.said[1:]
    assert len(hung.said) == 2


_SLOW_TO_STOP = """
import signal, sys, threading
asked = threading.Event()
signal.signal(15, lambda *_: asked.set())
print(flush=True)
asked.wait()
sys.stdin.readline()
"""


@pytest.mark.parametrize(("later", "code"), [(0.0, 0), (2.0, -signal.SIGKILL)], ids=["an echo", "a second"])
def test_only_a_second_signal_that_is_no_echo_kills_the_workers(
    run: RunDirectory, later: float, code: int
) -> None:
    launcher = LocalLauncher(run, [Share()], say=print)
    watcher = _Supervisor(run, run.plan(), launcher, RunOptions(), say=print)
    command = [sys.executable, "-c", _SLOW_TO_STOP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdout.readline()
        watcher._seats[0].process = LocalProcess(worker)
        watcher._received(signal.SIGTERM, None)
        watcher._signals._received_at -= later
        watcher._received(signal.SIGHUP, None)
        threading.Timer(0.5, worker.stdin.close).start()
        watcher._stop_all(signal.SIGTERM)
        assert worker.returncode == code
