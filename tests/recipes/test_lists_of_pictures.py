"""The file of lines beside a plan of pictures: failing disks, lost and foreign ones, and what it costs."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardgen.dataset.selecting import excluded_by
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.errors import InputMissing, ManifestCorrupt, PlanConflict, StorageFailed
from shardgen.imaging import codec
from shardgen.imaging.options import ImageFormat
from shardgen.operations.backup import back_up
from shardgen.operations.extend import extend
from shardgen.operations.plan import make_plan
from shardgen.operations.verify import check_run
from shardgen.recipes import network
from shardgen.recipes.base import DeviceChoice, Station
from shardgen.recipes.depth import DEPTH
from shardgen.recipes.pictures.plan import IMAGE
from shardgen.recipes.pictures.recipe import PicturesRecipe
from shardgen.settings.plan_file import parse_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.sources.inventory import Picture, PictureList
from tests.photographs import colours, write_rgb
from tests.pictures import hollow_png, make_pictures_run
from tests.runs import shardgen

SHARED_FOLDER = '[manifest]\nurl = "folder:"\n'


def planned(folder: Path, **options: str) -> RunDirectory:
    run = make_pictures_run(folder, **options)
    return run.planned(make_plan(run, {}).plan)


def grown(folder: Path) -> RunDirectory:
    """Two blocks, of which the second comes between the first's names."""
    run = planned(folder)
    for number, name in enumerate(("0.jpg", "b/other.jpg")):
        write_rgb(folder / "pictures" / name, colours(np.random.default_rng(number), 30, 20))
    return run.planned(extend(RunDirectory.open(run.path), {}).plan)


def recipe_of(run: RunDirectory) -> PicturesRecipe:
    recipe = run.recipe(run.plan())
    assert isinstance(recipe, PicturesRecipe)
    return recipe


def lists(run: RunDirectory) -> list[Path]:
    """Of each block."""
    return [run.path / file.name for file in recipe_of(run).files]


def with_sources(plan: Plan, **changes: Any) -> Plan:
    block = plan.blocks[0]
    assert isinstance(block.sources, PictureList)
    return replace(plan, blocks=(replace(block, sources=replace(block.sources, **changes)),))


def failing(number: int) -> Callable[..., bytes]:
    def pread(*_arguments: int) -> bytes:
        raise OSError(number, os.strerror(number))

    return pread


def test_a_disk_that_fails_is_no_samples_fault_and_is_asked_again(tmp_path: Path) -> None:
    run = planned(tmp_path)
    recipe = recipe_of(run)
    wanted = recipe.pictures.picture(SampleIndex(3))
    for number in (errno.EIO, errno.ESTALE):
        for ask in (
            lambda: recipe.pictures.picture(SampleIndex(3)),
            lambda: recipe.label_rows(range(4), tail="", without=(), facts=None),
            lambda: recipe.source_problems(run.folders({})),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "pread", failing(number))
                with pytest.raises(StorageFailed, match=lists(run)[0].name):
                    ask()
                with pytest.raises(StorageFailed, match=lists(run)[0].name):  # also while it is opened anew
                    ask()
            assert recipe.pictures.picture(SampleIndex(3)) == wanted


