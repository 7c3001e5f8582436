from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.steps import BatchStep, PlanStep
from shardgen.errors import ManifestBusy, PlanConflict
from shardgen.manifest.manifest import read_stored_plan
from shardgen.operations.plan import draft_plan, make_plan, put_plan
from shardgen.operations.rebuild import rebuild
from shardgen.operations.status import report
from shardgen.settings import plan_file
from shardgen.settings.plan_file import NEXT, planning_lock, read_plan
from shardgen.settings.run_directory import RunDirectory
from tests.postgres import new_schema
from tests.runs import die_at, make_run, plan_run, sha256_of, shardgen

FRESH, OLD = "[4, 2]", "[3, 2]"  # grids
OLD_SAMPLES, NEW_SAMPLES = 48, 64
KILLS = [
    *(
        ("sqlite", step)
        for step in (PlanStep.CHECKED, PlanStep.NEXT_WRITTEN, PlanStep.ROWS_REPLACED, PlanStep.RENAMED)
    ),
    *(
        ("postgresql", step) for step in (PlanStep.NEXT_WRITTEN, PlanStep.ROWS_REPLACED)
    ),  # the others touch files only
]


def set_grid(run: RunDirectory | Path, grid: str) -> RunDirectory:
    """Change the settings; what to go on with."""
    path = run if isinstance(run, Path) else run.path
    text = (path / "shardgen.toml").read_text(encoding="utf-8")
    before = next(line for line in text.splitlines() if line.startswith("grid = "))
    (path / "shardgen.toml").write_text(text.replace(before, f"grid = {grid}"), encoding="utf-8")
    return RunDirectory.open(path)


def stored(run: RunDirectory) -> str:
    found = read_stored_plan(run.database)
    assert found is not None
    return found.fingerprint


