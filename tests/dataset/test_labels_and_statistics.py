from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.dataset.labels import planned_rows
from shardgen.dataset.statistics import statistics, stats_json
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import OutputSums, Sums
from shardgen.imaging.options import DepthEncoding
from shardgen.recipes.composites.plan import CompositesPlan, Flips
from shardgen.recipes.registry import recipe_of
from tests.plans import changed, depth_in, make_plan

HEADER = (
    "sample,person,background,foreground,flip,column,row,frame_x,frame_y,frame_width,frame_height,"
    "x,y,width,height,area,visible,output_x,output_y,output_width,output_height,output_area,shard,batch"
)


def rows_of_all_batches(plan: Plan, dead: set[int]) -> str:
    return "".join(planned_rows(recipe_of(plan), without=dead))


def naive_rows(plan: Plan, dead: set[int]) -> str:
    """The same from the parts of each sample and the csv module."""
    composites = CompositesPlan(plan)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER.split(","))
    for sample in range(plan.samples):
        if sample in dead:
            continue
        made_of = composites.combination(SampleIndex(sample))
        foreground = composites.sources.foregrounds[made_of.foreground]
        at = composites.place(made_of.foreground, column=made_of.column, row=made_of.row)
        batch = plan.layout.batch_of_sample(SampleIndex(sample))
        writer.writerow(
            [
                sample,
                1,
                composites.sources.backgrounds[made_of.background].name,
                foreground.name,
                made_of.flip,
                made_of.column,
                made_of.row,
                *(at.x, at.y, at.width, at.height),
                *[""] * 11,
                plan.layout.shard_of_batch(batch),
                batch,
            ]
        )
    return text.getvalue()


@pytest.mark.parametrize("flips", Flips)
@pytest.mark.parametrize("grid", [(5, 4), (1, 1), (3, 1)])
def test_labels_are_those_of_a_naive_writer(flips: Flips, grid: tuple[int, int]) -> None:
    plan = make_plan(flips=flips, grid=grid, shard_size=7, batch=3)
    assert rows_of_all_batches(plan, {1, 4, 5}) == naive_rows(plan, {1, 4, 5})


def test_names_with_commas_quotes_and_line_ends_are_quoted_only_then() -> None:
    plan = make_plan()
    sources = CompositesPlan(plan).sources
    names = ['a, b/"c".jpg', 'd "e" é.jpg', "f g\nh.jpg"]
    backgrounds = tuple(
        replace(background, name=name) for background, name in zip(sources.backgrounds, names, strict=True)
    )
    plan = changed(plan, sources=replace(sources, backgrounds=backgrounds))
    assert rows_of_all_batches(plan, set()) == naive_rows(plan, set())


def sums_of(plan: Plan, images: list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint16]]]]) -> Sums:
    sums: Sums = {}
    for output in plan.outputs:
        parts = [image[output.name].reshape(-1, output.channels) for image in images]
        pixels = np.concatenate(parts).astype(object)
        sums[output.name] = OutputSums(
            images=len(images),
            pixels=len(pixels),
            sum=tuple(int(value) for value in pixels.sum(axis=0)),
            squares=tuple(int(value) for value in (pixels**2).sum(axis=0)),
        )
    return sums


@pytest.mark.parametrize("encoding", DepthEncoding)
def test_statistics_are_numpys_over_all_pixels(encoding: DepthEncoding) -> None:
    source = np.random.default_rng(3)
    plan = make_plan()
    plan = changed(plan, depth=replace(depth_in(plan), encoding=encoding))
    limit = {"depth": 65_535 if encoding is DepthEncoding.RELATIVE else 255}
    images = [
        {
            output.name: source.integers(
                0, limit.get(output.name, 255) + 1, (4 + image, 5, output.channels), np.uint16
            )
            for output in plan.outputs
        }
        for image in range(6)
    ]
    content = json.loads(stats_json(statistics(plan, sums_of(plan, images))))
    assert list(content) == ["fgbg", "mask", "depth"]
    for output in plan.outputs:
        name = output.name
        pixels = np.concatenate([image[name].reshape(-1, output.channels) for image in images])
        scaled = pixels / limit.get(name, 255)
        assert content[name]["mean"] == pytest.approx(scaled.mean(axis=0).tolist(), rel=1e-12)
        assert content[name]["std"] == pytest.approx(scaled.std(axis=0).tolist(), rel=1e-12)
        assert content[name]["images"] == 6
        assert content[name]["pixels"] == len(pixels)


@given(st.integers(1, 10**13), st.integers(0, 255), st.integers(0, 10**6))
def test_mean_and_deviation_are_rounded_once(pixels: int, level: int, extra: int) -> None:
    total = pixels * level // 2 + min(extra, pixels)
    squares = -(-total * total // pixels) + extra
    plan = make_plan()
    sums = {
        output.name: OutputSums(
            images=1, pixels=pixels, sum=(total,) * output.channels, squares=(squares,) * output.channels
        )
        for output in plan.outputs
    }
    found = statistics(plan, sums)["mask"]
    variance = Fraction(squares, pixels) - Fraction(total, pixels) ** 2
    with localcontext(prec=120):
        exact = (Decimal(variance.numerator) / variance.denominator).sqrt() / 255
        assert found.std == (float(exact),)
    assert found.mean == (total / (pixels * 255),)


def test_one_grey_level_everywhere_has_no_deviation_and_its_own_mean() -> None:
    pixels, plan = 40_000 * 408_040, make_plan()
    sums = {
        output.name: OutputSums(
            images=1,
            pixels=pixels,
            sum=(51 * pixels,) * output.channels,
            squares=(51 * 51 * pixels,) * output.channels,
        )
        for output in plan.outputs
    }
    found = statistics(plan, sums)["fgbg"]
    assert found.mean == (0.2, 0.2, 0.2)
    assert found.std == (0.0, 0.0, 0.0)
    assert not any(math.isnan(value) for value in found.std)


def test_without_a_pixel_there_are_no_numbers() -> None:
    plan = make_plan()
    sums = {output.name: OutputSums.zero(output.channels) for output in plan.outputs}
    content = json.loads(stats_json(statistics(plan, sums)))
    assert content["mask"] == {"mean": [], "std": [], "images": 0, "pixels": 0}
