"""The way to a manifest that goes round shardgen: to look into it, to lose it, to stop who uses it."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path

from shardgen.settings.run_directory import RunDirectory
from tests.stopping import stop_outside_a_commit

Row = dict[str, object]
_SLICE_OF_PID = "SELECT slice.* FROM slice JOIN worker ON worker.id = slice.worker WHERE worker.pid = "


class Backdoor(ABC):
    """What the harness does to a manifest, whatever database it is in."""

    has_sessions = False
    """Whether workers keep sessions on a server, which can be ended."""
    has_server = False
    """Whether the server is the harness's own, and can be restarted."""

    @abstractmethod
    def slice_of(self, pid: int) -> Row | None:
        """The row of the slice that the worker of this pid holds; None also when there is no manifest.

        Raises TimeoutError when somebody is inside a commit on it.
        """

    @abstractmethod
    def stop(self, pid: int) -> None:
        """SIGSTOP for longer than a lease; where that would stop all others, outside of a commit only."""

    @abstractmethod
    def lose(self, source: random.Random) -> None:
        """Destroy the manifest."""

    @abstractmethod
    def move_half_a_commit_away(self, said: str) -> bool:
        """Do what the hint of a refused rebuild says; False when that was not why it was refused."""

    def artifact(self, run: RunDirectory, name: str) -> bytes:
        """The bytes of a recorded artifact."""
        return (run.artifacts / name).read_bytes()

    def spoil(self, run: RunDirectory, name: str, data: bytes | None) -> None:
        """Replace them; None: remove it."""
        if data is None:
            (run.artifacts / name).unlink()
        else:
            (run.artifacts / name).write_bytes(data)


class SqliteBackdoor(Backdoor):
    """To a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal = path.with_name(path.name + "-journal")

    def slice_of(self, pid: int) -> Row | None:
        """Not by way of Manifest: that waits half a minute for a lock, and who holds it may be stopped."""
        try:
            connection = sqlite3.connect(
                f"file:{self._path}?mode=rw", timeout=0.3, isolation_level=None, uri=True
            )
            with contextlib.closing(connection):
                connection.row_factory = sqlite3.Row
                row = connection.execute(f"{_SLICE_OF_PID}?", (pid,)).fetchone()
                return None if row is None else dict(row)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise TimeoutError from error
            return None

    def stop(self, pid: int) -> None:
        """A process that holds the file's lock would stop everybody."""
        stop_outside_a_commit(pid, self._path)

    def lose(self, source: random.Random) -> None:
        """Remove the file, with its journal or without."""
        self._path.unlink()
        if source.random() < 0.5:
            self._journal.unlink(missing_ok=True)

    def move_half_a_commit_away(self, said: str) -> bool:
        """Half a commit on the lost manifest lies in its journal."""
        if self._journal.name not in said:
            return False
        self._journal.replace(self._journal.with_name(f"{self._journal.name}.old"))
        return True
