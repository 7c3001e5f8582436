from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from shardgen.coordination.report import make_report
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.worker import START_LIMIT, WorkerIdentity, WorkerReport, WorkerRow, WorkerState
from shardgen.errors import ManifestBusy
from shardgen.launch.allocation import Share
from shardgen.launch.local import RunOptions, SilenceWatch, _Supervisor
from shardgen.machine.processes import host_id, process_start
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
        self.watch = SilenceWatch("here", POLICY, monotonic=lambda: self.now)

    def look(self, *rows: WorkerRow, pids: tuple[int, ...] = (7,)) -> list[int]:
        return [silence.pid for silence in self.watch.silent(pids, rows)]

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


def test_a_process_that_hangs_with_the_manifests_lock_is_killed_all_the_same(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.manifest.sqlite._BUSY_TIMEOUT_SECONDS", 0.1)
    now, plan, said = [1000.0], run.plan(), list[str]()
    command = [sys.executable, "-c", _HOLD, str(run.database.path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
        run.manifest(plan) as manifest,
    ):
        try:
            started = process_start(child.pid)
            who = WorkerIdentity(
                id=WorkerId("w-aaaaaaaa"), host=host_id(), pid=child.pid, process_started=started
            )
            manifest.register(who)
            manifest.beat(who.id, WorkerReport(state=WorkerState.WORKING))
            assert child.stdin is not None
            assert child.stdout is not None
            print(file=child.stdin, flush=True)
            assert child.stdout.readline() == "held\n"
            workers = _Supervisor(run, plan, RunOptions(shares=(Share(),)), say=said.append)
            workers._silence = SilenceWatch(who.host, run.settings.lease_policy, monotonic=lambda: now[0])
            workers._seats[0].process = child
            found = make_report(run, plan, manifest.overview())
            for _ in range(int(run.settings.lease_policy.stall.total_seconds()) + 60):
                now[0] += 1
                try:
                    workers._kill_silent(found, manifest)
                except ManifestBusy:
                    now[0] += 40  # as the wait for the lock took
                    workers._silence.stay_awake()
                if child.poll() is not None:
                    break
            assert child.returncode == -signal.SIGKILL
        finally:
            child.kill()
        (row,) = manifest.overview().workers
        assert row.state is WorkerState.HUNG
    assert len(said) == 1
