"""Resize a canvas, or only a part of it if that gives the same pixels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from math import gcd

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.imaging.options import Rectangle

_WEIGHTS = 2048  # OpenCV's bilinear weights of 8 bits are whole numbers of so many
_LARGEST_BLOCK = 49  # pixels


@dataclass(frozen=True, slots=True)
class _Axis:
    """`stored` pixels are made of every `step` pixels of the canvas by the same weights."""

    step: int
    stored: int


class Scaling:
    """From a canvas to `size`, both (width, height): bilinear, or by area when `by_area` and no axis grows.

    Pixels uint8 (H, W[, 3]).
    """

    def __init__(self, canvas: tuple[int, int], size: tuple[int, int], *, by_area: bool = True) -> None:
        self.canvas, self.size = canvas, size
        shrinks = size[0] <= canvas[0] and size[1] <= canvas[1]
        self._interpolation = cv2.INTER_AREA if by_area and shrinks else cv2.INTER_LINEAR
        self._axes = self._found_axes()
        self._block = self._found_block()

    def _found_axes(self) -> tuple[_Axis, _Axis] | None:
        periods = [
            _Axis(before // gcd(before, after), after // gcd(before, after))
            for before, after in zip(self.canvas, self.size, strict=True)
        ]
        if self._interpolation == cv2.INTER_AREA:
            # OpenCV sums whole pixels as integers; parts of pixels it adds up as floats, elsewhere in another
            # order perhaps.
            is_alike = all(map(_is_whole, self.canvas, self.size))
        else:
            is_alike = all(map(_has_same_weights, self.canvas, self.size))
        return (periods[0], periods[1]) if is_alike else None

    def _found_block(self) -> tuple[int, int] | None:
        """Width and height of the blocks of pixels that are averaged, if a box filter gives the same."""
        if self._axes is None or self._interpolation != cv2.INTER_AREA:
            return None
        block = self._axes[0].step, self._axes[1].step
        return block if block[0] * block[1] > 1 and _filter_is_exact(*block) else None

    def _cv_resized(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        if self._block is None:
            return cv2.resize(image, size, interpolation=self._interpolation)  # type: ignore[return-value]
        return _block_averages(image, size, self._block)

    @property
    def has_parts(self) -> bool:
        """Whether a part of the canvas can be resized alone."""
        return self._axes is not None

    def part_for(self, box: Rectangle) -> Rectangle:
        """The part of the canvas that has to be resized when only `box` has changed; the whole if need be.

        `box` lies on the canvas and is not empty.
        """
        if self._axes is None:
            return Rectangle(x=0, y=0, width=self.canvas[0], height=self.canvas[1])
        # A bilinear pixel looks one pixel beyond its own step.
        margin = 0 if self._interpolation == cv2.INTER_AREA else 1
        across, down = self._axes
        left, right = _widened(box.x, box.x + box.width, across.step, self.canvas[0], margin)
        top, bottom = _widened(box.y, box.y + box.height, down.step, self.canvas[1], margin)
        return Rectangle(x=left, y=top, width=right - left, height=bottom - top)

    def whole(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize a canvas. The result may be the image itself when the size is right already."""
        if self.size == self.canvas:
            return image
        return self._cv_resized(image, self.size)

    def resized(
        self, image: NDArray[np.uint8], part: Rectangle, rest: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Resize a canvas of which `image` is `part`, as `part_for` gives it: as in the whole.

        `rest` is the canvas without it, resized, and is not changed; None: it is black.
        """
        if (part.width, part.height) == self.canvas or self._axes is None:
            return self.whole(image)
        across, down = self._axes
        size = part.width // across.step * across.stored, part.height // down.step * down.stored
        small = self._cv_resized(image, size)
        columns = self._kept(part.x, part.x + part.width, self.canvas[0], across)
        rows = self._kept(part.y, part.y + part.height, self.canvas[1], down)
        x, y = part.x // across.step * across.stored, part.y // down.step * down.stored
        found = np.zeros((*self.size[::-1], *image.shape[2:]), np.uint8) if rest is None else rest.copy()
        found[y + rows.start : y + rows.stop, x + columns.start : x + columns.stop] = small[rows, columns]
        return found

    def _kept(self, start: int, stop: int, side: int, axis: _Axis) -> slice:
        """What of a resized part is as in the whole: beyond a cut edge bilinear pixels would look further."""
        count = (stop - start) // axis.step * axis.stored
        if self._interpolation == cv2.INTER_AREA:
            return slice(0, count)
        half = axis.stored // 2
        return slice(half if start else 0, count - (half if stop < side else 0))


def _widened(start: int, stop: int, step: int, side: int, margin: int) -> tuple[int, int]:
    return max(0, (start // step - margin) * step), min(side, (-(-stop // step) + margin) * step)


def _scale(before: int, after: int) -> float:
    return 1.0 / (after / before)  # as OpenCV rounds it: it has the same bits for a part as for the whole


def _is_whole(before: int, after: int) -> bool:
    """Whether OpenCV takes a shrinking axis for one of whole pixels."""
    scale = _scale(before, after)
    return before % after == 0 and abs(scale - round(scale)) < sys.float_info.epsilon


def _has_same_weights(before: int, after: int) -> bool:
    """Whether bilinear weights repeat with the period of the two sides, after OpenCV has rounded them."""
    positions = ((np.arange(after) + 0.5) * _scale(before, after) - 0.5).astype(np.float32)
    first = np.floor(positions).astype(np.int64)
    weights = np.rint((positions - first.astype(np.float32)) * np.float32(_WEIGHTS)).astype(np.int64)
    first, weights = first + weights // _WEIGHTS, weights % _WEIGHTS
    step, stored = before // gcd(before, after), after // gcd(before, after)
    is_shifted = first[stored:] - first[:-stored] == step
    return bool(is_shifted.all() and (weights[stored:] == weights[:-stored]).all())


def _block_averages(
    image: NDArray[np.uint8], size: tuple[int, int], block: tuple[int, int]
) -> NDArray[np.uint8]:
    """As by area, in half the time: OpenCV vectorises its box filter, of which every `block` is taken."""
    averages = cv2.blur(image, block, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(averages, size, interpolation=cv2.INTER_NEAREST)  # type: ignore[return-value]


@cache
def _filter_is_exact(width: int, height: int) -> bool:
    """Whether a box filter rounds each sum of a block, uint8 (height, width), as resizing by area does.

    Of an even number of pixels halves may be rounded up or to even, so only odd ones are tried.
    """
    count = width * height
    if count % 2 == 0 or count > _LARGEST_BLOCK:
        return False
    sums = np.arange(255 * count + 1)
    ones = np.arange(count) < (sums % count)[:, np.newaxis]
    blocks = (sums // count)[:, np.newaxis] + ones  # each sum as evenly as it goes
    strip = blocks.reshape(-1, height, width).swapaxes(0, 1).reshape(height, -1).astype(np.uint8)
    size = len(sums), 1
    by_area = cv2.resize(strip, size, interpolation=cv2.INTER_AREA)
    return np.array_equal(_block_averages(strip, size, (width, height)), by_area)
