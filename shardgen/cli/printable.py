"""Text from outside on its way to a terminal: nothing in it may be an order to the terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Control characters (C0 but tab and newline, DEL, C1), what turns the direction of writing, other ends of
# lines, and the lone surrogates that stand for bytes of a file name that are no UTF-8.
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_unencodable(*streams: TextIO) -> None:
    r"""Let a terminal that only knows ASCII, say, show `\xe9` for what it cannot show."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Unread(io.FileIO):
    """A file descriptor whose reader may go, as a closed terminal does: then it is turned to /dev/null."""

    def write(self, data: ReadableBuffer, /) -> int:
        """All of it; errors are nobody's affair."""
        try:
            return super().write(data)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def outlive_terminal() -> None:
    """Let progress and errors go nowhere once nobody can read them: that must not stop the work."""
    stream = sys.stderr
    if isinstance(stream, io.TextIOWrapper) and stream is sys.__stderr__:
        raw = _Unread(stream.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True
        )


def printable(text: str) -> str:
    r"""The text with every such character written out, as in `\x1b[2J`; tabs and newlines stay."""
    return _ORDERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    r"""The same for a JSON document, where they can only stand inside strings: `\u009b` is the same value."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
