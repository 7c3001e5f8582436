"""The depth of pictures that exist: planned from a folder, made, merged, verified, grown."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shardgen.dataset.verify import verify_zip
from shardgen.domain.plan import Plan, plan_file_name
from shardgen.domain.steps import PlanStep
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, ShardgenError, SourcesRefused
from shardgen.imaging.codec import decode
from shardgen.operations.extend import extend, unplanned
from shardgen.operations.plan import make_plan
from shardgen.recipes.pictures.recipe import PicturesRecipe
from shardgen.settings.plan_file import read_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.sources.inventory import PictureList
from tests.photographs import colours, write_rgb
from tests.pictures import HEADLESS, HOLLOW, SIZES, hollow_png, make_pictures_run
from tests.runs import die_at, shardgen

SHARED_FOLDER = '[manifest]\nurl = "folder:"\n[folder]\nsettle_seconds = 0\nscan_seconds = 1\n'
NAMES = sorted([*SIZES, HEADLESS, HOLLOW], key=str.encode)


def planned(folder: Path, **options: str) -> RunDirectory:
    run = make_pictures_run(folder, **options)
    return run.planned(make_plan(run, {}).plan)


def sources(plan: Plan, block: int = 0) -> PictureList:
    found = plan.blocks[block].sources
    assert isinstance(found, PictureList)
    return found


def lists(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.path.glob("*.jsonl*"))


def named(plan: Plan) -> list[str]:
    return sorted(
        plan_file_name("pictures", sources(plan, block).sha256) for block in range(len(plan.blocks))
    )


def expected_lines(folder: Path) -> list[list[object]]:
    sizes = SIZES | {HEADLESS: (0, 0), HOLLOW: (40, 30)}
    data = {name: (folder / name).read_bytes() for name in NAMES}
    return [[name, len(data[name]), hashlib.sha256(data[name]).hexdigest(), *sizes[name]] for name in NAMES]


def decoded(data: bytes, flags: int) -> np.ndarray[Any, np.dtype[Any]]:
    """As any reader would, blue first."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags))


def add_picture(run: RunDirectory, name: str, *, seed: int = 1) -> None:
    path = run.folders({})["pictures"] / name
    path.parent.mkdir(exist_ok=True)
    write_rgb(path, colours(np.random.default_rng(seed), 30, 20))


def test_a_plan_names_a_file_with_a_line_for_each_picture(tmp_path: Path) -> None:
    run = make_pictures_run(tmp_path)
    made = make_plan(run, {})
    list_ = sources(made.plan)
    data = (run.path / plan_file_name("pictures", list_.sha256)).read_bytes()
    assert hashlib.sha256(data).hexdigest() == list_.sha256
    assert [json.loads(line) for line in data.splitlines()] == expected_lines(tmp_path / "pictures")
    sizes = sorted((width * height for width, height in SIZES.values()), reverse=True)
    assert (list_.count, list_.bytes, list_.largest_pixels) == (12, len(data), tuple(sizes[:4]))
    assert made.plan.samples == 12
    warnings = {name: one.reason for one in made.draft.warnings for name in one.names}
    assert set(warnings) == {HEADLESS, "c/note.txt"}
    assert "will be a dead letter" in warnings[HEADLESS]
    assert dict(made.draft.facts)["made of"] == "12 pictures, 1 of them unreadable"
    again = make_plan(RunDirectory.open(run.path), {})
    assert (again.plan, again.is_new, again.changes) == (made.plan, False, ())
    assert lists(run) == named(made.plan)


def test_what_counts_only_reads_no_list(tmp_path: Path) -> None:
    run = planned(tmp_path)
    (run.path / named(run.plan())[0]).unlink()
    assert shardgen("status", run.path).returncode == 0
    with pytest.raises(InputMissing, match=r"jsonl: is not there"):
        run.recipe(run.plan()).describe(run.plan().layout.batch_samples(0)[0])  # type: ignore[arg-type]
    worker = shardgen("worker", run.path)
    assert worker.returncode == InputMissing.exit_code
    assert "on the machine that planned, `shardgen plan " in worker.stderr
    make_plan(RunDirectory.open(run.path), {})  # or it is written again
    assert lists(run) == named(run.plan())
    list_ = run.path / lists(run)[0]
    list_.write_bytes(list_.read_bytes().replace(b"plain", b"blain"))
    with pytest.raises(PlanConflict, match="not the file that the plan names"):
        list(run.recipe(run.plan()).describe(run.plan().layout.batch_samples(0)[0]))  # type: ignore[arg-type]
    make_plan(RunDirectory.open(run.path), {})
    assert hashlib.sha256(list_.read_bytes()).hexdigest() == sources(run.plan()).sha256


