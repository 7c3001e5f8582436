"""Watch a run in a cell of a notebook, in Jupyter and Colab."""

from __future__ import annotations

import codecs
import html
import itertools
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import overload

from shardgen.coordination.open import open_directory, open_run
from shardgen.coordination.report import Report
from shardgen.domain.wording import duration
from shardgen.errors import MachineUnfit, ShardgenError
from shardgen.operations.page.look import SECONDS, Look, Seen, SharedLook, look_once
from shardgen.operations.page.render import fragments, style
from shardgen.worker.stop import PARENT_VARIABLE, StopSignals

_TICK_SECONDS = 0.2
_ALL_SECONDS = 30.0  # so often everything is shown again even where only the time of the look has changed
_LINES = 40  # of a command that are kept
_READ = 1 << 16  # bytes of what it says, at most at once
_LINE_LENGTH = 2_000  # characters of each
_ECHO_SECONDS = 1.5  # a command takes a second signal sooner than this for an echo of the first
_KILL_SECONDS = 20.0  # for a command to end after the second signal
_numbers = itertools.count(1)


@overload
def watch(run_dir: str | Path, *, once: bool = False) -> None: ...
@overload
def watch(run_dir: str | Path, *, command: Sequence[str]) -> int: ...
def watch(run_dir: str | Path, *, once: bool = False, command: Sequence[str] | None = None) -> int | None:
    """Show a run in this cell, with pictures of its newest samples, until everything is made.

    `run_dir` is the run directory of a planned run, or the url of its bucket. The cell updates at most every
    two seconds, and only reads; its last state stays in the notebook. The stop button ends the display but
    not the work; `once` shows the present state and returns.

    With `command`, such as `["worker", "--deadline", "11h"]` or `["run", "-o", "people.zip"]`, it also starts
    that `shardgen` command for this run in a separate process, and shows the command's last lines below the
    run until it ends. Returns the command's exit code, 128 + N if signal N ended it. The stop button lets the
    command finish the batches in hand; a second press stops it at once. If the notebook's kernel ends, the
    command stops as after the stop button.

    Raises MachineUnfit outside a notebook, and the errors of `open_directory` if there is no planned run.
    """
    _refuse_elsewhere()
    opened = open_run(open_directory(run_dir))
    named = shlex.quote(str(run_dir))
    cell = _Cell(named)
    with _interrupts() as pressed:
        if command is None:
            _watch(cell, SharedLook(opened, named=named, pictures=True), pressed, once=once)
            return None
        started = _Command(command, run_dir)
        _work(cell, SharedLook(opened, named=named, pictures=True), pressed, started)
        with suppress(ShardgenError):  # the command's exit code is what counts
            cell.show(Seen(look=look_once(opened, named=named)))
        return started.exit_code


def _watch(cell: _Cell, looks: SharedLook, pressed: StopSignals, *, once: bool) -> None:
    seen = Seen()
    with looks, looks.viewing():
        while pressed.first is None:
            seen = cell.follow(looks, seen)
            if seen.look is not None and (once or not seen.look.report.pending):
                return
    cell.say(["stopped watching; the run goes on"])


def _work(cell: _Cell, looks: SharedLook, pressed: StopSignals, command: _Command) -> None:
    seen = Seen()
    try:
        with looks, looks.viewing():
            while not command.has_ended:
                seen = cell.follow(looks, seen)
                has_asked = command.heed(pressed)
                cell.say(command.lines, at_once=has_asked)
    finally:
        command.end()
        cell.say(command.lines)


def _refuse_elsewhere() -> None:
    try:
        from IPython import get_ipython  # noqa: PLC0415 - a notebook brings it
    except ImportError:
        shell = None
    else:
        shell = get_ipython()
    if getattr(shell, "kernel", None) is None:
        raise MachineUnfit("this is not a notebook", hint="in a terminal: shardgen status RUN_DIR --watch")


