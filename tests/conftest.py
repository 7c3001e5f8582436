from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardgen.rundir import RunDirectory
from tests.runs import make_run, plan_run


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
