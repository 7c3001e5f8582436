"""Where log records go: to stderr, and of a worker into a file of its own as well."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from shardgen.cli.render import say
from shardgen.errors import ShardgenError

if TYPE_CHECKING:  # both bring what no help needs
    from shardgen.domain.worker import WorkerIdentity
    from shardgen.settings.run_directory import RunDirectory
    from shardgen.storage.log_file import LogFile

_OURS = logging.getLogger("shardgen")
_FILE = "log file"


class _OnStderr(logging.Handler):
    """Shows the message alone; the file has time and level.

    What it has more of than a line is indented, so that no text can pass for a worker's `error:` or `log:`.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__(logging.INFO)
        self._prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        say(self._prefix + record.getMessage().replace("\n", "\n    "))


def show_logs(*, prefix: str = "") -> None:
    """Show what shardgen itself logs; a library's own messages are left alone."""
    _OURS.handlers = [_OnStderr(prefix)]
    _OURS.propagate = False
    _OURS.setLevel(logging.INFO)


def keep_log(run: RunDirectory, identity: WorkerIdentity) -> LogFile | None:
    """Also write what is logged to the worker's file; None where no folder can be written."""
    from shardgen.domain.worker import log_path
    from shardgen.machine.file_systems import is_on_drive
    from shardgen.storage.log_file import open_log

    for folder in run.log_folders:
        if is_on_drive(folder):
            continue
        try:
            log = open_log(log_path(folder, identity.id))
        except OSError:
            continue
        log.name = _FILE
        _OURS.addHandler(log)
        _OURS.setLevel(logging.DEBUG)
        return log
    return None


def log_error(error: BaseException, *lines: str) -> None:
    """Write what ends this worker to its log: what stderr shows, and the traceback. Say where the log is."""
    text = "\n".join([*lines, _trace(error)])
    record = _OURS.makeRecord(__name__, logging.ERROR, "", 0, text, (), None)
    for log in _OURS.handlers:
        if log.name == _FILE:
            log.handle(record)
            log.flush()
            say(f"log: {getattr(log, 'path', '')}")


def _trace(error: BaseException) -> str:
    """The traceback with those of its causes, of which only a bug's say their message.

    What a driver or a store says below a deliberate error may hold what nobody should read.
    """
    if not isinstance(error, ShardgenError):
        return "".join(traceback.format_exception(error)).rstrip()
    one = error.__cause__
    parts = ["".join(traceback.format_exception(error, chain=False))]
    while one is not None:
        parts.append(
            "".join([*traceback.format_tb(one.__traceback__), type(one).__name__, ", which led to\n"])
        )
        one = one.__cause__
    return "".join(reversed(parts)).rstrip()
