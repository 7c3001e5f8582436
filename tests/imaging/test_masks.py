from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed, NoMask
from shardgen.imaging.codec import Photograph
from shardgen.imaging.masks import CutOut, cut_out, cuts_out, halved_to_fit, mask_warning
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
    with pytest.raises(ComposeFailed, match="vanishes when it is resized to 50x50"):
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


def plainly_halved(cutout: CutOut) -> CutOut:
    """Each pixel of four, all of them; sums of these levels are exact in float32."""

    def mean(levels: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.float32(0.25) * (
            levels[::2, ::2] + levels[1::2, ::2] + levels[::2, 1::2] + levels[1::2, 1::2]
        )

    pixels, matte, mask = (image.astype(np.float32) for image in (cutout.pixels, cutout.matte, cutout.mask))
    alpha = mean(matte)
    colours = np.rint(mean(pixels * matte[..., None]) / np.maximum(alpha, np.float32(1e-6))[..., None])
    matte = np.rint(alpha)
    colours[matte == 0] = 0
    return CutOut(
        pixels=colours.astype(np.uint8),
        matte=matte.astype(np.uint8),
        mask=np.where(mean(mask) >= 127.5, np.uint8(255), np.uint8(0)),
        mode=cutout.mode,
    )


@pytest.mark.parametrize("seed", range(40))
def test_halving_where_there_is_something_is_halving_it_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (2 * random.integers(20, 60, 2)).tolist()
    top, left = random.integers(0, height - 8), random.integers(0, width - 8)
    there = (
        slice(top, random.integers(top + 8, height + 1)),
        slice(left, random.integers(left + 8, width + 1)),
    )
    matte, mask = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    matte[there] = random.integers(0, 256, matte[there].shape)
    # What was closed may reach farther than the matte.
    mask[there] = 255
    mask = np.roll(mask, random.integers(-2, 3, 2), (0, 1))
    cutout = CutOut(
        pixels=random.integers(0, 256, (height, width, 3), dtype=np.uint8),
        matte=matte,
        mask=mask,
        mode=MaskMode.ALPHA,
    )
    found, expected = halved_to_fit(cutout, (width // 2, height // 2)), plainly_halved(cutout)
    for name in ("pixels", "matte", "mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


@pytest.mark.parametrize(
    ("size", "placed"),
    [((600, 600), (600, 600)), ((601, 10), (300, 5)), ((5000, 1), (312, 1)), ((1201, 2403), (300, 600))],
)
def test_the_placed_size_is_halved_until_it_fits(size: tuple[int, int], placed: tuple[int, int]) -> None:
    assert placed_size(*size, (600, 600)) == placed


def disc(side: int = 80, radius: float = 25) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A disc in the middle, 0 or 255."""
    rows, columns = np.mgrid[0:side, 0:side]
    return np.where(np.hypot(columns - side / 2, rows - side / 2) < radius, 255, 0).astype(np.uint8)


def grey(
    levels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    alpha: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None,
    *,
    orientation: int = 1,
) -> Photograph:
    pixels = np.repeat(levels[:, :, np.newaxis], 3, axis=2)
    return Photograph(pixels=pixels, alpha=alpha, notes=(), orientation=orientation)


def mask_of(mask_photo: Photograph) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    photo = Photograph(
        pixels=colours(np.random.default_rng(2), mask_photo.width, mask_photo.height), alpha=None, notes=()
    )
    return cut_out(photo, MaskMode.FILE, mask_photo).mask


DISC, WHITE, BLACK = disc(), np.full((80, 80), 255, np.uint8), np.zeros((80, 80), np.uint8)
RING = disc(radius=35)
DISC_MASK = mask_of(grey(DISC))


@pytest.mark.parametrize(
    "mask_photo",
    [
        grey(WHITE, DISC),
        grey(BLACK, DISC),
        grey(np.where(DISC, np.uint8(200), np.uint8(0)), DISC),  # hidden pixels may have any colour
        grey(np.where(DISC, np.uint8(40), np.uint8(255)), DISC),
        grey(DISC, RING),
        grey(DISC, WHITE),
        grey(DISC, np.full_like(DISC, 252)),
        Photograph(pixels=np.full((80, 80, 3), (255, 0, 0), np.uint8), alpha=DISC, notes=()),
    ],
    ids=["white", "black", "grey", "dark", "black and white", "opaque", "as good as opaque", "red"],
)
def test_a_mask_drawn_on_transparency_is_what_was_drawn(mask_photo: Photograph) -> None:
    np.testing.assert_array_equal(mask_of(mask_photo), DISC_MASK)


def test_an_opaque_mask_file_has_its_grey_levels_to_the_last_one() -> None:
    levels = np.tile(np.arange(100, 180, dtype=np.uint8), (80, 1))
    expected = mask_of(grey(levels))
    np.testing.assert_array_equal(mask_of(grey(levels, WHITE)), expected)
    np.testing.assert_array_equal(mask_of(grey(levels, np.full_like(WHITE, 250))), expected)
    assert expected[40, :28].max() == 0
    assert expected[40, 28:].min() == 255


@pytest.mark.parametrize(
    ("mask_photo", "reason", "hint"),
    [
        (grey(DISC // 255), "the highest level is 1; 128 is needed", "multiply by 255"),
        (grey(np.where(DISC, np.uint8(38), np.uint8(3))), "the highest level is 38; 128", "multiply by 6"),
        (grey(BLACK), "its mask file is black everywhere", "draw the subject white"),
        (grey(WHITE, BLACK), "its mask file is transparent everywhere", "draw the subject white"),
        (grey(BLACK, 255 - DISC), "dark around something transparent", "the rest black"),
        (
            Photograph(pixels=colours(np.random.default_rng(1), 80, 80), alpha=DISC, notes=()),
            "a picture with transparency",
            "the rest black",
        ),
    ],
    ids=["0 and 1", "dark palette", "black", "clear", "frame", "cut-out"],
)
def test_a_mask_file_without_a_subject_or_with_two_is_refused_by_what_it_is(
    mask_photo: Photograph, reason: str, hint: str
) -> None:
    with pytest.raises(ComposeFailed, match=reason) as refusal:
        mask_of(mask_photo)
    assert hint in refusal.value.hint


@pytest.mark.parametrize(
    ("orientation", "of_mask", "size", "reason"),
    [
        (6, 1, (50, 60), r"60x50: the photograph is turned by its EXIF orientation \(6\), the mask is not"),
        (1, 8, (50, 60), r"60x50: the mask is turned by its EXIF orientation \(8\), the photograph is not"),
        (6, 6, (50, 60), "50x60 pixels, the photograph 60x50\n"),
        (1, 1, (50, 60), "50x60 pixels, the photograph 60x50\n"),
    ],
)
def test_a_mask_that_was_not_turned_with_its_photograph_is_told(
    orientation: int, of_mask: int, size: tuple[int, int], reason: str
) -> None:
    photo = Photograph(pixels=SCENE, alpha=None, notes=(), orientation=orientation)
    with pytest.raises(ComposeFailed, match=reason):
        cut_out(photo, MaskMode.FILE, grey(blob(*size), orientation=of_mask))


@pytest.mark.parametrize(
    ("size", "orientation", "of_mask", "warned"),
    [
        ((60, 50), 3, 1, True),
        ((60, 50), 2, 1, True),
        ((50, 50), 6, 1, True),
        ((60, 50), 6, 1, False),  # of this size only because it was turned
        ((60, 50), 3, 3, False),
        ((60, 50), 1, 1, False),
    ],
)
def test_a_mask_of_the_right_size_that_may_lie_wrong_is_warned_of(
    size: tuple[int, int], orientation: int, of_mask: int, *, warned: bool
) -> None:
    warning = mask_warning(grey(blob(*size), orientation=orientation), grey(blob(*size), orientation=of_mask))
    assert (f"EXIF orientation ({orientation})" in warning) is warned


def rounded(width: int, height: int, radius: float) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Opaque but for corners rounded with this radius in pixels."""
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    across = np.maximum(0, radius - np.minimum(columns, width - columns))
    down = np.maximum(0, radius - np.minimum(rows, height - rows))
    return np.where(np.hypot(across, down) > radius, 0, 255).astype(np.uint8)


def test_an_alpha_channel_counts_only_where_it_cuts_something_out() -> None:
    opaque = np.full((120, 160), 255, np.uint8)
    line, window = opaque.copy(), opaque.copy()
    line[:, 30:34] = 0
    window[50:60, 70:80] = 0
    nothing = [None, opaque, opaque - 1, opaque // 2 + 1, line, rounded(160, 120, 8), rounded(160, 120, 27)]
    assert [cuts_out(alpha) for alpha in nothing] == [False] * 7
    something = [window, blob(160, 120), rounded(160, 120, 60), disc(), opaque * 0]
    assert [cuts_out(alpha) for alpha in something] == [True] * 5


@pytest.mark.parametrize(
    ("alpha", "reason"),
    [
        (np.full((50, 60), 254, np.uint8), r"cuts nothing out \(no pixel of it is below 128\)"),
        (rounded(60, 50, 8), r"cuts nothing out \(only corners or thin lines are transparent\)"),
    ],
)
def test_auto_passes_over_an_alpha_channel_that_cuts_nothing_out(
    alpha: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], reason: str
) -> None:
    with pytest.raises(NoMask, match=reason) as refusal:
        cut_out(photograph(alpha), MaskMode.AUTO, None)
    assert 'mask = "alpha"' in refusal.value.hint
    assert cut_out(photograph(alpha), MaskMode.ALPHA, None).mode is MaskMode.ALPHA
    shot = np.full((50, 60, 3), 250, np.uint8)
    shot[15:35, 20:40] = (200, 20, 20)
    cup = cut_out(Photograph(pixels=shot, alpha=alpha, notes=()), MaskMode.AUTO, None)
    assert (cup.mode, cup.covered_pixels) == (MaskMode.FLAT, 400)
