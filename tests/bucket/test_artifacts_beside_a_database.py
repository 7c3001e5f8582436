"""Artifacts in a bucket, the record in a database: every command works as with a folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from sqlalchemy import URL

from shardgen.coordination.artifact_folder import open_store
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex, Fence
from shardgen.domain.steps import BatchStep, LeaseStep, Step
from shardgen.errors import InputMissing, PlanConflict
from shardgen.machine.processes import new_identity
from shardgen.operations import doctor
from shardgen.operations.doctor import Verdict
from shardgen.operations.merge import merge_run
from shardgen.operations.plan import make_plan
from shardgen.operations.rebuild import rebuild
from shardgen.operations.requeue import RequeueChoice, requeue
from shardgen.operations.sweep import Swept, sweep
from shardgen.operations.verify import check_run, put_back
from shardgen.recipes import registry
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import Ending, Worker, WorkerOptions
from tests.bucket.servers import Store
from tests.postgres import new_schema
from tests.recipes.test_text_recipe import LINES, check_zip, commanded, worked
from tests.recipes.test_text_recipe import SETTINGS as KILLING
from tests.runs import sha256_of
from tests.text_recipe import Text

PREFIX = "s3://bucket/people"
SETTINGS = """
[recipe]
kind = "text"
[text]
lines = "lines"
[shards]
size = 32
slice_batches = 2
batch = 2
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    registry.register(Text())
    yield
    del registry._KINDS["text"]


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Objects:
    """What the bucket holds, which is this process's."""

    @cache
    def of(url: str) -> Objects:
        return Objects(MemoryStore(), url)

    monkeypatch.setattr("shardgen.coordination.bucket.run.objects_of", lambda url, **_options: of(url))
    return of(PREFIX)


def new_run(folder: Path, artifacts: str) -> RunDirectory:
    (folder / "lines").mkdir(parents=True)
    (folder / "lines" / "lines.txt").write_text("\n".join(f"line {n}" for n in range(16)), encoding="utf-8")
    (folder / "shardgen.toml").write_text(f'{SETTINGS}[artifacts]\nurl = "{artifacts}"\n', encoding="utf-8")
    run = RunDirectory.open(folder)
    return run.planned(make_plan(run, {}).plan)


def finish(run: RunDirectory, on_step: Callable[[Step], None] = lambda _step: None) -> None:
    worker = Worker(run, WorkerOptions(identity=new_identity("w")), on_step=on_step)
    assert worker.work().ending is Ending.FINISHED


def merged(run: RunDirectory) -> str:
    (run.path / "dataset.zip").unlink(missing_ok=True)
    merge_run(run, None, allow_dead_letters=False)
    return sha256_of(run.path / "dataset.zip")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = new_run(tmp_path_factory.mktemp("undisturbed") / "run", "artifacts")
    finish(run)
    return merged(run)


@pytest.fixture
def run(tmp_path: Path, objects: Objects) -> RunDirectory:
    return new_run(tmp_path / "run", PREFIX)


def keys(objects: Objects) -> list[str]:
    return [one.key for one in objects.listed("")]


def test_a_run_goes_its_whole_way(run: RunDirectory, objects: Objects, undisturbed: str) -> None:
    assert keys(objects) == []  # what the probe has tried is gone
    finish(run)
    assert len(keys(objects)) == 1 + run.plan().layout.batch_count  # the identity
    assert not (run.path / "artifacts").exists()
    assert open_run(run).report().pending == 0
    assert merged(run) == undisturbed
    assert check_run(run).findings == ()

    undone = requeue(run, RequeueChoice(batches=(BatchIndex(3),)))
    assert (undone.batches, len([key for key in keys(objects) if "requeued/" in key])) == ((3,), 1)
    run.database.path.unlink()
    _, rebuilt = rebuild(run)
    assert (rebuilt.undone, rebuilt.refused, open_run(run).report().pending) == (1, [], 2)
    finish(run)
    assert merged(run) == undisturbed
    run.database.path.unlink()
    assert rebuild(run)[1].undone == 0  # of batch 3 another attempt is whole
    assert merged(run) == undisturbed

    found = sweep(run, remove=True)
    assert [one.path.partition(".f")[0] for one in found.orphans] == ["shard-00000/batch-00000003"]
    assert (found.live, found.strangers) == ([], [])
    assert len(keys(objects)) == 2 + run.plan().layout.batch_count
    assert merged(run) == undisturbed


def test_what_is_damaged_or_lost_is_found_and_made_again(
    run: RunDirectory, objects: Objects, undisturbed: str
) -> None:
    finish(run)
    damaged, lost = [key for key in keys(objects) if key.startswith("shard-")][4:6]
    objects.write(damaged, (objects.read(damaged) or b"")[:-1] + b"x")
    objects.remove([lost])
    found = check_run(run)
    assert [(one.subject, one.batch) for one in found.findings] == [(damaged, 4), (lost, 5)]
    put_back(run, found.bad_batches)
    finish(run)
    assert (check_run(run).findings, merged(run)) == ((), undisturbed)


