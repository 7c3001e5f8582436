"""Reads a weights file in a process of its own: what it said, and by how many megabytes memory grew."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.errors import ShardgenError


def _peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    before = _peak_megabytes()
    try:
        read_weights(Path(sys.argv[1]))
        print("read")  # noqa: T201
    except ShardgenError as error:
        print(error)  # noqa: T201
    print(_peak_megabytes() - before)  # noqa: T201
