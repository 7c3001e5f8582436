from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as reference
from pycocotools.coco import COCO

from shardgen.dataset.export.base import ExportSample
from shardgen.dataset.export.coco import CocoFile, refuse_coco, run_lengths
from shardgen.errors import InvalidSettings
from shardgen.recipes.base import Recipe
from tests.dataset.export.made_samples import Made, pictures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")


def written(recipe: Recipe, samples: Sequence[ExportSample], path: Path) -> bytes:
    file = CocoFile(recipe, path)
    for sample in samples:
        file.add(sample, {name: f"{name}/{sample.number}.x" for name in sample.files})
    file.finish()
    return path.read_bytes()


def read(path: Path, capsys: pytest.CaptureFixture[str]) -> COCO:
    coco = COCO(path)
    capsys.readouterr()  # it prints what it does
    return coco


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Noise of any density, magnified by up to 40: one pixel, lines, long runs, whole masks."""
    height, width = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    seed, density = draw(st.tuples(st.integers(0, 1 << 30), st.sampled_from([0, 0.02, 0.2, 0.5, 0.98, 1])))
    noise = np.random.default_rng(seed).random((height, width)) < density
    down, across = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    return noise.repeat(down, 0).repeat(across, 1)


@settings(deadline=None, max_examples=200)
@given(mask=masks())
@example(mask=np.zeros((1, 1), np.bool_))
@example(mask=np.ones((1, 1), np.bool_))
@example(mask=np.ones((3000, 2000), np.bool_))
@example(mask=np.arange(4000)[None] % 1999 < 1000)
@example(mask=np.arange(4000)[:, None] % 7 < 3)
def test_run_lengths_are_those_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = run_lengths(mask)
    assert found == expected["counts"]
    assert np.array_equal(reference.decode({"size": mask.shape, "counts": found}), mask)


@pytest.mark.parametrize("which", ["one_person", "people"])
def test_pycocotools_finds_everyone_who_is_visible(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, samples = request.getfixturevalue(which)
    samples = samples[5:]
    written(recipe, samples, tmp_path / "coco.json")
    coco = read(tmp_path / "coco.json", capsys)
    assert coco.getImgIds() == [sample.number for sample in samples]
    assert [(one["id"], one["name"]) for one in coco.loadCats(coco.getCatIds())] == [
        (1, "adults"),
        (2, "adults/tall"),
        (3, "foreground"),
    ]
    outputs = {output.name: output for output in recipe.plan.outputs}
    hidden = 0
    ids = []
    for sample in samples:
        (image,) = coco.loadImgs(sample.number)
        others = {f"{name}_file_name": f"{name}/{sample.number}.x" for name in sample.files if name != "fgbg"}
        assert image == {
            "id": sample.number,
            "file_name": f"fgbg/{sample.number}.x",
            **others,
            "width": 32,
            "height": 24,
            "background": sample.labels["background"],
        }
        found = coco.loadAnns(coco.getAnnIds(sample.number))
        ids += [one["id"] for one in found]
        decoded = {name: recipe.decoded(outputs[name], data) for name, data in sample.files.items()}
        rows = rows_of(sample, several=recipe.has_several_rows)
        visible = [row for row in rows if row["output_area"]]
        hidden += len(rows) - len(visible)
        for row, annotation in zip(visible, found, strict=True):
            is_of_person = decoded["mask"] >= 128
            if recipe.has_several_rows:
                is_of_person = decoded["instances"] == row["person"]
            assert np.array_equal(coco.annToMask(annotation), is_of_person)
            box = [row[f"output_{side}"] for side in ("x", "y", "width", "height")]
            assert (annotation["bbox"], annotation["area"]) == (box, row["output_area"])
            (category,) = coco.loadCats(annotation["category_id"])
            assert category["name"] == (str(Path(row["foreground"]).parent).replace(".", "foreground"))
            del annotation["segmentation"], annotation["bbox"], annotation["area"]
            assert annotation == {
                "id": annotation["id"],
                "image_id": sample.number,
                "category_id": annotation["category_id"],
                "iscrowd": 0,
                **{name: row[name] for name in ("person", "foreground", "visible")},
            }
    assert ids == list(range(1, len(coco.anns) + 1))
    assert (hidden > 0) == recipe.has_several_rows


def rows_of(sample: ExportSample, *, several: bool) -> list[dict[str, Any]]:
    """A row for each person."""
    if not several:
        return [dict(sample.labels)]
    count = len(sample.labels["person"])
    return [
        {name: value[row] if isinstance(value, list) else value for name, value in sample.labels.items()}
        for row in range(count)
    ]


def test_the_same_samples_give_the_same_bytes_without_a_date(one_person: Made, tmp_path: Path) -> None:
    recipe, samples = one_person
    first = written(recipe, samples, tmp_path / "1.json")
    assert written(recipe, samples, tmp_path / "2.json") == first
    document = json.loads(first)
    assert list(document) == ["info", "licenses", "images", "annotations", "categories"]
    assert document["info"] == {"description": recipe.card().title, "plan": recipe.plan.fingerprint}


def test_names_with_quotes_and_accents_and_an_empty_split_are_read(
    one_person: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, samples = one_person
    odd = 'Ž "a",\n\\b.jpg'
    named = replace(samples[0], labels={**samples[0].labels, "background": odd})
    written(recipe, [named], tmp_path / "odd.json")
    assert read(tmp_path / "odd.json", capsys).imgs[0]["background"] == odd
    assert written(recipe, [], tmp_path / "empty.json")
    assert read(tmp_path / "empty.json", capsys).imgs == {}


def test_annotations_lie_in_a_nameless_file_until_the_end(one_person: Made, tmp_path: Path) -> None:
    recipe, samples = one_person
    path = tmp_path / "coco.json"
    file = CocoFile(recipe, path)
    file.add(samples[0], dict.fromkeys(samples[0].files, "x"))
    assert list(tmp_path.iterdir()) == [path]
    file.abandon()
    assert b"segmentation" not in path.read_bytes()
    with pytest.raises(ValueError, match="closed file"):
        file.add(samples[1], dict.fromkeys(samples[1].files, "x"))


def test_a_full_disk_is_an_error_of_the_disk(one_person: Made, tmp_path: Path) -> None:
    recipe, samples = one_person
    path = tmp_path / "coco.json"
    path.symlink_to("/dev/full")
    file = CocoFile(recipe, path)
    file.add(samples[0], dict.fromkeys(samples[0].files, "x"))
    with pytest.raises(OSError, match="No space left"):
        file.finish()
    file.abandon()


def test_a_recipe_without_objects_is_refused(tmp_path: Path) -> None:
    recipe, _samples = pictures(tmp_path)
    with pytest.raises(InvalidSettings, match="no objects") as refused:
        refuse_coco(recipe)
    assert refused.value.hint == "--format files, webdataset or parquet"
    with pytest.raises(InvalidSettings):
        CocoFile(recipe, tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()
