"""Where workers log, and who says where that is."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardgen.cli import logs
from shardgen.cli.logs import keep_log, log_error, show_logs
from shardgen.errors import StorageFailed
from shardgen.launch.launcher import LastWords, Relay
from shardgen.launch.local import said_by
from shardgen.machine.processes import new_identity
from shardgen.settings.run_directory import RunDirectory
from tests.runs import make_run, plan_run, shardgen


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """The logger of the package, which is as it was when the test has ended."""
    logger = logging.getLogger("shardgen")
    before = logger.handlers, logger.level, logger.propagate
    # A logger that does not propagate gets handlers of pytest's own.
    logger.handlers, logger.propagate = [], True
    yield logger
    logger.handlers, logger.level, logger.propagate = before


def messages(path: Path) -> list[str]:
    """What a log says, without time, level and module."""
    return [line.split(": ", 1)[-1] for line in path.read_text(encoding="utf-8").splitlines()]


def only_log(folder: Path) -> Path:
    (path,) = folder.glob("*.log")
    return path


def changed_backgrounds(run: RunDirectory, folder: Path) -> Path:
    """A copy of the run's backgrounds, one of which has another last byte."""
    shutil.copytree(run.folders({})["backgrounds"], folder)
    first = min(folder.iterdir())
    data = first.read_bytes()
    first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return folder


@pytest.mark.slow
def test_a_worker_logs_all_that_it_says_and_more_in_a_file_that_status_names(run: RunDirectory) -> None:
    done = shardgen("worker", run.path, "--id", "anna")
    assert done.returncode == 0, done.stderr
    log = only_log(run.path / "logs")
    said = [line.removeprefix("[anna] ") for line in done.stderr.splitlines() if line.startswith("[anna] ")]
    logged = messages(log)
    assert "made 48 samples; 0 of 48 are pending" in said
    assert [logged.count(line) for line in said] == [1] * len(said)
    assert "leased shard 0 slice 0, fence 1" in logged
    assert not [line for line in done.stderr.splitlines() if "leased" in line or line.startswith("log: ")]
    assert f"log: {log}" in shardgen("status", run.path).stdout.splitlines()
    (worker,) = json.loads(shardgen("status", run.path, "--json").stdout)["workers"]
    assert worker["log"] == str(log)
    log.unlink()
    assert "log: " not in shardgen("status", run.path).stdout


def test_a_worker_that_ends_by_an_error_names_its_log_which_has_the_traceback(
    run: RunDirectory, tmp_path: Path
) -> None:
    others = changed_backgrounds(run, tmp_path / "changed")
    done = shardgen("worker", run.path, "--backgrounds", others)
    assert done.returncode == 10, done.stderr
    log = only_log(run.path / "logs")
    named, error, hint = done.stderr.splitlines()[-3:]
    assert named == f"log: {log}"
    text = log.read_text(encoding="utf-8")
    assert f"Z ERROR   shardgen.cli.logs: {error}\n    {hint}\n    Traceback" in text
    assert "check_sources" in text


@pytest.mark.slow
def test_run_names_the_log_of_a_worker_that_it_gives_up(run: RunDirectory, tmp_path: Path) -> None:
    others = changed_backgrounds(run, tmp_path / "changed")
    done = shardgen("run", run.path, "--device", "cpu", "--backgrounds", others)
    assert done.returncode == 14, done.stderr
    lines, log = done.stderr.splitlines(), only_log(run.path / "logs")
    assert f"[worker-0] ended with exit code 10; log: {log}" in lines
    assert lines[-1].startswith("hint: ")
    assert lines[-1].endswith(f"; log: {log}")
    assert not [line for line in lines if line.startswith("log: ")]


