"""From a foreground photograph to its cut-out: pixels, matte and binary mask, at the size that is placed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed, NoMask
from shardgen.imaging.codec import Photograph
from shardgen.imaging.grabcut import grabcut_mask
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import MaskMode

FOREGROUND_LEVEL = 128
"""The threshold everywhere: this level and above is foreground."""
_SQUARE = np.ones((5, 5), np.uint8)
_STRIP_PIXELS = 1 << 16  # that are weighted at a time, so that a processor's cache holds them
_BLACK, _WHITE = np.uint8(0), np.uint8(255)
_SPECK_SHARE = 0.01  # of the largest component's area
_FLAT_TOLERANCE = 20  # levels; JPEG noise around a product shot's white stays below it
_FLAT_BORDER_SHARE = 0.75  # of the border's pixels; a bust touches the lower edge
_FLAT_BORDER_SHARE_AUTO = 0.95  # nobody asked for `flat`, so only an unmistakable background counts
_CORNER_SHARE = 0.25  # of the shorter side: the corners of screenshots and icons are rounded by less
_OPAQUE = 250  # a mask file's alpha at or above it everywhere hides nothing: encoders are off by a few
_ONE_COLOUR = 16  # levels; division by alpha and lossy WebP make a brush's one colour differ by less
_BLACK_OR_WHITE = 32  # levels from either end; soft edges lie between
_BLACK_OR_WHITE_SHARE = 0.9  # of what is visible of a mask; of a photograph it is rarely half
_SURROUNDED_SHARE = 0.5  # of the border's pixels; a drawn bust covers the lower edge and no more
_NEXT_STEP = (
    "make mask files: `shardgen cut-out FOLDER`, or draw one and put it beside (NAME.mask.png); "
    'or set mask = "grabcut" in [sources], a guess, which ignores the alpha and mask files of all others, too'
)


Mask = NDArray[np.uint8]
Levels = TypeVar("Levels", NDArray[np.uint8], NDArray[np.float32])


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """The smallest rectangle around a mask, and the pixels of the mask; all 0 where it has none.

    (0, 0) is the top left corner; the rectangle ends before `x + width` and `y + height`.
    """

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    area: int = 0

    def moved(self, right: int, down: int) -> Box:
        """The same mask elsewhere; of none there is none."""
        if not self.area:
            return self
        return Box(x=self.x + right, y=self.y + down, width=self.width, height=self.height, area=self.area)


@dataclass(frozen=True, kw_only=True, eq=False)
class CutOut:
    """A foreground ready to be placed; all three arrays have the same height and width.

    `pixels` uint8 (H, W, 3) RGB; `matte` uint8 (H, W), 255 is opaque; `mask` uint8 (H, W), 0 or 255;
    `mode` is how the mask was found, never AUTO.
    """

    pixels: NDArray[np.uint8]
    matte: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    mode: MaskMode

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.mask.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.mask.shape[0])

    @property
    def covered_pixels(self) -> int:
        """Pixels of the mask."""
        return cv2.countNonZero(self.mask)

    @cached_property
    def box(self) -> Box:
        """Where its mask is."""
        return box_of(self.mask)

    @cached_property
    def matte_box(self) -> Box:
        """Where its mask or its matte is not 0; `area` are these pixels."""
        return box_of(np.where(self.matte | self.mask, _WHITE, _BLACK))

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays."""
        return int(self.pixels.nbytes + self.matte.nbytes + self.mask.nbytes)

    def flipped(self) -> CutOut:
        """Mirror left to right."""
        return CutOut(
            pixels=mirrored(self.pixels),
            matte=mirrored(self.matte),
            mask=mirrored(self.mask),
            mode=self.mode,
        )


def box_of(mask: Mask) -> Box:
    """The box of a mask uint8 (H, W), from level 128 on."""
    binary = cv2.inRange(mask, FOREGROUND_LEVEL, 255)
    area = cv2.countNonZero(binary)
    if not area:
        return Box()
    x, y, width, height = cv2.boundingRect(binary)
    return Box(x=x, y=y, width=width, height=height, area=area)


def mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mirror an image (H, W[, 3]) left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def cut_out(photo: Photograph, mode: MaskMode, mask_photo: Photograph | None) -> CutOut:
    """Find the mask at full size; `auto` takes a mask file, else alpha that cuts out, else a flat background.

    The matte is the raw alpha channel where the mask was made of it, else the mask. Raises ComposeFailed
    when the mode finds no foreground, NoMask when there is nothing to find it by. GrabCut, which guesses,
    runs only when asked for by name.
    """
    alpha_mask = None
    if mode is MaskMode.AUTO:
        mode, alpha_mask = _chosen_mode(photo, mask_photo)
    match mode:
        case MaskMode.ALPHA:
            if photo.alpha is None:
                raise NoMask("no alpha channel", hint=_NEXT_STEP)
            mask = _opened_and_closed(_thresholded(photo.alpha)) if alpha_mask is None else alpha_mask
        case MaskMode.FILE:
            mask = _opened_and_closed(_thresholded(_file_levels(photo, mask_photo)))
        case MaskMode.FLAT:
            mask = _solid(_opened_and_closed(_flat_mask(photo.pixels)))
        case _:
            mask = _solid(_opened_and_closed(grabcut_mask(photo.pixels)))
    if not mask.any():
        raise ComposeFailed(
            f"its mask ({mode.value}) is empty: nothing in it is 5 pixels wide", hint=_NEXT_STEP
        )
    matte = photo.alpha if mode is MaskMode.ALPHA and photo.alpha is not None else mask
    return CutOut(pixels=photo.pixels, matte=matte, mask=mask, mode=mode)


def cuts_out(alpha: NDArray[np.uint8] | None) -> bool:
    """Whether an alpha channel, uint8 (H, W), leaves out anything but the corners.

    What it leaves out is judged after opening and closing, so a thin line or a few pixels do not count.
    """
    return _cutting_mask(alpha) is not None


def mask_warning(photo: Photograph, mask_photo: Photograph) -> str:
    """Why the two may not lie over each other as they should, although their sizes are the same; else ""."""
    turned = photo.orientation
    if turned == mask_photo.orientation or mask_photo.orientation != 1:
        return ""
    if turned >= 5 and photo.width != photo.height:
        return ""  # a mask that was not turned has the sides the other way round
    return f"turned or mirrored by its EXIF orientation ({turned}), which its mask file does not have"


