"""Start consumers of a queue, read their diaries, and kill, pause and resume them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.beside.peers import Found, Peer, environment_of_programs
from benchmarks.beside.programs.consuming import PIECES, Folder
from benchmarks.beside.watching import Mark, marked

_TICK_SECONDS = 0.02
START_SECONDS = 180.0
"""Within this a consumer must have opened its queue, however busy the machine is."""


class NotStarted(Exception):
    """A consumer did not do what it must for the measurement to mean something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue to measure: the project, our program for it, and the call that frees held work.

    `notes_idleness`: whether its consumers say when they find nothing to take; not with a loop of its own.
    """

    title: str
    peer: Peer
    program: str
    recovery: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    notes_idleness: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of a diary."""

    consumer: str
    event: str
    piece: int | None
    answer: str


class Crew:
    """The consumers of one queue, in a fresh folder."""

    def __init__(self, queue: Queue, found: Found, path: Path, mark: Mark) -> None:
        path.mkdir(parents=True)
        self._queue, self._found, self._mark = queue, found, mark
        self.folder = Folder(path)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def fill(self, count: int, *, lease_seconds: float) -> None:
        """Put pieces 0 to `count` into the queue; only ours knows leases."""
        (self.folder.path / "lease-seconds").write_text(f"{lease_seconds:g}", encoding="ascii")
        self._ask("fill", str(count))

    def recover(self) -> int:
        """Free what is held, as an operator of this queue would; how many pieces."""
        return int(self._ask("recover").split()[-1])

    def start(self, name: str, *, pieces: int = -1, gate_open: bool = False) -> None:
        """Start a consumer, and wait until it has opened the queue; it stops after so many pieces."""
        if gate_open:
            self.open_gate(name)
        self.begin_to_start(name, pieces=pieces)
        self.folder.start.touch()
        self.must_see(lambda one: one.consumer == name and one.event == "opened")

    def begin_to_start(self, name: str, *, pieces: int = -1) -> None:
        """Start one, and do not wait."""
        environment = {**self._environment(), PIECES: str(pieces)}
        with (self.folder.path / f"log-{name}").open("wb") as log:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - our own program
                self._command("consume", name),
                env=self._mark.on(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def open_gate(self, name: str) -> None:
        """Let a consumer finish whatever it has."""
        self.folder.gate(name).touch()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Kill, stop or continue a consumer."""
        self._processes[name].send_signal(number)
        if number is signal.SIGKILL:
            self._processes[name].wait()

    def events(self) -> list[Event]:
        """All that was written down; in order within a consumer."""
        paths = sorted(self.folder.path.glob("diary-*"))
        lines = [
            line for path in paths for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        ]
        # The last line of a killed consumer may be cut short.
        return [Event(**json.loads(line)) for line in lines if line.endswith("\n")]

    def sees(self, wanted: Callable[[Event], bool], seconds: float) -> Event | None:
        """The first such event, waiting for it so long."""
        deadline = time.monotonic() + seconds
        while True:
            found = next(filter(wanted, self.events()), None)
            if found is not None or time.monotonic() > deadline:
                return found
            time.sleep(_TICK_SECONDS)

    def must_see(self, wanted: Callable[[Event], bool]) -> Event:
        """As `sees`; raises NotStarted when a consumer ended or nothing came."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = self.sees(wanted, seconds=1.0)
            if found is not None:
                return found
            if any(process.poll() for process in self._processes.values() if process.returncode != -9):
                break
        logs = "\n".join(path.read_text(errors="replace") for path in self.folder.path.glob("log-*"))
        raise NotStarted(f"{self._queue.title}: {self.events()}\n{logs}")

    def reap(self) -> None:
        """Wait for consumers that were ended."""
        for process in self._processes.values():
            process.wait()

    def _ask(self, verb: str, argument: str = "") -> str:
        return subprocess.run(  # noqa: S603 - our own program
            self._command(verb, argument),
            env=self._mark.on(self._environment()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def _command(self, verb: str, argument: str) -> list[str | Path]:
        module = f"benchmarks.beside.programs.{self._queue.program}"
        return [self._found.python, "-m", module, verb, self.folder.path, *([argument] if argument else [])]

    def _environment(self) -> dict[str, str]:
        return {**environment_of_programs(), **self._queue.variables}


@contextmanager
def crew_of(queue: Queue, found: Found, path: Path) -> Iterator[Crew]:
    """A crew in a fresh folder; in the end none of its processes is left."""
    with marked() as mark:
        crew = Crew(queue, found, path, mark)
        try:
            yield crew
        finally:
            mark.end_all()
            crew.reap()
