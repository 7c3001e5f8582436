"""`python -m tests.chaos --seconds 1200 --seed 7`: exit code 0 only if every promise held."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.harness import SQLITE, Chaos, ChaosOptions
from tests.chaos.worker import UNFENCED, UNPUBLISHED


def main() -> int:
    """Parse, run, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=120.0, help="of chaos; start and end come on top")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same schedule")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4800)
    parser.add_argument("--manifest", default=SQLITE, metavar="URL")
    parser.add_argument("--folder", type=Path, help="kept afterwards; without one, kept only when red")
    parser.add_argument("--verbose", action="store_true", help="print the schedule and what happens")
    parser.add_argument("--broken", default="", choices=["", UNPUBLISHED, UNFENCED], help="must turn it red")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="shardgen-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = ChaosOptions(
        seconds=given.seconds,
        seed=given.seed,
        workers=given.workers,
        samples=given.samples,
        manifest=given.manifest,
        verbose=given.verbose,
        broken=given.broken,
    )
    figures = Chaos(folder, options, say=lambda line: print(line, file=sys.stderr, flush=True)).run()
    print(figures.table(), flush=True)
    if figures.violations:
        print(f"everything is kept in {folder}", file=sys.stderr)
    elif given.folder is None:
        shutil.rmtree(folder)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
