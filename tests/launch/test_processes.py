from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardgen.coordination.report import Report
from shardgen.domain.worker import log_path
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.stop import StopRequest
from tests.runs import make_run, plan_run, shardgen, start
from tests.stopping import stop_outside_a_commit
from tests.warm import Command

SAMPLES = 2 * 2 * 2 * 400
Process = Command | subprocess.Popen[str]


@pytest.fixture
def long_run(tmp_path: Path) -> RunDirectory:
    """3,200 samples: ten or twenty seconds of work for one worker."""
    run = make_run(
        tmp_path,
        changes={
            "compose.grid": "[20, 20]",
            "shards.size": "1000",
            "lease.seconds": "3",
            "shards.batch": "8",
        },
    )
    return plan_run(run)


@pytest.fixture
def short_run(tmp_path: Path) -> RunDirectory:
    """800 samples: a few seconds of work, and slices enough for two workers."""
    run = make_run(
        tmp_path,
        changes={"compose.grid": "[10, 10]", "shards.size": "500", "lease.seconds": "3", "shards.batch": "8"},
    )
    return plan_run(run)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Processes that a test started; those still running are killed at the end."""
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def wait_for_a_receipt(run: RunDirectory, timeout: float = 240.0, *, held: bool = False) -> Report:
    """Look at the manifest until something is stored; with `held`, and somebody is in a slice."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = report(run)
        if found.stored and not (held and all(one.row.shard is None for one in found.workers)):
            return found
        time.sleep(0.05)
    raise AssertionError("nothing was ever stored")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2)],
    ids=["SIGTERM", "SIGINT", "a notebook's SIGINT and its echo"],
)
def test_a_stopped_worker_gives_its_slice_back_and_says_so_by_its_exit_code(
    long_run: RunDirectory, processes: list[Process], number: signal.Signals, times: int
) -> None:
    worker = start(["worker", long_run.path])
    processes.append(worker)
    wait_for_a_receipt(long_run)
    for _ in range(times):
        worker.send_signal(number)
        time.sleep(0.05)
    assert worker.wait(120) == 128 + number
    found = report(long_run)
    assert 0 < found.stored < SAMPLES
    assert sum(shard.slices.leased + shard.slices.expired for shard in found.overview.shards) == 0
    assert [one.state.value for one in found.workers] == ["stopped"]
    artifacts = len(list(long_run.artifacts.glob("shard-*/*.zip")))
    assert artifacts == found.stored // 8


@pytest.mark.slow
def test_a_stopped_process_that_wakes_after_a_takeover_changes_nothing(
    short_run: RunDirectory, processes: list[Process]
) -> None:
    zombie = start(["worker", short_run.path])
    processes.append(zombie)
    while True:
        stopped = wait_for_a_receipt(short_run, held=True)
        stop_outside_a_commit(zombie.pid, short_run.path / "manifest.sqlite")
        held = next(one for one in report(short_run).workers if one.row.identity.pid == zombie.pid)
        if held.row.shard is not None:
            break
        os.kill(zombie.pid, signal.SIGCONT)  # it was between two slices
    heir = shardgen("worker", short_run.path)
    assert heir.returncode == 0, heir.stderr
    assert stopped.stored > 0
    finished = report(short_run)
    assert finished.pending == 0
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.wait(120) == 0
    after = report(short_run)
    assert after.overview.shards == finished.overview.shards
    assert shardgen("verify", short_run.path).returncode == 0


@pytest.mark.slow
def test_run_survives_a_killed_worker_and_makes_everything(
    short_run: RunDirectory, processes: list[Process]
) -> None:
    parent = start(["run", short_run.path, "--workers", "2"])
    processes.append(parent)
    found = wait_for_a_receipt(short_run, held=True)  # between two slices nobody may hold one
    victim = next(one for one in found.workers if one.row.shard is not None)
    os.kill(victim.row.identity.pid, signal.SIGKILL)
    assert parent.wait(500) == 0
    said = parent.stderr.read() if parent.stderr is not None else ""
    log = log_path(short_run.path / "logs", victim.row.identity.id)
    (line,) = [line for line in said.splitlines() if "was killed by signal 9" in line]
    assert line.endswith(f"; log: {log}")
    assert log.is_file()
    assert report(short_run).stored == short_run.plan().samples
    assert (short_run.path / "dataset.zip").is_file()


@pytest.mark.slow
def test_workers_stop_when_their_run_is_killed(long_run: RunDirectory, processes: list[Process]) -> None:
    parent = start(["run", long_run.path])
    processes.append(parent)
    wait_for_a_receipt(long_run)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        states = {one.state.value for one in report(long_run).workers}
        if states == {"stopped"}:
            return
        time.sleep(0.1)
    raise AssertionError(states)


