from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests.runs import make_run, plan_run

SHARDGEN = f"exec {sys.executable} -m shardgen"
WAIT_SECONDS = 120.0


@pytest.fixture
def long_run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path, changes={"compose.grid": "[30, 30]", "shards.size": "1000", "shards.batch": "8"})
    return plan_run(run)


class Terminal:
    """A real terminal with a shell in it, until it is closed."""

    def __init__(self, line: str, folder: Path) -> None:
        self._master, slave = os.openpty()
        self.shell = subprocess.Popen(
            ["bash", "-c", line],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: os.login_tty(0),  # noqa: PLW1509 - no threads here
        )
        os.close(slave)

    def close(self) -> None:
        os.close(self._master)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    """Opens terminals; what still runs in their shells at the end is killed."""
    shells: list[subprocess.Popen[bytes]] = []

    def open_one(line: str) -> Terminal:
        terminal = Terminal(line, tmp_path)
        shells.append(terminal.shell)
        return terminal

    yield open_one
    for shell in shells:
        shell.kill()
        shell.wait()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def deaths(run: RunDirectory) -> int:
    with contextlib.closing(sqlite3.connect(run.path / "manifest.sqlite")) as connection:
        return int(connection.execute("SELECT coalesce(sum(deaths), 0) FROM slice").fetchone()[0])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["worker", "run"])
def test_a_closed_terminal_stops_the_work_as_sigterm_does(
    long_run: RunDirectory, opened: Callable[[str], Terminal], command: str
) -> None:
    terminal = opened(f"{SHARDGEN} {command} {long_run.path}")
    until(lambda: report(long_run).stored > 0)
    terminal.close()
    assert terminal.shell.wait(WAIT_SECONDS) == 129
    found = report(long_run)
    assert found.pending > 0
    assert [one.state.value for one in found.workers] == ["stopped"]
    assert sum(shard.slices.leased + shard.slices.expired for shard in found.overview.shards) == 0
    assert deaths(long_run) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "trap '' HUP; nohup {worker} {run}",
        "set -m; ({worker} {run}) & disown; wait",
        "set -m; (exec setsid {worker} {run}) & wait",
    ],
    ids=["nohup", "disown", "setsid"],
)
def test_a_worker_that_is_to_outlive_its_terminal_goes_on(
    long_run: RunDirectory, opened: Callable[[str], Terminal], line: str
) -> None:
    words = line.format(worker=f"{sys.executable} -m shardgen worker", run=long_run.path)
    terminal = opened(words)
    until(lambda: report(long_run).stored > 0)
    worker = psutil.Process(report(long_run).workers[0].row.identity.pid)
    try:
        terminal.close()
        stored = report(long_run).stored
        until(lambda: report(long_run).stored > stored + 400)
        worker.send_signal(signal.SIGTERM)
        until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        assert [one.state.value for one in report(long_run).workers] == ["stopped"]
        assert deaths(long_run) == 0
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "echo", "code"),
    [
        (signal.SIGTERM, signal.SIGHUP, 143),
        (signal.SIGHUP, signal.SIGTERM, 129),
        (signal.SIGINT, signal.SIGINT, 130),
    ],
)
def test_any_other_command_leaves_nothing_half_done_when_it_is_stopped(
    finished_run: RunDirectory, number: signal.Signals, echo: signal.Signals, code: int
) -> None:
    numbers = (str(number.value), str(echo.value))
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_ITS_END, *numbers, "merge", str(finished_run.path)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, "stopped"), done.stderr
    assert not list(finished_run.path.glob("*.zip"))
    assert not list(finished_run.path.glob(".*.part"))


STOPPED_AT_ITS_END = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have it ignored
from shardgen.dataset.zip_writer import FinalZip
from shardgen.cli.app import main

def finish(self):
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), echo)

FinalZip.finish = finish
number, echo = int(sys.argv.pop(1)), int(sys.argv.pop(1))
main()
"""
