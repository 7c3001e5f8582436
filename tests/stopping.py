"""Stop a process by SIGSTOP at a moment that harms nobody but itself."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

_TRIES = 200


def stop(pid: int) -> None:
    """SIGSTOP; returns when every thread of the process has stopped, not only when the signal is sent.

    Raises ProcessLookupError when the process has ended.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while not _is_stopped(pid):
        if time.monotonic() > deadline:
            raise AssertionError(f"process {pid} does not stop")
        time.sleep(0.002)


def _is_stopped(pid: int) -> bool:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    for thread in threads:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state = (
                (thread / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            )
            if state not in "TtZX":
                return False
    return True


def resume(pid: int) -> None:
    """SIGCONT; a process that has ended needs none."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def stop_outside_a_commit(pid: int, manifest: Path) -> None:
    """SIGSTOP while the process holds none of SQLite's locks: that would stop everybody."""
    for _ in range(_TRIES):
        stop(pid)
        if _is_unlocked(manifest):
            return
        resume(pid)
        time.sleep(0.01)
    raise AssertionError("it always holds the lock")


def _is_unlocked(manifest: Path) -> bool:
    try:
        connection = sqlite3.connect(f"file:{manifest}?mode=rw", timeout=1.0, isolation_level=None, uri=True)
    except sqlite3.OperationalError:
        if manifest.exists():
            raise
        return True  # nobody can be stopped by the locks of a file that is gone
    with contextlib.closing(connection):
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
