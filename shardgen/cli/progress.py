"""The progress line at the end of stderr: what is being done, or how far it is.

On a terminal it is redrawn ten times a second and removed at the end. In a notebook, and on a
terminal without a cursor, it is redrawn with a carriage return, at most every 2 seconds. Anywhere else a
line is printed now and then.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Self

from shardgen.cli import render
from shardgen.domain.progress import BYTES, Count, Progress, clock
from shardgen.domain.wording import printable, sized
from shardgen.machine.notebooks import is_notebook

_COLUMNS = 80  # where the terminal does not say
_LONGEST_BAR, _SHORTEST_BAR = 20, 5
_PEOPLE_WIDTH = len(" · 100 workers")
_DUMB = ("", "dumb", "unknown")
_FRAMES = ("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\")
_BARS = (("━", "─"), ("#", "-"))


class Way(Enum):
    """How progress is shown on stderr; the value is the seconds between two looks of it."""

    DRAWN = 0.1
    RETURNED = 2.0
    PRINTED = 30.0


def way() -> Way:
    """How it is shown here."""
    if not sys.stderr.isatty():
        return Way.PRINTED
    return Way.RETURNED if is_notebook() or os.environ.get("TERM", "") in _DUMB else Way.DRAWN


class Line:
    """The line that moves, from entering to leaving; `render.say` puts messages above it. Thread-safe.

    `keeps_last`: the last state stays, as a plain line, when it ends.
    """

    _returned_at = -math.inf
    """When any line was last drawn by a carriage return: one may follow another at once."""

    def __init__(self, *, keeps_last: bool = False) -> None:
        self.way = way()
        self._keeps_last = keeps_last
        self._doing, self._since = "", time.monotonic()
        self._label = ""
        self._progress: Callable[[], Progress] | None = None
        self._on_screen = ""
        self._printed, self._printed_at = "", time.monotonic()
        self._frame = 0
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._move, name="progress", daemon=True)
        encoding = sys.stderr.encoding or "ascii"
        self._is_plain = "━⠋·".encode(encoding, "replace").decode(encoding, "replace") != "━⠋·"

    def __enter__(self) -> Self:
        render.ABOVE.append(self.say)
        if self.way is not Way.PRINTED:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it from the screen; twice is harmless."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self.way is not Way.PRINTED:
            self._thread.join()
        with self._lock:
            self._take_back()
            render.ABOVE.remove(self.say)
        if self._keeps_last and self._progress is not None and (last := self._text()) != self._printed:
            render.say(last)

    def doing(self, what: str, *, is_printed: bool = True) -> None:
        """Say what is being done that cannot be counted; where lines are printed, once or not at all."""
        with self._lock:
            if what == self._doing:
                return
            self._doing, self._since, self._progress = what, time.monotonic(), None
            if is_printed and self.way is Way.PRINTED:
                render.say(what)

    def show(self, progress: Progress | Callable[[], Progress], *, label: str = "") -> None:
        """Show how far it is from now on; a function is asked when it is drawn."""
        with self._lock:
            self._doing, self._label = "", label
            self._progress = progress if callable(progress) else lambda: progress
            self._print_now_and_then()

    @property
    def shows_progress(self) -> bool:
        """Whether it shows how far something is, and not what is being done."""
        return self._progress is not None

    def counter(self, label: str, thing: str) -> Callable[[int, int | None], None]:
        """Call what is returned with how many are done, and how many there are (None: not known yet).

        The rate is that from the first call to the last.
        """
        count = Count(thing)

        def on_progress(done: int, total: int | None) -> None:
            if count.began is None or self._label != label or self._progress != count.progress:
                count.begin(done)
                self.show(count.progress, label=label)
            count.take(done, total)
            self._print_now_and_then()

        return on_progress

    def say(self, line: str) -> None:
        """A message above the line."""
        with self._lock:
            self._take_back()
            with contextlib.suppress(OSError):
                print(printable(line), file=sys.stderr, flush=True)  # noqa: T201
            if self.way is Way.DRAWN:
                self.draw()

    def draw(self) -> None:
        """Show the present state, where it is not printed."""
        with self._lock:
            room = self._columns() - 1  # at the last column a terminal may begin another line
            shown = self._text(room) if self.way is Way.RETURNED else self._drawn(room)
            if shown != self._on_screen:
                if self.way is Way.DRAWN:  # what a library prints then begins at the left
                    self._write(f"{shown}\x1b[K\r")
                else:
                    self._write("\r" + shown.ljust(len(self._on_screen)))
                    Line._returned_at = time.monotonic()
                self._on_screen = shown

    def _print_now_and_then(self) -> None:
        """Where lines are printed, nothing draws by itself; the end, if it is to stay, is printed there."""
        now = time.monotonic()
        if self.way is not Way.PRINTED or now - self._printed_at < self.way.value:
            return
        with self._lock:
            self._printed_at, self._printed = now, self._text()
            render.say(self._printed)

    def _move(self) -> None:
        if self.way is Way.DRAWN or time.monotonic() - Line._returned_at >= self.way.value:
            self.draw()
        while not self._ended.wait(self.way.value):
            self._frame += 1
            self.draw()

    def _text(self, room: int | None = None) -> str:
        """The state as plain text."""
        if self._progress is None:
            shown = f"{self._doing}  {clock(time.monotonic() - self._since)}" if self._doing else ""
            return printable(shown)[:room]
        before = printable(f"{self._label}: " if self._label else "")
        width = None if room is None else max(0, room - len(before))
        return before + self._progress().line(width=width, separator=self._separator)

    def _drawn(self, room: int) -> str:
        """The state with a sign that turns, a bar, and numbers that keep their places."""
        frames = _FRAMES[self._is_plain]
        before = f"{frames[self._frame % len(frames)]} "
        if self._progress is None:
            return (before + self._text())[:room]
        progress = self._progress()
        before += printable(f"{self._label}  " if self._label else "")
        if progress.total is not None:
            before += self._bar(progress, room - len(before))
        line = progress.line(width=max(0, room - len(before)), is_aligned=True, separator=self._separator)
        return (before + line)[:room]

    def _bar(self, progress: Progress, room: int) -> str:
        """As long as the room allows that the numbers, however long they get, leave; so it never changes."""
        total = progress.total or 1
        longest = Progress(done=total - 1, total=total, thing=progress.thing, rate=1.0)
        spare = room - len(longest.line(is_aligned=True)) - 2
        length = min(_LONGEST_BAR, spare - _PEOPLE_WIDTH * (progress.workers is not None))
        if length < _SHORTEST_BAR:
            return ""
        full, empty = _BARS[self._is_plain]
        done = length if progress.is_complete else min(length - 1, length * progress.done // total)
        return full * done + empty * (length - done) + "  "

    @property
    def _separator(self) -> str:
        return ", " if self._is_plain else " · "

    def _take_back(self) -> None:
        if self._on_screen:
            self._write("\x1b[K" if self.way is Way.DRAWN else f"\r{' ' * len(self._on_screen)}\r")
            self._on_screen = ""

    def _write(self, what: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(what)
            sys.stderr.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
        except (OSError, ValueError):
            return _COLUMNS


@contextlib.contextmanager
def doing(what: str, *, is_printed: bool = True, keeps_last: bool = False) -> Iterator[Line]:
    """A line that says what is being done, from the first moment on."""
    line = Line(keeps_last=keeps_last)
    line.doing(what, is_printed=is_printed)
    with line:
        yield line


def opening() -> contextlib.AbstractContextManager[Line]:
    """What is shown while a run, which may be far away, is opened, and what that takes is imported."""
    return doing("opening the run", is_printed=False)


@contextlib.contextmanager
def counting(label: str, thing: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar over one thing; call what is yielded as `Line.counter` says."""
    with doing(label, is_printed=False) as line:
        yield line.counter(label, thing)


def downloading(line: Line, name: str) -> Callable[[int, int | None], None]:
    """Call what is returned with the bytes on disk and the bytes expected (None: not known)."""
    show = line.counter(f"fetching {name}", BYTES)
    has_begun = False

    def on_download(done: int, total: int | None) -> None:
        nonlocal has_begun
        if not has_begun and line.way is Way.PRINTED:
            render.say(f"fetching {name}" + (f", {sized(total)}" if total else ""))
        has_begun = True
        show(done, total)

    return on_download
