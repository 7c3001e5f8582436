"""Composites, their boxes and their instances once more: slowly, from the words of docs/formats.md section 3.

Nothing of the recipe and nothing that draws is used: words come from Philox in Python integers, pixels from
`tests/imaging/slow_reference.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.imaging.slow_reference import (
    Array,
    Bytes,
    Flags,
    SlowCutOut,
    area_weights,
    halved_to_fit,
    linear_taps,
    mirrored,
    placed_size,
    resized,
)

HALVED = "halved"
Height = str | int | tuple[int, int]
"""HALVED until it fits, pixels, or from and to per mille of the canvas."""
Size = tuple[int, int]
"""Width and height."""

_64_BITS = (1 << 64) - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_STEPS_OF_KEY = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


@dataclass(frozen=True, kw_only=True)
class Person:
    """A foreground by its index, and the frame of its cut-out on the canvas, which may reach beyond it."""

    foreground: int
    mirrored: bool
    x: int
    y: int
    width: int
    height: int

    @property
    def frame(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.width, self.height


@dataclass(frozen=True, kw_only=True)
class Slow:
    """A sample. Masks are 0 to 255, instances the persons' numbers; boxes have 11 integers a person.

    They are x, y, width, height, area and visible on the canvas, then x, y, width, height and area of the
    output. People and boxes are in paint order.
    """

    fgbg: Bytes
    mask: Bytes
    mask_output: Bytes
    instances: Bytes
    people: tuple[Person, ...]
    boxes: tuple[tuple[int, ...], ...]


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x64-10 as Salmon et al. have it: four words for one counter."""
    first, second, third, fourth = counter
    key_low, key_high = key
    for _ in range(10):
        one, other = _MULTIPLIERS[0] * first, _MULTIPLIERS[1] * third
        first, second, third, fourth = (
            (other >> 64) ^ second ^ key_low,
            other & _64_BITS,
            (one >> 64) ^ fourth ^ key_high,
            one & _64_BITS,
        )
        key_low = (key_low + _STEPS_OF_KEY[0]) & _64_BITS
        key_high = (key_high + _STEPS_OF_KEY[1]) & _64_BITS
    return [first, second, third, fourth]


def words(*, sample: int, seed: int, count: int) -> list[int]:
    """What numpy's `Philox(counter=[0, 0, sample, 0], key=[seed, 0]).random_raw(count)` gives.

    It adds one to the counter before each block of four, the first too.
    """
    made: list[int] = []
    block = 0
    while len(made) < count:
        block += 1
        made += philox([block, 0, sample, 0], [seed, 0])
    return made[:count]


def integer(word: int, low: int, high: int) -> int:
    """In [low, high]."""
    return low + (word * (high - low + 1) >> 64)


def draw(
    *,
    sample: int,
    seed: int,
    count_range: tuple[int, int],
    pool: Sequence[int],
    first: int,
    flip: int,
    mirrors: bool,
    canvas: Size,
    sizes: Sequence[Size],
    height: Height,
    overhang: int,
) -> list[Person]:
    """Who is where, in the order of the draw.

    `pool` are the indices of the foregrounds that the sample's block knows, `first` and `flip` are the
    sample's own, `mirrors` says whether foregrounds are mirrored at all, `sizes` are those of the cut-outs
    before any scaling, by index, and `overhang` is per mille.
    """
    drawn = words(sample=sample, seed=seed, count=1 + 5 * count_range[1])
    wanted = integer(drawn[0], *count_range)
    left = sorted(pool)
    people: list[Person] = []
    for number in range(wanted):
        if not left:
            break
        who, mirror, tall, across, down = drawn[1 + 5 * number : 6 + 5 * number]
        if number == 0:
            foreground, is_mirrored = first, flip == 1
        else:
            foreground, is_mirrored = left[integer(who, 0, len(left) - 1)], integer(mirror, 0, 1) == 1
        left.remove(foreground)
        width, tall = frame_size(sizes[foreground], canvas, height, tall)
        over_x, over_y = width * overhang // 1000, tall * overhang // 1000
        people.append(
            Person(
                foreground=foreground,
                mirrored=mirrors and is_mirrored,
                x=integer(across, -over_x, canvas[0] - width + over_x),
                y=integer(down, -over_y, canvas[1] - tall + over_y),
                width=width,
                height=tall,
            )
        )
    return people


