"""Stopping: a request to end, from a signal or because the process that started this one is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

PARENT_VARIABLE = "SHARDGEN_PARENT"  # the pid of the `run`, or the notebook, that a command must not outlive
# A notebook's stop button may arrive twice: sent to the process group, and passed on by the cell. A session
# that ends may send SIGTERM and SIGHUP.
_ECHO_SECONDS = 1.0


def stopping_signals() -> tuple[signal.Signals, ...]:
    """What asks a command to stop: SIGINT, SIGTERM, and SIGHUP of a terminal that was closed.

    Not SIGHUP where it was ignored before, as `nohup` does: that command is to outlive its terminal.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """The signals that asked a process to stop: the first, and whether a second wants it at once.

    One within a second of the first is its echo and changes nothing, whichever signal it is.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.is_urgent = False
        self._received_at = 0.0

    def receive(self, number: int) -> None:
        """Take one more."""
        if self.first is None:
            self.first, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at > _ECHO_SECONDS:
            self.is_urgent = True


class Parent:
    """The process that named itself in the environment as one that this process must not outlive.

    A shell does not: what it started may outlive it.
    """

    def __init__(self) -> None:
        self._pid = os.environ.get(PARENT_VARIABLE, "")

    @property
    def is_gone(self) -> bool:
        """Whether there was one, and it has ended."""
        return bool(self._pid) and str(os.getppid()) != self._pid


class StopRequest:
    """A wish to stop, from a signal or a lost parent; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._signals = StopSignals()
        self.event = threading.Event()
        self._parent = Parent()

    def install(self) -> None:
        """Take the signals that ask to stop; only the main thread may."""
        for number in stopping_signals():
            signal.signal(number, self._received)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        self._signals.receive(number)
        if self._signals.is_urgent:
            os._exit(128 + number)
        if not self.event.is_set():
            self.signal_number = number
            self.event.set()

    def notice_lost_parent(self) -> None:
        """Stop when the process that started this one is gone."""
        if not self.event.is_set() and self._parent.is_gone:
            self.signal_number = signal.SIGTERM
            self.event.set()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self.event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but wake up when asked to stop; returns `is_set`."""
        return self.event.wait(seconds)
