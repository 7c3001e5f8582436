from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shardgen.recipes.composites.placement import place, recipe_of

from shardgen.dataset.labels import HEADER, LabelRows, thousandths
from shardgen.dataset.statistics import statistics, stats_json
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind, KindSums, Sums
from shardgen.imaging.options import DepthEncoding
from shardgen.recipes.composites.plan import Flips
from tests.plans import make_plan


def rows_of_all_batches(plan: Plan, dead: set[int]) -> str:
    labels, layout = LabelRows(plan), plan.layout
    return HEADER + "".join(
        labels.rows(
            layout.batch_samples(BatchIndex(batch)),
            shard=layout.shard_of_batch(BatchIndex(batch)),
            batch=BatchIndex(batch),
            without=dead,
        )
        for batch in range(layout.batch_count)
    )


def naive_rows(plan: Plan, dead: set[int]) -> str:
    """The same from the recipe of each sample, the csv module and decimal."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER.strip().split(","))
    for sample in range(plan.samples):
        if sample in dead:
            continue
        recipe = recipe_of(plan, SampleIndex(sample))
        foreground = plan.sources.foregrounds[recipe.foreground]
        at = place(plan, foreground, column=recipe.column, row=recipe.row)
        on_canvas = [at.x, at.y, at.width, at.height]
        output = [
            Decimal(value * plan.output.size[axis % 2]) / plan.compose.canvas[axis % 2]
            for axis, value in enumerate(on_canvas)
        ]
        batch = plan.layout.batch_of_sample(SampleIndex(sample))
        writer.writerow(
            [
                sample,
                plan.sources.backgrounds[recipe.background].name,
                foreground.name,
                recipe.flip,
                recipe.column,
                recipe.row,
                *on_canvas,
                *(value.quantize(Decimal("0.001"), ROUND_HALF_EVEN) for value in output),
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
    names = ['a, b/"c".jpg', 'd "e" é.jpg', "f g\nh.jpg"]
    backgrounds = tuple(
        replace(background, name=name)
        for background, name in zip(plan.sources.backgrounds, names, strict=True)
    )
    plan = replace(plan, sources=replace(plan.sources, backgrounds=backgrounds))
    assert rows_of_all_batches(plan, set()) == naive_rows(plan, set())


@given(st.integers(0, 10**6), st.integers(1, 5000))
def test_thousandths_round_half_to_even_exactly(numerator: int, denominator: int) -> None:
    with localcontext(prec=60):
        exact = Fraction(numerator, denominator) * 1000
        assert Decimal(thousandths(numerator, denominator)) * 1000 == round(exact)


def test_half_a_thousandth_goes_to_the_even_neighbour() -> None:
    assert [thousandths(value, 2000) for value in (1, 3, 5)] == ["0.000", "0.002", "0.002"]


def sums_of(images: list[dict[ImageKind, np.ndarray[tuple[int, ...], np.dtype[np.uint16]]]]) -> Sums:
    sums: Sums = {}
    for kind in ImageKind:
        pixels = np.concatenate([image[kind].reshape(-1, kind.channels) for image in images]).astype(object)
        sums[kind] = KindSums(
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
    plan = replace(plan, depth=replace(plan.depth, encoding=encoding))
    limit = {ImageKind.DEPTH: 65_535 if encoding is DepthEncoding.RELATIVE else 255}
    images = [
        {
            kind: source.integers(0, limit.get(kind, 255) + 1, (4 + image, 5, kind.channels), np.uint16)
            for kind in ImageKind
        }
        for image in range(6)
    ]
    content = json.loads(stats_json(statistics(plan, sums_of(images))))
    assert list(content) == ["fgbg", "mask", "depth"]
    for kind in ImageKind:
        pixels = np.concatenate([image[kind].reshape(-1, kind.channels) for image in images])
        scaled = pixels / limit.get(kind, 255)
        assert content[kind.value]["mean"] == pytest.approx(scaled.mean(axis=0).tolist(), rel=1e-12)
        assert content[kind.value]["std"] == pytest.approx(scaled.std(axis=0).tolist(), rel=1e-12)
        assert content[kind.value]["images"] == 6
        assert content[kind.value]["pixels"] == len(pixels)


@given(st.integers(1, 10**13), st.integers(0, 255), st.integers(0, 10**6))
def test_mean_and_deviation_are_rounded_once(pixels: int, level: int, extra: int) -> None:
    total = pixels * level // 2 + min(extra, pixels)
    squares = -(-total * total // pixels) + extra
    plan = make_plan()
    sums = {
        kind: KindSums(
            images=1, pixels=pixels, sum=(total,) * kind.channels, squares=(squares,) * kind.channels
        )
        for kind in ImageKind
    }
    found = statistics(plan, sums)[ImageKind.MASK]
    variance = Fraction(squares, pixels) - Fraction(total, pixels) ** 2
    with localcontext(prec=120):
        exact = (Decimal(variance.numerator) / variance.denominator).sqrt() / 255
        assert found.std == (float(exact),)
    assert found.mean == (total / (pixels * 255),)


def test_one_grey_level_everywhere_has_no_deviation_and_its_own_mean() -> None:
    pixels = 40_000 * 408_040
    sums = {
        kind: KindSums(
            images=1,
            pixels=pixels,
            sum=(51 * pixels,) * kind.channels,
            squares=(51 * 51 * pixels,) * kind.channels,
        )
        for kind in ImageKind
    }
    found = statistics(make_plan(), sums)[ImageKind.FGBG]
    assert found.mean == (0.2, 0.2, 0.2)
    assert found.std == (0.0, 0.0, 0.0)
    assert not any(math.isnan(value) for value in found.std)


def test_without_a_pixel_there_are_no_numbers() -> None:
    content = json.loads(
        stats_json(statistics(make_plan(), {kind: KindSums.zero(kind) for kind in ImageKind}))
    )
    assert content["mask"] == {"mean": [], "std": [], "images": 0, "pixels": 0}
