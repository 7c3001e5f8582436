"""What a program notes of the samples that it begins, and where it is killed.

Only the standard library: programs run in the environments of other projects, which have nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

FOLDER = "SHARDGEN_BENCHMARK_NOTES"
KILL_AT = "SHARDGEN_BENCHMARK_KILL_AT"

_guard = threading.Lock()
_begun: dict[int, int] = {}  # by pid: a forked process counts for itself


def begin(sample: int) -> None:
    """Note a sample. The first process to begin its KILL_AT-th gets `kill -9` on the spot."""
    folder, kill_at = Path(os.environ[FOLDER]), int(os.environ.get(KILL_AT, "0"))
    pid = os.getpid()
    with _guard:
        with (folder / f"begun-{pid}").open("a", encoding="ascii") as file:
            file.write(f"{sample}\n")
        _begun[pid] = _begun.get(pid, 0) + 1
        if _begun[pid] == kill_at:
            with (
                contextlib.suppress(FileExistsError),
                victim_file(folder).open("x", encoding="ascii") as file,
            ):
                file.write(f"{pid}\n")
                file.flush()
                os.kill(pid, signal.SIGKILL)


def victim_file(folder: Path) -> Path:
    """The pid of the process that was killed."""
    return folder / "victim"


def begun(folder: Path) -> list[int]:
    """Every sample, as often as it was begun."""
    paths = sorted(folder.glob("begun-*"))
    return [int(line) for path in paths for line in path.read_text(encoding="ascii").split()]
