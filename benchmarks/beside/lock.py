"""How long a child process has its interpreter's lock: its memory is looked at, so it runs as it does alone.

For CPython 3.11 on Linux; the parent must be allowed to read its child's memory.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, TypeVar

Result = TypeVar("Result")
_WORDS = 1000  # of the runtime's state, at whose beginning the lock's holder is
_ASLEEP_SECONDS = 0.05
_BETWEEN_LOOKS = 0.0005


class Watched(Generic[Result]):
    """What a child process found, and the share of its time in which some thread of it had the lock."""

    def __init__(self, work: Callable[[], Result]) -> None:
        fork = get_context("fork")
        ours, its = fork.Pipe()
        child = fork.Process(target=_child, args=(work, its))
        child.start()
        its.close()
        addresses: list[int] = ours.recv()
        with Path(f"/proc/{child.pid}/mem").open("rb", buffering=0) as memory:
            time.sleep(_ASLEEP_SECONDS / 2)  # it sleeps, so nobody has its lock
            holders = [one for one in addresses if not _word(memory.fileno(), one)]
            if len(holders) != 1:
                raise RuntimeError("the holder of the interpreter's lock is not found")
            ours.send(None)
            looks = held = 0
            while not ours.poll(_BETWEEN_LOOKS):
                looks += 1
                held += _word(memory.fileno(), holders[0]) != 0
        self.result: Result = ours.recv()
        self.share = held / max(1, looks)
        child.join()


def _word(memory: int, address: int) -> int:
    return int.from_bytes(os.pread(memory, 8, address), "little")


def _child(work: Callable[[], Result], pipe: Connection) -> None:
    pipe.send(_places_of_this_thread())
    pipe.recv()
    pipe.send(work())
    pipe.close()


def _places_of_this_thread() -> list[int]:
    """Where the interpreter's state names the thread that runs now: one of them names the lock's holder."""
    current = ctypes.pythonapi.PyThreadState_Get
    current.restype = ctypes.c_void_p
    start = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    words = (ctypes.c_uint64 * _WORDS).from_address(start)
    this_thread = current()
    return [start + 8 * number for number, word in enumerate(words) if word == this_thread]
