from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from shardgen.errors import InputMissing, ManifestCorrupt
from shardgen.manifest.manifest import read_stored_plan
from shardgen.manifest.schema import StoredPlan
from shardgen.settings import run_directory
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.runs import make_run, plan_run


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite:///manifest.sqlite", "folder:"])
def test_a_command_reads_settings_and_plan_once(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    run = plan_run(make_run(tmp_path, changes={"manifest.url": f'"{url}"'}))
    log, counts = tmp_path / "log", {}
    for verb in ("worker", "status", "merge", "verify"):
        done = warm.run("tests.settings.counting", [log, verb, run.path], environment={})
        assert done.returncode == 0, done.stderr
        counts[verb] = Counter(log.read_text().split())
    assert counts == {verb: {"shardgen.toml": 1, "plan.json": 1} for verb in counts}


def test_a_machine_that_has_only_settings_asks_the_manifest_for_the_plan_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run.plan()
    (run.path / "plan.json").unlink()
    asked = []

    def counted(*arguments: object) -> StoredPlan | None:
        asked.append(arguments)
        return read_stored_plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run_directory, "read_stored_plan", counted)
    bare = RunDirectory.open(run.path)
    assert bare.plan_file is None
    assert bare.plan() == bare.plan() == plan
    assert len(asked) == 1


def test_what_is_wrong_with_a_plan_is_told_to_whoever_needs_one(run: RunDirectory) -> None:
    path = run.path / "plan.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    damaged = RunDirectory.open(run.path)
    assert damaged.database.path == run.database.path
    assert damaged.artifacts == run.artifacts
    for _ in range(2):
        with pytest.raises(ManifestCorrupt, match=r"plan\.json: not JSON"):
            damaged.plan()
    path.write_bytes(whole)
    with pytest.raises(ManifestCorrupt):  # what was read is not read again
        damaged.plan()
    assert RunDirectory.open(run.path).plan() == run.plan()


def test_a_plan_that_is_written_later_makes_another_value(tmp_path: Path, run: RunDirectory) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(run.path / "shardgen.toml", tmp_path / "new")
    before = RunDirectory.open(tmp_path / "new")
    shutil.copy(run.path / "plan.json", tmp_path / "new")
    with pytest.raises(InputMissing, match="nothing is planned here yet"):
        before.plan()
    assert before.planned(run.plan()).plan() == run.plan()


def hint_at(folder: Path) -> str:
    with pytest.raises(InputMissing, match="this is not a run directory") as caught:
        RunDirectory.open(folder)
    return caught.value.hint


def test_a_wrong_directory_names_every_run_below_it_the_nearest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sets/old", "people", "my set", ".hidden", "people/inside", "a/b/c/too-deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "shardgen.toml").write_text("")
    (tmp_path / "linked").symlink_to(tmp_path / "people")
    monkeypatch.chdir(tmp_path)
    assert hint_at(Path()) == "name one of the run directories here: 'my set', people, sets/old"
    assert hint_at(tmp_path / "sets") == f"name the run directory: {tmp_path}/sets/old"
    assert hint_at(tmp_path / "a" / "b" / "c") == f"name the run directory: {tmp_path}/a/b/c/too-deep"
    for number in range(30):
        (tmp_path / f"run-{number:02}").mkdir()
        (tmp_path / f"run-{number:02}" / "shardgen.toml").write_text("")
    assert hint_at(Path()).endswith("run-16, run-17, and more")


def test_a_folder_that_holds_a_whole_disk_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.settings.settings._MAX_LOOKED_AT", 50)
    for number in range(40):
        (tmp_path / f"a-{number}").mkdir()
        (tmp_path / f"a-{number}" / "b").mkdir()
    (tmp_path / "a-39" / "b" / "shardgen.toml").write_text("")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "shardgen.toml").write_text("")
    assert hint_at(tmp_path) == f"name the run directory: {tmp_path}/z"
    (tmp_path / "z" / "shardgen.toml").unlink()
    assert hint_at(tmp_path).startswith("check the name")