def test_duplicates_names_and_rights_are_told(tmp_path: Path) -> None:
    run = make_pictures_run(tmp_path)
    folder = tmp_path / "pictures"
    shutil.copy(folder / "scan.tiff", folder / "a/again.tiff")
    made = make_plan(run, {})
    twice = [one for one in made.draft.warnings if one.reason == "the same content as …"]
    assert [(one.names, one.details) for one in twice] == [(("scan.tiff",), ("a/again.tiff",))]
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    with pytest.raises(SourcesRefused, match="1 problem in the folder of pictures"):
        make_plan(RunDirectory.open(run.path), {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissing, match="no photographs in the folder of pictures"):
        make_plan(RunDirectory.open(run.path), {"pictures": tmp_path / "empty"})


def test_keys_of_composites_and_a_recipe_without_depth_are_refused(tmp_path: Path) -> None:
    run = make_pictures_run(tmp_path)
    text = (run.path / "shardgen.toml").read_text()
    for change, says in (
        ("[compose]\ngrid = [2, 2]\n", "compose"),
        ('[sources]\nmask = "auto"\n', "mask"),
        ('[depth]\nmodel = "none"\n', r"\[depth\] model: .*makes nothing"),
        ('[depth]\nencoding = "relative"\n', "needs .output. depth"),
    ):
        table = change.partition("\n")[0]
        kept = text.replace(f"{table}\n", change, 1) if table in text else text + change
        (run.path / "shardgen.toml").write_text(kept)
        with pytest.raises(InvalidSettings, match=says):
            RunDirectory.open(run.path)


def test_changed_settings_and_pictures_make_another_plan_and_remove_the_other_list(tmp_path: Path) -> None:
    run = planned(tmp_path)
    before = run.plan()
    add_picture(run, "a/new.jpg")
    (tmp_path / "pictures/scan.tiff").unlink()
    add_picture(run, "a/plain.jpg", seed=2)
    make_pictures_run(tmp_path, output="size = [32, 24]")
    made = make_plan(RunDirectory.open(run.path), {})
    assert set(made.changes) == {
        "output.size: source -> 32x24",
        "output.depth_size: source -> 32x24",
        "pictures: 'a/new.jpg' is new",
        "pictures: 'a/plain.jpg' has changed",
        "pictures: 'scan.tiff' is gone",
    }
    assert made.plan != before
    assert lists(run) == named(made.plan)


@pytest.mark.parametrize("step", [PlanStep.FILES_WRITTEN, PlanStep.PLAN_WRITTEN], ids=str)
def test_a_killed_plan_is_planned_again(tmp_path: Path, step: PlanStep) -> None:
    run = make_pictures_run(tmp_path)
    die_at("plan", run.path, step)
    assert (read_plan(run.path) is None) == (step is PlanStep.FILES_WRITTEN)
    assert len(lists(run)) == 1  # it is there before anything names it
    add_picture(run, "a/new.jpg")
    made = make_plan(RunDirectory.open(run.path), {})
    assert lists(run) == named(made.plan)


def test_new_pictures_are_a_new_block_and_anything_else_is_refused_by_name(tmp_path: Path) -> None:
    run = planned(tmp_path)
    before, first = run.plan(), lists(run)
    assert extend(run, {}).changes == ()
    add_picture(run, "0.jpg")
    add_picture(run, "z/last.png", seed=3)
    assert [one.names for one in unplanned(run, before, {})] == [("0.jpg", "z/last.png")]
    made = extend(RunDirectory.open(run.path), {})
    assert made.plan.blocks[0] == before.blocks[0]
    assert made.changes == ("pictures: '0.jpg' is new", "pictures: 'z/last.png' is new")
    assert lists(run) == named(made.plan)
    assert set(first) < set(lists(run))
    grown = RunDirectory.open(run.path)
    recipe = grown.recipe(grown.plan())
    assert isinstance(recipe, PicturesRecipe)
    assert [one.name for one in recipe.pictures.all()] == [*NAMES, "0.jpg", "z/last.png"]
    assert (
        recipe.label_rows(range(11, 14), tail=";", without={12}, facts=None)
        == "11,Ž.jpeg,90,30;13,z/last.png,30,20;"
    )
    assert make_plan(RunDirectory.open(run.path), {}).plan == made.plan
    (tmp_path / "pictures/z/last.png").unlink()
    add_picture(run, "0.jpg", seed=4)
    add_picture(run, "1.jpg", seed=5)
    with pytest.raises(PlanConflict, match=r"'0.jpg' has changed; pictures: 'z/last.png' is gone"):
        extend(RunDirectory.open(run.path), {})
    assert lists(run) == named(made.plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "size", "depth_size"),
    [
        ('size = "source"', None, None),
        ("size = [32, 24]\nimage_quality = 60", (32, 24), (32, 24)),
        ('size = "source"\ndepth_size = [20, 10]\nimage = "png"\ndepth = "webp"', None, (20, 10)),
    ],
    ids=["source", "fixed", "own depth size on a shared folder"],
)
def test_a_whole_run(
    tmp_path: Path, output: str, size: tuple[int, int] | None, depth_size: tuple[int, int] | None
) -> None:
    run = make_pictures_run(tmp_path, output=output, manifest=SHARED_FOLDER if depth_size != size else "")
    ran = shardgen("run", run.path, "--workers", "2", "--allow-dead-letters")
    assert ran.returncode == 0, ran.stderr
    path = run.path / "dataset.zip"
    found = verify_zip(path, decode=True)
    assert (found.findings, found.samples) == ((), 10)
    folder = tmp_path / "pictures"
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"), "utf-8", newline="")))
        stats = json.loads(archive.read("stats.json"))
        letters = archive.read("dead_letters.csv").decode().split()[1:]
        list_ = lists(run)[0]
        assert archive.read(list_) == (run.path / list_).read_bytes()
        files = {
            kind: [archive.read(name) for name in archive.namelist() if name.startswith(f"{kind}/")]
            for kind in ("image", "depth")
        }
    stored = [name for name in NAMES if name in SIZES]
    assert [row["picture"] for row in rows] == stored
    assert [(int(row["width"]), int(row["height"])) for row in rows] == [SIZES[name] for name in stored]
    assert letters == [f"{NAMES.index(name)},unreadable" for name in sorted((HEADLESS, HOLLOW))]
    pixels = {"image": list[np.ndarray[Any, Any]](), "depth": list[np.ndarray[Any, Any]]()}
    for name, image, depth in zip(stored, files["image"], files["depth"], strict=True):
        pixels["image"].append(decoded(image, cv2.IMREAD_COLOR)[:, :, ::-1])
        pixels["depth"].append(decoded(depth, cv2.IMREAD_GRAYSCALE))
        assert pixels["image"][-1].shape[1::-1] == (size or SIZES[name])
        assert pixels["depth"][-1].shape[1::-1] == (depth_size or SIZES[name])
        if 'image = "png"' in output:
            assert np.array_equal(pixels["image"][-1], decode((folder / name).read_bytes()).pixels)
    for kind, channels in (("image", 3), ("depth", 1)):
        flat = np.concatenate([one.reshape(-1, channels) for one in pixels[kind]]).astype(np.float64) / 255
        assert stats[kind]["pixels"] == len(flat)
        assert np.allclose(stats[kind]["mean"], flat.mean(axis=0), rtol=0, atol=1e-12)
        assert np.allclose(stats[kind]["std"], flat.std(axis=0), rtol=0, atol=1e-12)
    for command in ("verify", "dead-letters", "doctor"):
        done = shardgen(command, run.path)
        assert done.returncode == 0, done.stderr
    assert HOLLOW in shardgen("dead-letters", run.path).stdout
    left_out = shardgen("merge", run.path, "--exclude", "pictures/scan.tiff", "--allow-dead-letters")
    assert left_out.returncode == 0, left_out.stderr
    assert verify_zip(run.path / "dataset.excluded.zip", decode=True).samples == 9


