from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from shardgen.settings.run_directory import RunDirectory
from tests.conformance.conftest import Servers
from tests.postgres import new_schema
from tests.runs import make_run, plan_run, shardgen, start


def named(run: RunDirectory, folder: str) -> str:
    sources = json.loads((run.path / "plan.json").read_text())["blocks"][0]["sources"]
    return f"{folder}/{sources[folder][0]['name']}"


def decoded_mean(path: Path, flag: int, kind: str) -> tuple[float, int]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{kind}/")]
        images = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), flag) for name in names]
    return float(np.stack([one for one in images if one is not None]).mean()) / 255, len(names)


def test_a_person_withdraws_from_a_finished_run(finished_run: RunDirectory) -> None:
    run = finished_run
    assert shardgen("merge", run.path).returncode == 0
    person = named(run, "foregrounds")
    done = shardgen("merge", run.path, "--exclude", person)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "left out, of 48 samples: 24 excluded samples"
    assert "24 samples stored, 0 dead letters, 24 excluded" in done.stdout
    path = run.path / "dataset.excluded.zip"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(run.path / "dataset.zip") as whole:
        assert person.partition("/")[2] not in archive.read("labels.csv").decode()
        stats = json.loads(archive.read("stats.json"))
        images = [name for name in archive.namelist() if "/" in name]
        assert all(archive.read(name) == whole.read(name) for name in images)
    for kind in ("mask", "depth"):
        mean, count = decoded_mean(path, cv2.IMREAD_GRAYSCALE, kind)
        assert stats[kind]["mean"] == [pytest.approx(mean, abs=1e-12)]
        assert stats[kind]["images"] == count == 24
    checked = shardgen("verify", path)
    assert checked.returncode == 0, checked.stdout
    assert "leaves out 24 excluded samples" in checked.stderr
    over = shardgen("merge", run.path, "--exclude", person, "-o", run.path / "dataset.zip")
    assert over.returncode == 10
    assert "holds the whole data set of this run" in over.stderr
    wrong = shardgen("merge", run.path, "--exclude", f"{person}x")
    assert wrong.returncode == 12
    assert f"hint: did you mean --exclude {person}?" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "postgresql", "folder"])
def test_a_partial_data_set_of_a_run_that_goes_on(
    tmp_path: Path, backend: str, postgres_servers: Servers
) -> None:
    path = make_run(tmp_path, changes={"manifest.url": '"${SHARDGEN_MANIFEST}"'}).path
    if backend == "postgresql":
        with new_schema(postgres_servers()) as url:
            goes_on(path, url)
    else:
        goes_on(path, "folder:" if backend == "folder" else "sqlite:///manifest.sqlite")


def goes_on(path: Path, url: str) -> None:
    environment = {"SHARDGEN_MANIFEST": url}

    def typed(*arguments: str | Path, code: int = 0) -> str:
        done = shardgen(*arguments, environment=environment)
        assert done.returncode == code, done.stderr
        return done.stderr

    typed("plan", path)
    assert "none of 48 samples is stored" in typed("merge", path, "--partial", code=14)
    typed("worker", path, "--max-batches", "5")
    assert "--partial, to merge what is stored so far" in typed("merge", path, code=14)
    last = typed("merge", path, "--partial").splitlines()[-1]
    assert last == f"left out, of 48 samples: 28 pending samples; shardgen run {path} makes the pending ones"
    typed("verify", path / "dataset.partial.zip")
    person = named(RunDirectory.open(path), "foregrounds")
    last = typed("merge", path, "--partial", "--exclude", person).splitlines()[-1]
    assert "24 excluded and " in last
    typed("verify", path / "dataset.partial.excluded.zip")
    typed("worker", path)
    last = typed("merge", path, "--partial").splitlines()[-1]
    assert last == "nothing is pending: of 48 samples none is missing"
    typed("verify", path / "dataset.partial.zip")


@pytest.mark.slow
def test_a_partial_data_set_while_a_worker_records(tmp_path: Path) -> None:
    run = plan_run(make_run(tmp_path, changes={"compose.grid": "[9, 8]"}))  # enough for several merges
    counts: list[int] = []
    with start(["worker", run.path]) as worker:
        while worker.poll() is None:
            done = shardgen("merge", run.path, "--partial")
            if done.returncode == 14 and not counts:  # nothing is stored yet
                continue
            assert done.returncode == 0, done.stderr
            with zipfile.ZipFile(run.path / "dataset.partial.zip") as archive:
                counts.append(len(archive.read("labels.csv").splitlines()) - 1)
            checked = shardgen("verify", run.path / "dataset.partial.zip")
            assert checked.returncode == 0, checked.stdout
        assert worker.returncode == 0
    assert counts == sorted(counts)
    assert len(set(counts)) > 1, "no merge saw the worker at work"