@pytest.mark.parametrize(
    "change",
    [lambda data: data[: len(data) // 2], lambda data: b"\n" * len(data)],
    ids=["cut off", "other lines"],
)
def test_a_list_that_changes_while_it_is_open_is_corrupt(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    run = planned(tmp_path)
    recipe = recipe_of(run)
    assert recipe.pictures.picture(SampleIndex(11)).name == "Ž.jpeg"
    path = lists(run)[0]
    path.write_bytes(change(path.read_bytes()))  # the same file, as a synced folder may do it
    with pytest.raises(ManifestCorrupt, match=path.name):
        recipe.pictures.picture(SampleIndex(11))
    with pytest.raises(PlanConflict, match="not the file that the plan names"):
        recipe.pictures.picture(SampleIndex(11))


def test_no_line_is_nested_without_end() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        Picture.of(b"[" * 200_000)


def test_a_list_has_as_many_bytes_as_its_lines_may_take(tmp_path: Path) -> None:
    plan = planned(tmp_path).plan()
    for bytes_ in (60 * 12, 25_000 * 12):
        with pytest.raises(ManifestCorrupt, match="its numbers are impossible"):
            parse_plan(with_sources(plan, bytes=bytes_).canonical_json, where="plan.json")


def test_four_large_pictures_may_meet_and_one_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardgen.recipes.pictures.recipe.usable_cores", lambda: 4)
    run = planned(tmp_path)
    plan = run.plan()
    small = recipe_of(run).demand(run.local).bytes_for(1)
    one = with_sources(plan, largest_pixels=(200_000_000, 1000, 1000, 1000))
    assert 6.3e9 < run.recipe(one).demand(run.local).bytes_for(1) - small < 6.5e9
    four = with_sources(plan, largest_pixels=(50_000_000,) * 4)
    assert 6.3e9 < run.recipe(four).demand(run.local).bytes_for(1) - small < 6.5e9
    monkeypatch.setattr("shardgen.recipes.pictures.recipe.usable_cores", lambda: 1)
    assert 1.5e9 < run.recipe(four).demand(run.local).bytes_for(1) - small < 1.7e9
    for wrong in ((1,), (1, 2, 3, 4), (4, 3, 2, -1), (9, 9, 9, 9, 9)):
        with pytest.raises(ManifestCorrupt, match="its numbers are impossible"):
            parse_plan(with_sources(plan, largest_pixels=wrong).canonical_json, where="plan.json")


def test_a_sheet_holds_one_picture_at_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(planned(tmp_path))
    picture = codec.encode(np.zeros((30, 40, 3), np.uint8), ImageFormat.JPEG, 90)
    depth = codec.encode(np.zeros((30, 40), np.uint8), ImageFormat.JPEG, 90)
    held, most = list[weakref.ref[np.ndarray[Any, Any]]](), 0
    decode = codec.decode_encoded

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal most
        found = decode(*arguments, **options)
        held.append(weakref.ref(found))
        most = max(most, sum(one() is not None for one in held))
        return found

    monkeypatch.setattr(codec, "decode_encoded", counted)
    sheet = recipe.contact_sheet([(number, {IMAGE: picture, DEPTH: depth}) for number in range(12)])
    assert sheet is not None
    assert len(held) == 24
    assert most <= 4  # a sample that is drawn, and the next one


def test_one_picture_is_left_out_without_a_look_at_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(planned(tmp_path))
    names = [recipe.pictures.picture(SampleIndex(number)).name for number in range(12)]
    assert recipe.all_sources() == {f"pictures/{name}" for name in names}
    reads, read = list[int](), os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(offset)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert excluded_by(recipe, [names[5]]).pairs == ((5, 6),)
    assert len(reads) == 2
    assert list(recipe.pictures.names(range(2, 9))) == names[2:9]
    assert list(recipe.groups(3, 5)) == [
        (3, 4, frozenset({f"pictures/{names[3]}"})),
        (4, 5, frozenset({f"pictures/{names[4]}"})),
    ]


@pytest.mark.parametrize("manifest", ["", SHARED_FOLDER], ids=["database", "shared folder"])
def test_a_lost_list_is_written_again_or_waited_for(tmp_path: Path, manifest: str) -> None:
    run = planned(tmp_path, manifest=manifest)
    path = lists(run)[0]
    data = path.read_bytes()
    for change in (path.unlink, lambda: path.write_bytes(data[:100]), lambda: path.write_bytes(data[::-1])):
        change()
        with pytest.raises((InputMissing, PlanConflict)) as error:
            recipe_of(run).pictures.picture(SampleIndex(0))
        hint = error.value.hint
        assert "move" not in hint
        if manifest:
            assert hint.startswith("wait until the folder has synced")
        assert "shardgen plan RUN_DIR" in hint
        assert ("copy it from" in hint) == (not manifest)
    make_plan(RunDirectory.open(run.path), {})
    assert path.read_bytes() == data


def test_after_an_extension_plan_writes_one_lost_list_again(tmp_path: Path) -> None:
    run = grown(tmp_path)
    both = [path.read_bytes() for path in lists(run)]
    first, second = lists(run)
    for path, data, lose in (
        (first, both[0], first.unlink),
        (second, both[1], lambda: second.write_bytes(b"x\n")),
    ):
        lose()
        assert make_plan(RunDirectory.open(run.path), {}).plan == run.plan()
        assert path.read_bytes() == data
    first.unlink()
    second.unlink()
    with pytest.raises(InputMissing, match=first.name):
        make_plan(RunDirectory.open(run.path), {})
    second.write_bytes(both[1])
    (tmp_path / "pictures/scan.tiff").unlink()  # and so nobody can tell what was in it
    with pytest.raises(InputMissing, match=first.name):
        make_plan(RunDirectory.open(run.path), {})


def test_verify_finds_a_lost_and_another_list(tmp_path: Path) -> None:
    run = grown(tmp_path)
    assert check_run(run).findings == ()
    first, second = lists(run)
    first.unlink()
    second.write_bytes(b"another\n")
    found = check_run(run)
    assert [(one.subject, one.fact, one.batch) for one in found.findings] == [
        (str(first), "is not there, and the plan needs it", None),
        (str(second), "not the file that the plan names", None),
    ]
    assert found.bad_batches == ()


@pytest.mark.slow
def test_a_copy_of_the_manifest_is_there_after_its_lists(tmp_path: Path) -> None:
    run = grown(tmp_path)
    first, second = lists(run)
    data = second.read_bytes()
    copy = tmp_path / "copies/run.sqlite"
    copy.parent.mkdir()
    second.unlink()
    with pytest.raises(InputMissing, match=second.name):
        back_up(run, copy)
    assert not copy.exists()
    second.write_bytes(data)
    made = shardgen("backup", run.path, "-o", copy)
    assert made.returncode == 0, made.stderr
    assert {path.name for path in copy.parent.iterdir()} == {first.name, second.name, copy.name}
    for path in (first, second):
        assert str(copy.parent / path.name) in made.stderr


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ('size = "source"\nimage = "webp"', "WEBP has at most 16,383 pixels"),
        ('size = "source"\ndepth = "webp"', "WEBP has at most 16,383 pixels"),
        ('size = "source"', "JPEG has at most 65,500 pixels"),
    ],
    ids=["image", "depth", "jpeg"],
)
def test_pictures_that_no_format_holds_are_named(tmp_path: Path, output: str, says: str) -> None:
    run = make_pictures_run(tmp_path, output=output)
    (tmp_path / "pictures/high.png").write_bytes(hollow_png(2, 65_501))
    (tmp_path / "pictures/wide.png").write_bytes(hollow_png(16_384, 2))
    (tmp_path / "pictures/fits.png").write_bytes(hollow_png(16_383, 2))
    names = ("high.png", "wide.png") if "webp" in output else ("high.png",)
    found = [one for one in make_plan(run, {}).draft.warnings if says in one.reason]
    assert [one.names for one in found] == [names]
    assert "will be" in found[0].reason
    assert '"png"' in found[0].hint
    make_pictures_run(tmp_path, output="size = [40, 30]\nimage = 'webp'")
    assert not any(
        "a side of" in one.reason for one in make_plan(RunDirectory.open(run.path), {}).draft.warnings
    )


def test_a_lost_list_is_told_before_the_network_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = grown(tmp_path)
    lists(run)[1].unlink()

    def load(*_arguments: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(network, "open_depth_stage", load)
    station = Station(folders=run.folders({}), local=run.local, device=DeviceChoice())
    with pytest.raises(InputMissing, match="jsonl"):
        recipe_of(run).open_maker(station)
    monkeypatch.setattr("shardgen.recipes.pictures.recipe.spread_samples", lambda *_: [SampleIndex(0)])
    with pytest.raises(InputMissing, match="jsonl"):
        recipe_of(run).check_sources(run.folders({}), on_file=lambda _name, _of: None)
