"""A cut-out that kills itself: `python -m tests.operations.killed_cut_out FOLDER MODEL CALL NTH`.

CALL is a call of `DiskFiles`; the process dies by SIGKILL right after its NTH one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from shardgen.operations.cut_out import CutOutRequest, cut_out_photographs
from shardgen.storage.files import DiskFiles


def main() -> None:
    """Cut out, and die."""
    folder, model, call, nth = sys.argv[1:]
    made, done = getattr(DiskFiles, call), 0

    def and_die(self: DiskFiles, *arguments: Any) -> Any:
        nonlocal done
        result = made(self, *arguments)
        done += 1
        if done == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(DiskFiles, call, and_die)
    cut_out_photographs(CutOutRequest(path=Path(folder), model=Path(model)))


if __name__ == "__main__":
    main()