def left_over(run: RunDirectory) -> set[str]:
    return {path.name for path in run.path.iterdir()} - {
        "shardgen.toml", "plan.json", "manifest.sqlite", "artifacts", "logs", "dataset.zip",
    }  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_run(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    planned_template: Path,
    postgres_servers: Callable[[], URL],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RunDirectory]:
    """A planned run with nothing made, on either database."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            shutil.copytree(planned_template / "run", tmp_path / "run")
            yield RunDirectory.open(tmp_path / "run")
            return
        url = stack.enter_context(new_schema(postgres_servers()))
        monkeypatch.setenv("SHARDGEN_MANIFEST", url)
        yield plan_run(make_run(tmp_path, changes={"manifest.url": '"${SHARDGEN_MANIFEST}"'}))


def test_changed_settings_take_the_place_of_a_plan_of_which_nothing_is_made(any_run: RunDirectory) -> None:
    old = any_run.plan()
    run = set_grid(any_run, FRESH)
    for ask in (run.plan, lambda: open_run(run)):
        with pytest.raises(PlanConflict, match="grid: 3x2 -> 4x2") as caught:
            ask()
        assert caught.value.hint.startswith("shardgen plan RUN_DIR")
    planned = make_plan(run, {})
    assert (planned.changes, planned.is_new) == (("compose.grid: 3x2 -> 4x2",), False)
    assert planned.plan.samples == NEW_SAMPLES
    again = RunDirectory.open(run.path)
    assert again.plan() == planned.plan == again.plan_file
    assert stored(run) == planned.plan.fingerprint
    assert report(again).pending == NEW_SAMPLES
    assert make_plan(again, {}).changes == ()
    assert left_over(run) == set()
    back = make_plan(set_grid(run, OLD), {})
    assert back.plan == old
    assert RunDirectory.open(run.path).plan() == old


def test_an_older_plan_file_gives_way_to_the_manifests_plan(any_run: RunDirectory, tmp_path: Path) -> None:
    old_file = (any_run.path / "plan.json").read_bytes()
    new = make_plan(set_grid(any_run, FRESH), {}).plan
    second = tmp_path / "second"
    second.mkdir()
    shutil.copy(any_run.path / "shardgen.toml", second)
    if any_run.url.startswith("sqlite"):
        (second / "manifest.sqlite").symlink_to(any_run.path / "manifest.sqlite")
    (second / "plan.json").write_bytes(old_file)
    other = RunDirectory.open(second)
    assert other.plan() == new
    with pytest.raises(PlanConflict, match="grid: 4x2 -> 3x2"):
        set_grid(second, OLD).plan()
    assert (second / "plan.json").read_bytes() == old_file
    assert make_plan(set_grid(second, FRESH), {}).changes == ()
    assert read_plan(second) == new


def test_a_plan_file_of_another_run_is_neither_believed_nor_replaced(
    run: RunDirectory, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = plan_run(make_run(tmp_path / "other", foregrounds=1))
    shutil.copy(other.path / "plan.json", run.path)
    foreign = RunDirectory.open(run.path)
    with pytest.raises(PlanConflict, match="holds plan"), foreign.manifest(foreign.plan()):
        pass
    with pytest.raises(PlanConflict, match="holds plan"):
        make_plan(foreign, {})
    assert read_plan(run.path) == other.plan()
    assert left_over(run) == set()


def test_without_a_manifest_the_file_is_replaced_unless_there_are_artifacts(run: RunDirectory) -> None:
    (run.path / "manifest.sqlite").unlink()
    new = make_plan(set_grid(run, FRESH), {})
    assert (new.is_new, new.changes) == (True, ("compose.grid: 3x2 -> 4x2",))
    assert read_plan(run.path) == new.plan
    (run.path / "manifest.sqlite").unlink()
    shard = run.path / "artifacts" / "shard-00000"
    shard.mkdir(parents=True)
    (shard / "batch-00000000.f0001.00000000.00000000.zip").write_bytes(b"whatever")
    run = set_grid(run, OLD)
    with pytest.raises(PlanConflict) as caught:
        make_plan(run, {})
    assert "undo that in shardgen.toml" in caught.value.hint
    assert read_plan(run.path) == new.plan


def test_after_the_first_receipt_the_plan_stays_and_the_refusal_says_what_can_be_done(
    finished_run: RunDirectory,
) -> None:
    before = finished_run.plan()
    changed = set_grid(finished_run, FRESH)
    for ask in (changed.plan, lambda: make_plan(changed, {})):
        with pytest.raises(PlanConflict, match="grid: 3x2 -> 4x2") as caught:
            ask()
        assert caught.value.hint == "undo that in shardgen.toml, or use a new directory for the other plan"
    run = set_grid(finished_run, OLD)
    folder = run.folders({})["backgrounds"]
    elsewhere = run.path / "backgrounds"
    shutil.copytree(folder, elsewhere)
    photograph = next(elsewhere.iterdir())
    shutil.copy(photograph, photograph.with_stem("zebra"))
    with pytest.raises(PlanConflict, match=r"'zebra.* is new") as caught:
        make_plan(run, {"backgrounds": elsewhere})
    assert caught.value.hint.startswith("shardgen extend RUN_DIR")
    photograph.unlink()
    with pytest.raises(PlanConflict, match="is gone") as caught:
        make_plan(run, {"backgrounds": elsewhere})
    assert "extend" not in caught.value.hint
    assert stored(run) == before.fingerprint
    assert left_over(run) == {"backgrounds"} | left_over(finished_run)
    assert not (run.path / NEXT).exists()


def test_a_live_lease_keeps_the_plan_and_leaves_no_file(any_run: RunDirectory) -> None:
    policy = any_run.settings.lease_policy
    with any_run.manifest(any_run.plan()) as manifest:
        lease = manifest.leases.lease(WorkerId("anna"), policy)
        assert isinstance(lease, Lease)
        changed = set_grid(any_run, FRESH)
        with pytest.raises(ManifestBusy, match="worker anna"):
            make_plan(changed, {})
        assert left_over(any_run) == set()
        manifest.leases.release(lease)
        assert make_plan(changed, {}).changes


def test_two_that_plan_at_once_do_it_one_after_the_other(any_run: RunDirectory) -> None:
    runs = [set_grid(any_run, grid) for grid in ("[4, 2]", "[2, 2]", "[5, 2]")]
    plans = [draft_plan(run, run.folders({}))[0] for run in runs]
    with ThreadPoolExecutor() as pool:
        put = list(pool.map(put_plan, runs, plans))
    before = [one.before for one in put]
    final = read_plan(any_run.path)
    assert final in plans
    assert stored(any_run) == final.fingerprint
    chain = {one.fingerprint for one in before if one is not None} | {final.fingerprint}
    assert len(chain) == 4  # each replaced another
    assert left_over(any_run) == set()


def test_the_planning_lock_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_file, "_LOCK_SECONDS", 0.2)
    with (
        planning_lock(tmp_path),
        pytest.raises(ManifestBusy, match="changing its plan"),
        planning_lock(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".plan.lock").touch()  # as a kill leaves it
    with planning_lock(tmp_path):
        descriptor = os.open(tmp_path / ".plan.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    assert list(tmp_path.iterdir()) == []


def put_next(run: RunDirectory, plan: Plan) -> None:
    (run.path / NEXT).write_bytes(plan.canonical_json)


@pytest.mark.slow
def test_a_rebuild_takes_the_plan_that_more_artifacts_are_of(run: RunDirectory, tmp_path: Path) -> None:
    old = run.plan()
    new = make_plan(set_grid(run, FRESH), {}).plan
    done = shardgen("worker", run.path, "--max-batches", "3")
    assert done.returncode == 0, done.stderr
    (run.path / "plan.json").write_bytes(old.canonical_json)
    put_next(run, new)
    (run.path / "manifest.sqlite").unlink()
    plan, found = rebuild(RunDirectory.open(run.path))
    assert (plan, found.batches) == (new, 3)
    known = read_stored_plan(run.database)
    assert known is not None
    assert (known.fingerprint, known.earlier) == (new.fingerprint, frozenset({old.fingerprint}))
    assert RunDirectory.open(run.path).plan() == new
    assert (run.path / NEXT).exists()
    assert make_plan(RunDirectory.open(run.path), {}).changes == ()
    assert read_plan(run.path) == new
    assert not (run.path / NEXT).exists()
    put_next(run, old)  # the other way round: what is to come has nothing to show
    (run.path / "manifest.sqlite").unlink()
    assert rebuild(RunDirectory.open(run.path))[0] == new
    known = read_stored_plan(run.database)
    assert known is not None
    assert known.earlier == frozenset()


@pytest.fixture(scope="module")
def undisturbed_new(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the zip of a run that was planned with the new settings from the first."""
    run = make_run(tmp_path_factory.mktemp("new"), changes={"compose.grid": FRESH})
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    return sha256_of(run.path / "dataset.zip")


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["new", "old"])
@pytest.mark.parametrize(("any_run", "step"), KILLS, indirect=["any_run"], ids=str)
def test_a_command_killed_while_it_changes_the_plan_leaves_one_that_counts(
    any_run: RunDirectory, step: PlanStep, settings: str, undisturbed_new: str, undisturbed_sha256: str
) -> None:
    run, old = set_grid(any_run, FRESH), any_run.plan()
    die_at("plan", run.path, step)
    is_taken = step in (PlanStep.ROWS_REPLACED, PlanStep.RENAMED)
    assert (stored(run) != old.fingerprint) == is_taken
    if settings == "old":
        set_grid(run, OLD)
    fits = is_taken == (settings == "new")
    looked, worked = shardgen("status", run.path), shardgen("worker", run.path, "--max-batches", "1")
    assert looked.returncode == worked.returncode == (0 if fits else 10), looked.stderr + worked.stderr
    if not fits:
        assert "shardgen plan" in looked.stderr
        assert "shardgen plan" in worked.stderr
    planned = shardgen("plan", run.path)
    assert planned.returncode == 0, planned.stderr
    assert ("CHANGED" in planned.stdout) != fits
    assert left_over(run) == set()
    plan = RunDirectory.open(run.path).plan()
    assert read_plan(run.path) == plan
    assert plan.samples == (NEW_SAMPLES if settings == "new" else OLD_SAMPLES)
    ran = shardgen("run", run.path)
    assert ran.returncode == 0, ran.stderr
    expected = undisturbed_new if settings == "new" else undisturbed_sha256
    assert sha256_of(run.path / "dataset.zip") == expected
    verified = shardgen("verify", run.path)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
