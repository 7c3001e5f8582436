from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.depth.densedepth.family import RELEASED, SHIPPED
from shardgen.errors import MachineUnfit
from shardgen.operations.doctor import Line, Verdict, diagnose
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.released import cached_path
from tests.runs import make_run, plan_run, shardgen


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a planned run and of its photographs."""
    folder = tmp_path_factory.mktemp("planned") / "two words"
    plan_run(make_run(folder, backgrounds=5))
    return folder


@pytest.fixture
def run(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A copy of it, with photographs of its own."""
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / planned.name
    shutil.copytree(planned, folder)
    settings = folder / "run" / "shardgen.toml"
    settings.write_text(settings.read_text().replace(str(planned), str(folder)))
    return RunDirectory.open(folder / "run")


def failing(run_dir: Path | None) -> list[Line]:
    return [line for line in diagnose(run_dir) if line.verdict is Verdict.FAILS]


def line_of(run_dir: Path | None, subject: str) -> Line:
    found = [line for line in diagnose(run_dir) if line.subject == subject]
    assert len(found) == 1, found
    return found[0]


def test_the_libraries_of_extras_are_named_for_buckets_and_servers() -> None:
    fact = line_of(None, "libraries").fact
    assert "obstore" in fact
    assert "psycopg" in fact


def test_photographs_that_are_gone_or_of_another_size_fail(run: RunDirectory) -> None:
    assert failing(run.path) == []
    sources = run.path.parent / "sources"
    (sources / "backgrounds" / "background-001.png").unlink()
    with (sources / "foregrounds" / "foreground-000.png").open("ab") as file:
        file.write(b"!")
    [line] = failing(run.path)
    assert line.subject == "sources"
    assert line.fact.startswith("2 not as planned: foregrounds/foreground-000.png: ")
    assert " bytes (plan: " in line.fact
    assert line.fact.endswith("; backgrounds/background-001.png: No such file or directory")
    assert "copy the photographs" in line.hint
    for path in (sources / "backgrounds").iterdir():
        path.unlink()
    [line] = failing(run.path)
    assert line.fact.startswith("6 not as planned: ")
    assert line.fact.endswith("; … and 3 more")
    assert line.fact.count("backgrounds/") == 2


def test_a_planned_photograph_of_other_content_is_not_read(run: RunDirectory) -> None:
    path = run.path.parent / "sources" / "backgrounds" / "background-000.jpg"
    path.write_bytes(bytes(path.stat().st_size))
    assert failing(run.path) == []


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_cached_weights_that_are_not_hdf5_fail(run: RunDirectory, name: str) -> None:
    path = cached_path(RELEASED[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hello", encoding="utf-8")
    [line] = failing(run.path)
    assert line.subject == f"weights {name}"
    assert line.fact == f"{path}: not HDF5 (it starts with b'hello')"
    assert line.hint == f"rm -f {shlex.quote(str(path))}; shardgen weights fetch {name}"
    path.write_bytes(SHIPPED["small"].read_bytes()[:100])
    assert failing(run.path) == []


def test_the_weights_in_the_package_are_listed() -> None:
    assert line_of(None, "weights small").fact == "in the package"


def test_a_lost_manifest_fails_only_where_artifacts_are(run: RunDirectory) -> None:
    (run.path / "manifest.sqlite").unlink()
    assert line_of(run.path, "plan").verdict is Verdict.LOOK
    run = plan_run(run)
    done = shardgen("worker", run.path, "--max-batches", "1", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert list(FolderStore(run.artifacts).names())
    assert failing(run.path) == []
    (run.path / "manifest.sqlite").unlink()
    [line] = failing(run.path)
    assert line.fact.endswith("manifest.sqlite: there is no manifest, but there are artifacts")
    assert "shardgen rebuild RUN_DIR" in line.hint


def test_hints_name_the_run_directory_as_a_shell_takes_it(run: RunDirectory) -> None:
    (run.path / "manifest.sqlite").unlink()
    assert " " in str(run.path)
    said = "".join(shardgen("doctor", run.path).stdout.split())
    assert f"shardgenplan{shlex.quote(str(run.path))};".replace(" ", "") in said
    assert "RUN_DIR" not in said


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTCONN, errno.ESTALE])
@pytest.mark.parametrize("subject", ["sources", "artifacts", "manifest"])
def test_a_folder_that_cannot_be_looked_at_is_a_line_that_fails(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, subject: str, number: int
) -> None:
    away = {
        "sources": run.path.parent / "sources" / "foregrounds",
        "artifacts": run.artifacts,
        "manifest": run.path / "manifest.sqlite",
    }[subject]
    stat, statvfs = os.stat, os.statvfs

    def without(call: Callable[..., object]) -> Callable[..., object]:
        def called(path: object, *rest: object, **named: object) -> object:
            if str(path).startswith(str(away)):
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *rest, **named)

        return called

    monkeypatch.setattr(os, "stat", without(stat))
    monkeypatch.setattr(os, "statvfs", without(statvfs))
    assert any(
        line.subject == subject and str(away) in line.fact and os.strerror(number) in line.fact
        for line in failing(run.path)
    )


def test_without_tensorflow_a_run_that_makes_no_depth_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(_choice: str) -> None:
        raise MachineUnfit("no TensorFlow", hint="install it")

    monkeypatch.setattr("shardgen.depth.device.prepare", unfit)
    run = make_run(tmp_path, changes={"depth.model": '"none"'})
    line = line_of(run.path, "device")
    assert (line.verdict, line.fact) == (Verdict.LOOK, "no TensorFlow; this run needs none")
    assert line_of(None, "device").verdict is Verdict.FAILS