@pytest.mark.slow
def test_a_picture_that_is_another_by_now_or_gone_stops_a_worker(tmp_path: Path) -> None:
    run = planned(tmp_path)
    path = tmp_path / "pictures/b/one.png"
    data = path.read_bytes()
    path.write_bytes(hollow_png(1, 1))
    other = shardgen("worker", run.path)
    assert other.returncode == PlanConflict.exit_code
    assert "one.png" in other.stderr
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size
    same = shardgen("worker", run.path)
    assert same.returncode == PlanConflict.exit_code
    assert "not the file that the plan was made from" in same.stderr
    path.unlink()
    gone = shardgen("worker", run.path)
    assert gone.returncode in (PlanConflict.exit_code, InputMissing.exit_code)
    path.write_bytes(data)
    assert shardgen("run", run.path, "--allow-dead-letters").returncode == 0
    add_picture(run, "a/new.jpg")
    late = shardgen("plan", run.path)
    assert late.returncode == PlanConflict.exit_code
    assert "pictures: 'a/new.jpg' is new" in late.stderr
    assert "shardgen extend" in late.stderr
    assert len(lists(run)) == 1
    extended = shardgen("extend", run.path)
    assert extended.returncode == 0, extended.stderr
    assert shardgen("run", run.path, "--allow-dead-letters").returncode == 0
    assert verify_zip(run.path / "dataset.zip", decode=True).samples == 11


