"""`run --limit` and `--deadline`: what they make, how they end, and what is dealt to each worker."""

from __future__ import annotations

import json
import math
import os
import signal
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardgen.launch.allocation import Share
from shardgen.launch.launcher import ProcessId
from shardgen.launch.local import LocalLauncher
from shardgen.launch.supervisor import _PORTION_BATCHES, RunOptions, _Supervisor
from shardgen.machine.processes import host_id
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests import poison
from tests.runs import make_run, plan_run, shardgen, start

SAMPLES = 48  # in shards of 20, 20 and 8, batches of 4
LAST = "a data set of what is stored: shardgen merge {} --partial"


@pytest.fixture
def planned(tmp_path: Path) -> RunDirectory:
    return plan_run(make_run(tmp_path))


def _last_line(stderr: str) -> str:
    return stderr.rstrip().rpartition("\n")[2]


@pytest.mark.slow
def test_a_run_stops_at_its_limit_and_the_next_goes_on_to_its_own(planned: RunDirectory) -> None:
    for limit, workers, stored in [(1, 1, 4), (8, 2, 8), (9, 3, 12), (12, 1, 12), (5, 1, 12), (31, 3, 32)]:
        done = shardgen("run", planned.path, "--limit", str(limit), "--workers", str(workers))
        assert done.returncode == 0, done.stderr
        assert report(planned).stored == stored, (limit, done.stderr)
        assert f"{SAMPLES - stored} of {SAMPLES} pending" in _last_line(done.stderr)
        assert _last_line(done.stderr).endswith(LAST.format(planned.path))
        assert ("nothing to do" in done.stderr) == (limit in (5, 12))
        assert not (planned.path / "dataset.zip").exists()
    rest = shardgen("run", planned.path, "--limit", "1000", "--deadline", "1h")
    assert rest.returncode == 0, rest.stderr
    assert (planned.path / "dataset.zip").exists()
    assert "--partial" not in rest.stderr


@pytest.mark.slow
def test_dead_letters_do_not_count_as_stored(planned: RunDirectory) -> None:
    environment = poison.environment("raise", 0, 1, 2, 5)
    done = shardgen("run", planned.path, "--limit", "16", "--workers", "2", environment=environment)
    assert done.returncode == 0, done.stderr
    found = report(planned)
    assert found.dead == 4
    assert 16 <= found.stored < 20


@pytest.mark.slow
def test_a_limited_run_does_not_start_worker_after_worker_for_dead_letters(planned: RunDirectory) -> None:
    environment = poison.environment("raise", *range(SAMPLES))
    done = shardgen("run", planned.path, "--limit", "1", environment=environment)
    assert done.returncode == 15, done.stderr
    assert "3 times in a row all samples that were made for the limit are dead letters" in done.stderr
    assert "shardgen dead-letters" in done.stderr
    assert report(planned).dead == 12


@pytest.mark.slow
def test_the_limit_is_met_exactly_when_a_worker_is_killed_in_the_middle(tmp_path: Path) -> None:
    run = plan_run(make_run(tmp_path, changes={"compose.grid": "[10, 10]", "shards.size": "500"}))
    with start(["run", run.path, "--limit", "400", "--workers", "2"]) as command:
        killed = False
        while command.poll() is None:
            found = report(run)
            busy = [one.row.identity.pid for one in found.workers if one.row.samples_done >= 8]
            if busy and not killed and found.stored < 200:
                os.kill(busy[0], signal.SIGKILL)
                killed = True
        assert command.wait(240) == 0
    assert killed
    assert report(run).stored == 400


@pytest.mark.slow
def test_past_its_deadline_a_run_exits_with_0_and_merges_nothing(planned: RunDirectory) -> None:
    done = shardgen("run", planned.path, "--deadline", "0s")
    assert done.returncode == 0, done.stderr
    assert _last_line(done.stderr).endswith(LAST.format(planned.path))
    assert not (planned.path / "dataset.zip").exists()
    assert shardgen("run", planned.path).returncode == 0
    whole = shardgen("run", planned.path, "--deadline", "0s")
    assert whole.returncode == 0, whole.stderr
    assert "--partial" not in whole.stderr  # nothing is pending, so it merges as always


@pytest.mark.slow
def test_a_limit_below_1_is_a_wrong_usage(planned: RunDirectory) -> None:
    assert shardgen("run", planned.path, "--limit", "0").returncode == 2


@pytest.mark.slow
def test_a_run_whose_samples_keep_dying_ends_with_15_and_the_reasons(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        changes={
            "compose.grid": "[10, 10]",
            "shards.size": "800",
            "shards.batch": "32",
            "lease.seconds": "30",
        },
    )
    text = (run.path / "shardgen.toml").read_text()
    (run.path / "shardgen.toml").write_text(text.replace("max_dead_share = 100", "max_dead_share = 2.5"))
    run = plan_run(RunDirectory.open(run.path))
    environment = poison.environment("raise", *range(0, 640, 20))
    done = shardgen("run", run.path, "--workers", "2", environment=environment)
    assert done.returncode == 15, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "more than [lease] max_dead_share = 2.5: compose" in errors[-1], done.stderr
    assert "such as sample 0 (sample 0: composing raised ZeroDivisionError('made to fail'))" in errors[-1]
    assert "starts again" not in done.stderr
    shown = json.loads(shardgen("status", run.path, "--json").stdout)
    assert shown["samples"]["dead_letters"]
    assert not any(shard["slices"]["leased"] for shard in shown["shards"])


def test_what_is_dealt_is_never_one_batch_more_than_the_limit_needs(tmp_path: Path) -> None:
    """The first deal of all, when nobody has anything in hand."""
    run = plan_run(make_run(tmp_path, changes={"compose.grid": "[60, 100]", "shards.size": "100000"}))
    for workers, limit in product((1, 2, 3, 8), (1, 4, 5, 47, 48, 1_000, 40_001)):
        launcher = LocalLauncher(run, [Share()] * workers, say=print)
        supervisor: Any = _Supervisor(run, run.plan(), launcher, RunOptions(limit=limit), say=print)
        supervisor._deal(limit, supervisor._seats)
        dealt = [seat.batches for seat in supervisor._seats]
        needed = math.ceil(limit / 4)
        assert any(dealt)
        assert sum(dealt) <= needed, (workers, limit)
        if needed <= _PORTION_BATCHES:
            assert sum(dealt) == needed, (workers, limit)
            assert max(dealt) - min(dealt) <= 1, (workers, limit)


def test_what_running_workers_may_still_make_is_not_dealt_again(planned: RunDirectory) -> None:
    launcher = LocalLauncher(planned, [Share()] * 2, say=print)
    supervisor: Any = _Supervisor(planned, planned.plan(), launcher, RunOptions(), say=print)
    idle, busy = supervisor._seats
    busy.process, busy.batches = SimpleNamespace(id=ProcessId(host_id(), os.getpid())), 5
    supervisor._deal(40, [idle])
    assert idle.batches == 10 - 5
    busy.batches = 10
    idle.finished_before = -1
    supervisor._deal(40, [idle])
    assert (idle.batches, idle.start_at) == (0, math.inf)
