"""Killed, paused and racing consumers of shardgen's manifest, huey, litequeue and persist-queue.

    python -m pip install -e ".[bench]"
    python -m benchmarks.queues [--venvs DIR] [--markdown] [--only NAME,NAME]

A piece of work is a leased batch, a task, a message, an item. Per queue, each in a fresh folder:

1. A consumer gets `kill -9` in the middle of a piece, and another is started. Is the piece done?
2. A consumer is paused (SIGSTOP) in the middle of a piece, for longer than the lease where there is one;
   where there is none, an operator frees what is held with the call that the project has for it. Another
   consumer takes the piece. The first is resumed and says that it has finished: once after the other has,
   once before.
3. A second consumer starts while the first one works. Is it given the piece that the first one works on?
4. 8 processes take 400 pieces. How many pieces were handed out twice?
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.beside.consumers import Crew, Event, Queue, crew_of
from benchmarks.beside.peers import HUEY, LITEQUEUE, PERSIST_QUEUE, SHARDGEN, Found, find, install
from benchmarks.beside.table import aligned, markdown

PIECES, PROCESSES = 400, 8
LEASE_SECONDS, LONG_LEASE_SECONDS = 2.0, 3600.0
_AFTER_THE_LAST_SECONDS = 3.0
QUEUES = (
    Queue(title="shardgen's manifest", peer=SHARDGEN, program="manifest_queue"),
    Queue(title="huey `SqliteHuey`, `retries=3`", peer=HUEY, program="huey_queue", notes_idleness=False),
    Queue(
        title="litequeue",
        peer=LITEQUEUE,
        program="litequeue_queue",
        recovery="list_locked() and retry()",
    ),
    Queue(
        title="persist-queue `SQLiteAckQueue`",
        peer=PERSIST_QUEUE,
        program="persistqueue_queue",
        recovery="resume_unack_tasks()",
    ),
    Queue(
        title="persist-queue, `auto_resume=False`",
        peer=PERSIST_QUEUE,
        program="persistqueue_queue",
        recovery="resume_unack_tasks()",
        variables={"SHARDGEN_BENCHMARK_AUTO_RESUME": "0"},
    ),
)
HEADER = (
    "queue",
    "version",
    "a killed consumer's piece",
    "a paused consumer's piece",
    "it finishes after the other",
    "it finishes before the other",
    "taken from one that works",
    "handed out twice",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What happened to a paused consumer's piece: how another got it, and what each was told at its end."""

    how: str
    first_told: str
    other_told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What many consumers were given."""

    pieces: int
    begun: Counter[int]
    finished: int
    errors: int

    @property
    def twice(self) -> int:
        """How many pieces were handed out more than once."""
        return sum(count > 1 for count in self.begun.values())

    def __str__(self) -> str:
        lost = f", {self.pieces - self.finished} never done" if self.finished < self.pieces else ""
        errors = f", {self.errors} errors when taking" if self.errors else ""
        return f"{self.twice} of {self.pieces}{lost}{errors}"


class Bench:
    """The experiments on one queue."""

    def __init__(self, queue: Queue, found: Found, folder: Path, patience_seconds: float) -> None:
        self._queue, self._found = queue, found
        self._folder, self._patience = folder, patience_seconds

    def _crew(self, experiment: str) -> AbstractContextManager[Crew]:
        return crew_of(self._queue, self._found, self._folder / experiment)

    def killed(self) -> str:
        """What becomes of a killed consumer's piece."""
        with self._crew("killed") as crew:
            crew.fill(3, lease_seconds=LONG_LEASE_SECONDS)
            crew.start("first")
            piece = crew.must_see(lambda one: one.event == "begun").piece
            crew.signal("first", signal.SIGKILL)
            crew.start("other", gate_open=True)
            done = (piece, "finished")
            if crew.sees(lambda one: (one.piece, one.event) == done, self._patience):
                return "done again"
            if self._queue.recovery:
                freed = self._recovered(crew)
                if freed and crew.sees(lambda one: (one.piece, one.event) == done, self._patience):
                    return f"stuck until `{self._queue.recovery}`"
            return "lost"

    def _recovered(self, crew: Crew) -> bool:
        """Free what is held; some calls do so only after a while."""
        deadline = time.monotonic() + self._patience
        while not crew.recover():
            if time.monotonic() > deadline:
                return False
        return True

    def paused(self, *, first_finishes_last: bool) -> Takeover:
        """A consumer is paused, another takes its piece, the first is resumed; who is told what."""
        name = "after" if first_finishes_last else "before"
        with self._crew(f"paused-{name}") as crew:
            crew.fill(1, lease_seconds=LEASE_SECONDS)
            crew.start("first", pieces=1)
            crew.must_see(lambda one: one.event == "begun")
            crew.signal("first", signal.SIGSTOP)
            crew.start("other", pieces=1)
            how = self._taken_over(crew)
            if how is None:
                return Takeover(how="nobody else can take it", first_told=_resumed(crew), other_told="")
            if first_finishes_last:
                other = _finished(crew, "other")
                return Takeover(how=how, first_told=_resumed(crew), other_told=other)
            first = _resumed(crew)
            return Takeover(how=how, first_told=first, other_told=_finished(crew, "other"))

    def _taken_over(self, crew: Crew) -> str | None:
        """How the other consumer got the piece; None: it did not."""
        if crew.sees(lambda one: (one.consumer, one.event) == ("other", "begun"), self._patience):
            return "another takes it by itself"
        if self._queue.recovery and self._recovered(crew):
            crew.must_see(lambda one: (one.consumer, one.event) == ("other", "begun"))
            return f"another takes it after `{self._queue.recovery}`"
        return None

    def taken_from_the_living(self) -> bool:
        """Whether a second consumer gets what the first one works on, well within its lease."""
        with self._crew("living") as crew:
            crew.fill(1, lease_seconds=LONG_LEASE_SECONDS)
            crew.start("first")
            crew.must_see(lambda one: one.event == "begun")
            crew.start("other")
            if self._queue.notes_idleness:
                crew.must_see(lambda one: one.consumer == "other" and one.event in {"begun", "idle"})
            begun = crew.sees(lambda one: (one.consumer, one.event) == ("other", "begun"), self._patience)
            return begun is not None

    def race(self, pieces: int = PIECES, processes: int = PROCESSES) -> Race:
        """Many consumers empty a queue."""
        with self._crew("race") as crew:
            crew.fill(pieces, lease_seconds=LONG_LEASE_SECONDS)
            names = [f"consumer-{number}" for number in range(processes)]
            for name in names:
                crew.open_gate(name)
                crew.begin_to_start(name)
            for name in names:
                crew.must_see(partial(_has_opened, name))
            crew.folder.start.touch()
            events = self._until_all_is_quiet(crew, pieces)
        finished = {one.piece for one in events if one.event == "finished"}
        begun = Counter(one.piece for one in events if one.event == "begun" and one.piece is not None)
        errors = sum(one.event == "error" for one in events)
        return Race(pieces=pieces, begun=begun, finished=len(finished), errors=errors)

    def _until_all_is_quiet(self, crew: Crew, pieces: int) -> list[Event]:
        """Until nothing was written down for a while: a piece handed out twice may come late."""
        events, since, patience = crew.events(), time.monotonic(), self._patience
        while time.monotonic() - since < patience:
            time.sleep(0.2)
            before, events = len(events), crew.events()
            if len(events) != before:
                since = time.monotonic()
            if len({one.piece for one in events if one.event == "finished"}) == pieces:
                patience = min(self._patience, _AFTER_THE_LAST_SECONDS)
        return events


