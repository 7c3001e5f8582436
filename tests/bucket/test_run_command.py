"""`shardgen run` with the url of a bucket and nothing else: plan elsewhere, workers here, the zip here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.bucket.servers import Store
from tests.runs import make_run, sha256_of, shardgen

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("store", ["moto"], indirect=True)  # its four starts of shardgen take long enough
def test_run_makes_and_merges_what_another_machine_has_planned(store: Store, tmp_path: Path) -> None:
    url = store.new_url()
    planner, local = tmp_path / "planner", tmp_path / "local"
    for folder in (planner, local):
        folder.mkdir()
    planned = make_run(planner, changes={"manifest.url": f'"{url}"'})
    assert shardgen("plan", planned.path).returncode == 0
    here = tmp_path / "here"
    here.mkdir()
    environment = {**os.environ, "SHARDGEN_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(warm.ROOT)}
    # Workers end within seconds: whoever watches them must look again before it says what is left. A fork of
    # a process that has asked the store for something would do for nothing, so all is started anew.
    command = [sys.executable, "-m", "shardgen", "run", url, "--workers", "2"]
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in here.iterdir()] == ["dataset.zip"]
    alone = make_run(local)
    assert shardgen("run", alone.path).returncode == 0
    assert sha256_of(here / "dataset.zip") == sha256_of(alone.path / "dataset.zip")
