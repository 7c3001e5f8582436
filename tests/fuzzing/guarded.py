"""One read under guard: its outcome, its time, its memory, and which files it opened."""

from __future__ import annotations

import os
import signal
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardgen.errors import ShardgenError
from tests.fuzzing.targets import Target

SECONDS = 20
MEMORY_BYTES = 96 << 20
MEMORY_FACTOR = 100
_allowed: list[Path] = []
_strangers: list[str] = []


class Hung(BaseException):
    """Reading did not end in time."""


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _allowed:
        return
    subject = arguments[0]
    if isinstance(subject, str | bytes | os.PathLike):
        path = Path(os.fsdecode(subject))
        if not path.absolute().is_relative_to(_allowed[0]) and path.suffix not in {".py", ".pyc"}:
            _strangers.append(str(path))


sys.addaudithook(_note)


def guarded_read(target: Target, data: bytes, folder: Path) -> ShardgenError | None:
    """Read; the error if it is one of ours. Any other, a hang, much memory or a foreign file is a failure."""
    _strangers.clear()
    _allowed[:] = [folder]
    caught: ShardgenError | None = None
    tracemalloc.start()
    try:
        with time_limit(SECONDS):
            target.read(data, folder)
    except ShardgenError as error:
        caught = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        _allowed.clear()
    assert peak < MEMORY_BYTES + MEMORY_FACTOR * len(data), f"{peak:,} bytes of memory for {len(data):,}"
    assert _strangers == []
    if caught is not None:
        assert len(str(caught)) < 100_000 + 4 * len(data)
    return caught


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise Hung in the main thread when the time is over."""

    def end(_number: int, _frame: object) -> None:
        raise Hung(f"reading did not end in {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
