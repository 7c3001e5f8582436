"""What people see: real commands on real terminals, and on those that a notebook's `!command` has."""

from __future__ import annotations

import codecs
import os
import re
import select
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.runs import make_run, plan_run, shardgen

NOTEBOOK = {"JPY_PARENT_PID": "1"}
PATIENCE_SECONDS = 240.0
SIGNS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

pytestmark = pytest.mark.slow  # each test starts commands


@dataclass(slots=True)
class Seen:
    """What came on a terminal, and when (seconds since the start)."""

    columns: int
    pieces: list[tuple[float, str]] = field(default_factory=list)
    code: int = -1

    @property
    def raw(self) -> str:
        return "".join(piece for _, piece in self.pieces)

    @property
    def seconds(self) -> float:
        return self.pieces[-1][0] - self.pieces[0][0]

    @property
    def frames(self) -> list[str]:
        """What was drawn over itself, each time as it stood there."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw)
        return [frame.rstrip() for frame in re.split(r"\r\n|\r|\n", text) if frame.strip()]

    @property
    def screen(self) -> list[str]:
        """What a person has before them at the end: what carriage returns and erasing leave."""
        lines, column = [""], 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.raw):
            line = lines[-1]
            if part == "\r":
                column = 0
            elif part == "\n":
                lines, column = [*lines, ""], 0
            elif part == "\x1b[K":
                lines[-1] = line[:column]
            elif part[0] != "\x1b":
                lines[-1] = line[:column].ljust(column) + part + line[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines if line.strip()]


def watch(command: object, slave: int, master: int, columns: int) -> Seen:
    """Read a terminal to the end of its command."""
    seen, began, ended = Seen(columns), time.monotonic(), threading.Event()
    decoder = codecs.getincrementaldecoder("utf-8")()

    def read() -> None:
        while True:
            was_ended = ended.is_set()
            if not select.select([master], [], [], 0.02)[0]:
                if was_ended:
                    return
                continue
            piece = decoder.decode(os.read(master, 65536))
            seen.pieces.append((time.monotonic() - began, piece))

    reader = threading.Thread(target=read)
    reader.start()
    assert isinstance(command, (warm.Command, subprocess.Popen))
    try:
        seen.code = command.wait(PATIENCE_SECONDS)
    finally:
        command.kill()
        ended.set()
        reader.join(PATIENCE_SECONDS)
        os.close(slave)
        os.close(master)
    return seen


def opened(columns: int) -> tuple[int, int]:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    return master, slave


def typed(*words: str | Path, columns: int = 80, more: dict[str, str] | None = None) -> Seen:
    """Type a command into a terminal, and look at it until the command ends."""
    master, slave = opened(columns)
    environment = {"TERM": "xterm", "COLUMNS": "", "JPY_PARENT_PID": "", "COLAB_RELEASE_TAG": ""}
    command = warm.start(
        "shardgen", words, environment=environment | (more or {}), said=Path(os.ttyname(slave))
    )
    return watch(command, slave, master, columns)


@pytest.fixture
def fresh(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


def story(run: RunDirectory) -> list[tuple[str | Path, ...]]:
    zip_file, out = run.path / "dataset.zip", run.path.parent / "tars"
    return [
        ("plan", run.path),
        ("preview", run.path, "--samples", "2"),
        ("run", run.path),
        ("verify", zip_file),
        ("export", zip_file, out, "--format", "webdataset"),
    ]


def test_a_notebook_gets_one_line_that_returns_and_whole_lines_above_it(fresh: RunDirectory) -> None:
    for words in story(fresh):
        seen = typed(*words, more=NOTEBOOK)
        assert seen.code == 0, seen.raw
        assert "\x1b" not in seen.raw, words
        drawn = [frame for frame in seen.frames if frame not in seen.screen]
        assert 1 <= len(drawn) <= seen.seconds / 2 + 2, (words, drawn)
        if words[0] == "run":
            assert "100 %  48/48 samples" in seen.screen
            assert "[worker-0] ready" in seen.screen
        assert not any(re.search(r"\d %.*\d %", line) for line in seen.screen), seen.screen


def test_a_terminal_is_drawn_over_and_is_left_as_if_nothing_had_moved(fresh: RunDirectory) -> None:
    for words in story(fresh):
        seen = typed(*words)
        assert seen.code == 0, seen.raw
        moving = [frame for frame in seen.frames if frame[0] in SIGNS]
        assert 0 < max(map(len, moving), default=0) < seen.columns
        assert min(map(len, moving)) > 1, "a line that says nothing"
        assert not any(sign in line for line in seen.screen for sign in SIGNS), seen.screen
        for label in ("reading the sources", "making samples", "verifying", "merging", "exporting"):
            bars = {
                bar.span()
                for frame in moving
                if frame[2:].startswith(label) and (bar := re.search("[━─]+", frame))
            }
            assert len(bars) <= 1, (label, moving)
        if words[0] == "run":
            assert "100 %  48/48 samples" in seen.screen


def test_a_worker_shows_the_whole_run_and_its_own_part(tmp_path: Path) -> None:
    run = plan_run(make_run(tmp_path, changes={"compose.grid": "[6, 6]", "shards.size": "400"}))
    first = shardgen("worker", run.path, "--max-batches", "5")
    assert first.returncode == 0, first.stderr
    assert "loading the network, up to a minute" in first.stderr.splitlines()
    stored = report(run).stored
    seen = typed("worker", run.path, columns=120)
    assert seen.code == 0, seen.raw
    moving = [frame for frame in seen.frames if " by this one" in frame]
    assert moving, seen.frames
    for frame in moving:
        done = int(re.search(r"(\d+)/288 samples", frame)[1])  # type: ignore[index]
        own = int(re.search(r"(\d+) by this one", frame)[1])  # type: ignore[index]
        assert 0 <= stored + own - done <= 8, frame  # a batch or two may come while it looks
        assert "· 1 worker ·" in frame or done == 288
    assert seen.screen[-1] == f"made {288 - stored} samples; 0 of 288 are pending"


@pytest.mark.parametrize(
    ("columns", "more"), [(110, {}), (50, {}), (110, NOTEBOOK)], ids=["terminal", "narrow", "notebook"]
)
def test_watching_ends_with_the_run_and_says_what_comes_next(
    tmp_path: Path, columns: int, more: dict[str, str]
) -> None:
    run = plan_run(make_run(tmp_path, changes={"compose.grid": "[6, 6]", "shards.size": "400"}))
    worker = warm.start("shardgen", ["worker", run.path], said=Path(os.devnull))
    try:
        seen = typed("status", run.path, "--watch", columns=columns, more=more)
    finally:
        worker.kill()
        worker.wait(60)
    assert seen.code == 0, seen.raw
    assert seen.screen[-1].startswith("to make the zip") or columns < 80
    tables = seen.raw.count("planned 288")
    if columns == 110 and not more:
        assert tables > 1
    else:
        assert tables == 1
        assert re.search(r"\d+ %  +\d+/288 samples", seen.raw)
    assert ("\x1b" in seen.raw) == (not more)


@pytest.mark.parametrize("command", ["plan", "preview", "run", "worker"])
def test_something_moves_within_a_second_of_the_interpreters_start(run: RunDirectory, command: str) -> None:
    """On a busy machine the start itself takes long: `--help` measures it, and the load may double."""
    began = time.monotonic()
    start = [sys.executable, "-m", "shardgen"]
    subprocess.run([*start, command, "--help"], check=True, capture_output=True, timeout=60)
    floor = time.monotonic() - began
    master, slave = opened(80)
    environment = {**os.environ, "TERM": "xterm", "JPY_PARENT_PID": "", "COLAB_RELEASE_TAG": ""}
    process = subprocess.Popen(
        [*start, command, str(run.path)],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=environment,
    )
    seen = watch(process, slave, master, 80)
    assert seen.code == 0, seen.raw
    assert seen.pieces[0][0] < 2 * floor + 1.0, (seen.pieces[0], floor)
    assert seen.frames[0][0] in SIGNS
