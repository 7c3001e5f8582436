from __future__ import annotations

import ast
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from shardgen.cli.export import _next
from shardgen.dataset.export.driver import (
    FORMATS,
    ExportRequest,
    ExportResult,
    SplitResult,
)
from shardgen.domain.selection import Selection
from shardgen.domain.steps import ExportStep
from shardgen.settings.run_directory import RunDirectory
from tests.dataset.export.test_export import tree
from tests.pictures import make_pictures_run
from tests.runs import die_at, shardgen

STEPS: dict[str, list[ExportStep]] = {
    "webdataset": [one for one in ExportStep if one is not ExportStep.FILES_WRITTEN],
    "files": [one for one in ExportStep if one not in (ExportStep.SYNCED, ExportStep.PUBLISHED)],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name, steps in STEPS.items() for step in steps], ids=str
)
def test_an_export_killed_at_any_step_and_typed_again_gives_the_same_bytes(
    finished_run: RunDirectory, undisturbed_zip: Path, tmp_path: Path, name: str, step: ExportStep
) -> None:
    options = ["--format", name, *(["--shard-size", "10"] if name == "webdataset" else [])]
    whole = shardgen("export", undisturbed_zip, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    expected = tree(tmp_path / "whole")
    out = finished_run.path / "export"
    environment = {"EXPORT_FORMAT": name}
    once = step in (ExportStep.REQUESTED, ExportStep.FILES_WRITTEN, ExportStep.DESCRIBED)
    die_at("export", finished_run.path, step, nth=1 if once else 3, environment=environment)
    left = {path: data for path, data in tree(out).items() if not path.rpartition("/")[2].startswith(".")}
    assert left.items() <= expected.items()
    again = shardgen("export", finished_run.path, out, *options)
    assert again.returncode == 0, again.stderr
    assert tree(out) == expected


@pytest.mark.slow
def test_a_run_is_exported_by_the_command_without_a_zip(finished_run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "my tars"
    split = ["--split", "50,50", "--split-by", "backgrounds", "--split-seed", "3"]
    done = shardgen("export", finished_run.path, out, "--format", "webdataset", *split)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["split", "samples", "photographs", "files", "size"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["train", "24", "1", "1"],
        ["validation", "24", "1", "1"],
    ]
    said = done.stderr.splitlines()
    assert said[0] == "dropped because their photographs are in different splits: 0 samples"
    assert said[-1] == (
        "to read it: import pathlib, webdataset; webdataset.WebDataset("
        f"sorted(map(str, pathlib.Path({str(out)!r}).glob('train-*.tar')))).decode('rgb')"
    )
    with tarfile.open(out / "train-000000.tar") as archive:
        assert len(archive.getnames()) == 4 * 24
    assert not (finished_run.path / "dataset.zip").exists()
    other = shardgen("export", finished_run.path, out, "--format", "webdataset")
    assert other.returncode == 10
    assert f"{out}: holds another export: with split" in other.stderr
    assert f"rm -r '{out}'" in other.stderr
    again = shardgen("export", finished_run.path, out, "--format", "webdataset", *split)
    assert "already there: 48 samples" in again.stderr


@pytest.mark.slow
def test_a_run_of_pictures_is_exported_under_their_names(tmp_path: Path) -> None:
    run = make_pictures_run(tmp_path)
    made = shardgen("run", run.path, "--allow-dead-letters", "-o", tmp_path / "depths.zip")
    assert made.returncode == 0, made.stderr
    refused = shardgen("export", run.path, tmp_path / "out", "--format", "files")
    assert refused.returncode == 15
    assert "hint: shardgen dead-letters" in refused.stderr
    for subject, more in ((run.path, ["--allow-dead-letters"]), (tmp_path / "depths.zip", [])):
        done = shardgen("export", subject, tmp_path / f"of-{subject.stem}", "--format", "files", *more)
        assert done.returncode == 0, done.stderr
        assert "left out, of 12 samples: 2 dead letters" in done.stderr
    found = tree(tmp_path / "of-run" / "image")
    assert set(found) >= {"a/plain.jpg", 'a/with, "comma".jpg', "b/one.jpg", "phone.jpg", "Ž.jpg"}
    exported = tree(tmp_path / "of-depths")
    with zipfile.ZipFile(tmp_path / "depths.zip") as archive:
        assert sorted(data for name, data in exported.items() if name.startswith("depth/")) == sorted(
            archive.read(name) for name in archive.namelist() if name.startswith("depth/")
        )
    assert json.loads(exported["export.json"])["shard_size"] is None


@pytest.mark.slow
def test_a_lost_receipt_is_not_taken_for_one_to_come(finished_run: RunDirectory, tmp_path: Path) -> None:
    import sqlite3  # noqa: PLC0415
    from contextlib import closing  # noqa: PLC0415

    with closing(sqlite3.connect(finished_run.path / "manifest.sqlite")) as connection:
        connection.execute("DELETE FROM receipt WHERE batch = 3")
        connection.commit()
    for more in ([], ["--partial"]):
        done = shardgen("export", finished_run.path, tmp_path / "out", "--format", "webdataset", *more)
        assert done.returncode == 23, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_inside_the_artifact_folder_is_refused(finished_run: RunDirectory) -> None:
    out = finished_run.artifacts / "tars"
    done = shardgen("export", finished_run.path, out, "--format", "webdataset")
    assert done.returncode == 10, done.stderr
    assert "lies in the run's artifact folder" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("out", ['/a/q"uo {1..2} te', "/it's", "/a\\b", "/a::b"])
def test_the_line_that_reads_an_export_is_python_of_the_path_as_it_is(name: str, out: str) -> None:
    split = SplitResult(name="train", samples=3, photographs=2, files=2, size_bytes=9)
    line = _next(
        ExportResult(
            out=Path(out),
            request=ExportRequest(format=name),
            splits=(split,),
            dropped=0,
            there=0,
            dead_letters=0,
            selection=Selection(planned=3),
        )
    )
    texts = [str(one.value) for one in ast.walk(ast.parse(line)) if isinstance(one, ast.Constant)]
    assert texts.count(f"{out}/annotations/instances_train.json" if name == "coco" else out) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "tfrecord"], "'tfrecord' is not one of webdataset, parquet, coco, files"),
        (["--format", "files", "--shard-size", "5"], "files has no shards"),
        (["--format", "files", "--split", "80"], "'80' is not two or three whole numbers"),
        (["--format", "files", "--split", "80,0,0"], "at least two of them above 0"),
        (["--format", "files", "--split", "0.8,0.2"], "'0.8,0.2' is not two or three whole numbers"),
        (["--format", "files", "--split-by", "both"], "needs --split"),
        (["--format", "files", "--split-seed", "4"], "needs --split"),
    ],
)
def test_wrong_options_are_wrong_usage(tmp_path: Path, options: list[str], says: str) -> None:
    done = shardgen("export", tmp_path, tmp_path / "out", *options)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.splitlines()[-1] == "hint: shardgen export --help"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--partial", "--allow-dead-letters"])
def test_what_chooses_samples_is_refused_for_a_zip(
    undisturbed_zip: Path, tmp_path: Path, option: str
) -> None:
    done = shardgen("export", undisturbed_zip, tmp_path / "out", "--format", "files", option)
    assert done.returncode == 2
    assert f"{option}: needs a run directory" in done.stderr
