"""From a foreground photograph to its cut-out: pixels, matte and binary mask, halved until it fits."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed
from shardgen.imaging.codec import Photograph
from shardgen.imaging.grabcut import grabcut_mask
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import MaskMode

FOREGROUND_LEVEL = 128
"""The threshold everywhere: this level and above is foreground."""
_SQUARE = np.ones((5, 5), np.uint8)
_SPECK_SHARE = 0.01  # of the largest component's area
_FLAT_TOLERANCE = 20  # levels; JPEG noise around a product shot's white stays below it
_FLAT_BORDER_SHARE = 0.75  # of the border's pixels; a bust touches the lower edge
_FLAT_BORDER_SHARE_AUTO = 0.95  # nobody asked for `flat`, so only an unmistakable background counts
_NEXT_STEP = (
    "make mask files: `shardgen cut-out FOLDER`, or put one beside it (NAME.mask.png), "
    'or set mask = "grabcut" in [sources]'
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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


def mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mirror an image (H, W[, 3]) left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def prepare_foreground(
    photo: Photograph, mode: MaskMode, mask_photo: Photograph | None, *, canvas: tuple[int, int]
) -> CutOut:
    """Cut a foreground out and halve it until it fits `canvas` (width, height); raises ComposeFailed."""
    return halved_to_fit(cut_out(photo, mode, mask_photo), canvas)


def cut_out(photo: Photograph, mode: MaskMode, mask_photo: Photograph | None) -> CutOut:
    """Find the mask at full size; `auto` takes a mask file, else a useful alpha, else a flat background.

    The matte is the raw alpha channel where the mask was made of it, else the mask. Raises ComposeFailed
    when the mode finds no foreground. GrabCut, which guesses, runs only when asked for by name.
    """
    mode = _chosen_mode(photo, mask_photo) if mode is MaskMode.AUTO else mode
    match mode:
        case MaskMode.ALPHA:
            if photo.alpha is None:
                raise ComposeFailed("it has no alpha channel", hint=_NEXT_STEP)
            mask = _opened_and_closed(_thresholded(photo.alpha))
        case MaskMode.FILE:
            mask = _opened_and_closed(_thresholded(_mask_levels(photo, mask_photo)))
        case MaskMode.FLAT:
            mask = _solid(_opened_and_closed(_flat_mask(photo.pixels)))
        case _:
            mask = _solid(_opened_and_closed(grabcut_mask(photo.pixels)))
    if not mask.any():
        raise ComposeFailed(f"its mask ({mode.value}) is empty", hint=_NEXT_STEP)
    matte = photo.alpha if mode is MaskMode.ALPHA and photo.alpha is not None else mask
    return CutOut(pixels=photo.pixels, matte=matte, mask=mask, mode=mode)


def halved_to_fit(cutout: CutOut, canvas: tuple[int, int]) -> CutOut:
    """Halve until it fits `canvas` (width, height); raises ComposeFailed when the mask vanishes."""
    while cutout.width > canvas[0] or cutout.height > canvas[1]:
        cutout = _halved(cutout)
        if not cutout.mask.any():
            raise ComposeFailed(
                f"its mask vanishes when it is halved to {cutout.width}x{cutout.height} pixels",
                hint="crop the photograph closer to its subject",
            )
    return cutout


def _halved(cutout: CutOut) -> CutOut:
    """Halve once; colours are weighted by alpha, so hidden pixels do not bleed into the edge."""
    size = max(1, cutout.width // 2), max(1, cutout.height // 2)
    alpha = cutout.matte.astype(np.float32)
    weighted = resize(cutout.pixels.astype(np.float32) * alpha[:, :, np.newaxis], size)
    alpha = resize(alpha, size)
    matte = np.rint(alpha).astype(np.uint8)
    colours = np.rint(weighted / np.maximum(alpha, np.float32(1e-6))[:, :, np.newaxis])
    pixels = np.clip(colours, 0, 255).astype(np.uint8)
    pixels[matte == 0] = 0
    return CutOut(pixels=pixels, matte=matte, mask=_thresholded(resize(cutout.mask, size)), mode=cutout.mode)


def _chosen_mode(photo: Photograph, mask_photo: Photograph | None) -> MaskMode:
    if mask_photo is not None:
        return MaskMode.FILE
    if photo.alpha is not None and not (photo.alpha == 255).all():
        return MaskMode.ALPHA
    if _border_share(photo.pixels)[1] >= _FLAT_BORDER_SHARE_AUTO:
        return MaskMode.FLAT
    raise ComposeFailed(
        "no mask: it has no mask file, no transparent pixel and no flat background", hint=_NEXT_STEP
    )


def _mask_levels(photo: Photograph, mask_photo: Photograph | None) -> NDArray[np.uint8]:
    if mask_photo is None:
        raise ComposeFailed(
            "there is no mask file beside it", hint="name it like the photograph: NAME.mask.png"
        )
    if (mask_photo.width, mask_photo.height) != (photo.width, photo.height):
        raise ComposeFailed(
            f"its mask file has {mask_photo.width}x{mask_photo.height} pixels, "
            f"the photograph {photo.width}x{photo.height}",
            hint="make both the same size",
        )
    # A grey picture has three equal channels: its level is any of them, exactly.
    first = mask_photo.pixels[:, :, 0]
    if np.array_equal(first, mask_photo.pixels[:, :, 1]) and np.array_equal(
        first, mask_photo.pixels[:, :, 2]
    ):
        return first
    return cv2.cvtColor(mask_photo.pixels, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _thresholded(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(levels >= FOREGROUND_LEVEL, 255, 0).astype(np.uint8)


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
        raise ComposeFailed(
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
    filled = np.where(framed[1:-1, 1:-1] == 128, 0, 255).astype(np.uint8)
    count, labels, facts, _centres = cv2.connectedComponentsWithStats(filled, connectivity=8)
    if count < 2:
        return filled
    areas = facts[:, cv2.CC_STAT_AREA]
    is_kept = areas >= _SPECK_SHARE * areas[1:].max()
    is_kept[0] = False
    return np.where(is_kept[labels], 255, 0).astype(np.uint8)
