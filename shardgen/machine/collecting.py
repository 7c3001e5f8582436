"""When Python collects garbage.

Imports make objects by the hundred thousand, nearly all of which stay. Looking through them again and again
takes a tenth of an import's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def put_off() -> None:
    """Look for none until `begin`: for a process that has just started."""
    gc.disable()


def begin() -> None:
    """Look for it from now on, but not among what is there, if that was put off."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Look for none meanwhile, and never among what is there at the end: what was imported stays."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
