from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardgen.imaging.compose import Figure, compose, measured, on_canvas
from shardgen.imaging.masks import CutOut
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import Blend, MaskMode, Rectangle, around
from shardgen.imaging.scaling import Scaling
from tests.imaging.plain_composites import plain_measured

SIDES = st.one_of(
    st.integers(1, 90),
    st.builds(lambda count, unit: count * unit, st.integers(1, 12), st.sampled_from([8, 16, 20, 25, 32])),
)
SIZES = st.tuples(SIDES, SIDES)
PRESETS = [
    ((600, 600), (200, 200), True),
    ((600, 600), (640, 480), False),
    ((224, 224), (224, 224), True),
    ((224, 224), (640, 480), False),
    ((704, 704), (224, 224), True),
    ((704, 704), (640, 480), False),
    ((1280, 960), (640, 480), False),
]


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    """Levels of all kinds, among them many that are black or white."""
    random = np.random.default_rng(seed)
    levels = random.integers(-120, 376, shape)
    return np.clip(levels, 0, 255).astype(np.uint8)


def plain(image: NDArray[np.uint8], size: tuple[int, int], *, by_area: bool) -> NDArray[np.uint8]:
    return resize(image, size) if by_area else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def cutout(seed: int, width: int, height: int) -> CutOut:
    mask = np.where(noise(seed, height, width) > 127, 255, 0).astype(np.uint8)
    matte = noise(seed + 2, height, width)
    # What is cut out does not fill its rectangle, and its matte is larger than its mask.
    mask[: height // 4], mask[:, width - width // 5 :] = 0, 0
    matte[: height // 6], matte[:, width - width // 8 :] = 0, 0
    mask[height // 2, width // 2] = 255  # a cut-out has a mask
    return CutOut(
        pixels=noise(seed + 1, height, width, 3),
        matte=matte,
        mask=mask,
        mode=MaskMode.ALPHA,
    )


@st.composite
def figures_on(draw: st.DrawFn, canvas: tuple[int, int]) -> list[Figure]:
    """One to three figures, some of which reach beyond the canvas, or lie beyond it."""
    figures = []
    for number in range(draw(st.integers(1, 3))):
        width, height = draw(st.integers(1, canvas[0])), draw(st.integers(1, canvas[1]))
        x, y = draw(st.integers(-width, canvas[0])), draw(st.integers(-height, canvas[1]))
        at = Rectangle(x=x, y=y, width=width, height=height)
        figures.append(Figure(cutout=cutout(10 * number, width, height), at=at))
    return figures


def compare(
    canvas: tuple[int, int],
    figures: list[Figure],
    blend: Blend,
    scalings: list[Scaling],
    *,
    by_area: list[bool],
) -> None:
    """Whole canvases, resized, beside parts that are resized into the resized background."""
    background = noise(99, canvas[1], canvas[0], 3)
    changed = on_canvas(figures, canvas, blend)
    parts = [scaling.part_for(changed) for scaling in scalings]
    whole = compose(background, figures, blend)
    painted = compose(background, figures, blend, part=around(parts))
    for scaling, part, is_by_area in zip(scalings, parts, by_area, strict=True):
        rest = scaling.whole(background)
        before = rest.copy()
        found = scaling.resized(painted.fgbg[painted.within(part)], part, rest)
        np.testing.assert_array_equal(found, plain(whole.fgbg, scaling.size, by_area=is_by_area))
        np.testing.assert_array_equal(rest, before)
    first, expected = scalings[0], plain_measured(whole, scalings[0].size, with_instances=True)
    seen = measured(painted, parts[0], first, with_instances=True)
    np.testing.assert_array_equal(seen.mask, expected.mask)
    np.testing.assert_array_equal(seen.instances, expected.instances)
    assert seen.boxes == expected.boxes


@settings(max_examples=150, deadline=None)
@given(data=st.data(), canvas=SIZES, stored=SIZES, network=SIZES, blend=st.sampled_from(Blend))
def test_parts_have_the_pixels_of_the_whole_for_any_sizes(
    *,
    data: st.DataObject,
    canvas: tuple[int, int],
    stored: tuple[int, int],
    network: tuple[int, int],
    blend: Blend,
) -> None:
    figures = data.draw(figures_on(canvas))
    scalings = [Scaling(canvas, stored), Scaling(canvas, network, by_area=False)]
    compare(canvas, figures, blend, scalings, by_area=[True, False])


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    unit=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    steps=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stored=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    blend=st.sampled_from(Blend),
)
def test_parts_have_the_pixels_of_the_whole_where_there_are_many(
    *,
    data: st.DataObject,
    unit: tuple[int, int],
    steps: tuple[int, int],
    stored: tuple[int, int],
    blend: Blend,
) -> None:
    canvas = unit[0] * steps[0], unit[1] * steps[1]
    figures = data.draw(figures_on(canvas))
    sizes = [steps, (stored[0] * steps[0], stored[1] * steps[1])]
    scalings = [Scaling(canvas, sizes[0]), Scaling(canvas, sizes[1], by_area=False)]
    compare(canvas, figures, blend, scalings, by_area=[True, False])


@pytest.mark.parametrize(("canvas", "size", "by_area"), PRESETS)
def test_parts_of_the_presets_sizes_have_the_pixels_of_the_whole(
    canvas: tuple[int, int], size: tuple[int, int], *, by_area: bool
) -> None:
    scaling, random = Scaling(canvas, size, by_area=by_area), np.random.default_rng(0)
    image = noise(5, canvas[1], canvas[0], 3)
    whole = plain(image, size, by_area=by_area)
    for _ in range(12):
        x, y = (int(random.integers(0, side)) for side in canvas)
        width, height = int(random.integers(1, canvas[0] - x + 1)), int(random.integers(1, canvas[1] - y + 1))
        box = Rectangle(x=x, y=y, width=width, height=height)
        rest = image.copy()
        rest[box.rows, box.columns] ^= 255
        part = scaling.part_for(box)
        found = scaling.resized(image[part.rows, part.columns], part, plain(rest, size, by_area=by_area))
        np.testing.assert_array_equal(found, whole)


def test_the_part_of_grid600_is_little_more_than_what_has_changed() -> None:
    box = Rectangle(x=100, y=301, width=50, height=80)
    stored = Scaling((600, 600), (200, 200)).part_for(box)
    assert stored == Rectangle(x=99, y=300, width=51, height=81)
    network = Scaling((600, 600), (640, 480), by_area=False).part_for(box)
    assert network == Rectangle(x=75, y=295, width=90, height=95)


@pytest.mark.parametrize(
    ("canvas", "size", "by_area"),
    [((704, 704), (224, 224), True), ((704, 704), (640, 480), False), ((600, 601), (200, 200), True)],
)
def test_where_pixels_would_not_be_the_same_the_whole_is_resized(
    canvas: tuple[int, int], size: tuple[int, int], *, by_area: bool
) -> None:
    scaling = Scaling(canvas, size, by_area=by_area)
    assert not scaling.has_parts
    part = scaling.part_for(Rectangle(x=3, y=4, width=5, height=6))
    assert part == Rectangle(x=0, y=0, width=canvas[0], height=canvas[1])