def test_a_sweep_takes_what_nobody_can_record_any_more(run: RunDirectory, objects: Objects) -> None:
    store = open_store(run)
    swept: list[Swept] = []

    def on_step(step: Step) -> None:
        """While a slice is held its attempts stay, and so does what is a stranger's."""
        if step is LeaseStep.GRANTED and len(swept) < 2:
            swept.append(sweep(run, remove=True))
        if step is BatchStep.PUBLISHED and not swept[1:]:
            objects.write("notes.txt", b"mine")
            swept.append(sweep(run, remove=True))

    finish(run, on_step)
    assert [len(found.live) for found in swept] == [0, 1]
    assert swept[1].strangers == ["notes.txt"]
    name = next(iter(store.names()))
    stray = replace(name, fence=Fence(name.fence + 7), random="0123abcd")
    data = store.read_unrecorded(name)
    store.publish(stray, data)
    found = sweep(run, remove=False)
    assert ([one.path for one in found.orphans], found.orphans[0].size_bytes) == ([str(stray)], len(data))
    sweep(run, remove=True)
    assert str(stray) not in keys(objects)
    assert str(name) in keys(objects)


def test_another_prefix_is_not_the_runs(run: RunDirectory, objects: Objects, tmp_path: Path) -> None:
    finish(run)
    settings = run.path / "shardgen.toml"
    settings.write_text(settings.read_text().replace(PREFIX, f"{PREFIX}-2"), encoding="utf-8")
    other = RunDirectory.open(run.path)
    lines = [line for line in doctor._run(run.path) if line.subject == "artifacts"]
    assert [line.verdict for line in lines] == [Verdict.FAILS]
    assert "is not the folder" in check_run(other).findings[0].fact
    with pytest.raises(PlanConflict) as raised:
        merge_run(other, None, allow_dead_letters=False)
    assert "same prefix of the same bucket" in raised.value.hint
    with pytest.raises(PlanConflict):
        Worker(other, WorkerOptions(identity=new_identity("w"))).work()


def test_doctor_says_what_the_store_does(run: RunDirectory, objects: Objects) -> None:
    finish(run)
    lines = list(doctor._run(run.path))
    assert [line for line in lines if line.verdict is Verdict.FAILS] == []
    assert any(line.subject == "bucket" and PREFIX in line.fact for line in lines)
    assert [key for key in keys(objects) if "probe" in key] == []


def test_a_manifest_that_is_lost_is_not_planned_anew_over_its_artifacts(run: RunDirectory) -> None:
    finish(run)
    run.database.path.unlink()
    with pytest.raises(PlanConflict, match="artifacts"):
        make_plan(RunDirectory.open(run.path), {})
    with pytest.raises(InputMissing, match="manifest"):
        sweep(run, remove=True)


def machine(folder: Path, *, database: str, artifacts: str) -> Path:
    """A run directory whose lines kill and raise."""
    (folder / "lines").mkdir(parents=True)
    (folder / "lines" / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    text = f'{KILLING}[manifest]\nurl = "{database}"\n[artifacts]\nurl = "{artifacts}"\n'
    (folder / "shardgen.toml").write_text(text, encoding="utf-8")
    return folder


def test_processes_share_a_bucket_and_a_database_past_a_killing_line(
    bucket_servers: Callable[[str], Store],
    postgres_servers: Callable[[], URL],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Workers that die, a machine that only merges, a manifest that is lost: every sample of a local run."""
    imported, store = tmp_path / "imported", bucket_servers("ministack")
    imported.mkdir()
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    url = store.new_url()

    def shardgen(command: str, run_dir: Path, *options: object) -> str:
        return commanded(command, run_dir, *options, imported=imported)

    with new_schema(postgres_servers()) as at:
        first, second = (machine(tmp_path / name, database=at, artifacts=url) for name in ("first", "second"))
        shardgen("plan", first)
        assert worked(first, imported).count(-signal.SIGKILL) >= 4
        assert '"pending": 0' in shardgen("status", second, "--json")
        shardgen("merge", second, "--allow-dead-letters")
        check_zip(second / "dataset.zip")
        shardgen("verify", second)
        shardgen("export", second, tmp_path / "out", "--format", "files", "--allow-dead-letters")
        assert "orphan" in shardgen("sweep", second, "--yes")
    with new_schema(postgres_servers()) as at:  # the server was lost, and all that it held
        third = machine(tmp_path / "third", database=at, artifacts=url)
        (third / "plan.json").write_bytes((first / "plan.json").read_bytes())
        shardgen("rebuild", third)
        shardgen("merge", third, "--allow-dead-letters")
        assert sha256_of(third / "dataset.zip") == sha256_of(second / "dataset.zip")
    assert not [path for folder in (first, second, third) for path in folder.glob("artifacts")]
    assert sorted(imported.iterdir()) == []
