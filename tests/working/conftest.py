from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardgen.rundir import RunDirectory
from tests.runs import make_run, plan_run, sha256_of, shardgen


@pytest.fixture(scope="session")
def planned_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned run, made once; tests work on copies of its run directory."""
    folder = tmp_path_factory.mktemp("template")
    plan_run(make_run(folder))
    return folder


@pytest.fixture
def run(planned_template: Path, tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    shutil.copytree(planned_template / "run", path)
    return RunDirectory.open(path)


@pytest.fixture(scope="session")
def undisturbed_zip(planned_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(planned_template / "run", path)
    done = shardgen("worker", path)
    assert done.returncode == 0, done.stderr
    merged = shardgen("merge", path)
    assert merged.returncode == 0, merged.stderr
    return path / "dataset.zip"


@pytest.fixture(scope="session")
def undisturbed_sha256(undisturbed_zip: Path) -> str:
    """Of that zip."""
    return sha256_of(undisturbed_zip)
