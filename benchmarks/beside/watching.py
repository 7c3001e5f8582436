"""Run a command to its end, or find that it hangs; and end all that it started, and nothing else."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MARK = "SHARDGEN_BENCHMARK_MARK"
_TICK_SECONDS = 0.05
_IDLE_CORES = 0.2  # less is polling; a command that computes silently uses more


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended: its exit code (None: it hung until it was ended), and what outlived it."""

    exit_code: int | None
    left_running: int = 0

    def __str__(self) -> str:
        if self.exit_code is None:
            return "hangs"
        left = f", {self.left_running} of its processes stay" if self.left_running else ""
        return f"exit code {self.exit_code}{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A variable that every process inherits which a marked one starts: it tells ours from all others."""

    text: str = field(default_factory=lambda: secrets.token_hex(16))

    def on(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment for a marked process."""
        return {**environment, _MARK: self.text}

    def processes(self) -> list[psutil.Process]:
        """Those that are running and marked."""
        return [one for one in psutil.process_iter() if self._is_on(one)]

    def _is_on(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self.text
        except (psutil.Error, OSError):
            return False

    def end_all(self) -> None:
        """`kill -9` whatever is marked, until nothing is."""
        while running := self.processes():
            for process in running:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(running, timeout=1)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """What these have used so far."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


@contextmanager
def marked() -> Iterator[Mark]:
    """A fresh mark; in the end nothing that carries it is left."""
    mark = Mark()
    try:
        yield mark
    finally:
        mark.end_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A command, the folder in which its signs of life appear, and the patience with its silence."""

    command: Sequence[str | Path]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    patience_seconds: float
    grace_seconds: float = 10.0
    """For what the command started to end after it."""
    limit_seconds: float = 900.0
    """A command that only beats, and never ends, hangs too."""

    def to_its_end(self, on_tick: Callable[[Mark], None] = lambda _mark: None) -> Ending:
        """Run it. `on_tick` is called all the time, with the mark of its processes."""
        with marked() as mark, self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command
                self.command,
                env=mark.on(self.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its own Ctrl-C, and no terminal
            )
            if self._hangs(process, mark, on_tick):
                mark.end_all()
                process.wait()
                return Ending(exit_code=None)
            return Ending(exit_code=process.returncode, left_running=self._left_running(mark))

    def _hangs(self, process: subprocess.Popen[bytes], mark: Mark, on_tick: Callable[[Mark], None]) -> bool:
        """Wait until it ends, has been silent and idle for too long, or is at the limit."""
        seen, since, used = _signs_of_life(self.folder), time.monotonic(), None
        limit = since + self.limit_seconds
        while process.poll() is None:
            if time.monotonic() > limit:
                return True
            on_tick(mark)
            signs, silent = _signs_of_life(self.folder), time.monotonic() - since
            if signs != seen:
                seen, since, used = signs, time.monotonic(), None
            elif used is None and silent > min(1.0, self.patience_seconds / 2):
                used = cpu_seconds(mark.processes())
            elif used is not None and silent > self.patience_seconds:
                if cpu_seconds(mark.processes()) - used < _IDLE_CORES * silent:
                    return True
                since, used = time.monotonic(), None
            time.sleep(_TICK_SECONDS)
        return False

    def _left_running(self, mark: Mark) -> int:
        deadline = time.monotonic() + self.grace_seconds
        while (left := len(mark.processes())) and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        return left


def _signs_of_life(folder: Path) -> tuple[int, int, int]:
    """How many files, how many bytes, and the latest change."""
    count = size = latest = 0
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        count, size, latest = count + 1, size + found.st_size, max(latest, found.st_mtime_ns)
    return count, size, latest
