"""Trials: a file from outside is first read in a process of its own if a library in C or C++ reads it.

A damaged file can make such a library loop for ever, or end its process. Only a file that the trial has read
to its end, within limits of time and memory, is read by the process that needs it.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shardgen.errors import ShardgenError

LIMIT_VARIABLE = "SHARDGEN_TRIAL_SECONDS"
BASE_SECONDS = 60  # of CPU time
BYTES_A_SECOND = 4 << 20  # hashing and reading are a hundred times as fast
PATIENCE = 5  # seconds by the clock for each of CPU time: disks and neighbours may be slow
MEMORY_BYTES = 6 << 30  # of addresses: the largest network that is read takes half of it
_REFUSED = 3  # the trial's exit code when it ended well, with one of our own errors


def try_to_read(module: str, path: Path) -> str:
    """Let `python -m module` read the file with `main_of_trial`; what went wrong, "" if nothing did.

    A file that it refuses with an error of ours is left to the caller, who reads it and gets that error.
    """
    try:
        size_bytes = path.stat().st_size
    except (OSError, ValueError):
        size_bytes = 0  # the reader says what is wrong
    seconds = _cpu_seconds(size_bytes)
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        # -P: nothing in the folder that the command was typed in is taken for a module
        [sys.executable, "-P", "-m", module, os.path.abspath(path), str(seconds)],  # noqa: PTH100
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as trial:
        try:
            code = trial.wait(PATIENCE * seconds)
        except subprocess.TimeoutExpired:
            return f"reading it took more than {PATIENCE * seconds} s"
        finally:
            trial.kill()  # also after Ctrl-C; of one that has ended nothing is left to kill
    if code == -signal.SIGXCPU:
        return f"reading it took more than {seconds} s of CPU time"
    return "" if code in (0, _REFUSED) else f"a process that read it ended with {_named(code)}"


def main_of_trial(read: Callable[[Path], object], path: str, seconds: str) -> int:
    """Read the file within limits that the kernel keeps, even if nobody waits any more; the exit code."""
    for kind, wanted in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, int(seconds))):
        soft, hard = resource.getrlimit(kind)
        limits = [wanted, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(kind, (min(limits), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        read(Path(path))
    except ShardgenError:
        return _REFUSED
    return 0


def _cpu_seconds(size_bytes: int) -> int:
    given = os.environ.get(LIMIT_VARIABLE, "")
    base = int(given) if re.fullmatch("[1-9][0-9]{0,6}", given) else BASE_SECONDS
    return base + size_bytes // BYTES_A_SECOND


def _named(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"
