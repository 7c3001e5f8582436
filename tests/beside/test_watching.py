from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.beside import notes
from benchmarks.beside.peers import ROOT
from benchmarks.beside.serving import Pictures
from benchmarks.beside.watching import Ending, Watch, marked

PATIENCE_SECONDS = 120.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def watch(folder: Path, *command: str, patience: float = PATIENCE_SECONDS) -> Watch:
    return Watch(
        command=command,
        environment=dict(os.environ),
        folder=folder,
        log=folder / "log.txt",
        patience_seconds=patience,
        grace_seconds=0.2,
    )


def test_a_command_that_ends_is_reported_with_its_exit_code(tmp_path: Path) -> None:
    ending = watch(tmp_path, "sh", "-c", "echo said; exit 3").to_its_end()
    assert ending == Ending(exit_code=3)
    assert (tmp_path / "log.txt").read_text() == "said\n"


def test_a_silent_idle_command_hangs_and_is_ended(tmp_path: Path) -> None:
    assert watch(tmp_path, "sleep", "100000", patience=0.4).to_its_end() == Ending(exit_code=None)


def test_a_command_that_beats_for_ever_hangs_too(tmp_path: Path) -> None:
    beating = watch(tmp_path, "sh", "-c", "while :; do echo beat; sleep 0.05; done")
    assert replace(beating, limit_seconds=0.4).to_its_end() == Ending(exit_code=None)


def test_a_process_that_outlives_its_command_is_counted_and_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    ending = watch(tmp_path, "sh", "-c", f"sleep 100000 & echo $! > {pid_file}").to_its_end()
    assert ending == Ending(exit_code=0, left_running=1)
    assert not is_running(int(pid_file.read_text()))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_only_what_carries_the_mark_is_ended_even_in_a_session_of_its_own() -> None:
    stranger = subprocess.Popen(["sleep", "100000"])
    try:
        with marked() as mark:
            subprocess.run(["setsid", "-f", "sleep", "100000"], env=mark.on(os.environ), check=True)
            wait_for(lambda: sum(one.name() == "sleep" for one in mark.processes()) == 1)
            sleeper = next(one.pid for one in mark.processes() if one.name() == "sleep")
        assert not is_running(sleeper)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_the_kill_falls_on_the_first_to_begin_its_nth_sample_and_on_no_other(tmp_path: Path) -> None:
    script = "from benchmarks.beside import notes\nfor sample in range(5): notes.begin(sample)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), notes.FOLDER: str(tmp_path), notes.KILL_AT: "3"}
    codes = [
        subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode
        for _ in range(2)
    ]
    assert codes == [-signal.SIGKILL, 0]
    assert sorted(notes.begun(tmp_path)) == [0, 0, 1, 1, 2, 2, 3, 4]
    assert notes.victim_file(tmp_path).exists()


@pytest.mark.parametrize("module", ["notes", "programs.consuming"])
def test_what_runs_in_other_projects_environments_needs_only_the_standard_library(module: str) -> None:
    # -S: without site-packages; -I: without this folder either.
    script = f"import sys; sys.path.insert(0, sys.argv[1]); import benchmarks.beside.{module}"
    subprocess.run([sys.executable, "-I", "-S", "-c", script, str(ROOT)], check=True)


def test_the_server_holds_the_second_half_until_told_to_go_on() -> None:
    server = Pictures(halt_from=10, halt_after=2)
    got: list[bytes] = []

    def get(number: int) -> None:
        with urllib.request.urlopen(server.address(number), timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
            got.append(answer.read())

    try:
        for number in (10, 11, 0):
            get(number)
        assert not server.halted
        held = threading.Thread(target=get, args=(12,))
        held.start()
        wait_for(lambda: server.halted)
        get(1)
        assert len(got) == 4
        server.go_on()
        held.join(PATIENCE_SECONDS)
        assert len(got) == 5
        assert len(set(got)) == 1
        assert got[0].startswith(b"\xff\xd8")
        assert server.asked == [10, 11, 0, 12, 1]
        assert Pictures.number(server.address(12)) == 12
    finally:
        server.close()
