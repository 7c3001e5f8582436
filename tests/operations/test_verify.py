from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import make_run, sha256_of, shardgen

pytestmark = pytest.mark.slow
BATCHES = 12
OLD_ATTEMPT = 11  # the batch that was made twice


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 batches, one of which has an older attempt beside it."""
    run = make_run(tmp_path_factory.mktemp("finished"))
    assert shardgen("run", run.path).returncode == 0
    assert shardgen("requeue", run.path, "--batch", str(OLD_ATTEMPT)).returncode == 0
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    return run.path


def artifact_of(run: Path, batch: int) -> Path:
    with sqlite3.connect(run / "manifest.sqlite") as connection:
        query = "SELECT artifact FROM receipt WHERE batch = ?"
        (name,) = connection.execute(query, (batch,)).fetchone()
    return run / "artifacts" / str(name)


def flip(run: Path) -> list[int]:
    path = artifact_of(run, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return [0]


def truncate(run: Path) -> list[int]:
    path = artifact_of(run, 2)
    path.write_bytes(path.read_bytes()[:-1])
    return [2]


def remove(run: Path) -> list[int]:
    artifact_of(run, 4).unlink()
    return [4]


def swap(run: Path) -> list[int]:
    one, other = artifact_of(run, 6), artifact_of(run, 7)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return [6, 7]


def double(run: Path) -> list[int]:
    path = artifact_of(run, 9)
    path.write_bytes(path.read_bytes() * 2)
    return [9]


def name_the_old_attempt(run: Path) -> list[int]:
    """A receipt that names an older attempt: whole, of the same batch, with its own size and sha256."""
    new = artifact_of(run, OLD_ATTEMPT)
    (old,) = set(new.parent.glob(f"batch-{OLD_ATTEMPT:08d}.*")) - {new}
    values = (f"{old.parent.name}/{old.name}", old.stat().st_size, sha256_of(old), OLD_ATTEMPT)
    with sqlite3.connect(run / "manifest.sqlite") as connection:
        connection.execute(
            "UPDATE receipt SET artifact = ?, artifact_bytes = ?, artifact_sha256 = ? WHERE batch = ?", values
        )
    return [OLD_ATTEMPT]


DAMAGES: list[Callable[[Path], list[int]]] = [flip, truncate, remove, swap, double, name_the_old_attempt]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_verify_names_the_file_and_exits_in_the_twenties(
    finished: Path, tmp_path: Path, damage: Callable[[Path], list[int]]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    bad = damage(run)
    names = {f"{path.parent.name}/{path.name}" for path in (artifact_of(run, batch) for batch in bad)}
    found = shardgen("verify", run, "--json")
    assert 20 <= found.returncode < 30, found.stderr
    findings = json.loads(found.stdout)["findings"]
    assert {one["subject"] for one in findings} == names
    assert sorted(one["batch"] for one in findings) == bad


def test_requeue_puts_exactly_the_bad_batches_back_and_they_are_made_again_to_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = sha256_of(run / "dataset.zip")
    (run / "dataset.zip").unlink()
    bad = sorted(batch for damage in DAMAGES for batch in damage(run))
    assert 20 <= shardgen("verify", run, "--requeue").returncode < 30
    with sqlite3.connect(run / "manifest.sqlite") as connection:
        left = {batch for (batch,) in connection.execute("SELECT batch FROM receipt")}
    assert set(range(BATCHES)) - left == set(bad)
    assert shardgen("verify", run).returncode == 0
    for command, subject in (("worker", run), ("merge", run), ("verify", run / "dataset.zip")):
        done = shardgen(command, subject)
        assert done.returncode == 0, done.stderr
    assert sha256_of(run / "dataset.zip") == before


def test_verifying_a_zip_needs_nothing_but_the_zip(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(finished / "dataset.zip", folder / "set.zip")
    command = [sys.executable, "-m", "shardgen", "verify", "set.zip"]
    assert subprocess.run(command, cwd=folder, check=False, timeout=120).returncode == 0
    data = bytearray((folder / "set.zip").read_bytes())
    data[1000] ^= 1
    (folder / "set.zip").write_bytes(data)
    found = subprocess.run(command, cwd=folder, check=False, timeout=120, capture_output=True, text=True)
    assert 20 <= found.returncode < 30, found.stderr
    assert "/00000/000000" in found.stdout
    assert [path.name for path in folder.iterdir()] == ["set.zip"]