def test_what_takes_no_log_costs_no_work_and_the_log_is_in_the_cache_folder(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: logging.Logger
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    (run.path / "logs").touch()  # no folder can take its place, not even root's
    show_logs()
    log = keep_log(run, new_identity("anna"))
    assert log is not None
    assert log.path.is_relative_to(tmp_path / "cache")
    logging.getLogger("shardgen.anything").debug("here")
    log.flush()
    assert messages(log.path) == ["here"]
    assert log.path.parent in run.log_folders

    nowhere = RunDirectory.open(run.path)
    (tmp_path / "cache").rename(tmp_path / "before")
    (tmp_path / "cache").touch()
    assert keep_log(nowhere, new_identity("anna")) is None
    assert len(ours.handlers) == 2


def test_nothing_is_appended_on_a_drive(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: logging.Logger
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "shardgen.machine.file_systems.is_on_drive", lambda path: path.is_relative_to(run.path)
    )
    log = keep_log(run, new_identity("anna"))
    assert log is not None
    assert log.path.is_relative_to(tmp_path / "cache")
    assert not (run.path / "logs").exists()
    assert ours.handlers == [log]


def test_on_a_shared_folder_logs_are_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    run = plan_run(make_run(tmp_path, changes={"manifest.url": '"folder:"'}))
    assert run.index is not None
    assert run.log_folders == (run.index / "logs",)
    assert run.index.is_relative_to(tmp_path / "cache")


def test_what_a_deliberate_errors_cause_says_is_not_logged_and_what_a_bugs_cause_says_is(
    run: RunDirectory, tmp_path: Path, ours: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log = keep_log(run, new_identity("anna"))
    assert log is not None
    secret = OSError("key AKIA123")
    for error in (StorageFailed("the store refuses", hint="renew the key"), ZeroDivisionError("a bug")):
        try:
            shutil.rmtree(tmp_path / "gone")
        except OSError as raised:
            error.__cause__ = secret.with_traceback(raised.__traceback__)
        log_error(error, f"error: {error}")
        log.flush()
        text = log.path.read_text(encoding="utf-8")
        assert ("AKIA123" in text) == isinstance(error, ZeroDivisionError)
        assert "in rmtree" in text
    assert "    OSError, which led to\n    shardgen.errors.StorageFailed: the store refuses\n" in text
    assert capsys.readouterr().err.splitlines() == [f"log: {log.path}"] * 2
    assert [handler.name for handler in ours.handlers] == [logs._FILE]


def test_no_text_can_pass_for_what_a_worker_says_of_itself(
    ours: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    show_logs(prefix="[anna] ")
    ours.info("no such photograph: %s", "a\nlog: /elsewhere\nerror: b")
    said, words = capsys.readouterr().err.splitlines(), LastWords()
    assert said == ["[anna] no such photograph: a", "    log: /elsewhere", "    error: b"]
    for line in said:
        Relay(list[str]().append).hear("anna", line, words)
    assert (words.log, words.error) == ("", "")


def test_how_an_interpreter_crashed_is_on_the_terminal_and_in_the_log(tmp_path: Path) -> None:
    log, said, words = tmp_path / "worker-0.log", list[str](), LastWords()
    script = (
        "import faulthandler, os, signal, sys\n"
        "sys.stderr.write(f'log: {sys.argv[1]}\\n[worker-0] ready\\n')\n"
        "open(sys.argv[1], 'w').write('ready\\n')\n"
        "faulthandler.enable()\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, log], stderr=subprocess.PIPE, text=True, errors="replace"
    )
    for line in said_by(child):
        Relay(said.append).hear("worker-0", line, words)
    assert child.wait() == -signal.SIGSEGV
    assert said[:2] == ["[worker-0] ready", "Fatal Python error: Segmentation fault"]
    assert (words.log, words.log_named) == (str(log), f"; log: {log}")
    in_log = log.read_text(encoding="utf-8").splitlines()
    assert in_log == ["ready", *(f"    {line}" for line in said[1:])]


@pytest.mark.parametrize("command", ["status", "verify", "sweep", "dead-letters"])
def test_a_command_that_only_reads_makes_no_logs(finished_run: RunDirectory, command: str) -> None:
    shutil.rmtree(finished_run.path / "logs", ignore_errors=True)
    assert shardgen(command, finished_run.path).returncode == 0
    assert not (finished_run.path / "logs").exists()
