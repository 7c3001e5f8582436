from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from shardgen.domain.identifiers import SampleIndex
from shardgen.errors import EncodeFailed
from shardgen.imaging.compose import Canvas, Visible, measured
from shardgen.imaging.masks import box_of
from shardgen.imaging.options import DepthEncoding, ImageFormat, Rectangle
from shardgen.imaging.outputs import depth_image
from shardgen.imaging.scaling import Scaling
from shardgen.imaging.sheet import SheetSample, contact_sheet
from shardgen.recipes.composites.composer import ComposedSample
from shardgen.recipes.composites.maker import encode_sample
from shardgen.recipes.composites.plan import CompositesPlan
from tests.photographs import blob, colours
from tests.plans import changed, depth_in, make_plan

PLAN = make_plan()
BLOB = np.where(blob(600, 600) > 127, 255, 0).astype(np.uint8)
WHOLE = Rectangle(x=0, y=0, width=600, height=600)
SCALING = Scaling((600, 600), (200, 200))
CANVAS = Canvas(
    part=WHOLE,
    fgbg=colours(np.random.default_rng(0), 600, 600),
    mask=BLOB,
    figures=(Visible(mask=BLOB, box=box_of(BLOB), per_mille=1000),),
)
SAMPLE = ComposedSample(
    sample=SampleIndex(0),
    picture=SCALING.whole(CANVAS.fgbg),
    measured=measured(CANVAS, WHOLE, SCALING, with_instances=False),
    network_input=CANVAS.fgbg,
)
DEPTH = np.random.default_rng(1).uniform(0.01, 1.0, (240, 320)).astype(np.float32)


def with_depth(
    encoding: DepthEncoding = DepthEncoding.INVERSE_MINMAX,
    *,
    stored_as: ImageFormat = ImageFormat.JPEG,
    **parts: object,
) -> CompositesPlan:
    """The plan with depth that is stored so, and other parts."""
    depth = replace(depth_in(PLAN), encoding=encoding, format=stored_as)
    return CompositesPlan(changed(PLAN, depth=depth, **parts))  # type: ignore[arg-type]


@pytest.mark.parametrize("depth_format", [ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.WEBP])
def test_sums_are_those_of_the_encoded_bytes(depth_format: ImageFormat) -> None:
    output = replace(CompositesPlan(PLAN).output, mask=depth_format)
    sample = encode_sample(SAMPLE, DEPTH, with_depth(stored_as=depth_format, output=output))
    for name, data in sample.files.items():
        flag = cv2.IMREAD_COLOR if name == "fgbg" else cv2.IMREAD_GRAYSCALE
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        assert decoded is not None
        channels = [decoded[:, :, 2 - c] for c in range(3)] if name == "fgbg" else [decoded]
        values = [[int(value) for value in channel.ravel()] for channel in channels]
        assert sample.sums[name].pixels == 200 * 200
        assert sample.sums[name].sum == tuple(sum(channel) for channel in values)
        assert sample.sums[name].squares == tuple(sum(v * v for v in channel) for channel in values)


def test_16_bit_sums_do_not_overflow() -> None:
    plan = with_depth(DepthEncoding.RELATIVE, stored_as=ImageFormat.PNG)
    sample = encode_sample(SAMPLE, np.ones((240, 320), np.float32), plan)
    assert sample.sums["depth"].sum == (65535 * 40_000,)
    assert sample.sums["depth"].squares == (65535**2 * 40_000,)


def test_relative_depth_needs_png() -> None:
    with pytest.raises(EncodeFailed, match="16 bits"):
        encode_sample(SAMPLE, DEPTH, with_depth(DepthEncoding.RELATIVE))


def test_the_same_sample_gives_the_same_bytes() -> None:
    first, again = (encode_sample(SAMPLE, DEPTH, with_depth()) for _ in range(2))
    assert first.files == again.files


def test_the_depth_image_is_stretched_and_inverted() -> None:
    depth = np.array([[0.25, 0.5], [0.7525, 1.0]], np.float32)
    found = depth_image(depth, (2, 2), DepthEncoding.INVERSE_MINMAX)
    expected = [[255 - int(255 * (float(d) - 0.25) / 0.75) for d in row] for row in depth]
    assert found.tolist() == expected
    assert (found.max(), found.min()) == (255, 0)


def test_the_farthest_and_nearest_pixels_are_exactly_black_and_white() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        depth = random.uniform(0.01, 1.0, (3, 3)).astype(np.float32)
        found = depth_image(depth, (3, 3), DepthEncoding.INVERSE_MINMAX)
        assert found.flat[depth.argmax()] == 0
        assert found.flat[depth.argmin()] == 255


def test_a_constant_depth_is_mid_grey() -> None:
    found = depth_image(np.full((240, 320), 0.3, np.float32), (200, 200), DepthEncoding.INVERSE_MINMAX)
    assert (found == 128).all()


def test_relative_depth_has_16_bits_and_is_not_inverted() -> None:
    depth = np.array([[0.01, 0.5, 1.0]], np.float32)
    found = depth_image(depth, (3, 1), DepthEncoding.RELATIVE)
    assert found.dtype == np.uint16
    assert found.tolist() == [[655, 32768, 65535]]


def test_depth_is_averaged_before_it_is_stretched() -> None:
    depth = np.array([[0.1, 0.3, 0.6, 1.0]], np.float32).repeat(2, axis=0)
    assert depth_image(depth, (2, 1), DepthEncoding.RELATIVE).tolist() == [[13107, 52428]]


def sheet(*, depth_is_random: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    samples = [
        SheetSample(
            caption=f"{number}: a",
            picture=CANVAS.fgbg,
            mask=CANVAS.mask,
            depth=np.full((200, 200), 90, np.uint8),
        )
        for number in range(4)
    ]
    data = contact_sheet(samples, title="4 shown", near_is_dark=False, depth_is_random=depth_is_random)
    assert data == contact_sheet(
        samples, title="4 shown", near_is_dark=False, depth_is_random=depth_is_random
    )
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded, np.uint8)


def test_random_depth_puts_a_red_banner_over_the_contact_sheet() -> None:
    red = [30, 20, 200]
    assert sheet(depth_is_random=True)[2, 5].tolist() == red
    assert not (sheet(depth_is_random=False) == red).all(axis=2).any()


@pytest.mark.parametrize("size", [(900, 1), (1, 900), (900, 3)])
def test_a_picture_of_any_shape_has_a_cell_and_a_caption(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    samples = [SheetSample(caption="a name that is much longer than its picture is wide", picture=picture)]
    assert contact_sheet(samples, title="1 shown", near_is_dark=False, depth_is_random=False)
