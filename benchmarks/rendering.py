"""Rendered training pictures per CPU-second of one thread, by size.

python -m benchmarks.rendering [--count 200]
"""

from __future__ import annotations

import argparse
import time

import cv2

from training.rendering import render_samples
from training.textures import training_bank


def main() -> None:
    """Render and print a line per size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    bank = training_bank()
    for size in ((128, 96), (256, 192), (640, 480)):
        before = time.process_time()
        render_samples(bank, seed=0, count=options.count, size=size)
        rate = options.count / (time.process_time() - before)
        print(f"{size[0]}x{size[1]}: {rate:.0f} pictures per CPU-second")


if __name__ == "__main__":
    main()
