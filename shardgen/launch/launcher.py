"""The port: what a supervisor needs from whatever starts worker processes, here or on a cluster."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from shardgen.domain.wording import Say
from shardgen.recipes.base import Folders

GRACE_SECONDS = 25.0  # that a worker has to end in peace, once it is told to stop
_JUST_SECONDS = 600.0  # in which the same error is one, whoever says it
LOG = re.compile(r"log: (.*)")
LAST_WORDS = re.compile(r"(?:\[[^\]]*\] )?(error|hint): (.*)")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process on any machine; `host` as a worker's identity has it."""

    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the worker of one seat should do; `seconds` until it must end, `batches` to make (None: all)."""

    number: int
    seconds: float = math.inf
    batches: int | None = None

    @property
    def name(self) -> str:
        """The worker's name, in front of each of its lines."""
        return f"worker-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: its exit code, negative for a signal.

    `code` is None if nobody saw it end: it was lost together with its parent. `how` says it in words, and
    `memory` says that the kernel probably killed it for memory, if so.
    """

    code: int | None
    how: str = ""
    memory: str = ""

    @property
    def shown(self) -> str:
        """The words for a sentence about the worker."""
        if self.code is None or self.how:
            return self.how
        return f"was killed by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"


@dataclass(slots=True)
class LastWords:
    """The error and the hint that a process ended with, so far, and where its log is on its machine.

    `is_known`: the same was said just before; `is_repeated`: by another worker.
    """

    error: str = ""
    hint: str = ""
    log: str = ""
    is_known: bool = False
    is_repeated: bool = False

    @property
    def log_named(self) -> str:
        """`; log: PATH`, behind a sentence about the worker; empty where it has none."""
        return f"; log: {self.log}" if self.log else ""


@dataclass(slots=True)
class Relay:
    """Passes on workers' lines, without repeating an error that one of them has just reported."""

    say: Say
    monotonic: Callable[[], float] = time.monotonic
    _said: dict[str, tuple[str, float]] = field(default_factory=dict)  # by whom and when, by error

    def hear(self, name: str, line: str, last_words: LastWords) -> None:
        """Take a line of a worker; from any thread."""
        if log := LOG.match(line):
            last_words.log = log[1]  # said where it is of use
            return
        if said := LAST_WORDS.match(line):
            setattr(last_words, said[1], said[2])
            if said[1] == "error":
                now = self.monotonic()
                by, at = self._said.get(said[2], (name, -math.inf))
                last_words.is_known = now - at < _JUST_SECONDS
                last_words.is_repeated = last_words.is_known and by != name
                if not last_words.is_known:
                    self._said[said[2]] = (name, now)
            if last_words.is_known:
                return
        self.say(line)


class WorkerProcess(Protocol):
    """A worker process that was started."""

    @property
    def id(self) -> ProcessId | None:
        """Which process it is; None while it waits for a place to run."""
        ...

    @property
    def last_words(self) -> LastWords:
        """Its last error and hint."""
        ...

    def ended(self) -> Ended | None:
        """How it ended; None while it runs, or waits for a place."""
        ...

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        ...

    def hear_out(self) -> None:
        """Wait a moment for the last words of a process that has ended."""
        ...


class Launcher(Protocol):
    """Starts and restarts the workers of one supervisor."""

    @property
    def seats(self) -> int:
        """How many workers there should be; may grow."""
        ...

    def look(self) -> None:
        """Check for changes where workers run; call it about every second."""
        ...

    def start(self, order: Order) -> WorkerProcess | None:
        """Start or restart the worker of a seat; None while there is no place for it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCommand:
    """The command line of all workers of one launcher."""

    run_dir: str
    folders: Folders = field(default_factory=dict)

    def arguments(self, order: Order, device: str) -> list[str]:
        """The arguments for one worker, after `shardgen`."""
        arguments = ["worker", self.run_dir, "--id", order.name, "--device", device]
        arguments += ["--grace", f"{GRACE_SECONDS:g}"]
        if order.batches is not None:
            arguments += ["--max-batches", str(order.batches)]
        if order.seconds < math.inf:
            arguments += ["--deadline", f"{max(0.0, order.seconds):.3f}s"]
        for name, folder in self.folders.items():
            arguments += [f"--{name}", str(folder)]
        return arguments
