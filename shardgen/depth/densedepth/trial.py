"""A weights file from outside is tried first: the HDF5 library is written in C."""

from __future__ import annotations

import sys
from pathlib import Path

from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights, refused
from shardgen.machine.trial import main_of_trial, try_to_read


def read_untrusted(path: Path) -> WeightsFile:
    """As `read_weights`, of a file that may come from anywhere; errors as there."""
    if problem := try_to_read("shardgen.depth.densedepth.trial", path):
        raise refused(path, [f"damaged HDF5: {problem}"])
    return read_weights(path)


if __name__ == "__main__":
    sys.exit(main_of_trial(read_weights, *sys.argv[1:]))
