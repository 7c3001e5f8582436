from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardgen.cli.app import app
from shardgen.machine import file_systems
from shardgen.machine.file_systems import file_system_of, hosted_runtime, is_on_drive
from shardgen.operations import doctor
from shardgen.settings.settings import read_settings
from tests.runs import make_run, plan_run

COLAB = [("/", "overlay"), ("/content", "ext4"), ("/content/drive", "fuse.drive")]


@pytest.fixture
def cut_outs(tmp_path: Path) -> Path:
    folder = tmp_path / "cut-outs"
    folder.mkdir()
    return folder


def put_on_drive(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    mounts = [("/", "ext4"), (str(folder), "fuse.drive")]
    monkeypatch.setattr(file_systems, "mount_table", lambda: mounts)


def init(run_dir: Path, cut_outs: Path, *options: str) -> str:
    words = ["init", str(run_dir), "--foregrounds", str(cut_outs), "--backgrounds", str(cut_outs), *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stderr


@pytest.mark.parametrize(
    ("environment", "has_file", "expected"),
    [
        ({}, False, None),
        ({"COLAB_RELEASE_TAG": "release-colab_20260819"}, False, "Google Colab"),
        ({"COLAB_RELEASE_TAG": ""}, False, None),
        ({}, True, "Google Colab"),
        ({"VERTEX_PRODUCT": "COLAB_ENTERPRISE"}, False, "Colab Enterprise"),
        ({"VERTEX_PRODUCT": "COLAB_ENTERPRISE"}, True, "Colab Enterprise"),
        ({"VERTEX_PRODUCT": "WORKBENCH_INSTANCE"}, False, None),
    ],
)
def test_a_hosted_runtime_is_known_by_its_environment_or_its_file(
    tmp_path: Path, *, environment: dict[str, str], has_file: bool, expected: str | None
) -> None:
    hostname = tmp_path / "hostname"
    if has_file:
        hostname.write_text("somewhere\n", encoding="utf-8")
    assert hosted_runtime(environment, hostname) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/content/drive", True),
        ("/content/drive/MyDrive/people/run", True),
        ("/content/drive-copy", False),
        ("/content/people", False),
        ("/root/.cache/shardgen", False),
    ],
)
def test_a_path_is_on_drive_when_its_longest_mount_is(*, path: str, expected: bool) -> None:
    assert is_on_drive(Path(path), COLAB) is expected
    assert is_on_drive(Path(path), reversed(COLAB)) is expected


def test_a_link_to_drive_is_on_drive_and_a_local_mount_inside_it_is_not(tmp_path: Path) -> None:
    drive, elsewhere = tmp_path / "drive", tmp_path / "elsewhere"
    (drive / "MyDrive" / "fast").mkdir(parents=True)
    elsewhere.symlink_to(drive / "MyDrive")
    mounts = [("/", "ext4"), (str(drive), "fuse.drive"), (str(drive / "MyDrive" / "fast"), "tmpfs")]
    assert is_on_drive(elsewhere / "people", mounts)
    assert not is_on_drive(elsewhere / "fast" / "people", mounts)


def test_of_two_mounts_at_one_point_the_later_one_counts() -> None:
    remounted = [*COLAB, ("/content/drive", "ext4")]
    assert file_system_of(Path("/content/drive/x"), remounted) == "ext4"
    assert is_on_drive(Path("/content/drive/x"), [*remounted, ("/content/drive", "fuse.drive")])


def test_init_on_drive_sets_the_shared_folder_and_says_so_in_one_line(
    tmp_path: Path, cut_outs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = tmp_path / "drive"
    put_on_drive(monkeypatch, drive)
    said = init(drive / "people", cut_outs)
    (line,) = [line for line in said.splitlines() if '"folder:"' in line]
    assert "on Google Drive" in line
    settings = read_settings(drive / "people")
    assert settings.engine.manifest.url == "folder:"
    assert settings.engine.shards.slice_batches == 256


def test_init_elsewhere_leaves_the_manifest_a_file_unless_it_is_asked(
    tmp_path: Path, cut_outs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_drive(monkeypatch, tmp_path / "drive")
    assert "folder:" not in init(tmp_path / "one", cut_outs)
    settings = read_settings(tmp_path / "one")
    assert settings.engine.manifest.url == "sqlite:///manifest.sqlite"
    assert settings.engine.shards.slice_batches == 16
    assert "Google Drive" not in init(tmp_path / "two", cut_outs, "--shared-folder")
    assert read_settings(tmp_path / "two").engine.manifest.url == "folder:"
    assert read_settings(tmp_path / "two").engine.shards.slice_batches == 256


def test_the_settings_of_a_shared_folder_differ_in_nothing_else(tmp_path: Path, cut_outs: Path) -> None:
    init(tmp_path / "alone", cut_outs)
    init(tmp_path / "shared", cut_outs, "--shared-folder")
    alone, shared = (
        tomllib.loads((tmp_path / name / "shardgen.toml").read_text(encoding="utf-8"))
        for name in ("alone", "shared")
    )
    alone["manifest"]["url"] = "folder:"
    alone["shards"]["slice_batches"] = 256
    assert shared == alone


def looked_at(run_dir: Path) -> dict[str, doctor.Line]:
    return {line.subject: line for line in doctor.diagnose(run_dir)}


def test_doctor_names_the_hosted_runtime(
    tmp_path: Path, cut_outs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path / "people", cut_outs)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delenv("VERTEX_PRODUCT", raising=False)
    found = looked_at(tmp_path / "people")
    assert found["hosted runtime"].fact == "none that we know"
    assert "run directory" not in found
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260819")
    assert looked_at(tmp_path / "people")["hosted runtime"].fact == "Google Colab"


@pytest.mark.slow
def test_doctor_says_what_a_run_directory_on_drive_needs(
    tmp_path: Path, cut_outs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = tmp_path / "people"
    init(people, cut_outs)
    put_on_drive(monkeypatch, tmp_path)
    found = looked_at(people)
    assert found["run directory"].fact == (
        'on Google Drive, so [manifest] url must be "folder:" or a database server'
    )
    assert found["run directory"].verdict is doctor.Verdict.LOOK
    assert found["manifest"].verdict is doctor.Verdict.FAILS
    assert '"folder:"' in found["manifest"].hint
    settings = people / "shardgen.toml"
    text = settings.read_text(encoding="utf-8").replace(
        '"sqlite:///manifest.sqlite"', '"postgresql+psycopg://localhost/people"'
    )
    settings.write_text(text, encoding="utf-8")
    assert looked_at(people)["run directory"].verdict is doctor.Verdict.FACT


def test_doctor_finds_nothing_wrong_with_a_planned_shared_folder_on_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    run = make_run(tmp_path, changes={"manifest.url": '"folder:"'})
    run = plan_run(run)
    put_on_drive(monkeypatch, run.path)
    found = looked_at(run.path)
    assert found["run directory"].verdict is doctor.Verdict.FACT
    assert str(tmp_path / "cache") in found["manifest"].fact
    assert found["plan"].fact == "48 samples, 48 pending"
    assert [line for line in found.values() if line.verdict is doctor.Verdict.FAILS] == []
