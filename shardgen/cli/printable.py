"""The standard streams, safe to write to even if nobody reads them."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class Outlet(io.FileIO):
    """Where a standard stream leads; what cannot be written there is dropped, and `failure` says why.

    So a command always does its work to the end, and its exit code says how that went.
    """

    failure: OSError | None = None
    is_the_result = True
    """Whether this output is the command's result; False where the result is a file."""

    def write(self, data: Any, /) -> int:
        """Write what the other side takes, waiting for it if need be; all of it is taken once it failed."""
        try:
            while self.failure is None:
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self], [])
        except OSError as error:
            self.failure = error
        return len(data)

    @property
    def has_lost_its_reader(self) -> bool:
        """Whether whoever read our output has gone."""
        return self.failure is not None and self.failure.errno == errno.EPIPE


def open_outlets() -> Outlet | None:
    r"""Let stdout and stderr outlive their readers; call it first of all. Returns stdout's, if it is our own.

    Streams that were closed at the start lead nowhere: else the next file that is opened would get their
    number, and with it what libraries print. What a stream cannot encode is shown as `\xe9`.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr)
    return outlet_of(sys.stdout)


def outlet_of(stream: TextIO) -> Outlet | None:
    """Where a stream leads; None for one that somebody else has put there."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Outlet) else None


def _stream(descriptor: int, before: TextIO | None) -> TextIO:
    outlet = Outlet(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding="utf-8" if before is None else before.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or outlet.isatty(),
    )