def test_a_worker_stops_at_its_limit_and_says_what_is_left(long_run: RunDirectory) -> None:
    done = shardgen("worker", long_run.path, "--max-batches", "3", "--shard", "1")
    assert done.returncode == 0, done.stderr
    assert "made 24 samples; 3,176 of 3,200 are pending" in done.stderr
    shards = report(long_run).overview.shards
    assert [shard.stored for shard in shards] == [0, 24, 0, 0]


@pytest.mark.slow
def test_a_deadline_that_has_no_room_for_a_batch_makes_none(long_run: RunDirectory) -> None:
    done = shardgen("worker", long_run.path, "--deadline", "0.01s")
    assert done.returncode == 0, done.stderr
    assert report(long_run).stored == 0


@pytest.mark.slow
def test_a_worker_outlives_the_shell_that_started_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run = plan_run(run)
    command = f"{sys.executable} -m shardgen worker {run.path} >/dev/null 2>&1 & sleep 0.5"
    subprocess.run(["bash", "-c", command], check=True, timeout=30)
    deadline = time.monotonic() + 60
    while report(run).pending:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_past_its_grace_releases_its_slice_without_a_death(
    long_run: RunDirectory, processes: list[Process]
) -> None:
    # A lease alone is not enough: asked to stop before its network has work, a worker ends at once.
    in_the_network = long_run.path / "in-the-network"
    worker = subprocess.Popen(
        [sys.executable, "-c", SLOW_WORKER, long_run.path, in_the_network],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    processes.append(worker)
    deadline = time.monotonic() + 60
    while not in_the_network.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 143
    found = report(long_run)
    assert [one.state.value for one in found.workers] == ["stopped"]
    assert found.overview.shards[0].slices.open == 1
    with sqlite3.connect(long_run.path / "manifest.sqlite") as connection:
        assert connection.execute("SELECT deaths FROM slice").fetchall() == [(0,)]


SLOW_WORKER = """
import logging, sys, time
from pathlib import Path
from shardgen.depth.estimator import DepthEstimator
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import WorkerLimits, WorkerOptions, work

real, calls = DepthEstimator.outputs, []

def slow(self, pictures, **options):
    calls.append(1)
    if len(calls) > 1:  # the first is the warm-up
        Path(sys.argv[2]).touch()
        time.sleep(60)
    return real(self, pictures, **options)

DepthEstimator.outputs = slow
logging.basicConfig(level=logging.INFO)
work(RunDirectory.open(Path(sys.argv[1])), WorkerOptions(limits=WorkerLimits(grace_seconds=0.2)))
"""


def test_a_second_signal_ends_a_worker_at_once_and_an_echo_of_the_first_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    ended: list[int] = []
    monkeypatch.setattr("shardgen.worker.stop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("shardgen.worker.stop.os._exit", ended.append)
    stop = StopRequest()
    stop._received(signal.SIGINT, None)
    assert stop.is_set()
    for _ in range(3):
        now[0] += 0.3
        stop._received(signal.SIGINT, None)
    assert ended == []
    now[0] += 0.3
    stop._received(signal.SIGINT, None)
    assert ended == [130]


EMBEDDED = """
import ctypes, signal, sys
from shardgen.coordination.open import open_directory
from shardgen.errors import WorkersFailed
from shardgen.launch.supervisor import RunOptions, run_workers

libc, handler_of = ctypes.CDLL(None), ctypes.pythonapi.PyOS_getsig
libc.signal.argtypes, handler_of.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
own = ctypes.cast(libc.abs, ctypes.c_void_p).value  # takes a number, and does no harm
libc.signal(signal.SIGHUP, own)
del sys.modules["_signal"]
import _signal  # looks at the handlers that are there, as where an interpreter begins inside a program
assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (None, signal.SIG_DFL)

class NoPlace:
    seats = 0
    def look(self):
        looks.append((handler_of(signal.SIGHUP) == own, signal.getsignal(signal.SIGTERM) != signal.SIG_DFL))

looks, run = [], open_directory(sys.argv[1])
try:
    run_workers(run, run.plan(), NoPlace(), RunOptions(), say=print)
except WorkersFailed:
    assert looks == [(True, True)], looks
    assert handler_of(signal.SIGHUP) == own
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print("left alone")
"""


@pytest.mark.slow
def test_a_handler_of_a_program_around_python_is_left_alone(run: RunDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED, str(run.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("left alone\n", "")