@contextmanager
def _interrupts() -> Iterator[StopSignals]:
    """What the stop button sends, to be asked for: in the middle of an update it would leave half of one."""
    pressed = StopSignals()

    def receive(number: int, _frame: FrameType | None) -> None:
        pressed.receive(number)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, receive)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Shown:
    """One output of a cell, which is replaced when there is something new to show."""

    def __init__(self, markup: str, text: str = "") -> None:
        from IPython.display import display  # noqa: PLC0415 - a notebook brings it

        self._markup = markup
        self._handle = display(_bundle(markup, text), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def show(self, markup: str, text: str = "") -> None:
        if markup != self._markup:
            self._markup = markup
            self._handle.update(_bundle(markup, text), raw=True)


def _bundle(markup: str, text: str) -> Mapping[str, str]:
    return {"text/html": markup, "text/plain": text}


class _Cell:
    """What a cell shows: how far the run is, words, pictures, and the rest; each is sent when it changes."""

    def __init__(self, named: str) -> None:
        self._number = next(_numbers)
        words = f"reading {named}"
        _Shown(style())
        self._head, self._words = _Shown(_lines([words]), words), _Shown("")
        self._pictures, self._rest = _Shown(""), _Shown("")
        self._seen = Seen()
        self._all_at = self._words_at = 0.0

    def follow(self, looks: SharedLook, seen: Seen) -> Seen:
        """Wait a moment for what is newer, and show it. Returns it."""
        newer = looks.after(seen.version, timeout=_TICK_SECONDS)
        if newer.version > seen.version:
            self.show(newer)
        return newer

    def show(self, seen: Seen) -> None:
        """Show a newer look; one that found the same as before is shown now and then, for its time."""
        now = time.monotonic()
        if seen.look is None:
            self._head.show(_lines([seen.failure]), seen.failure)
            return
        if now < self._all_at and _is_same(seen, self._seen):
            return
        self._seen, self._all_at = seen, now + _ALL_SECONDS
        head, pictures, rest = fragments(seen, number=self._number)
        self._head.show(head, _in_words(seen.look.report))
        self._pictures.show(pictures)
        self._rest.show(rest)

    def say(self, lines: Sequence[str], *, at_once: bool = True) -> None:
        """Show these lines at the end; if not at once, when the last ones have been there for a while."""
        now = time.monotonic()
        if at_once or now >= self._words_at:
            self._words_at = now + SECONDS
            self._words.show(_lines(lines), "\n".join(lines))


def _is_same(one: Seen, other: Seen) -> bool:
    """Whether nothing but the time differs."""
    return one.failure == other.failure and _timeless(one.look) == _timeless(other.look)


def _timeless(look: Look | None) -> object:
    if look is None:
        return None
    overview = replace(look.report.overview, taken_at=datetime.min.replace(tzinfo=UTC))
    workers = [replace(worker, last_beat_seconds=0.0) for worker in look.report.workers]
    return overview, workers, look.report.folder, look.details, look.samples, look.no_pictures


def _in_words(found: Report) -> str:
    """For a reader without HTML."""
    words = f"{found.stored + found.dead:,} of {found.plan.samples:,} samples"
    if found.dead:
        words += f" ({found.dead:,} dead letters)"
    if found.pending and found.eta_seconds is not None:
        words += f", {duration(found.eta_seconds)} left"
    return words


def _lines(lines: Sequence[str]) -> str:
    text = html.escape("\n".join(lines))
    return f'<div class="shardgen piece"><div class="said"><pre>{text}</pre></div></div>' if lines else ""


class _Said:
    """The last lines of what a process has written; one that a carriage return has replaced is gone."""

    def __init__(self) -> None:
        self._whole: list[str] = []
        self._open = ""
        self.lines: tuple[str, ...] = ()

    def take(self, text: str) -> None:
        *whole, rest = (self._open + text).split("\n")
        self._whole = [*self._whole, *map(_visible, whole)][-_LINES:]
        self._open = rest[-_LINE_LENGTH:]
        self.lines = (*self._whole, *filter(None, [_visible(self._open)]))


def _visible(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2][:_LINE_LENGTH]


class _Command:
    """A `shardgen` command in a session of its own: the stop button reaches the kernel alone."""

    def __init__(self, arguments: Sequence[str], run_dir: str | Path) -> None:
        self._said = _Said()
        self._note = ""
        self._sent_at = self._urged_at = math.inf
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "shardgen", *arguments],
            env=os.environ | {"SHARDGEN_RUN": str(run_dir), PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int:
        """Of a command that has ended, as a shell gives it."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    @property
    def lines(self) -> list[str]:
        """What it has said last, and what becomes of it."""
        return [*self._said.lines, *filter(None, [self._note])]

    def heed(self, pressed: StopSignals) -> bool:
        """Pass on what the stop button wants, to finish or to end at once; returns whether that was new."""
        now = time.monotonic()
        if pressed.first is None:
            return False
        if self._sent_at == math.inf:
            self._sent_at = now
            self._note = (
                "stopping: finishing the batches in hand (press the stop button again to stop it at once)"
            )
        elif not pressed.is_urgent or now - self._sent_at < _ECHO_SECONDS:
            return False
        elif now - self._urged_at > _KILL_SECONDS:
            self._process.kill()
            return False
        else:  # again and again: one that was too busy to hear the first takes the next for its echo
            self._sent_at = now
            self._urged_at = min(self._urged_at, now)
            self._note = "stopping at once"
        self._process.send_signal(signal.SIGINT)
        return True

    def end(self) -> None:
        """Wait for it; where the cell fails before it has ended, ask it to stop."""
        if not self.has_ended:
            self._process.terminate()
        code = self.exit_code
        self._listener.join(timeout=1)
        self._note = f"exit code {code}" if code else ""

    def _listen(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        if (stream := self._process.stdout) is not None:
            with stream:
                while data := os.read(stream.fileno(), _READ):
                    self._said.take(decoder.decode(data))
