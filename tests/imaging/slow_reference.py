"""docs/formats.md section 3 once more, slowly and from its words; of the program only types are used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SlowCutOut:
    pixels: Bytes
    matte: Bytes
    mask: Flags


@cache
def area_weights(source: int, target: int) -> Array:
    """Row t holds how much of target pixel t each source pixel covers; each row sums to 1."""
    weights = np.zeros((target, source))
    step = source / target
    for t in range(target):
        for s in range(source):
            overlap = min(s + 1, (t + 1) * step) - max(s, t * step)
            weights[t, s] = max(0.0, overlap) / step
    return weights


@cache
def linear_taps(source: int, target: int) -> list[tuple[tuple[int, float], tuple[int, float]]]:
    """Of each target pixel: two source pixels and their weights; centres at half integers, edges repeated."""
    taps = []
    for t in range(target):
        position = np.float32((t + 0.5) * (source / target) - 0.5)
        low = int(np.floor(position))
        part = float(np.float32(position - low))
        first, second = min(max(low, 0), source - 1), min(max(low + 1, 0), source - 1)
        taps.append(((first, 1 - part), (second, part)))
    return taps


def shrunk_exactly(image: NDArray[np.generic], size: tuple[int, int]) -> Array:
    """The area-average at width, height; nothing is rounded."""
    height, width = image.shape[:2]
    across, down = area_weights(width, size[0]), area_weights(height, size[1])
    result: Array = np.einsum("yh,hw...,xw->yx...", down, image.astype(np.float64), across, optimize=True)
    return result


def opened_and_closed(mask: Flags) -> Flags:
    return eroded(dilated(dilated(eroded(mask))))


def eroded(mask: Flags) -> Flags:
    return np.asarray(windows(mask, outside=True).all(axis=(2, 3)))


def dilated(mask: Flags) -> Flags:
    return np.asarray(windows(mask, outside=False).any(axis=(2, 3)))


def windows(mask: Flags, *, outside: bool) -> NDArray[np.bool_]:
    """The 5x5 square around each pixel; what lies outside must decide nothing."""
    padded = np.pad(mask, 2, constant_values=outside)
    return np.lib.stride_tricks.sliding_window_view(padded, (5, 5))


def without_holes(mask: Flags) -> Flags:
    reached = np.zeros_like(mask)
    height, width = mask.shape
    todo = [
        (y, x) for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)
    ]
    while todo:
        y, x = todo.pop()
        if 0 <= y < height and 0 <= x < width and not mask[y, x] and not reached[y, x]:
            reached[y, x] = True
            todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return ~reached


def without_specks(mask: Flags) -> Flags:
    """Components touch at corners too."""
    height, width = mask.shape
    left = mask.copy()
    components: list[list[tuple[int, int]]] = []
    for start in np.argwhere(mask):
        todo = [(int(start[0]), int(start[1]))]
        found = []
        while todo:
            y, x = todo.pop()
            if 0 <= y < height and 0 <= x < width and left[y, x]:
                left[y, x] = False
                found.append((y, x))
                todo += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        if found:
            components.append(found)
    largest = max((len(found) for found in components), default=0)
    kept = np.zeros_like(mask)
    for found in components:
        if len(found) >= 0.01 * largest:
            for y, x in found:
                kept[y, x] = True
    return kept


def halved(cut: SlowCutOut) -> SlowCutOut:
    height, width = cut.mask.shape
    size = max(1, width // 2), max(1, height // 2)
    alpha = shrunk_exactly(cut.matte, size)
    colours = shrunk_exactly(cut.pixels * cut.matte.astype(np.float64)[:, :, None], size)
    with np.errstate(divide="ignore", invalid="ignore"):
        colours = np.rint(colours / alpha[:, :, None])
    matte = np.rint(alpha).astype(np.uint8)
    colours[matte == 0] = 0
    return SlowCutOut(
        pixels=colours.astype(np.uint8),
        matte=matte,
        mask=np.floor(shrunk_exactly(cut.mask * 255, size) + 0.5) >= 128,
    )


def halved_to_fit(cut: SlowCutOut, canvas: tuple[int, int]) -> SlowCutOut:
    while cut.mask.shape[1] > canvas[0] or cut.mask.shape[0] > canvas[1]:
        cut = halved(cut)
    return cut


def mirrored(cut: SlowCutOut) -> SlowCutOut:
    return SlowCutOut(pixels=cut.pixels[:, ::-1], matte=cut.matte[:, ::-1], mask=cut.mask[:, ::-1])


def composed(
    canvas: Bytes, cut: SlowCutOut, grid: tuple[int, int], place: tuple[int, int], *, by_alpha: bool
) -> tuple[Bytes, Bytes]:
    """The canvas and the mask canvas; grid and place are (columns, rows) and (column, row)."""
    result, mask = canvas.copy(), np.zeros(canvas.shape[:2], np.uint8)
    height, width = cut.mask.shape
    room = canvas.shape[1] - width, canvas.shape[0] - height
    x, y = (
        room[axis] // 2 if grid[axis] == 1 else room[axis] * place[axis] // (grid[axis] - 1)
        for axis in (0, 1)
    )
    for row in range(height):
        for column in range(width):
            under = canvas[y + row, x + column]
            over = cut.pixels[row, column]
            if by_alpha:
                a = int(cut.matte[row, column]) / 255
                result[y + row, x + column] = np.rint(over * a + under * (1 - a))
            elif cut.mask[row, column]:
                result[y + row, x + column] = over
            mask[y + row, x + column] = 255 if cut.mask[row, column] else 0
    return result, mask


def linear_in_uint8(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Bilinear as "in uint8" has it: weights of 11 bits, 4 bits dropped between the axes, 18 at the end."""
    height, width = image.shape[:2]
    wide = image.astype(np.int64)
    rows = np.zeros((height, size[0], *image.shape[2:]), np.int64)
    for x, taps in enumerate(linear_taps(width, size[0])):
        for source, weight in taps:
            rows[:, x] += wide[:, source] * round(weight * 2048)
    result = np.zeros((size[1], *rows.shape[1:]), np.int64)
    for y, taps in enumerate(linear_taps(height, size[1])):
        for source, weight in taps:
            result[y] += round(weight * 2048) * (rows[source] >> 4) >> 16
    return ((result + 2) >> 2).astype(np.uint8)


def resized(image: Bytes, size: tuple[int, int], *, linear: bool = False) -> Bytes:
    """The rule for uint8 images, rounded."""
    height, width = image.shape[:2]
    if linear or size[0] > width or size[1] > height:
        return linear_in_uint8(image, size)
    return np.floor(shrunk_exactly(image, size) + 0.5).astype(np.uint8)


def placed_size(width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height after halving while larger than `canvas` (width, height) in either direction."""
    while width > canvas[0] or height > canvas[1]:
        width, height = max(1, width // 2), max(1, height // 2)
    return width, height
