"""Lay a cut-out on a background: the canvas, the mask canvas and the network's input."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.domain.plan import Blend
from shardgen.domain.sample import Rectangle
from shardgen.errors import ComposeFailed
from shardgen.imaging.masks import CutOut


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """A composite at canvas size: `fgbg` uint8 (H, W, 3) RGB and its binary `mask` uint8 (H, W), 0 or 255."""

    fgbg: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def compose(background: NDArray[np.uint8], cutout: CutOut, at: Rectangle, blend: Blend) -> Canvas:
    """Composite a cut-out at a rectangle of a copy of the background canvas, uint8 (H, W, 3) RGB."""
    height, width = background.shape[:2]
    if (cutout.width, cutout.height) != (at.width, at.height):
        raise ComposeFailed(
            f"the cut-out has {cutout.width}x{cutout.height} pixels, the plan says {at.width}x{at.height}"
        )
    if min(at.x, at.y) < 0 or at.x + at.width > width or at.y + at.height > height:
        raise ComposeFailed(f"{at} does not lie on a canvas of {width}x{height} pixels")
    fgbg = background.copy()
    rows, columns = slice(at.y, at.y + at.height), slice(at.x, at.x + at.width)
    region = fgbg[rows, columns]
    if blend is Blend.MASK:
        cv2.copyTo(cutout.pixels, cutout.mask, region)
    else:
        region[...] = _blended(cutout.pixels, region, cutout.matte)
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = cutout.mask
    return Canvas(fgbg=fgbg, mask=mask)


def network_input(fgbg: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a composite, uint8 (H, W, 3) RGB, to the network's `size` (width, height): always bilinear."""
    return cv2.resize(fgbg, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _blended(
    over: NDArray[np.uint8], under: NDArray[np.uint8], matte: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Compute rint(over * a + under * (1 - a)) with a = matte / 255, exactly: 255 is odd, so no ties."""
    weight = matte.astype(np.uint16)[:, :, np.newaxis]
    mixed = over * weight
    mixed += under * (255 - weight)
    # round(x / 255) for every x up to 255 * 255, without leaving 16 bits
    mixed += 128
    mixed += mixed >> 8
    mixed >>= 8
    return mixed.astype(np.uint8)
