from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import sha256_of, shardgen
from tests.shared_folder.test_commands import Machines, planned

pytestmark = pytest.mark.slow

MEDIAN_LAG_SECONDS = float(os.environ.get("SHARDGEN_TEST_LAG", "2"))
GRID = {"compose.grid": "[5, 4]", "shards.size": "80", "shards.slice_batches": "5"}  # 160 samples, 40 batches
PATIENCE_SECONDS = 900.0


def settings_for(lag: float) -> dict[str, str]:
    times = {"scan": max(0.5, lag / 4), "settle": 3 * lag + 1, "segment": 5.0, "silent": 20 * lag + 20}
    return {f"folder.{name}_seconds": f"{seconds:g}" for name, seconds in times.items()}


def run_three(machines: Machines, lag: float) -> float:
    """Three machines, one of which dies with its disk; returns the share of batches that were made again."""
    processes = []
    for number, machine in enumerate(("first", "second", "third")):
        program = ["-m", "shardgen", "worker", machines.run.path]
        if lag:
            program = ["-m", "tests.shared_folder.lagging", machines.run.path, str(number), str(lag)]
        with (machines.folder / f"{machine}.log").open("w", encoding="utf-8") as said:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *map(str, program)],
                    env={**os.environ, "SHARDGEN_CACHE": str(machines.folder / machine)},
                    stderr=said,
                    cwd=Path(__file__).parents[2],
                )
            )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(machines.segments()) < 4:
            assert time.monotonic() < deadline, "nothing is published"
            time.sleep(0.2)
        processes[0].kill()
        processes[0].wait()
        shutil.rmtree(machines.folder / "first")
        for process in processes[1:]:
            assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    seen = machines.status("another")
    assert seen["samples"] == {"planned": 160, "stored": 160, "dead_letters": 0, "pending": 0}
    return float(seen["shared_folder"]["duplicated_batches"]) / 40


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    machines = planned(folder, **GRID)
    ran = machines.on("owner", "run", "-o", folder / "it.zip")
    assert ran.returncode == 0, ran.stderr
    return sha256_of(folder / "it.zip")


@pytest.mark.parametrize("lag", [0.0, MEDIAN_LAG_SECONDS], ids=["plain folder", "lagging folder"])
def test_three_machines_one_of_which_is_lost_with_its_disk_lose_no_sample(
    lag: float, tmp_path: Path, undisturbed: str
) -> None:
    machines = planned(tmp_path, **GRID, **settings_for(lag))
    again = run_three(machines, lag)
    print(f"lag {lag:g} s: {again:.1%} of the batches are in the folder twice")  # noqa: T201 - with -s
    assert machines.merged("another") == undisturbed
    assert shardgen("verify", tmp_path / "another.zip").returncode == 0
    assert again <= 0.5
