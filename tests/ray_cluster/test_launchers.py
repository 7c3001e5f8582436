"""Both launchers keep the port's promises; collected where SHARDGEN_TEST_RAY is set."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shardgen.launch.allocation import Share
from shardgen.launch.launcher import Launcher, Order, WorkerCommand, WorkerProcess
from shardgen.launch.local import LocalLauncher
from shardgen.launch.ray import RayLauncher, connected
from shardgen.launch.rooms import ClusterWanted
from tests.ray_cluster.cluster import wait_until
from tests.ray_cluster.conftest import ClusterRun

pytestmark = pytest.mark.slow


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(params=["local", "ray"])
def launcher(
    request: pytest.FixtureRequest,
    on_cluster: ClusterRun,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Launcher]:
    """For two workers of one CPU each."""
    for name, value in on_cluster.environment.items():
        monkeypatch.setenv(name, value)
    if request.param == "local":
        yield LocalLauncher(on_cluster.run, (Share(device="cpu", threads=1),) * 2, say=said.append)
        return
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)  # read long ago
    passed_on = {name: value for name, value in os.environ.items() if name.startswith("SHARDGEN")}
    with connected(on_cluster.cluster.address):
        yield RayLauncher(
            WorkerCommand(run_dir=str(on_cluster.run.path)),
            ClusterWanted(),
            say=said.append,
            passed_on=passed_on,
        )
    on_cluster.assert_nothing_is_left()


def started(launcher: Launcher, number: int, *, batches: int | None = None) -> WorkerProcess:
    """The worker of a seat, when it has a place."""
    process = launcher.start(Order(number=number, batches=batches))
    assert process is not None
    wait_until(lambda: process.id is not None, lambda: "it never got a place")
    return process


def end_of(process: WorkerProcess, said: list[str]) -> int | None:
    wait_until(lambda: process.ended() is not None, lambda: "\n".join(said))
    process.hear_out()
    ended = process.ended()
    assert ended is not None
    return ended.code


def test_a_worker_does_what_it_was_ordered_to_and_each_of_its_lines_is_passed_on(
    launcher: Launcher, said: list[str], on_cluster: ClusterRun
) -> None:
    assert launcher.seats == 2
    process = started(launcher, 1, batches=3)
    assert process.id is not None
    assert "--id worker-1" in " ".join(psutil.Process(process.id.pid).cmdline())
    launcher.look()
    assert end_of(process, said) == 0
    assert [one for one in said if one.startswith("[worker-1] made 12 samples")]
    assert on_cluster.report().stored == 12
    again = started(launcher, 1, batches=2)
    assert again.id != process.id
    assert end_of(again, said) == 0
    assert on_cluster.report().stored == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_reaches_the_worker_and_its_end_says_so(
    launcher: Launcher, said: list[str], number: signal.Signals, code: int
) -> None:
    process = started(launcher, 0)
    wait_until(lambda: "[worker-0] ready" in said, lambda: "\n".join(said))
    assert process.ended() is None
    process.send(number)
    assert end_of(process, said) == code
    ended = process.ended()
    assert ended is not None
    expected = r"was killed by signal 9( on \S+)?" if code < 0 else r"ended with exit code 143( on \S+)?"
    assert re.fullmatch(expected, ended.shown)
    process.send(number)  # it is gone: nothing happens
    assert process.ended() == ended


def test_an_error_that_two_say_is_passed_on_once(
    launcher: Launcher, said: list[str], on_cluster: ClusterRun
) -> None:
    changed = next(Path(on_cluster.folder, "sources", "backgrounds").iterdir())
    changed.write_bytes(changed.read_bytes() + b"\0")
    processes = [started(launcher, number) for number in range(2)]
    codes = {end_of(process, said) for process in processes}
    assert len(codes) == 1
    assert codes < set(range(10, 20))
    assert sum("error: " in line for line in said) == 1
    assert sum("hint: " in line for line in said) == 1
    assert sorted(process.last_words.is_repeated for process in processes) == [False, True]
    assert processes[0].last_words.error == processes[1].last_words.error != ""
