"""Work that is done twice on a shared folder that shows files late.

    python -m benchmarks.shared_folder [--seeds 8] [--workers 6] [--slices 60] [--lose]

Simulated time and a made-up drive, the real protocol and its default times: workers make slices of 30 minutes
(6 batches of 5 minutes, each a segment), while every file takes its own time to every machine. With --lose
one machine vanishes with its disk after 100 minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.plans import make_plan
from tests.shared_folder.double import Faults
from tests.shared_folder.playing import MEMORY, Event, World

BATCHES, BATCH_SECONDS = 6, 300.0
LAGS = {
    "15 s": Faults(median_lag=15.0),
    "60 s, one in a hundred 10 min": Faults(median_lag=60.0),
    "30 s, one in fifty 30 min": Faults(median_lag=30.0, stuck=0.02),
}


def play(faults: Faults, seed: int, options: argparse.Namespace, skew: float) -> tuple[float, float]:
    """The share of batches that were made again, and the time that it took, in times the ideal."""
    # Two samples a batch, so that the images, which nobody looks at, cost little.
    plan = make_plan(
        backgrounds=options.slices,
        foregrounds=1,
        grid=(BATCHES, 2),
        shard_size=10_000,
        slice_batches=BATCHES,
        batch=2,
    )
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        world = World(
            seed=seed,
            faults=faults,
            folder=Path(folder),
            plan=plan,
            batch_seconds=BATCH_SECONDS,
            start_seconds=60.0,
            skew=skew,
        )
        for _ in range(options.workers):
            world.start_worker(world.add_machine())
        if options.lose:
            world.plan_events([Event(after=6000.0, kind="lose")])
        world.play()
        if not world.is_whole():
            world.finish()
        ideal = plan.layout.batch_count * BATCH_SECONDS / options.workers + world.start_seconds
        finished = max(machine.finished_at for machine in world.machines)
        return world.duplicated / plan.layout.batch_count, finished / ideal


def main() -> None:
    """Print a line for each kind of drive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--lose", action="store_true", help="one machine vanishes with its disk")
    options = parser.parse_args()
    print(f"{'median lag':<32} {'clocks':>8} {'made again':>10} {'most':>7} {'time / ideal':>12}")
    for name, faults in LAGS.items():
        for skew in (0.0, 3600.0):
            began = time.perf_counter()
            rows = [play(faults, seed, options, skew) for seed in range(options.seeds)]
            shares, times = [row[0] for row in rows], [row[1] for row in rows]
            clocks = "agree" if not skew else "±1 h"
            print(
                f"{name:<32} {clocks:>8} {statistics.mean(shares):>10.2%} {max(shares):>7.2%} "
                f"{statistics.mean(times):>12.3f}   ({time.perf_counter() - began:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