def _has_opened(name: str, one: Event) -> bool:
    return (one.consumer, one.event) == (name, "opened")


def _resumed(crew: Crew) -> str:
    crew.signal("first", signal.SIGCONT)
    return _finished(crew, "first")


def _finished(crew: Crew, name: str) -> str:
    crew.open_gate(name)
    return crew.must_see(lambda one: (one.consumer, one.event) == (name, "finished")).answer


def row(queue: Queue, found: Found | None, folder: Path, patience_seconds: float) -> tuple[str, ...]:
    """A line of the table; what is not installed has no figures."""
    if found is None:
        return (queue.title, "not installed", *[""] * (len(HEADER) - 2))
    bench = Bench(queue, found, folder, patience_seconds)
    killed = bench.killed()
    after = bench.paused(first_finishes_last=True)
    before = bench.paused(first_finishes_last=False)
    return (
        queue.title,
        found.version,
        killed,
        after.how,
        _told(after),
        _told(before),
        "yes" if bench.taken_from_the_living() else "no",
        str(bench.race()),
    )


def _told(takeover: Takeover) -> str:
    """What the paused consumer was told when it had finished; the other's word only where it surprises."""
    match takeover.first_told, takeover.other_told:
        case first, "":
            return f"{first}, as nobody else has it"
        case "accepted", "accepted":
            return "accepted, as well as the other"
        case "refused", "accepted":
            return "refused"
        case first, other:
            return f"{first}; the other: {other}"


def main() -> None:
    """Parse, measure one after the other, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venvs", type=Path, help="folder of the projects' own environments, by name")
    parser.add_argument("--install", action="store_true", help="make the missing ones there, with pip")
    parser.add_argument("--only", default="", help="names, as in shardgen,huey")
    parser.add_argument("--patience", type=float, default=8.0, help="seconds until nothing more will happen")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, queue in enumerate(QUEUES):
            if options.only and queue.peer.name not in options.only.split(","):
                continue
            found = find(queue.peer, options.venvs)
            if found is None and options.install and options.venvs:
                install(queue.peer, options.venvs)
                found = find(queue.peer, options.venvs)
            rows.append(row(queue, found, Path(folder) / str(number), options.patience))
            print(": ".join(part for part in rows[-1] if part), file=sys.stderr, flush=True)
    print((markdown if options.markdown else aligned)(HEADER, rows))
    print(
        f"\n{PIECES} pieces, {PROCESSES} processes. Python {platform.python_version()}, SQLite "
        f"{sqlite3.sqlite_version}, {os.cpu_count()} cores."
    )


if __name__ == "__main__":
    main()