def halved_to_fit(cutout: CutOut, canvas: tuple[int, int]) -> CutOut:
    """Halve until it fits `canvas` (width, height); raises ComposeFailed when the mask vanishes."""
    while cutout.width > canvas[0] or cutout.height > canvas[1]:
        cutout = resized(cutout, (max(1, cutout.width // 2), max(1, cutout.height // 2)))
    return cutout


def resized(cutout: CutOut, size: tuple[int, int]) -> CutOut:
    """A cut-out of `size` (width, height), its mask again 0 or 255; raises ComposeFailed when that vanishes.

    Colours are weighted by alpha, so hidden pixels do not bleed into the edge.
    """
    is_half = (cutout.width, cutout.height) == (2 * size[0], 2 * size[1])
    found = _halved(cutout) if is_half else _resized(cutout, size)
    if not found.mask.any():
        raise ComposeFailed(
            f"its mask vanishes when it is resized to {size[0]}x{size[1]} pixels",
            hint="crop the photograph closer to its subject",
        )
    return found


def _halved(cutout: CutOut) -> CutOut:
    """As `_resized` by half, which makes each pixel of four: only where there is something."""
    left, top, width, height = cv2.boundingRect(cutout.matte | cutout.mask)
    left, top, right, bottom = left // 2, top // 2, -(-(left + width) // 2), -(-(top + height) // 2)
    there = slice(2 * top, 2 * bottom), slice(2 * left, 2 * right)
    seen = CutOut(
        pixels=cutout.pixels[there], matte=cutout.matte[there], mask=cutout.mask[there], mode=cutout.mode
    )
    part = _resized(seen, (right - left, bottom - top))

    def whole(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        found = np.zeros((cutout.height // 2, cutout.width // 2, *image.shape[2:]), np.uint8)
        found[top:bottom, left:right] = image
        return found

    return CutOut(pixels=whole(part.pixels), matte=whole(part.matte), mask=whole(part.mask), mode=cutout.mode)


def _resized(cutout: CutOut, size: tuple[int, int]) -> CutOut:
    weighted, alpha = _weighted(cutout, size)
    matte = np.rint(alpha).astype(np.uint8)
    colours = np.divide(weighted, _in_three_channels(np.maximum(alpha, np.float32(1e-6))), out=weighted)
    np.clip(np.rint(colours, out=colours), 0, 255, out=colours)
    colours[matte == 0] = 0
    pixels = colours.astype(np.uint8)
    mask = _thresholded(resize(cutout.mask, size))
    return CutOut(pixels=pixels, matte=matte, mask=mask, mode=cutout.mode)


def _cutting_mask(alpha: NDArray[np.uint8] | None) -> Mask | None:
    """The mask of an alpha channel that leaves out anything but the corners."""
    if alpha is None or alpha.min() >= FOREGROUND_LEVEL:
        return None
    mask = _opened_and_closed(_thresholded(alpha))
    side = int(min(mask.shape) * _CORNER_SHARE)
    inner = mask[side : mask.shape[0] - side], mask[:, side : mask.shape[1] - side]
    return mask if any(part.size and not part.all() for part in inner) else None


def _weighted(cutout: CutOut, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The colours times alpha, float32 (H, W, 3), and alpha, float32 (H, W), resized to (width, height)."""
    rows = len(cutout.matte)
    # Each row of a half is made of two whole rows, so a few at a time give the same, in little memory.
    is_half = (cutout.width, rows) == (2 * size[0], 2 * size[1])
    step = 2 * max(1, _STRIP_PIXELS // (2 * cutout.width)) if is_half else rows
    weighted, alpha = np.empty((size[1], size[0], 3), np.float32), np.empty((size[1], size[0]), np.float32)
    for top in range(0, rows, step):
        pixels, matte = cutout.pixels[top : top + step], cutout.matte[top : top + step]
        # A product of two levels is exact in float32.
        product = cv2.multiply(pixels, _in_three_channels(matte), dtype=cv2.CV_32F)
        part = slice(top // 2, (top + step) // 2) if is_half else slice(None)
        of_part = (size[0], len(alpha[part]))
        weighted[part] = resize(product.astype(np.float32, copy=False), of_part)
        alpha[part] = resize(matte.astype(np.float32), of_part)
    return weighted, alpha


def _in_three_channels(levels: Levels) -> Levels:
    """(H, W, 3) of (H, W): faster to calculate with than what numpy broadcasts."""
    return cv2.merge([levels, levels, levels])  # type: ignore[return-value]


def _chosen_mode(photo: Photograph, mask_photo: Photograph | None) -> tuple[MaskMode, Mask | None]:
    """How a mask is found, and the mask where finding out took making it."""
    if mask_photo is not None:
        return MaskMode.FILE, None
    alpha_mask = _cutting_mask(photo.alpha)
    if alpha_mask is not None:
        return MaskMode.ALPHA, alpha_mask
    if _border_share(photo.pixels)[1] >= _FLAT_BORDER_SHARE_AUTO:
        return MaskMode.FLAT, None
    if photo.alpha is None or (photo.alpha == 255).all():
        raise NoMask("no mask: no mask file, no transparent pixel and no flat background", hint=_NEXT_STEP)
    if (photo.alpha >= FOREGROUND_LEVEL).all():
        why = f"no pixel of it is below {FOREGROUND_LEVEL}"
    else:
        why = "only corners or thin lines are transparent"
    raise NoMask(
        f"no mask: its alpha channel cuts nothing out ({why}), no mask file and no flat background",
        hint=f'{_NEXT_STEP}; to take the alpha channel all the same, set mask = "alpha"',
    )


def _file_levels(photo: Photograph, mask_photo: Photograph | None) -> NDArray[np.uint8]:
    """A mask file's levels, uint8 (H, W); raises ComposeFailed if none of them is foreground."""
    if mask_photo is None:
        raise NoMask("there is no mask file beside it", hint="name it like the photograph: NAME.mask.png")
    _refuse_other_size(photo, mask_photo)
    levels = _mask_levels(mask_photo)
    highest = int(levels.max())
    if highest == 0:
        raise ComposeFailed(
            "its mask file is black everywhere", hint="draw the subject white; black is background"
        )
    if highest < FOREGROUND_LEVEL:
        raise ComposeFailed(
            f"its mask file is too dark: the highest level is {highest}; {FOREGROUND_LEVEL} is needed",
            hint=f"multiply by {255 // highest}: save the subject white, the rest black",
        )
    return levels


def _refuse_other_size(photo: Photograph, mask_photo: Photograph) -> None:
    of_photo, of_mask = (photo.width, photo.height), (mask_photo.width, mask_photo.height)
    if of_mask == of_photo:
        return
    sizes = f"{of_mask[0]}x{of_mask[1]} pixels, the photograph {of_photo[0]}x{of_photo[1]}"
    turned = [
        f"the {what} is turned by its EXIF orientation ({one.orientation}), the {other} is not"
        for what, one, other, second in (
            ("photograph", photo, "mask", mask_photo),
            ("mask", mask_photo, "photograph", photo),
        )
        if one.orientation >= 5 > second.orientation
    ]
    if of_mask == of_photo[::-1] and turned:
        raise ComposeFailed(
            f"its mask file has {sizes}: {turned[0]}",
            hint="turn the one that is not and save it, so that both stand upright",
        )
    raise ComposeFailed(f"its mask file has {sizes}", hint="make both the same size")


def _mask_levels(mask_photo: Photograph) -> NDArray[np.uint8]:
    """What a mask file says of each pixel, uint8 (H, W); its alpha counts where it is not opaque.

    A shape drawn in one colour on transparency is the alpha alone; black and white on transparency are the
    levels times the alpha. Raises ComposeFailed for what could mean either of two things.
    """
    levels, alpha = _grey(mask_photo.pixels), mask_photo.alpha
    if alpha is None or alpha.min() >= _OPAQUE:
        return levels
    is_visible = alpha >= FOREGROUND_LEVEL
    if not is_visible.any():
        raise ComposeFailed(
            "its mask file is transparent everywhere", hint="draw the subject white; black is background"
        )
    colours = mask_photo.pixels[is_visible]
    if (np.ptp(colours, axis=0) <= _ONE_COLOUR).all():
        if levels[is_visible].max() < FOREGROUND_LEVEL and _surrounds(is_visible):
            raise ComposeFailed(
                "its mask file is dark around something transparent, so either may be the subject",
                hint="draw the subject white and the rest black, without transparency",
            )
        return alpha
    shown = levels[is_visible]
    is_clear_cut = (shown < _BLACK_OR_WHITE) | (shown > 255 - _BLACK_OR_WHITE)
    if is_clear_cut.mean() < _BLACK_OR_WHITE_SHARE:
        raise ComposeFailed(
            "its mask file is a picture with transparency: either its colours or its alpha may be the mask",
            hint="draw the subject white and the rest black, without transparency",
        )
    return np.rint(levels * (alpha / np.float32(255))).astype(np.uint8)


def _surrounds(is_visible: NDArray[np.bool_]) -> bool:
    border = (is_visible[0], is_visible[-1], is_visible[1:-1, 0], is_visible[1:-1, -1])
    return bool(np.concatenate(border).mean() > _SURROUNDED_SHARE)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # A grey picture has three equal channels: its level is any of them, exactly.
    first = pixels[:, :, 0]
    if np.array_equal(first, pixels[:, :, 1]) and np.array_equal(first, pixels[:, :, 2]):
        return first
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _thresholded(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.threshold(levels, FOREGROUND_LEVEL - 1, 255, cv2.THRESH_BINARY)[1]  # type: ignore[return-value]


def _opened_and_closed(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """5x5 opening, then closing. OpenCV's default border is neutral: +inf to erode, -inf to dilate."""
    opened = cv2.dilate(cv2.erode(mask, _SQUARE), _SQUARE)
    return cv2.erode(cv2.dilate(opened, _SQUARE), _SQUARE)  # type: ignore[return-value]


def _border_share(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int16], float]:
    """Return the border's median colour (3,), and the share of the border's pixels that are near it."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]]).astype(np.int16)
    colour = np.median(border, axis=0).astype(np.int16)
    near = np.abs(border - colour).max(axis=1) <= _FLAT_TOLERANCE
    return colour, float(near.mean())


def _flat_mask(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Everything that differs from the border's colour in any channel."""
    colour, share = _border_share(pixels)
    if share < _FLAT_BORDER_SHARE:
        raise NoMask(
            f"its background is not flat: {share:.0%} of the border is near one colour "
            f"(at least {_FLAT_BORDER_SHARE:.0%})",
            hint=_NEXT_STEP,
        )
    lowest, highest = np.clip(colour - _FLAT_TOLERANCE, 0, 255), np.clip(colour + _FLAT_TOLERANCE, 0, 255)
    return cv2.bitwise_not(cv2.inRange(pixels, lowest, highest))  # type: ignore[return-value]


def _solid(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill holes (background that does not reach the border) and drop specks."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    cv2.floodFill(framed, None, (0, 0), [128])
    filled = np.where(framed[1:-1, 1:-1] == 128, _BLACK, _WHITE)
    count, labels, facts, _centres = cv2.connectedComponentsWithStats(filled, connectivity=8)
    if count < 2:
        return filled
    areas = facts[:, cv2.CC_STAT_AREA]
    is_kept = areas >= _SPECK_SHARE * areas[1:].max()
    is_kept[0] = False
    return np.where(is_kept[labels], _WHITE, _BLACK)
