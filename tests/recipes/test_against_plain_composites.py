"""Every composite has the pixels and the sums that it has when whole canvases are resized."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shardgen.depth.densedepth.network import depth_of
from shardgen.domain.identifiers import SampleIndex
from shardgen.imaging.codec import decode_encoded
from shardgen.imaging.options import Blend, DepthEncoding, ImageFormat, MaskMode
from shardgen.imaging.outputs import depth_image, sums_of
from shardgen.recipes.composites.composer import Composer, fitted
from shardgen.recipes.composites.maker import encode_sample
from shardgen.recipes.composites.plan import FGBG, Compose, CompositesPlan, Flips
from shardgen.recipes.network import likely_depth
from shardgen.sources.scanning import SourceFolders, scan
from tests.imaging.plain_composites import (
    PlainComposer,
    plain_depth_image,
    plain_depth_of,
    plain_encoded,
    plain_sums,
)
from tests.photographs import write_photographs
from tests.plans import at_random, changed, depth_in, make_plan, on_grid

JPEG, PNG = ImageFormat.JPEG, ImageFormat.PNG
CANVAS = (120, 90)


@pytest.fixture
def folders(tmp_path: Path) -> SourceFolders:
    foregrounds, backgrounds = write_photographs(tmp_path, foregrounds=2, backgrounds=2)
    return SourceFolders(foregrounds=foregrounds, backgrounds=backgrounds)


def planned(
    folders: SourceFolders,
    compose: Compose,
    *,
    stored: tuple[int, int],
    network: tuple[int, int],
    image: ImageFormat,
    encoding: DepthEncoding,
) -> CompositesPlan:
    compose = replace(compose, canvas=CANVAS)
    sources = scan(folders, MaskMode.AUTO, partial(fitted, compose=compose), threads=1).sources
    made = make_plan()
    output = replace(CompositesPlan(made).output, size=stored, image=image)
    depth_format = JPEG if encoding is DepthEncoding.INVERSE_MINMAX else PNG
    depth = replace(depth_in(made), input=network, size=stored, encoding=encoding, format=depth_format)
    return CompositesPlan(changed(made, sources=sources, compose=compose, output=output, depth=depth))


@pytest.mark.parametrize(
    ("stored", "network", "image", "encoding"),
    [
        ((40, 30), (128, 96), JPEG, DepthEncoding.INVERSE_MINMAX),
        ((60, 45), (160, 64), PNG, DepthEncoding.RELATIVE),
        ((120, 90), (96, 96), JPEG, DepthEncoding.INVERSE_MINMAX),
        ((37, 41), (64, 64), JPEG, DepthEncoding.INVERSE_MINMAX),  # no part of a canvas is resized alone
        ((240, 90), (128, 96), PNG, DepthEncoding.RELATIVE),
    ],
)
@pytest.mark.parametrize(
    "compose",
    [
        on_grid((3, 2), flips=Flips.FOREGROUNDS, blend=Blend.ALPHA),
        replace(at_random(people=(1, 3)), flips=Flips.BACKGROUNDS, overhang=700, places=4),
    ],
    ids=["grid", "random"],
)
def test_every_sample_is_that_of_whole_canvases(
    folders: SourceFolders,
    *,
    compose: Compose,
    stored: tuple[int, int],
    network: tuple[int, int],
    image: ImageFormat,
    encoding: DepthEncoding,
) -> None:
    plan = planned(folders, compose, stored=stored, network=network, image=image, encoding=encoding)
    composer, plain = (
        kind(plan, folders.foregrounds, folders.backgrounds) for kind in (Composer, PlainComposer)
    )
    for sample in map(SampleIndex, range(plan.samples)):
        found, expected = composer.compose(sample), plain.compose(sample)
        np.testing.assert_array_equal(found.network_input, expected.network_input)
        depth = likely_depth(expected.network_input)
        made, slow = encode_sample(found, depth, plan), plain_encoded(expected, depth, plan)
        assert made.facts == slow.facts
        assert made.sums == slow.sums
        assert made.files.keys() == slow.files.keys()
        for name, data in made.files.items():
            channels = 3 if name == FGBG else 1
            pixels, wanted = (decode_encoded(one, channels=channels) for one in (data, slow.files[name]))
            np.testing.assert_array_equal(pixels, wanted)


def test_depth_is_that_of_the_plain_formula() -> None:
    random = np.random.default_rng(3)
    few = [0.0, -0.0, -1.0, -1e38, 1.0, 0.99999994, 1.0000001, 100.0, 99.99999, 100.00001, 1e-45, 3e38, 10.0]
    raw = np.concatenate(
        [np.array(few, np.float32), *(random.normal(0, size, 20_000).astype(np.float32) for size in (1, 60))]
    ).reshape(1, -1)
    before = raw.copy()
    np.testing.assert_array_equal(depth_of(raw), plain_depth_of(raw))
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("encoding", DepthEncoding)
@pytest.mark.parametrize("size", [(200, 200), (320, 240), (333, 100)])
def test_a_depth_image_is_that_of_the_plain_formula(encoding: DepthEncoding, size: tuple[int, int]) -> None:
    random = np.random.default_rng(4)
    for least, largest in ((0.01, 1.0), (0.2, 0.2001)):
        depth = random.uniform(least, largest, (240, 320)).astype(np.float32)
        np.testing.assert_array_equal(
            depth_image(depth, size, encoding), plain_depth_image(depth, size, encoding)
        )


@pytest.mark.parametrize("shape", [(1, 1), (256, 256, 3), (257, 256), (700, 301, 3)])
def test_sums_are_exact(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    channels = 1 if len(shape) == 2 else 3
    for pixels in (
        np.full(shape, 255, np.uint8),
        random.integers(0, 256, shape, np.uint8),
        random.integers(0, 65536, shape, np.uint16),
    ):
        assert sums_of(pixels, channels=channels) == plain_sums(pixels)
