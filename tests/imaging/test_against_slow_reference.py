"""Item by item against an implementation that shares nothing with the program but docs/formats.md."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.imaging.codec import Photograph, decode_encoded
from shardgen.imaging.grabcut import grabcut_mask
from shardgen.imaging.masks import cut_out, halved_to_fit
from shardgen.imaging.options import Blend, ImageFormat, MaskMode
from shardgen.recipes.composites.composer import Composer, fitted
from shardgen.recipes.composites.maker import encode_sample
from shardgen.recipes.composites.plan import CompositesPlan, Flips
from shardgen.sources.scanning import SourceFolders, scan
from tests.imaging import slow_reference as slow
from tests.imaging.slow_reference import placed_size
from tests.photographs import blob, colours, write_rgb
from tests.plans import changed, depth_in, make_plan, on_grid

Pixels = NDArray[np.uint8]


def assert_same(found: Pixels, expected: Pixels) -> None:
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def assert_nearly_same(found: Pixels, expected: Pixels) -> None:
    """Within 1 level, in 0.1 % of the values."""
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001


def photograph(width: int, height: int, *, alpha: Pixels | None = None, seed: int = 0) -> Photograph:
    return Photograph(pixels=colours(np.random.default_rng(seed), width, height), alpha=alpha, notes=())


def ragged(width: int, height: int, *, seed: int = 0) -> Pixels:
    """Levels with thin bridges, small gaps, holes and specks, touching the border."""
    random = np.random.default_rng(seed)
    levels = blob(width, height).astype(int) + random.integers(-140, 60, (height, width))
    levels[:, width // 2] = 255
    levels[: height // 3, :4] = 255
    return np.clip(levels, 0, 255).astype(np.uint8)


def mask_of(levels: Pixels) -> NDArray[np.bool_]:
    return slow.opened_and_closed(levels >= 128)


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (33, 41), (60, 35)])
def test_opening_and_closing_ignore_what_lies_outside(size: tuple[int, int]) -> None:
    levels = np.maximum(ragged(*size), 128 * (np.indices(size[::-1]).sum(axis=0) < 9)).astype(np.uint8)
    found = cut_out(photograph(*size, alpha=levels), MaskMode.ALPHA, None)
    assert_same(found.mask, (mask_of(levels) * 255).astype(np.uint8))
    assert_same(found.matte, levels)


def test_a_mask_file_is_thresholded_opened_and_closed_and_is_the_matte() -> None:
    levels = ragged(47, 39)
    mask_photo = Photograph(pixels=np.dstack([levels] * 3), alpha=None, notes=())
    found = cut_out(photograph(47, 39), MaskMode.AUTO, mask_photo)
    assert found.mode is MaskMode.FILE
    assert_same(found.mask, (mask_of(levels) * 255).astype(np.uint8))
    assert_same(found.matte, found.mask)


def test_a_flat_background_gives_a_mask_without_holes_and_specks() -> None:
    pixels = np.full((80, 90, 3), 240, np.uint8)
    pixels[10:70, 15:75] = colours(np.random.default_rng(1), 60, 60) // 2
    pixels[30:50, 30:50] = 240  # a hole
    pixels[2:7, 82:87] = 0  # a speck of 25 pixels, under 1 % of the square
    found = cut_out(Photograph(pixels=pixels, alpha=None, notes=()), MaskMode.AUTO, None)
    differs = np.abs(pixels.astype(int) - 240).max(axis=2) > 20
    expected = slow.without_specks(slow.without_holes(slow.opened_and_closed(differs)))
    assert found.mode is MaskMode.FLAT
    assert_same(found.mask, (expected * 255).astype(np.uint8))
    assert found.mask[40, 40] == 255
    assert found.mask[4, 84] == 0


def test_a_grabcut_mask_has_its_holes_filled_and_specks_dropped() -> None:
    photo = photograph(70, 60, seed=3)
    photo.pixels[15:55, 20:50] = (220, 30, 30)
    found = cut_out(photo, MaskMode.GRABCUT, None)
    guess = grabcut_mask(photo.pixels)
    expected = slow.without_specks(slow.without_holes(mask_of(guess)))
    assert_same(found.mask, (expected * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "canvas"),
    [((211, 167), (100, 100)), ((128, 64), (64, 64)), ((333, 41), (90, 200)), ((63, 127), (20, 40))],
)
def test_halving_weights_colours_by_alpha(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    cut = cut_out(photograph(*size, alpha=blob(*size)), MaskMode.ALPHA, None)
    found = halved_to_fit(cut, canvas)
    expected = slow.halved_to_fit(
        slow.SlowCutOut(pixels=cut.pixels, matte=cut.matte, mask=cut.mask > 0), canvas
    )
    assert (found.width, found.height) == placed_size(*size, canvas)
    assert_nearly_same(found.pixels, expected.pixels)
    assert_nearly_same(found.matte, expected.matte)
    assert_same(found.mask, (expected.mask * 255).astype(np.uint8))


CASES = [
    # canvas, grid, foreground sizes: small, as large as the canvas, far larger, odd. Far larger ones are
    # odd at every halving: a mean of odd counts is never a tie, which float32 and float64 break differently.
    ((60, 50), (5, 2), [(20, 30), (60, 50)]),
    ((61, 53), (1, 1), [(61, 53), (500, 77)]),
    ((47, 64), (1, 3), [(375, 447), (13, 64)]),
    ((64, 47), (4, 1), [(21, 17), (129, 95)]),
]


@pytest.mark.parametrize("blend", Blend)
@pytest.mark.parametrize(
    "flips",
    [flips if flips is Flips.FOREGROUNDS else pytest.param(flips, marks=pytest.mark.slow) for flips in Flips],
)
@pytest.mark.parametrize(("canvas", "grid", "sizes"), CASES)
def test_every_canvas_is_that_of_the_slow_reference(
    tmp_path: Path,
    *,
    canvas: tuple[int, int],
    grid: tuple[int, int],
    sizes: list[tuple[int, int]],
    flips: Flips,
    blend: Blend,
) -> None:
    plan, folders = planned(tmp_path, canvas=canvas, grid=grid, sizes=sizes, flips=flips, blend=blend)
    composer = Composer(plan, folders.foregrounds, folders.backgrounds)
    scenes = [background(canvas, number) for number in range(2)]
    cuts = [slow_cut_out(size, number, canvas) for number, size in enumerate(sizes)]
    index = 0
    for scene in scenes:
        for cut, size in zip(cuts, sizes, strict=True):
            for flip in range(1 if flips is Flips.NONE else 2):
                under = scene[:, ::-1] if flip and flips is Flips.BACKGROUNDS else scene
                over = slow.mirrored(cut) if flip and flips is Flips.FOREGROUNDS else cut
                is_resized = placed_size(*size, canvas) != size
                for row in range(grid[1]):
                    for column in range(grid[0]):
                        expected, mask = slow.composed(
                            under, over, grid, (column, row), by_alpha=blend is Blend.ALPHA
                        )
                        made = composer.canvas(SampleIndex(index))
                        (assert_nearly_same if is_resized else assert_same)(made.fgbg, expected)
                        assert_same(made.mask, mask)
                        index += 1
    assert index == plan.samples


@pytest.mark.parametrize("size", [(70, 55), (120, 41), (30, 70), (59, 49), (60, 50)])
def test_a_background_is_resized_to_the_canvas(tmp_path: Path, size: tuple[int, int]) -> None:
    plan, folders = planned(tmp_path, canvas=(60, 50), background_size=size)
    made = Composer(plan, folders.foregrounds, folders.backgrounds).canvas(SampleIndex(0))
    expected = slow.resized(background(size, 0), (60, 50))
    outside = made.mask == 0
    assert_nearly_same(made.fgbg[outside], expected[outside])


@pytest.mark.parametrize("target", [(64, 48), (20, 20), (60, 20), (61, 50), (30, 25)])
def test_outputs_and_network_input_are_resized_from_the_canvas(
    tmp_path: Path, target: tuple[int, int]
) -> None:
    plan, folders = planned(tmp_path, canvas=(60, 50))
    depth = replace(depth_in(plan.plan), input=target, size=target)
    output = replace(plan.output, size=target, image=ImageFormat.PNG)
    plan = CompositesPlan(changed(plan.plan, depth=depth, output=output))
    composer = Composer(plan, folders.foregrounds, folders.backgrounds)
    made, canvas = composer.compose(SampleIndex(3)), composer.canvas(SampleIndex(3))
    no_depth = np.ones((1, 1), np.float32)
    files = encode_sample(made, no_depth, plan).files
    composite, mask = decode_encoded(files["fgbg"], channels=3), decode_encoded(files["mask"], channels=1)
    assert composite.dtype == mask.dtype == np.uint8
    assert_nearly_same(made.network_input, slow.resized(canvas.fgbg, target, linear=True))
    assert_nearly_same(composite.astype(np.uint8), slow.resized(canvas.fgbg, target))
    assert_nearly_same(mask.astype(np.uint8), slow.resized(canvas.mask, target))


def planned(
    folder: Path,
    *,
    canvas: tuple[int, int],
    grid: tuple[int, int] = (2, 2),
    sizes: list[tuple[int, int]] | None = None,
    flips: Flips = Flips.NONE,
    blend: Blend = Blend.MASK,
    background_size: tuple[int, int] | None = None,
) -> tuple[CompositesPlan, SourceFolders]:
    folders = SourceFolders(foregrounds=folder / "foregrounds", backgrounds=folder / "backgrounds")
    folders.foregrounds.mkdir()
    folders.backgrounds.mkdir()
    for number, size in enumerate(sizes or [(20, 15)]):
        photo = foreground(size, number)
        write_rgb(folders.foregrounds / f"{number}.png", np.dstack([photo.pixels, photo.alpha]))  # type: ignore[list-item]
    for number in range(2):
        write_rgb(folders.backgrounds / f"{number}.png", background(background_size or canvas, number))
    compose = on_grid(grid, canvas=canvas, flips=flips, blend=blend)
    inventory = scan(folders, MaskMode.AUTO, partial(fitted, compose=compose), threads=2)
    plan = changed(make_plan(), sources=inventory.sources, compose=compose)
    return CompositesPlan(plan), folders


def foreground(size: tuple[int, int], number: int) -> Photograph:
    return photograph(*size, alpha=np.maximum(blob(*size), ragged(*size) // 2), seed=number)


def background(size: tuple[int, int], number: int) -> Pixels:
    return colours(np.random.default_rng(100 + number), *size)


@cache
def slow_cut_out(size: tuple[int, int], number: int, canvas: tuple[int, int]) -> slow.SlowCutOut:
    photo = foreground(size, number)
    assert photo.alpha is not None
    cut = slow.SlowCutOut(pixels=photo.pixels, matte=photo.alpha, mask=mask_of(photo.alpha))
    return slow.halved_to_fit(cut, canvas)
