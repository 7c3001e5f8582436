from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from shardgen.dataset.output import LABELS
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.steps import PlanStep
from shardgen.errors import ManifestBusy, ManifestMismatch, PlanConflict
from shardgen.operations.extend import extend, unplanned
from shardgen.operations.plan import make_plan
from shardgen.operations.rebuild import rebuild
from shardgen.settings.plan_file import read_plan
from shardgen.settings.run_directory import RunDirectory
from tests.photographs import write_photographs
from tests.postgres import new_schema
from tests.runs import die_at, make_run, plan_run, sha256_of, shardgen

KILLS = [
    *(
        ("sqlite", step)
        for step in (PlanStep.CHECKED, PlanStep.NEXT_WRITTEN, PlanStep.ROWS_REPLACED, PlanStep.RENAMED)
    ),
    *(
        ("postgresql", step) for step in (PlanStep.NEXT_WRITTEN, PlanStep.ROWS_REPLACED)
    ),  # the others touch files only
]
SAMPLES = (48, 108, 180)  # of 2x2, 3x3 and 3x5 photographs at 12 places


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_run(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_servers: Callable[[], URL],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RunDirectory]:
    """A planned run on either database, whose photographs are its own."""
    changes = {"compose.grid": "[3, 4]", "compose.flips": '"none"'}
    with ExitStack() as stack:
        if request.param == "postgresql":
            url = stack.enter_context(new_schema(postgres_servers()))
            monkeypatch.setenv("SHARDGEN_MANIFEST", url)
            changes["manifest.url"] = '"${SHARDGEN_MANIFEST}"'
        yield plan_run(make_run(tmp_path, changes=changes))


def add(run: RunDirectory, name: str, *, foregrounds: int = 0, backgrounds: int = 0) -> RunDirectory:
    """Put further photographs into the run's folders; what to go on with."""
    box = run.path / "box"
    write_photographs(box, foregrounds=foregrounds, backgrounds=backgrounds, seed=sum(name.encode()))
    for kind, folder in run.folders({}).items():
        for path in (box / kind).iterdir():
            path.rename(folder / f"{name}-{path.name}")
    shutil.rmtree(box)
    return RunDirectory.open(run.path)


def grown(run: RunDirectory) -> RunDirectory:
    """With a foreground and a background more: one sorts before all others, as if it were planned first."""
    return add(run, "a-new", foregrounds=1, backgrounds=1)