def frame_size(full: Size, canvas: Size, height: Height, word: int = 0) -> Size:
    """Of a placed cut-out. Raises ValueError for one that fits at no height."""
    if isinstance(height, str):
        return placed_size(*full, canvas)
    if isinstance(height, int):
        wanted = height
    else:
        lowest = -(-height[0] * canvas[1] // 1000)
        highest = height[1] * canvas[1] // 1000
        wanted = integer(word, lowest, highest)
    for tall in range(wanted, 0, -1):
        width = max(1, (2 * full[0] * tall + full[1]) // (2 * full[1]))
        if width <= canvas[0] and tall <= canvas[1]:
            return width, tall
    raise ValueError(f"{full} fits on {canvas} at no height")


def on_grid(
    *, foreground: int, flip: int, mirrors: bool, size: Size, canvas: Size, grid: Size, place: Size
) -> Person:
    """The one person of a place of a grid, (column, row); `size` is that of the scaled cut-out."""
    corner = []
    for axis in (0, 1):
        room = canvas[axis] - size[axis]
        corner.append(room // 2 if grid[axis] == 1 else room * place[axis] // (grid[axis] - 1))
    return Person(
        foreground=foreground,
        mirrored=mirrors and flip == 1,
        x=corner[0],
        y=corner[1],
        width=size[0],
        height=size[1],
    )


def composite(
    background: Bytes,
    people: Sequence[tuple[Person, SlowCutOut]],
    *,
    output: Size,
    by_alpha: bool,
    by_halving: bool,
) -> Slow:
    """Paint people, in the order of their draw with cut-outs at full size, on a canvas."""
    tall, wide = background.shape[:2]
    painted = sorted(people, key=lambda one: one[0].y + one[0].height)  # it keeps the order of the draw
    # Around the canvas there is room for what reaches beyond it.
    room = max(max(person.width, person.height) for person, _full in people)
    fgbg = np.pad(background, ((room, room), (room, room), (0, 0)))
    owner = np.zeros(fgbg.shape[:2], np.int64)  # the number of the person who is seen, 0: nobody
    placed_areas = []
    for number, (person, full) in enumerate(painted, 1):
        cut = halved_to_fit(full, (wide, tall)) if by_halving else scaled(full, (person.width, person.height))
        if person.mirrored:
            cut = mirrored(cut)
        assert cut.mask.shape == (person.height, person.width)
        rows = slice(room + person.y, room + person.y + person.height)
        columns = slice(room + person.x, room + person.x + person.width)
        under = fgbg[rows, columns]
        if by_alpha:
            alpha = cut.matte[:, :, None] / 255
            fgbg[rows, columns] = np.rint(cut.pixels * alpha + under * (1 - alpha))
        else:
            fgbg[rows, columns] = np.where(cut.mask[:, :, None], cut.pixels, under)
        owner[rows, columns][cut.mask] = number
        placed_areas.append(int(cut.mask.sum()))
    inside = slice(room, room + tall), slice(room, room + wide)
    fgbg, owner = fgbg[inside], owner[inside]
    mask = levels(owner > 0)
    mask_output = resized(mask, output)
    seen = [owner == number for number in range(1, len(painted) + 1)]
    seen_in_output = [resized(levels(one), output) for one in seen]
    return Slow(
        fgbg=fgbg,
        mask=mask,
        mask_output=mask_output,
        instances=instances(mask_output, seen_in_output),
        people=tuple(person for person, _full in painted),
        boxes=tuple(
            (*box(one), 1000 * int(one.sum()) // area, *box(in_output >= 128))
            for one, in_output, area in zip(seen, seen_in_output, placed_areas, strict=True)
        ),
    )


def pairs(blocks: Sequence[Size]) -> list[tuple[int, int, int]]:
    """Of every pair its background, its foreground and how many foregrounds its block knows.

    Blocks are new backgrounds and new foregrounds.
    """
    made: list[tuple[int, int, int]] = []
    backgrounds = foregrounds = 0
    for new_backgrounds, new_foregrounds in blocks:
        known = foregrounds + new_foregrounds
        for background in range(backgrounds, backgrounds + new_backgrounds):
            made += [(background, foreground, known) for foreground in range(known)]
        for background in range(backgrounds):
            made += [(background, foreground, known) for foreground in range(foregrounds, known)]
        backgrounds, foregrounds = backgrounds + new_backgrounds, known
    return made


def levels(flags: Flags) -> Bytes:
    return np.where(flags, np.uint8(255), np.uint8(0))


def instances(mask: Bytes, seen: Sequence[Bytes]) -> Bytes:
    """Of an output's pixels the number of the person who has most of each, of those the front-most."""
    result = np.zeros_like(mask)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            if mask[y, x] < 128:
                continue
            most = max(one[y, x] for one in seen)
            result[y, x] = max(number for number, one in enumerate(seen, 1) if one[y, x] == most)
    return result


def box(flags: Flags) -> tuple[int, int, int, int, int]:
    """x, y, width, height and area of what is set; zeros when nothing is."""
    there = [(int(x), int(y)) for y, x in np.argwhere(flags)]
    if not there:
        return 0, 0, 0, 0, 0
    left, top = min(x for x, _y in there), min(y for _x, y in there)
    right, bottom = max(x for x, _y in there), max(y for _x, y in there)
    return left, top, right + 1 - left, bottom + 1 - top, len(there)


def scaled(cut: SlowCutOut, size: Size) -> SlowCutOut:
    """From full size at once: colours count as much as their matte, and are 0 where it is."""
    alpha = resized_exactly(cut.matte, size)
    colours = resized_exactly(cut.pixels * cut.matte.astype(np.float64)[:, :, None], size)
    with np.errstate(divide="ignore", invalid="ignore"):
        colours = np.rint(colours / alpha[:, :, None])
    matte = np.rint(alpha).astype(np.uint8)
    colours[matte == 0] = 0
    return SlowCutOut(
        pixels=colours.astype(np.uint8), matte=matte, mask=resized(levels(cut.mask), size) >= 128
    )


def resized_exactly(image: NDArray[np.generic], size: Size) -> Array:
    """By area when neither axis grows, else bilinear; nothing is rounded."""
    height, width = image.shape[:2]
    if size[0] > width or size[1] > height:
        across, down = linear_weights(width, size[0]), linear_weights(height, size[1])
    else:
        across, down = area_weights(width, size[0]), area_weights(height, size[1])
    result: Array = np.einsum("yh,hw...,xw->yx...", down, image.astype(np.float64), across, optimize=True)
    return result


def linear_weights(source: int, target: int) -> Array:
    weights = np.zeros((target, source))
    for t, taps in enumerate(linear_taps(source, target)):
        for s, weight in taps:
            weights[t, s] += weight
    return weights
