"""Samples to export, in memory: real composites and pictures with real labels, without a worker or a zip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from shardgen.dataset.export.base import ExportSample
from shardgen.dataset.labels import label_rows
from shardgen.dataset.metadata import Metadata
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import Facts
from shardgen.imaging.codec import encode
from shardgen.imaging.options import ImageFormat
from shardgen.recipes.base import DeviceChoice, Files, Recipe, Station
from shardgen.settings.run_directory import RunDirectory
from tests.photographs import colours
from tests.pictures import make_pictures_run
from tests.runs import make_run, plan_run

Made = tuple[Recipe, list[ExportSample]]

SEVERAL = {
    "compose.placement": '"random"',
    "compose.grid": None,
    "compose.foregrounds_per_sample": "[1, 3]",
    "compose.foreground_height": "[200, 1000]",
    "compose.places": "4",
}
"""Settings with up to three people, large and small ones."""


def composites(
    folder: Path, changes: Mapping[str, str | None] | None = None
) -> tuple[Recipe, list[ExportSample]]:
    """Without depth; of three foregrounds one lies in no folder, one in `adults`, one in `adults/tall`."""
    run = make_run(folder, changes={"depth.model": '"none"', **(changes or {})}, foregrounds=3)
    for number, beneath in ((1, "adults"), (2, "adults/tall")):
        (path := folder / "sources/foregrounds" / beneath).mkdir()
        name = f"foreground-{number:03}.png"
        (folder / "sources/foregrounds" / name).rename(path / name)
    run = plan_run(run)
    recipe = run.recipe(run.plan())
    maker = recipe.open_maker(
        Station(
            folders=run.folders({}),
            local=run.local,
            device=DeviceChoice(device="cpu", threads=1),
        )
    )
    files: dict[SampleIndex, Files] = {}
    facts: dict[SampleIndex, tuple[int, ...]] = {}
    for number in map(SampleIndex, range(recipe.plan.samples)):
        prepared = maker.prepare(number)
        (computed,) = maker.compute([prepared], between=lambda _done: None)
        encoded = maker.encode(number, prepared, computed)
        files[number], facts[number] = encoded.files, encoded.facts
    return recipe, list(_labelled(recipe, files, facts))


def pictures(folder: Path) -> tuple[Recipe, list[ExportSample]]:
    """Of their own sizes, with names that ask for quotes; their depth is made up, in 16 bits."""
    settings = make_pictures_run(folder, output='size = "source"\ndepth = "png"').path / "shardgen.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("[output]", 'encoding = "relative"\n[output]'), encoding="utf-8")
    run = plan_run(RunDirectory.open(settings.parent))
    recipe = run.recipe(run.plan())
    files: dict[SampleIndex, Files] = {}
    for number in map(SampleIndex, range(recipe.plan.samples)):
        random = np.random.default_rng(number)
        width, height = (int(side) for side in random.integers(1, 60, 2))
        depth = random.integers(0, 1 << 16, (height, width), dtype=np.uint16)
        image = colours(random, width, height)
        files[number] = {
            "image": encode(image, ImageFormat.JPEG, 90),
            "depth": encode(depth, ImageFormat.PNG, 0),
        }
    return recipe, list(_labelled(recipe, files, {}))


def _labelled(recipe: Recipe, files: Mapping[SampleIndex, Files], facts: Facts) -> Iterator[ExportSample]:
    metadata = Metadata(recipe)
    for batch in map(BatchIndex, range(recipe.plan.layout.batch_count)):
        for sample in map(SampleIndex, recipe.plan.layout.batch_samples(batch)):
            others = set(files) - {sample}
            rows = label_rows(recipe, batch, without=others, facts=facts)
            labels = metadata.values(metadata.rows(rows.encode()))
            assert labels["sample"] == sample
            yield ExportSample(number=sample, files=files[sample], labels=labels)
