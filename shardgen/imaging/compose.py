"""Lay cut-outs on a background: the canvas, its mask, who is where in it, and the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ComposeFailed
from shardgen.imaging.masks import FOREGROUND_LEVEL, Box, CutOut, Mask, box_of
from shardgen.imaging.options import Blend, Rectangle, around
from shardgen.imaging.scaling import Scaling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figure:
    """A cut-out and the rectangle of its size at which it is placed, which may reach beyond the canvas."""

    cutout: CutOut
    at: Rectangle

    def changes(self, blend: Blend) -> Rectangle:
        """The rectangle of the canvas outside which it changes no pixel."""
        box = self.cutout.box if blend is Blend.MASK else self.cutout.matte_box
        return Rectangle(x=self.at.x + box.x, y=self.at.y + box.y, width=box.width, height=box.height)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visible:
    """What is seen of a figure: `mask` uint8 (H, W) of the part, 0 or 255, and its box on the canvas.

    `per_mille` of the figure's own mask are seen, rounded down; what lies beyond the canvas is not.
    """

    mask: Mask
    box: Box
    per_mille: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """A part of a composite at canvas size: `fgbg` uint8 (H, W, 3) RGB and its binary `mask` uint8 (H, W).

    The mask is 0 or 255; outside the part is background alone. `figures` are in the order in which they were
    painted.
    """

    part: Rectangle
    fgbg: NDArray[np.uint8]
    mask: Mask
    figures: tuple[Visible, ...]

    def within(self, part: Rectangle) -> tuple[slice, slice]:
        """The rows and columns where a part of this part lies."""
        top, left = part.y - self.part.y, part.x - self.part.x
        return slice(top, top + part.height), slice(left, left + part.width)


def compose(
    background: NDArray[np.uint8], figures: Sequence[Figure], blend: Blend, *, part: Rectangle | None = None
) -> Canvas:
    """Paint figures, one after the other, on a copy of the background canvas, uint8 (H, W, 3) RGB.

    Only `part` is copied and painted, which holds all that the figures change of the canvas; None: all.
    """
    if part is None:
        part = Rectangle(x=0, y=0, width=background.shape[1], height=background.shape[0])
    fgbg = background[part.rows, part.columns].copy()
    placed = [_painted(fgbg, figure, part, blend) for figure in figures]
    if len(figures) == 1:
        visible = [placed[0]]
        mask = placed[0]
    else:
        mask = np.zeros(fgbg.shape[:2], np.uint8)
        visible = []
        for own in reversed(placed):  # the last one painted hides the others
            visible.append(own & ~mask)
            mask |= own
        visible.reverse()
    return Canvas(
        part=part,
        fgbg=fgbg,
        mask=mask,
        figures=tuple(
            _seen(figure, own, part, is_alone=len(figures) == 1)
            for figure, own in zip(figures, visible, strict=True)
        ),
    )


def on_canvas(figures: Sequence[Figure], canvas: tuple[int, int], blend: Blend) -> Rectangle:
    """The rectangle around what figures change of a canvas (width, height); one pixel, if that is nothing."""
    changed = (_clipped(figure.changes(blend), canvas) for figure in figures)
    return around([box for box in changed if box is not None] or [Rectangle(x=0, y=0, width=1, height=1)])


def _clipped(at: Rectangle, canvas: tuple[int, int]) -> Rectangle | None:
    left, right = max(at.x, 0), min(at.x + at.width, canvas[0])
    top, bottom = max(at.y, 0), min(at.y + at.height, canvas[1])
    if left >= right or top >= bottom:
        return None
    return Rectangle(x=left, y=top, width=right - left, height=bottom - top)


def _painted(fgbg: NDArray[np.uint8], figure: Figure, part: Rectangle, blend: Blend) -> Mask:
    """Paint one figure as far as it lies on the part; its mask there, uint8 (H, W)."""
    cutout, at = figure.cutout, figure.at
    if (cutout.width, cutout.height) != (at.width, at.height):
        raise ComposeFailed(
            f"the cut-out has {cutout.width}x{cutout.height} pixels, the plan says {at.width}x{at.height}"
        )
    mask = np.zeros(fgbg.shape[:2], np.uint8)
    at = Rectangle(x=at.x - part.x, y=at.y - part.y, width=at.width, height=at.height)
    there = _clipped(at, (part.width, part.height))
    if there is None:
        return mask
    own = (
        slice(there.y - at.y, there.y - at.y + there.height),
        slice(there.x - at.x, there.x - at.x + there.width),
    )
    region = fgbg[there.rows, there.columns]
    if blend is Blend.MASK:
        cv2.copyTo(cutout.pixels[own], cutout.mask[own], region)
    else:
        region[...] = _blended(cutout.pixels[own], region, cutout.matte[own])
    mask[there.rows, there.columns] = cutout.mask[own]
    return mask


def _seen(figure: Figure, visible: Mask, part: Rectangle, *, is_alone: bool) -> Visible:
    own = figure.cutout.box
    box = own.moved(figure.at.x, figure.at.y)
    # The part holds all of a mask that is on the canvas, so one inside the canvas is inside the part.
    is_inside = part.x <= box.x and box.x + box.width <= part.columns.stop
    is_inside = is_inside and part.y <= box.y and box.y + box.height <= part.rows.stop
    if not (is_alone and is_inside):
        box = box_of(visible).moved(part.x, part.y)
    return Visible(mask=visible, box=box, per_mille=1000 * box.area // own.area)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A canvas's mask as it is stored, uint8 (h, w), and what is known of its figures in order of painting.

    `boxes` are what is visible on the canvas, how many per mille that is, and what is visible in (h, w).
    `instances` is uint8 (h, w), or None where nobody wants it.
    """

    mask: Mask
    instances: Mask | None
    boxes: tuple[tuple[Box, int, Box], ...]


def measured(canvas: Canvas, part: Rectangle, scaling: Scaling, *, with_instances: bool) -> Measured:
    """Resize the masks of a canvas, and measure its figures; `part` of it is what `scaling` asks for."""
    there = canvas.within(part)
    mask = scaling.resized(canvas.mask[there], part)
    figures = [mask]
    if len(canvas.figures) > 1:
        figures = [scaling.resized(figure.mask[there], part) for figure in canvas.figures]
    return Measured(
        mask=mask,
        instances=instances(mask, figures) if with_instances else None,
        boxes=tuple(
            (visible.box, visible.per_mille, box_of(figure))
            for visible, figure in zip(canvas.figures, figures, strict=True)
        ),
    )


def instances(mask: Mask, figures: Sequence[Mask]) -> NDArray[np.uint8]:
    """Whose each pixel is, uint8 (h, w): 0 below level 128 of the mask, else the number of a figure from 1.

    All masks are resized to (h, w). A pixel is the figure's whose mask is largest there; of equal ones, of
    the last.
    """
    if len(figures) == 1:
        return (mask >= FOREGROUND_LEVEL).astype(np.uint8)
    found = np.zeros(mask.shape, np.uint8)
    largest = np.zeros(mask.shape, np.uint8)
    for number, figure in enumerate(figures, 1):
        found[figure >= largest] = number
        largest = np.maximum(largest, figure)
    found[mask < FOREGROUND_LEVEL] = 0
    return found


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
