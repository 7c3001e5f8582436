"""CPU milliseconds of a sample beside its network: composed, resized and encoded, as it is done and plainly.

    python -m benchmarks.encoding [--samples 320] [--rounds 3] [--markdown]

Plainly means: whole canvases are resized, and every file is decoded again for its sums
(tests/imaging/plain_composites.py). Both make the same pixels and the same sums, which is checked, of the
reference recipe (600x600 canvas, 640x480 input, 200x200 files). They take turns with each sample, on one
thread; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.beside.table import aligned, markdown
from benchmarks.worker import planned_run
from shardgen.depth.densedepth.network import depth_of
from shardgen.domain.identifiers import SampleIndex
from shardgen.imaging.codec import decode_encoded
from shardgen.recipes.composites.maker import encode_sample
from shardgen.recipes.composites.plan import FGBG, CompositesPlan
from tests.imaging.plain_composites import PlainComposer, plain_depth_of, plain_encoded
from tests.worker.parts import open_composer

HEADER = ("CPU ms a sample", "plainly", "now", "times")
_OUTPUTS = 8  # of the network, which samples share

Result = TypeVar("Result")


class Clock:
    """CPU seconds of this thread, by step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def time(self, step: str, work: Callable[[], Result]) -> Result:
        """Do the work and take its time."""
        began = time.thread_time()
        result = work()
        self.seconds[step].append(time.thread_time() - began)
        return result

    def milliseconds(self, *steps: str) -> float:
        """The median of each step, added up."""
        return sum(1000 * statistics.median(self.seconds[step]) for step in steps)


def likely_outputs(count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Raw outputs of a depth network, float32 (count, h, w) of `size` (width, height): smooth, with noise."""
    random = np.random.default_rng(0)
    down, across = np.mgrid[0 : size[1], 0 : size[0]]
    return np.stack(
        [
            2
            + 8
            * np.abs(np.sin(across / 97 + random.uniform(0, 6)) * np.cos(down / 71 + random.uniform(0, 6)))
            + 0.05 * random.standard_normal(down.shape)
            for _ in range(count)
        ]
    ).astype(np.float32)


def measure(folder: Path, *, samples: int, rounds: int) -> list[tuple[str, str, str, str]]:
    """The rows of the table."""
    run = planned_run(folder, "small", 6)
    plan = CompositesPlan(run.plan())
    now, plain = open_composer(run), open_composer(run, PlainComposer)
    chosen = [SampleIndex(int(sample)) for sample in np.linspace(0, plan.samples - 1, samples)]
    width, height = (320, 240) if plan.depth is None else (side // 2 for side in plan.depth.input)
    outputs = likely_outputs(_OUTPUTS, (width, height))
    for composer in (now, plain):
        for sample in chosen:
            composer.compose(sample)  # photographs are decoded once
    clock = Clock()
    for number in range(rounds):
        for position, sample in enumerate(chosen):
            raw = outputs[position % len(outputs)]
            slow = clock.time("plain compose", lambda: plain.compose(sample))  # noqa: B023 - called at once
            slow_depth = clock.time("plain depth", lambda: plain_depth_of(raw))  # noqa: B023
            slow_made = clock.time("plain encode", lambda: plain_encoded(slow, slow_depth, plan))  # noqa: B023
            fast = clock.time("compose", lambda: now.compose(sample))  # noqa: B023
            depth = clock.time("depth", lambda: depth_of(raw))  # noqa: B023
            made = clock.time("encode", lambda: encode_sample(fast, depth, plan))  # noqa: B023
            if number == 0:
                np.testing.assert_array_equal(fast.network_input, slow.network_input)
                if (made.sums, made.facts) != (slow_made.sums, slow_made.facts):
                    raise RuntimeError(f"sample {sample}: other sums or boxes")
                for name, data in made.files.items():
                    channels = 3 if name == FGBG else 1
                    found = decode_encoded(data, channels=channels)
                    expected = decode_encoded(slow_made.files[name], channels=channels)
                    np.testing.assert_array_equal(found, expected)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    rows = {
        "compose, resize to the network and to the files": ("compose",),
        "depth of the network's output": ("depth",),
        "encode, decode, sum up": ("encode",),
        "all": ("compose", "depth", "encode"),
    }
    table = []
    for what, steps in rows.items():
        before, after = clock.milliseconds(*(f"plain {step}" for step in steps)), clock.milliseconds(*steps)
        table.append((what, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}"))
    return table


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), samples=options.samples, rounds=options.rounds)
    print((markdown if options.markdown else aligned)(HEADER, rows))


if __name__ == "__main__":
    main()