def done(*words: str | Path) -> str:
    """Run a command that succeeds; what it said."""
    ran = shardgen(*words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def artifacts(run: RunDirectory) -> dict[BatchIndex, str]:
    """The artifact of each batch that has a receipt."""
    opened = RunDirectory.open(run.path)
    with opened.manifest(opened.plan(), read_only=True) as manifest:
        return {receipt.record.batch: receipt.artifact.name for receipt in manifest.receipts.receipts()}


def images(path: Path) -> bytes:
    """The bytes of a data set in front of its last members."""
    with zipfile.ZipFile(path) as archive:
        return path.read_bytes()[: archive.getinfo(LABELS).header_offset]


def labels(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.read(LABELS).decode().splitlines()


@pytest.mark.slow
def test_a_finished_and_an_extended_run_grow_and_nothing_stored_is_made_again(any_run: RunDirectory) -> None:
    run, target = any_run, any_run.path / "dataset.zip"
    done("run", run.path)
    before = target
    for number, names in enumerate([{"foregrounds": 1, "backgrounds": 1}, {"foregrounds": 2}], start=1):
        kept, made = target.with_name(f"{number}.zip"), artifacts(run)
        shutil.copy(target, kept)
        done("merge", run.path, "--partial")  # whole, until the plan grows
        run = add(run, f"a{number}", **names)
        said = done("extend", run.path)
        assert "EXTENDED" in said
        assert f"{SAMPLES[number] - SAMPLES[number - 1]} new samples" in said
        plan = RunDirectory.open(run.path).plan()
        assert (plan.samples, len(plan.blocks)) == (SAMPLES[number], number + 1)
        assert read_plan(run.path) == plan
        done("worker", run.path, "--max-batches", "1")
        assert "pending" in done("merge", run.path, "--partial")  # over the one that was whole before
        done("run", run.path)  # over the older zip of this run
        now = artifacts(run)
        assert {batch: now[batch] for batch in made} == made
        assert len(now) == plan.layout.batch_count
        assert images(target).startswith(images(kept))
        assert len(images(target)) > len(images(kept))
        assert labels(target)[: len(labels(kept))] == labels(kept)
        assert "no findings" in done("verify", target)
        assert "no findings" in done("verify", run.path)
        assert "nothing to add" in done("extend", run.path)
        assert "unchanged" in done("plan", run.path)
    if run.url.startswith("sqlite"):
        final = sha256_of(before)
        (run.path / "manifest.sqlite").unlink()
        assert rebuild(RunDirectory.open(run.path))[1].batches == len(now)
        done("merge", run.path)
        assert sha256_of(target) == final
    for kept in (target.with_name("1.zip"), target.with_name("2.zip")):
        assert "no findings" in done("verify", kept)


@pytest.mark.slow
@pytest.mark.parametrize(("any_run", "step"), KILLS, indirect=["any_run"], ids=str)
def test_a_killed_extension_has_happened_or_not(any_run: RunDirectory, step: PlanStep) -> None:
    done("worker", any_run.path)
    run, made, old = grown(any_run), artifacts(any_run), any_run.plan()
    die_at("extend", run.path, step)
    happened = step in (PlanStep.ROWS_REPLACED, PlanStep.RENAMED)
    assert RunDirectory.open(run.path).plan().samples == SAMPLES[happened]
    assert (read_plan(run.path) == old) == (step is not PlanStep.RENAMED)
    done("worker", run.path)  # whichever plan counts, it works by that
    assert len(artifacts(run)) == RunDirectory.open(run.path).plan().layout.batch_count
    said = done("extend", run.path)
    assert ("nothing to add" in said) == happened
    plan = RunDirectory.open(run.path).plan()
    assert (plan.samples, read_plan(run.path)) == (SAMPLES[1], plan)
    assert not [path.name for path in run.path.iterdir() if path.name not in {
        "shardgen.toml", "plan.json", "manifest.sqlite", "artifacts", "logs",
    }]  # fmt: skip
    done("worker", run.path)
    assert artifacts(run).items() >= made.items()
    assert len(artifacts(run)) == plan.layout.batch_count
    assert "no findings" in done("verify", run.path)


@pytest.mark.slow
@pytest.mark.parametrize("any_run", ["sqlite"], indirect=True)
def test_a_lost_manifest_of_a_half_renamed_extension_is_rebuilt_with_all_of_it(
    any_run: RunDirectory,
) -> None:
    run = grown(any_run)
    die_at("extend", run.path, PlanStep.ROWS_REPLACED)
    done("worker", run.path)
    (run.path / "manifest.sqlite").unlink()
    plan, found = rebuild(RunDirectory.open(run.path))
    assert (plan.samples, found.batches) == (SAMPLES[1], plan.layout.batch_count)
    (run.path / "plan.json.next").unlink()  # as on a machine that knows nothing of the extension
    (run.path / "manifest.sqlite").unlink()
    with pytest.raises(PlanConflict, match=r"belongs to a plan with more batches than plan\.json has"):
        rebuild(RunDirectory.open(run.path))
    assert not (run.path / "manifest.sqlite").exists()


@pytest.mark.parametrize("any_run", ["sqlite"], indirect=True)
def test_an_older_plan_file_or_manifest_of_an_extended_run_is_known_as_such(any_run: RunDirectory) -> None:
    manifest, file = any_run.path / "manifest.sqlite", any_run.path / "plan.json"
    before = manifest.read_bytes(), file.read_bytes()
    plan = extend(grown(any_run), {}).plan
    manifest.unlink()
    rebuild(RunDirectory.open(any_run.path))
    file.write_bytes(before[1])
    assert RunDirectory.open(any_run.path).plan() == plan
    assert make_plan(RunDirectory.open(any_run.path), {}).plan == plan == read_plan(any_run.path)
    manifest.write_bytes(before[0])  # a backup
    late = RunDirectory.open(any_run.path)
    for ask in (lambda: late.manifest(late.plan()), lambda: extend(late, {})):
        with pytest.raises(PlanConflict, match="is older than this run's last `extend`") as caught:
            ask()
        assert "shardgen rebuild RUN_DIR" in caught.value.hint


def test_only_new_photographs_are_taken(any_run: RunDirectory) -> None:
    run, old = grown(any_run), any_run.plan()
    folder = run.folders({})["foregrounds"]
    planned = folder / "foreground-000.png"
    content = planned.read_bytes()
    planned.rename(folder / "other.png")
    with pytest.raises(PlanConflict, match=r"'foreground-000.png' is gone") as caught:
        extend(run, {})
    assert "put the planned files back" in caught.value.hint
    shutil.copy(folder / "other.png", planned)
    shutil.copy(folder / "foreground-001.png", planned)
    with pytest.raises(PlanConflict, match=r"'foreground-000.png' has changed"):
        extend(run, {})
    planned.write_bytes(content)
    (folder / "other.png").unlink()
    toml = run.path / "shardgen.toml"
    text = toml.read_text(encoding="utf-8")
    toml.write_text(text.replace("grid = [3, 4]", "grid = [4, 4]"), encoding="utf-8")
    with pytest.raises(PlanConflict, match="grid: 3x4 -> 4x4"):
        extend(RunDirectory.open(run.path), {})
    toml.write_text(text, encoding="utf-8")
    assert RunDirectory.open(run.path).plan() == old
    with run.manifest(old) as manifest:
        lease = manifest.leases.lease(WorkerId("anna"), run.settings.lease_policy)
        assert isinstance(lease, Lease)
        with pytest.raises(ManifestBusy, match="worker anna"):
            extend(RunDirectory.open(run.path), {})
        manifest.leases.release(lease)
    extended = extend(RunDirectory.open(run.path), {})
    assert extended.changes == (
        "backgrounds: 'a-new-background-000.jpg' is new",
        "foregrounds: 'a-new-foreground-000.png' is new",
    )
    assert extended.plan.until(1) == old
    again = extend(RunDirectory.open(run.path), {})
    assert (again.changes, again.plan) == ((), extended.plan)
    assert make_plan(RunDirectory.open(run.path), {}).changes == ()


def test_two_that_extend_at_once_add_the_photographs_once(any_run: RunDirectory) -> None:
    run = grown(any_run)

    def attempt(_number: int) -> str:
        try:
            return extend(RunDirectory.open(run.path), {}).plan.fingerprint
        except PlanConflict as error:
            assert error.hint.startswith("start it again")  # noqa: PT017 - one of two may lose
            return ""

    with ThreadPoolExecutor() as pool:
        found = set(pool.map(attempt, range(3))) - {""}
    plan = RunDirectory.open(run.path).plan()
    assert found == {plan.fingerprint}
    assert (plan.samples, len(plan.blocks)) == (SAMPLES[1], 2)
    with run.manifest(plan) as manifest:
        assert len(manifest.overview().shards) == plan.layout.shard_count


def test_a_process_that_read_the_plan_before_it_grew_adds_no_block_of_its_own(any_run: RunDirectory) -> None:
    late = RunDirectory.open(any_run.path)
    late.plan()
    extend(grown(any_run), {})
    add(any_run, "b-new", foregrounds=1)
    with pytest.raises(PlanConflict, match="the plan changed"):
        extend(late, {})
    assert extend(RunDirectory.open(any_run.path), {}).changes == (
        "foregrounds: 'b-new-foreground-000.png' is new",
    )


@pytest.mark.slow
def test_run_and_merge_name_the_photographs_that_nothing_is_made_of(tmp_path: Path) -> None:
    run = plan_run(make_run(tmp_path))
    assert unplanned(run, run.plan(), {}) == []
    mask = run.folders({})["foregrounds"] / "foreground-000.mask.png"
    shutil.copy(run.folders({})["foregrounds"] / "foreground-001.png", mask)  # beside a planned photograph
    assert unplanned(run, run.plan(), {}) == []
    mask.unlink()
    run = grown(run)
    said = done("run", run.path)
    for kind in ("foregrounds/a-new-foreground-000.png", "backgrounds/a-new-background-000.jpg"):
        assert f"warning: {kind}: not in the plan" in said
        assert said.count(kind) == 1
    assert f"(shardgen plan {run.path} takes them)" in said
    assert f"(shardgen extend {run.path} adds them)" in done("merge", run.path)
    (run.path / "shardgen.toml").write_text(
        (run.path / "shardgen.toml").read_text(encoding="utf-8").replace("foregrounds = ", "# "),
        encoding="utf-8",
    )
    assert "warning" not in done("merge", run.path)  # a machine that only merges has no photographs


def test_a_plan_on_a_shared_folder_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    run = grown(plan_run(make_run(tmp_path, changes={"manifest.url": '"folder:"'})))
    with pytest.raises(ManifestMismatch, match="shared folder cannot grow") as caught:
        extend(run, {})
    assert caught.value.hint.startswith("shardgen plan RUN_DIR")
    (run.path / "workers" / "anna-1").mkdir(parents=True)
    with pytest.raises(ManifestMismatch) as caught:
        extend(RunDirectory.open(run.path), {})
    assert caught.value.hint == "use a new directory for the other plan"
    (remark, _) = unplanned(RunDirectory.open(run.path), run.plan(), {})
    assert "does not grow" in remark.hint
