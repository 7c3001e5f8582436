from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardgen.domain.steps import BatchStep, LeaseStep, Step, SuspectStep
from shardgen.reporting import report
from shardgen.rundir import RunDirectory
from tests.runs import sha256_of, shardgen

STEPS = [
    # Starting TensorFlow twice a step takes ten seconds: the fast suite has the step between file and row.
    pytest.param(
        step,
        marks=[] if step is BatchStep.PUBLISHED else [pytest.mark.slow],
        id=f"{type(step).__name__}.{step.name}",
    )
    for step in (*BatchStep, *LeaseStep)
    if step is not LeaseStep.RELEASED
]


def _die_at(run: RunDirectory, step: Step, nth: int) -> None:
    name = f"{type(step).__name__}.{step.name}"
    died = subprocess.run(
        [sys.executable, "-m", "tests.kill_worker", str(run.path), name, str(nth)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_any_step_resumes_to_the_same_zip(
    run: RunDirectory, undisturbed_sha256: str, step: BatchStep | LeaseStep
) -> None:
    _die_at(run, step, 3)
    recorded = report(run)
    artifacts = len(list(run.artifacts.glob("shard-*/*.zip")))
    batches = recorded.stored // 4
    assert artifacts - batches <= 2
    done = shardgen("worker", run.path)
    assert done.returncode == 0, done.stderr
    made = int(done.stderr.split("made ")[1].split(" ")[0])
    assert made == 48 - recorded.stored
    merged = shardgen("merge", run.path)
    assert merged.returncode == 0, merged.stderr
    assert sha256_of(run.path / "dataset.zip") == undisturbed_sha256
    assert shardgen("verify", run.path / "dataset.zip").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", SuspectStep)
def test_a_worker_killed_at_any_note_of_suspect_mode_resumes_to_the_same_zip(
    run: RunDirectory, undisturbed_sha256: str, step: SuspectStep
) -> None:
    _die_at(run, BatchStep.COMPOSED, 1)  # the slice is suspect
    _die_at(run, SuspectStep.BATCH_NOTED, 1)  # and batch 0, too
    _die_at(run, step, 1)
    done = shardgen("worker", run.path)
    assert done.returncode == 0, done.stderr
    assert "making its samples one by one" in done.stderr
    merged = shardgen("merge", run.path)
    assert merged.returncode == 0, merged.stderr
    assert sha256_of(run.path / "dataset.zip") == undisturbed_sha256


def test_the_loss_is_at_most_three_batches(run: RunDirectory) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from shardgen.domain.steps import BatchStep;"
        "from shardgen.rundir import RunDirectory; from shardgen.working import WorkerOptions, work\n"
        "count = {step: 0 for step in BatchStep}\n"
        "def on_step(step):\n"
        "    if step in count: count[step] += 1\n"
        "    if count[BatchStep.COMPOSED] - count[BatchStep.RECORDED] >= 3: print('full', flush=True)\n"
        "    if count[BatchStep.COMPOSED] - count[BatchStep.RECORDED] > 3: print('TOO MANY', flush=True)\n"
        "work(RunDirectory.open(Path(sys.argv[1])), WorkerOptions(), say=lambda _: None, on_step=on_step)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TOO MANY" not in done.stdout
