"""What shardgen logs, as a test hears it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Heard(logging.Handler):
    def __init__(self, level: int, hear: Callable[[str], object]) -> None:
        super().__init__(level)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


@contextmanager
def logged(hear: Callable[[str], object], level: int = logging.INFO) -> Iterator[None]:
    """Call `hear` with each message, of all threads, that is logged at that level or above."""
    ours = logging.getLogger("shardgen")
    handler, before = _Heard(level, hear), ours.level
    ours.addHandler(handler)
    ours.setLevel(level)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
