from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.domain.steps import BatchStep, LeaseStep, MergeStep, PlanStep, RebuildStep, Step, SuspectStep
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import why_not_whole
from tests.kill_at import REQUEUED_BATCHES, VERB_OF, step_name
from tests.runs import die_at, make_run, plan_run, sha256_of, shardgen

WORKER_STEPS = [pytest.param(step, id=step_name(step)) for step in (*BatchStep, *LeaseStep)]
OF_ANOTHER_PLAN = {f"PlanStep.{name}" for name in ("NEXT_WRITTEN", "ROWS_REPLACED", "RENAMED")}
OTHER_STEPS = [
    pytest.param(step, id=step_name(step))
    for kind in get_args(Step)
    if VERB_OF[kind] not in ("worker", "export")  # tests/operations/test_export.py
    for step in kind
    if step_name(step) not in OF_ANOTHER_PLAN  # tests/operations/test_replanning.py
]


def assert_nothing_is_half_there(run: RunDirectory, planned: bytes, undisturbed_sha256: str) -> None:
    """Whatever has its final name is whole."""
    plan_file, zip_file, manifest = (
        run.path / name for name in ("plan.json", "dataset.zip", "manifest.sqlite")
    )
    if plan_file.exists():
        assert plan_file.read_bytes() == planned
    if zip_file.exists():
        assert sha256_of(zip_file) == undisturbed_sha256
    if manifest.exists() and manifest.stat().st_size:
        with closing(sqlite3.connect(manifest)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT count(*) FROM shard").fetchone() == (3,)
    store = FolderStore(run.artifacts)
    for name in store.names():
        fingerprint = run.plan().fingerprint
        assert why_not_whole(store.read_unrecorded(name), name=str(name), fingerprint=fingerprint) is None


def assert_merges_to(run: RunDirectory, sha256: str) -> None:
    merged = shardgen("merge", run.path)
    assert merged.returncode == 0, merged.stderr
    assert sha256_of(run.path / "dataset.zip") == sha256
    for subject in (run.path, run.path / "dataset.zip"):
        verified = shardgen("verify", subject)
        assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.slow
@pytest.mark.parametrize("step", WORKER_STEPS)
def test_a_worker_killed_at_any_step_resumes_to_the_same_zip(
    run: RunDirectory, undisturbed_sha256: str, step: BatchStep | LeaseStep
) -> None:
    planned = (run.path / "plan.json").read_bytes()
    die_at("worker", run.path, step, nth=1 if step is LeaseStep.RELEASED else 3)
    assert_nothing_is_half_there(run, planned, undisturbed_sha256)
    recorded = report(run)
    artifacts = len(list(run.artifacts.glob("shard-*/*.zip")))
    batches = recorded.stored // 4
    assert artifacts - batches <= 2
    done = shardgen("worker", run.path)
    assert done.returncode == 0, done.stderr
    made = int(done.stderr.split("made ")[1].split(" ")[0])
    assert made == 48 - recorded.stored
    assert_merges_to(run, undisturbed_sha256)


@pytest.mark.slow
@pytest.mark.parametrize("step", OTHER_STEPS)
def test_a_command_killed_at_any_step_and_run_again_leads_to_the_same_zip(
    finished_run: RunDirectory, undisturbed_sha256: str, step: Step
) -> None:
    run, verb = finished_run, VERB_OF[type(step)]
    planned = (run.path / "plan.json").read_bytes()
    if verb == "rebuild":
        (run.path / "manifest.sqlite").unlink()
    if isinstance(step, PlanStep):
        (run.path / "manifest.sqlite").unlink()
        (run.path / "plan.json").unlink()
        run.artifacts.rename(run.path / "elsewhere")
    die_at(verb, run.path, step)
    assert_nothing_is_half_there(run, planned, undisturbed_sha256)
    again = shardgen(*_command(verb), run.path)
    # By identity: members of different steps can be equal as strings.
    if step is RebuildStep.LINKED or step is RebuildStep.SYNCED:
        assert again.returncode == 13, again.stderr
        assert "there is already a manifest" in again.stderr
        assert not (run.path / ".manifest.sqlite.rebuild").exists()
    else:
        assert again.returncode == 0, again.stderr
    if verb in ("plan", "requeue"):
        done = shardgen("worker", run.path)
        assert done.returncode == 0, done.stderr
    assert_merges_to(run, undisturbed_sha256)


def _command(verb: str) -> list[str]:
    match verb:
        case "requeue":
            return ["requeue", *(word for batch in REQUEUED_BATCHES for word in ("--batch", str(batch)))]
        case "sweep":
            return ["sweep", "--yes"]
        case _:
            return [verb]


@pytest.mark.slow
def test_a_zip_that_was_there_stays_whole_when_the_next_merge_is_killed(
    finished_run: RunDirectory, undisturbed_sha256: str
) -> None:
    run = finished_run
    assert_merges_to(run, undisturbed_sha256)
    for step in MergeStep:
        die_at("merge", run.path, step)
        assert sha256_of(run.path / "dataset.zip") == undisturbed_sha256


@pytest.mark.slow
@pytest.mark.parametrize("step", SuspectStep)
def test_a_worker_killed_at_any_note_of_suspect_mode_resumes_to_the_same_zip(
    run: RunDirectory, undisturbed_sha256: str, step: SuspectStep
) -> None:
    die_at("worker", run.path, BatchStep.PREPARED)  # the slice is suspect
    die_at("worker", run.path, SuspectStep.BATCH_NOTED)  # and batch 0, too
    die_at("worker", run.path, step)
    done = shardgen("worker", run.path)
    assert done.returncode == 0, done.stderr
    assert "making its samples one by one" in done.stderr
    merged = shardgen("merge", run.path)
    assert merged.returncode == 0, merged.stderr
    assert sha256_of(run.path / "dataset.zip") == undisturbed_sha256


@pytest.mark.slow
def test_the_loss_is_at_most_three_batches(tmp_path: Path) -> None:
    one_slice = {"shards.size": "48", "shards.batch": "8", "shards.slice_batches": "6"}
    run = plan_run(make_run(tmp_path, changes=one_slice))
    script = (
        "import os, sys, time; from pathlib import Path; from shardgen.domain.steps import BatchStep;"
        "from shardgen.settings.run_directory import RunDirectory\n"
        "from shardgen.worker.worker import WorkerOptions, work\n"
        "count = {step: 0 for step in BatchStep}\n"
        "def on_step(step):\n"
        "    if step in count: count[step] += 1\n"
        "    if count[BatchStep.PREPARED] - count[BatchStep.RECORDED] >= 3: print('full', flush=True)\n"
        "    if count[BatchStep.PREPARED] - count[BatchStep.RECORDED] > 3: print('TOO MANY', flush=True)\n"
        "    if step is BatchStep.ENCODED: time.sleep(0.3)\n"  # a disk that is slower than the network
        "work(RunDirectory.open(Path(sys.argv[1])), WorkerOptions(), on_step=on_step)\n"
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
    assert "full" in done.stdout
    assert "TOO MANY" not in done.stdout


@pytest.mark.slow
def test_a_run_with_a_wide_micro_batch_that_was_killed_gives_the_zip_of_an_undisturbed_one(
    run: RunDirectory, tmp_path: Path
) -> None:
    settings = run.path / "shardgen.toml"
    text = settings.read_text(encoding="utf-8")
    assert text.count("micro_batch = 2") == 1
    settings.write_text(text.replace("micro_batch = 2", "micro_batch = 8"), encoding="utf-8")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(run.path, undisturbed)
    for nth in (2, 4):
        die_at("worker", run.path, BatchStep.LINKED, nth=nth)
    for path in (run.path, undisturbed):
        done = shardgen("worker", path)
        assert done.returncode == 0, done.stderr
        assert "micro-batch 8" in done.stderr
    merged = shardgen("merge", undisturbed)
    assert merged.returncode == 0, merged.stderr
    assert_merges_to(run, sha256_of(undisturbed / "dataset.zip"))
