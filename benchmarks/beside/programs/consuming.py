"""A consumer's loop and its diary, the same for every queue. Only the standard library, as in `notes`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Protocol

PIECES = "SHARDGEN_BENCHMARK_PIECES"
_POLL_SECONDS = 0.02


class Queue(Protocol):
    """One queue, opened."""

    def take(self) -> tuple[object, int] | None:
        """A piece of work and its number; None: there is nothing now."""

    def finish(self, handle: object) -> str:
        """Say that the piece is done; returns `accepted`, or why it was not."""


class Folder:
    """Where a benchmark and its consumers meet: a queue's file, diaries, and files that say `go on`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def database(self) -> Path:
        """The queue's own file."""
        return self.path / "queue.sqlite"

    @property
    def start(self) -> Path:
        """Consumers that have opened their queue wait for this file."""
        return self.path / "start"

    def gate(self, name: str) -> Path:
        """A consumer in the middle of a piece waits for this file."""
        return self.path / f"gate-{name}"

    def diary(self, name: str) -> Path:
        """What a consumer wrote down."""
        return self.path / f"diary-{name}"


class Diary:
    """One consumer's events, a line of JSON for each, readable at once and after a `kill -9`."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._file = os.open(folder.diary(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, piece: int | None = None, answer: str = "") -> None:
        """One line."""
        line = json.dumps({"consumer": self._name, "event": event, "piece": piece, "answer": answer})
        os.write(self._file, f"{line}\n".encode())

    def wait_for_start(self) -> None:
        """The queue is open; take nothing before the benchmark says so."""
        self.write("opened")
        wait_for(self._folder.start)

    def work_on(self, piece: int) -> None:
        """Be in the middle of a piece until the gate is open."""
        self.write("begun", piece)
        wait_for(self._folder.gate(self._name))


def wait_for(path: Path) -> None:
    """Until it exists."""
    while not path.exists():
        time.sleep(_POLL_SECONDS)


def consume(queue: Queue, diary: Diary) -> None:
    """Take, work and finish until the benchmark ends the process, or PIECES are done.

    Errors are noted, and tried again.
    """
    diary.wait_for_start()
    left = int(os.environ.get(PIECES, "-1"))
    idle = False
    while left:
        taken = _noting_errors(diary, queue)
        if taken is None:
            if not idle:
                diary.write("idle")
            idle = True
            time.sleep(_POLL_SECONDS)
            continue
        handle, piece = taken
        left -= 1
        diary.work_on(piece)
        try:
            answer = queue.finish(handle)
        except Exception as error:  # noqa: BLE001 - whatever a queue raises is its answer
            answer = f"{type(error).__name__}: {error}"
        diary.write("finished", piece, answer)


def _noting_errors(diary: Diary, queue: Queue) -> tuple[object, int] | None:
    try:
        return queue.take()
    except Exception as error:  # noqa: BLE001 - whatever a queue raises
        diary.write("error", answer=f"{type(error).__name__}: {error}")
        return None


def arguments() -> tuple[str, Folder, str]:
    """Read VERB FOLDER [NAME or COUNT]."""
    return sys.argv[1], Folder(Path(sys.argv[2])), sys.argv[3] if len(sys.argv) > 3 else ""