def test_what_an_earlier_plans_worker_left_disturbs_nobody(run: RunDirectory, undisturbed_new: str) -> None:
    # It left an artifact without a receipt, and its lease; that nobody holds it any more is known here.
    die_at("worker", run.path, BatchStep.LINKED)
    set_grid(run, FRESH)
    planned = shardgen("plan", run.path)
    assert planned.returncode == 0, planned.stderr
    ran = shardgen("run", run.path)
    assert ran.returncode == 0, ran.stderr
    assert sha256_of(run.path / "dataset.zip") == undisturbed_new
    for words in (("verify",), ("sweep", "--yes"), ("backup", "-o", run.path / "copy.sqlite"), ("status",)):
        done = shardgen(words[0], run.path, *words[1:])
        assert done.returncode == 0, done.stderr + done.stdout
    (run.path / "manifest.sqlite").unlink()
    rebuilt = shardgen("rebuild", run.path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert report(RunDirectory.open(run.path)).pending == 0


@pytest.mark.slow
def test_changed_photographs_are_taken_by_plan_and_the_preview_shows_changed_settings(
    run: RunDirectory,
) -> None:
    shutil.copytree(run.folders({})["backgrounds"], run.path / "backgrounds")
    next((run.path / "backgrounds").iterdir()).unlink()
    folders = ("--backgrounds", run.path / "backgrounds")
    refused = shardgen("worker", run.path, *folders)
    assert refused.returncode == 10, refused.stderr
    assert f"shardgen plan {run.path} accepts these" in refused.stderr
    planned = shardgen("plan", run.path, *folders)
    assert planned.returncode == 0, planned.stderr
    assert "is gone" in planned.stdout
    before = (run.path / "plan.json").read_bytes()
    set_grid(run, FRESH)
    shown = shardgen("preview", run.path, "--samples", "2", *folders)
    assert shown.returncode == 0, shown.stderr
    assert (run.path / "plan.json").read_bytes() == before


@pytest.mark.slow
def test_on_a_shared_folder_the_plan_changes_until_a_worker_has_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    run = plan_run(make_run(tmp_path, changes={"manifest.url": '"folder:"'}))
    set_grid(run, FRESH)
    refused = shardgen("worker", run.path)
    assert refused.returncode == 10, refused.stderr
    assert "shardgen plan" in refused.stderr
    die_at("plan", run.path, PlanStep.NEXT_WRITTEN)
    assert read_plan(run.path) == run.plan()
    planned = shardgen("plan", run.path)
    assert planned.returncode == 0, planned.stderr
    assert "CHANGED" in planned.stdout
    assert left_over(run) == set()
    joined = shardgen("worker", run.path, "--max-batches", "1")
    assert joined.returncode == 0, joined.stderr
    before = (run.path / "plan.json").read_bytes()
    set_grid(run, OLD)
    for verb in ("plan", "worker"):
        late = shardgen(verb, run.path)
        assert late.returncode == 10, late.stderr
        assert "undo that in shardgen.toml, or use a new directory" in late.stderr
    assert (run.path / "plan.json").read_bytes() == before
