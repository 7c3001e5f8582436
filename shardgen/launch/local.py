"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardgen.domain.wording import Say
from shardgen.launch.allocation import Share
from shardgen.launch.launcher import LOG, Ended, LastWords, Order, ProcessId, Relay, WorkerCommand
from shardgen.machine.memory import KernelKills
from shardgen.machine.processes import host_id
from shardgen.recipes.base import Folders
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.log_file import append_crash
from shardgen.worker.stop import PARENT_VARIABLE

_CRASH = "Fatal Python error"  # how what faulthandler writes begins


def start_process(arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start `shardgen` with these arguments; it ends when this process does, and says its lines on stderr."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        # -P: nothing in the folder that the command was typed in is taken for a module
        [sys.executable, "-P", "-m", "shardgen", *arguments],
        env=environment | {PARENT_VARIABLE: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C reaches this process alone, which forwards it once
    )


def said_by(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines of a process that was started, to its end; how its interpreter crashed goes into its log."""
    log, crash = "", list[str]()
    with process.stderr or contextlib.nullcontext(()) as lines:
        for line in map(str.rstrip, lines):
            if named := LOG.match(line):
                log = named[1]
            if crash or line.startswith(_CRASH):
                crash.append(line)
            yield line
    if crash and log:
        append_crash(Path(log), crash)


@dataclass(slots=True)
class LocalProcess:
    """A child of this process."""

    process: subprocess.Popen[str]
    kernel: KernelKills = field(default_factory=KernelKills)
    id: ProcessId = field(init=False)
    last_words: LastWords = field(default_factory=LastWords)
    _relay: threading.Thread | None = None
    _ended: Ended | None = None

    def __post_init__(self) -> None:
        self.id = ProcessId(host_id(), self.process.pid)

    def ended(self) -> Ended | None:
        """How it ended; None while it runs."""
        if self._ended is None and (code := self.process.poll()) is not None:
            self._ended = Ended(code=code, memory=self.kernel.explain() if code == -signal.SIGKILL else "")
        return self._ended

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        self.process.send_signal(number)

    def follow(self, name: str, relay: Relay) -> None:
        """Pass on what it says, from now on."""
        self._relay = threading.Thread(target=self._listen, args=(name, relay), daemon=True)
        self._relay.start()

    def hear_out(self) -> None:
        """Wait a moment for what may still be in the pipe."""
        if self._relay is not None:
            self._relay.join(timeout=1)

    def _listen(self, name: str, relay: Relay) -> None:
        for line in said_by(self.process):
            relay.hear(name, line, self.last_words)


class LocalLauncher:
    """Starts a worker for each share of this machine; it gets the same share each time."""

    def __init__(
        self, run: RunDirectory, shares: Sequence[Share], *, say: Say, folders: Folders | None = None
    ) -> None:
        self._command = WorkerCommand(run_dir=run.named, folders=folders or {})
        self._shares = tuple(shares)
        self._relay = Relay(say)
        self._kernel = KernelKills()

    @property
    def seats(self) -> int:
        """One for each share."""
        return len(self._shares)

    def look(self) -> None:
        """See how little memory is free: what a killed process held is free after its death."""
        self._kernel.look()

    def start(self, order: Order) -> LocalProcess:
        """Start a worker with its share."""
        share = self._shares[order.number]
        arguments = self._command.arguments(order, share.device)
        process = LocalProcess(start_process(arguments, share.environment(os.environ)), self._kernel)
        process.follow(order.name, self._relay)
        return process