@pytest.fixture(scope="module")
def made_zip(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Path]:
    folder = tmp_path_factory.mktemp("made")
    run = make_pictures_run(folder, output="size = [32, 24]")
    ran = shardgen("run", run.path, "--allow-dead-letters")
    assert ran.returncode == 0, ran.stderr
    return run, run.path / "dataset.zip"


def _replaced(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    data = source.read_bytes()
    target.write_bytes(change(data))


@pytest.mark.slow
def test_a_zip_with_another_list_is_found(made_zip: tuple[RunDirectory, Path], tmp_path: Path) -> None:
    run, path = made_zip
    assert verify_zip(path).findings == ()
    name = lists(run)[0]
    broken = tmp_path / "broken.zip"
    _replaced(path, broken, lambda data: data.replace(b'["a/plain.jpg"', b'["a/blain.jpg"'))
    facts = {one.subject: one.fact for one in verify_zip(broken).findings}
    assert facts == {name: "its bytes are not those of the directory"}
    other = name.replace(name[9:25], "0" * 16)
    _replaced(path, broken, lambda data: data.replace(name.encode(), other.encode()))
    facts = {one.subject: one.fact for one in verify_zip(broken).findings}
    assert facts == {name: "plan.json names it, but it is missing", other: "is not named in plan.json"}


@pytest.mark.slow
def test_a_sheet_a_preview_and_a_backup(made_zip: tuple[RunDirectory, Path], tmp_path: Path) -> None:
    run, path = made_zip
    with zipfile.ZipFile(path) as archive:
        sheet = decoded(archive.read("contact_sheet.png"), cv2.IMREAD_COLOR)
        card = archive.read("README.md").decode()
        assert f"`{lists(run)[0]}`: a line for each picture" in card
        assert "with the sha256 of that list" in card
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000  # pictures are in it
    assert "# Pictures and depth: 10 samples" in card
    assert "at 32 x 24 pixels" in card
    preview = shardgen("preview", run.path, "-o", tmp_path / "sheet.png")
    assert preview.returncode == 0, preview.stderr
    fresh = make_pictures_run(tmp_path)
    unwritten = shardgen("preview", fresh.path, "--samples", "3")
    assert unwritten.returncode == 0, unwritten.stderr
    assert lists(fresh) == []
    backup = shardgen("backup", run.path, "-o", tmp_path / "copy.sqlite")
    assert backup.returncode == 0, backup.stderr
    assert (tmp_path / lists(run)[0]).read_bytes() == (run.path / lists(run)[0]).read_bytes()


def test_no_list_of_ours_is_read_as_another(tmp_path: Path) -> None:
    run = planned(tmp_path)
    list_ = run.path / lists(run)[0]
    lines = list_.read_bytes().splitlines(keepends=True)
    digest = "0" * 64
    for line, says in (
        (b"{}\n", "not a name"),
        (b'["../x.jpg",1,"' + digest.encode() + b'",1,1]\n', "leaves its folder"),
        (b'["x.jpg",1,"x",1,1]\n', "sha256 is not a sha256"),
        (b'["x.jpg",true,"' + digest.encode() + b'",1,1]\n', "not a name"),
        (b'["x.jpg",1,"' + digest.encode() + b'",-1,1]\n', "impossible"),
    ):
        data = line + b"".join(lines[1:])
        made = PictureList.of(data, pixels=[1, 1, 1, 1])
        plan = RunDirectory.open(run.path).plan()
        other = replace(plan, blocks=(replace(plan.blocks[0], sources=made),))
        recipe = run.recipe(other, {plan_file_name("pictures", made.sha256): data})
        with pytest.raises(ShardgenError, match=says):
            recipe.describe(plan.layout.batch_samples(0)[0])  # type: ignore[arg-type]
        if not line.startswith(b"["):
            with pytest.raises(ShardgenError, match=says):
                recipe.all_sources()
