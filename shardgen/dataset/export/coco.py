"""COCO's instance annotations: boxes and areas from the labels, masks as run lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardgen.dataset.export.base import ExportSample
from shardgen.dataset.zip_writer import Spool
from shardgen.errors import InvalidSettings
from shardgen.recipes.base import Instance, Recipe

_NUMBERS = frozenset({"person", "visible"})
"""What an annotation says beside the texts of its row, where a recipe has such columns."""
_GROUP_BITS = 5  # of a number, in each character
_MORE = np.uint8(1 << _GROUP_BITS)
_FIRST_CHARACTER = np.uint8(ord("0"))


def refuse_coco(recipe: Recipe) -> None:
    """Raise InvalidSettings for a recipe of which nothing says what is where in its images."""
    if not recipe.categories():
        raise InvalidSettings(
            f"--format coco: a data set of the kind {recipe.plan.recipe.kind} has no objects to annotate",
            hint="--format files, webdataset or parquet",
        )


class CocoFile:
    """The annotations of one split, written as they come: memory does not grow with their number.

    File names are relative to the folder of the split, for `torchvision`'s
    `CocoDetection(root="OUT/train", annFile="OUT/annotations/instances_train.json")`. An image has the number
    of its sample as id; annotations are counted from 1. Who is hidden has none.
    """

    def __init__(self, recipe: Recipe, path: Path) -> None:
        """Create the staged file, and a nameless one beside it. Raises InvalidSettings as `refuse_coco`."""
        refuse_coco(recipe)
        self._recipe = recipe
        self._picture = next(output for output in recipe.plan.outputs if output.channels)
        self._categories = {name: number for number, name in enumerate(recipe.categories(), 1)}
        columns, of_sample = recipe.label_columns, frozenset(recipe.sample_columns)
        self._of_image = [name for name in columns if name in of_sample and name != "sample"]
        shown = (recipe.text_columns | _NUMBERS) - of_sample
        self._of_instance = [name for name in columns if name in shown]
        self._images = self._annotations = 0
        with ExitStack() as opened:
            self._file = opened.enter_context(path.open("wb"))
            self._aside = opened.enter_context(Spool(path.parent, checked=False))
            info = {"description": recipe.card().title, "plan": recipe.plan.fingerprint}
            self._file.write(b'{"info":' + _json(info) + b',\n"licenses":[],\n"images":[')
            self._opened = opened.pop_all()

    def add(self, sample: ExportSample, names: Mapping[str, str]) -> None:
        """Write the image, and set its annotations aside; `names` are those of its stored files, by output.

        Raises SampleError for a file that cannot be read.
        """
        width, height = self._size(sample)
        image: dict[str, Any] = {"id": sample.number, "file_name": names[self._picture.name]}
        image |= {"width": width, "height": height}
        others = {f"{name}_file_name": path for name, path in names.items() if name != self._picture.name}
        labels = {name: sample.labels[name] for name in self._of_image}
        self._file.write(_entry(self._images, image | others | labels | image))
        self._images += 1
        for instance in self._recipe.instances(sample.labels, sample.files):
            self._aside.write(_entry(self._annotations, self._annotation(sample, instance)))
            self._annotations += 1

    def finish(self) -> None:
        """Write the annotations and the categories, and close: everything is in the file."""
        self._file.write(b'\n],\n"annotations":[')
        self._file.writelines(self._aside.read())
        self._file.write(b'\n],\n"categories":[')
        for number, (name, category) in enumerate(self._categories.items()):
            self._file.write(_entry(number, {"id": category, "name": name}))
        self._file.write(b"\n]}\n")
        self._opened.close()

    def abandon(self) -> None:
        """Close without finishing; also after `add` or `finish` raised."""
        with suppress(OSError):  # of what need not be written any more
            self._opened.close()

    def _size(self, sample: ExportSample) -> tuple[int, int]:
        if self._picture.size is not None:
            return self._picture.size
        height, width = self._recipe.decoded(self._picture, sample.files[self._picture.name]).shape[:2]
        return width, height

    def _annotation(self, sample: ExportSample, instance: Instance) -> dict[str, Any]:
        annotation: dict[str, Any] = {
            "id": self._annotations + 1,
            "image_id": sample.number,
            "category_id": self._categories[instance.category],
            "iscrowd": 0,
            "bbox": instance.box,
            "area": instance.area,
            "segmentation": {"size": instance.mask.shape, "counts": run_lengths(instance.mask).decode()},
        }
        has_lists = self._recipe.has_several_rows
        values = {name: sample.labels[name] for name in self._of_instance}
        said = {name: value[instance.row] if has_lists else value for name, value in values.items()}
        return annotation | said | annotation  # whatever a recipe's columns are called


def run_lengths(mask: NDArray[np.bool_]) -> bytes:
    """COCO's compressed run lengths of a bool mask (H, W): `counts` of its `segmentation`.

    Runs go down the columns, the first one is of what is not in the mask, and from the fourth on a number is
    the difference to the last run but one of its kind. A character has five bits of it, the lowest first.
    """
    pixels = mask.ravel(order="F")
    inside = int(pixels[0])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    edges = np.full(len(changes) + inside + 2, -1)
    edges[inside + 1 : -1], edges[-1] = changes, len(pixels) - 1
    runs = np.diff(edges)
    runs[3:] -= runs[1:-2].copy()
    return _characters(runs)


def _characters(numbers: NDArray[np.int64]) -> bytes:
    """Each number in groups of five bits, as few as tell its sign, all but its last one marked."""
    magnitudes = numbers ^ (numbers >> 63)  # of -1 it is 0, as of 0: both need their sign only
    count = int(magnitudes.max()).bit_length() // _GROUP_BITS + 1
    groups = np.empty((len(numbers), count), np.uint8)
    is_needed = np.ones((len(numbers), count), np.bool_)
    for index in range(count):
        groups[:, index] = (numbers >> (_GROUP_BITS * index)) & (_MORE - 1)
        if index:
            # The bit below a group is the sign of those before it.
            is_needed[:, index] = magnitudes >> (_GROUP_BITS * index - 1)
            groups[:, index - 1] |= is_needed[:, index] * _MORE
    return (groups + _FIRST_CHARACTER)[is_needed].tobytes()


def _entry(before: int, value: dict[str, Any]) -> bytes:
    """A line of a list, behind so many others."""
    return (b",\n" if before else b"\n") + _json(value)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
