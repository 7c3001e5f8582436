"""Log files: bounded in size and number, and never in the way of whoever writes to them."""

from __future__ import annotations

import atexit
import logging
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import Queue

from shardgen.domain.wording import printable

FILE_BYTES = 1_000_000  # of NAME.log, which then becomes NAME.log.1; an older one of that name goes
MOST_FILES = 300  # in one folder; one `run` starts 256 workers at most, each of which has one
_QUEUED = 10_000  # records that wait while the disk does not answer; what comes then is dropped
_FLUSH_SECONDS = 2.0
_LOOK_SECONDS = 0.005
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class LogFile(QueueHandler):
    """Writes log records to a file, in a thread of its own; drops what the disk does not take.

    So nobody waits for the disk, not even for one that hangs. Times are UTC. Records of all levels are taken.
    """

    def __init__(self, path: Path) -> None:
        waiting = Queue[logging.LogRecord](_QUEUED)
        super().__init__(waiting)
        self.path = path
        self._waiting = waiting
        QueueListener(waiting, _Rotated(path)).start()
        # It waits at the end of the process for the handler that writes, so for a disk that hangs.
        atexit.unregister(logging.shutdown)
        atexit.register(self.flush)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing: a log that cannot be written stops no work."""

    def flush(self) -> None:
        """Wait until everything is written, 2 seconds at most."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


class _Rotated(RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=1, encoding="utf-8")
        lines = _Lines(_FORMAT)
        lines.converter = time.gmtime
        self.setFormatter(lines)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nothing, as above."""


class _Lines(logging.Formatter):
    """A record in one line; what it has more of is indented, so that no text can pass for a record."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\n    ")


def open_log(path: Path) -> LogFile:
    """Make a log, and its folder; the oldest of too many beside it are removed.

    Raises OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_oldest(path.parent, but=MOST_FILES - 1)
    return LogFile(path)


def flush_logs() -> None:
    """Wait until what was logged is written, 2 seconds at most; for a process that ends by `os._exit`."""
    for handler in logging.getLogger("shardgen").handlers:
        handler.flush()


def _remove_oldest(folder: Path, *, but: int) -> None:
    """Keep so many files; another process may remove them at the same time."""
    ages: list[tuple[float, Path]] = []
    for path in folder.glob("*.log"):
        with suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[but:]:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.1").unlink(missing_ok=True)


def append_crash(path: Path, lines: list[str]) -> None:
    """Add what a process said as it crashed to its log, if that is here and can be written."""
    with suppress(OSError), path.open("a", encoding="utf-8") as log:
        log.writelines(f"    {printable(line)}\n" for line in lines)
