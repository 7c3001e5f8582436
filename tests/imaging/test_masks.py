from __future__ import annotations

import numpy as np
import pytest

from shardgen.errors import ComposeFailed
from shardgen.imaging.codec import Photograph
from shardgen.imaging.masks import cut_out, halved_to_fit
from shardgen.imaging.options import MaskMode
from tests.imaging.slow_reference import placed_size
from tests.photographs import blob, colours

SCENE = colours(np.random.default_rng(5), 60, 50)


def photograph(alpha: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None) -> Photograph:
    return Photograph(pixels=SCENE, alpha=alpha, notes=())


def test_auto_never_guesses_with_grabcut() -> None:
    with pytest.raises(ComposeFailed, match="no mask") as refusal:
        cut_out(photograph(np.full((50, 60), 255, np.uint8)), MaskMode.AUTO, None)
    assert 'mask = "grabcut"' in refusal.value.hint


def test_auto_takes_the_mask_file_before_the_alpha_channel() -> None:
    mask_photo = Photograph(pixels=np.dstack([blob(60, 50)] * 3), alpha=None, notes=())
    assert cut_out(photograph(blob(60, 50)), MaskMode.AUTO, mask_photo).mode is MaskMode.FILE
    assert cut_out(photograph(blob(60, 50)), MaskMode.AUTO, None).mode is MaskMode.ALPHA


def test_grabcut_gives_the_same_mask_again() -> None:
    photo = photograph()
    photo.pixels[15:40, 20:45] = (230, 20, 20)
    first = cut_out(photo, MaskMode.GRABCUT, None)
    np.testing.assert_array_equal(cut_out(photo, MaskMode.GRABCUT, None).mask, first.mask)
    assert first.mask[25, 30] == 255


@pytest.mark.parametrize(
    ("mode", "alpha", "mask_size", "reason"),
    [
        (MaskMode.ALPHA, None, None, "no alpha channel"),
        (MaskMode.ALPHA, np.zeros((50, 60), np.uint8), None, r"mask \(alpha\) is empty"),
        (MaskMode.FILE, None, None, "no mask file beside it"),
        (MaskMode.FILE, None, (61, 50), "61x50 pixels, the photograph 60x50"),
        (MaskMode.FLAT, None, None, "background is not flat"),
    ],
)
def test_a_foreground_without_a_usable_mask_is_refused(
    mode: MaskMode,
    alpha: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None,
    mask_size: tuple[int, int] | None,
    reason: str,
) -> None:
    mask_photo = None
    if mask_size is not None:
        mask_photo = Photograph(pixels=np.dstack([blob(*mask_size)] * 3), alpha=None, notes=())
    with pytest.raises(ComposeFailed, match=reason):
        cut_out(photograph(alpha), mode, mask_photo)


def test_a_line_thinner_than_the_square_is_an_empty_mask() -> None:
    alpha = np.zeros((50, 60), np.uint8)
    alpha[:, 30:34] = 255
    with pytest.raises(ComposeFailed, match="empty"):
        cut_out(photograph(alpha), MaskMode.ALPHA, None)


def test_a_mask_that_vanishes_when_halved_is_refused() -> None:
    alpha = np.zeros((800, 800), np.uint8)
    alpha[7:12, 9:14] = 255
    photo = Photograph(pixels=np.zeros((800, 800, 3), np.uint8), alpha=alpha, notes=())
    cut = cut_out(photo, MaskMode.ALPHA, None)
    with pytest.raises(ComposeFailed, match="vanishes when it is halved to 50x50"):
        halved_to_fit(cut, (50, 50))


def test_hidden_colours_do_not_bleed_into_the_edge() -> None:
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:, :21] = 255
    pixels = np.where(alpha[:, :, None] == 255, np.uint8(200), np.uint8(0)).repeat(3, axis=2)
    cut = cut_out(Photograph(pixels=pixels, alpha=alpha, notes=()), MaskMode.ALPHA, None)
    half = halved_to_fit(cut, (20, 20))
    assert half.matte[0, 10] == 128
    assert (half.pixels[0, 10] == 200).all()
    assert (half.pixels[0, 11] == 0).all()


@pytest.mark.parametrize(
    ("size", "placed"),
    [((600, 600), (600, 600)), ((601, 10), (300, 5)), ((5000, 1), (312, 1)), ((1201, 2403), (300, 600))],
)
def test_the_placed_size_is_halved_until_it_fits(size: tuple[int, int], placed: tuple[int, int]) -> None:
    assert placed_size(*size, (600, 600)) == placed
