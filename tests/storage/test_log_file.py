from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from shardgen.storage import log_file
from shardgen.storage.log_file import LogFile, append_crash, open_log

LOGGER = logging.getLogger("shardgen.tests.log_file")


@contextmanager
def logging_to(log: LogFile) -> Iterator[LogFile]:
    LOGGER.addHandler(log)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield log
        log.flush()
    finally:
        LOGGER.removeHandler(log)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_line_has_time_level_and_module_in_front(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "worker-0.log"
    before = time.time()
    with logging_to(open_log(path)):
        LOGGER.warning("%s: away; waiting for it", "/mount")
    (line,) = lines_of(path)
    time_, rest = line.split(" ", 1)
    assert rest == "WARNING shardgen.tests.log_file: /mount: away; waiting for it"
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d{3}Z", time_)
    assert found, line
    assert found[1] in {
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before + second)) for second in range(3)
    }


def test_no_text_passes_for_a_record_or_is_an_order_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.log"
    text = "anna\n2026-01-01T00:00:00.000Z ERROR   forged: \x1b[2J\udcff.png"
    with logging_to(open_log(path)) as log:
        log.handle(LOGGER.makeRecord("anna", logging.ERROR, "", 0, text, (), None))  # no report takes it
        LOGGER.error("failed", exc_info=ValueError("within"))
    lines = lines_of(path)
    assert lines[1] == r"    2026-01-01T00:00:00.000Z ERROR   forged: \x1b[2J\udcff.png"
    assert [line for line in lines if not line.startswith("    ")] == [lines[0], lines[2]]
    assert lines[-1] == "    ValueError: within"


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "FILE_BYTES", 10_000)
    with logging_to(open_log(tmp_path / "worker-0.log")):
        for number in range(1000):
            LOGGER.info("line %d of many", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker-0.log", "worker-0.log.1"]
    assert all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    assert lines_of(tmp_path / "worker-0.log")[-1].endswith("line 999 of many")


def test_the_oldest_logs_of_too_many_go_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MOST_FILES", 3)
    for age, name in enumerate(("d.log", "c.log", "b.log", "b.log.1", "a.log", "a.log.1", "mine.txt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    with logging_to(open_log(tmp_path / "new.log")):
        LOGGER.info("here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.log", "d.log", "mine.txt", "new.log"]


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "worker-0.log").symlink_to("/dev/full")
    with logging_to(open_log(tmp_path / "worker-0.log")):
        for number in range(100):
            LOGGER.info("line %d", number)
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_hangs_delays_nobody_and_what_it_does_not_take_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    is_back = threading.Event()
    real: Callable[..., None] = log_file._Rotated.emit

    def hanging(handler: log_file._Rotated, record: logging.LogRecord) -> None:
        is_back.wait(3)
        real(handler, record)

    monkeypatch.setattr(log_file._Rotated, "emit", hanging)
    monkeypatch.setattr(log_file, "_QUEUED", 10)
    monkeypatch.setattr(log_file, "_FLUSH_SECONDS", 0.2)
    with ExitStack() as stack:
        stack.callback(is_back.set)
        log = stack.enter_context(logging_to(open_log(tmp_path / "worker-0.log")))
        began = time.monotonic()
        for number in range(30):
            LOGGER.info("line %d", number)
        log.flush()
        assert time.monotonic() - began < 2.5
        is_back.set()
        monkeypatch.setattr(log_file, "_FLUSH_SECONDS", 10)
    assert 10 <= len(lines_of(tmp_path / "worker-0.log")) <= 11
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_process_ends_although_the_disk_of_its_log_hangs(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)  # which reads nothing, so writing hangs once the pipe is full
    script = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from shardgen.storage.log_file import LogFile\n"
        "logger = logging.getLogger('shardgen')\n"
        "logger.addHandler(LogFile(Path(sys.argv[1])))\n"
        "for _ in range(40):\n"
        "    logger.error('x' * 5000)\n"
        "sys.exit(19)\n"
    )
    try:
        assert subprocess.run([sys.executable, "-c", script, path], timeout=30, check=False).returncode == 19
    finally:
        os.close(reader)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(OSError, match="logs"):
        open_log(tmp_path / "logs" / "worker-0.log")


def test_how_a_process_crashed_is_added_to_its_log_where_that_is(tmp_path: Path) -> None:
    (tmp_path / "worker-0.log").write_text("before\n", encoding="utf-8")
    append_crash(tmp_path / "worker-0.log", ["Fatal Python error: Aborted", "\x1b[2J"])
    append_crash(tmp_path / "gone" / "worker-1.log", ["Fatal Python error: Aborted"])
    assert lines_of(tmp_path / "worker-0.log") == [
        "before",
        "    Fatal Python error: Aborted",
        r"    \x1b[2J",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "worker-0.log"]
