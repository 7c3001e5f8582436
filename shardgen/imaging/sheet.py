"""Contact sheets, to look at before (and after) long hours: of samples, and of cut-outs."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.imaging.codec import encode
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import ImageFormat

_TILE_SIDE = 160  # pixels; the longer side of one picture
_GAP, _SAMPLE_GAP, _LABEL = 2, 14, 22  # pixels
_SAMPLES_PER_ROW = 3
_PAPER, _INK, _RED = (250, 250, 250), (40, 40, 40), (200, 20, 30)
_OUTLINE = (0, 255, 120)  # no skin, no sky, no wood
_COLOURS = (_OUTLINE, (255, 90, 220), (60, 190, 255), (255, 210, 0), (255, 110, 60), (170, 120, 255))
_LEVEL = 128  # of a mask, from which on it is foreground
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CUT_OUTS_PER_ROW = 3
_CUT_OUT_SIDE = 200  # pixels; the square that a photograph, and what is cut out of it, is fitted into
_CHECKER, _CHECKER_SIDE = (205, 245), 8  # levels, pixels
_BANNER = "NOT DEPTH: random weights"
_FEW_COLOURS = ("mask", "people")
_SMALL_QUALITY = 80  # of a JPEG that is looked at once and kept nowhere


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SheetSample:
    """One sample's pictures: `picture` uint8 (h, w, 3) RGB and, where there are any, the others.

    `mask` and `instances` uint8 (h, w), of `picture`'s size; `depth` (h, w), 8 bits or 16 bits.
    """

    caption: str
    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    instances: NDArray[np.uint8] | None = None
    depth: NDArray[np.uint8] | NDArray[np.uint16] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pen:
    """`colour` is RGB, 0-255; `scale` 1.0 is about 22 pixels high."""

    colour: tuple[int, int, int]
    scale: float
    thickness: int


_SMALL = _Pen(colour=_INK, scale=0.45, thickness=1)


def contact_sheet(
    samples: Iterable[SheetSample], *, title: str, near_is_dark: bool, depth_is_random: bool
) -> bytes:
    """Draw samples in reading order, each with all its pictures, as PNG; same input, same bytes.

    They are asked for one by one, and made small before the next.
    A composite has the outline of its mask, or of each person in a colour of its own. Depth is drawn in the
    colours of inferno, whose brightness grows evenly, so that bright is near; `near_is_dark` says that its
    levels are the other way round.
    `depth_is_random` puts a banner over the sheet and a label on every depth picture.
    """
    cells = [_cell(sample, near_is_dark=near_is_dark, depth_is_random=depth_is_random) for sample in samples]
    if not cells:
        raise ValueError("a contact sheet needs at least one sample")
    top = (2 * _LABEL if depth_is_random else 0) + _LABEL + _SAMPLE_GAP
    sheet = _laid_out(cells, per_row=_SAMPLES_PER_ROW, top=top)
    line = _fitting(title, sheet.shape[1] - 2 * _SAMPLE_GAP)
    _write(sheet, line, (_SAMPLE_GAP, top - _SAMPLE_GAP), _SMALL)
    if depth_is_random:
        sheet[: 2 * _LABEL] = _RED
        scale = min(1.0, sheet.shape[1] / 520)
        _write(sheet, _BANNER, (_SAMPLE_GAP, 31), _Pen(colour=(255, 255, 255), scale=scale, thickness=2))
    return encode(sheet, ImageFormat.PNG, 100)


def small_pictures(sample: SheetSample, *, near_is_dark: bool, depth_is_random: bool) -> dict[str, bytes]:
    """The same pictures one by one, PNG or JPEG, their longer side 160 pixels, by what they show.

    That is `picture`, then `mask` or `people`, then `depth`, which random weights make `not depth`.
    """
    found = _pictures(sample, near_is_dark=near_is_dark, depth_is_random=depth_is_random)
    return {
        what: encode(pixels, ImageFormat.PNG if what in _FEW_COLOURS else ImageFormat.JPEG, _SMALL_QUALITY)
        for what, pixels in found.items()
    }


def cut_out_cell(
    name: str, pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None, *, remark: str
) -> NDArray[np.uint8]:
    """One photograph beside its cut-out on a checkerboard, its name and a remark below.

    `pixels` uint8 (H, W, 3) RGB; `mask` uint8 (H, W), above 0 is cut out, None for nothing at all. Small,
    however large the photograph; letters that the font lacks become `?`.
    """
    photo = _tile(pixels, _CUT_OUT_SIDE)
    height, width = photo.shape[:2]
    opaque = np.zeros((height, width), np.uint8)
    if mask is not None:
        opaque = resize(np.where(mask > 0, 255, 0).astype(np.uint8), (width, height))
    share = opaque[:, :, np.newaxis] / 255
    rows, columns = np.indices((height, width)) // _CHECKER_SIDE
    squares = np.where((rows + columns) % 2 == 0, *_CHECKER)[:, :, np.newaxis]
    cut = np.rint(photo * share + squares * (1 - share)).astype(np.uint8)
    cell = _paper(_CUT_OUT_SIDE + 2 * _LABEL, 2 * _CUT_OUT_SIDE + _GAP)
    for column, picture in enumerate((photo, cut)):
        y, x = (_CUT_OUT_SIDE - height) // 2, (_CUT_OUT_SIDE - width) // 2 + column * (_CUT_OUT_SIDE + _GAP)
        cell[y : y + height, x : x + width] = picture
    _write(cell, _fitting(name, cell.shape[1]), (0, _CUT_OUT_SIDE + 16), _SMALL)
    _write(cell, remark, (0, _CUT_OUT_SIDE + 36), _Pen(colour=_RED, scale=0.45, thickness=1))
    return cell


def cut_out_sheet(cells: Sequence[NDArray[np.uint8]]) -> bytes:
    """Lay such cells out in reading order, as PNG; same input, same bytes."""
    return encode(_laid_out(cells, per_row=_CUT_OUTS_PER_ROW, top=_SAMPLE_GAP), ImageFormat.PNG, 100)


def _laid_out(cells: Sequence[NDArray[np.uint8]], *, per_row: int, top: int) -> NDArray[np.uint8]:
    """A page of cells below `top` pixels of nothing; each has the room of the largest."""
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    columns = min(per_row, len(cells))
    rows = -(-len(cells) // columns)
    sheet = _paper(top + rows * (height + _SAMPLE_GAP), _SAMPLE_GAP + columns * (width + _SAMPLE_GAP))
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        y, x = top + row * (height + _SAMPLE_GAP), _SAMPLE_GAP + column * (width + _SAMPLE_GAP)
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def _fitting(name: str, width: int) -> str:
    """The name in the letters that OpenCV draws, its beginning left out where it is too long.

    Where not even that it is cut fits, there is nothing.
    """
    letters = (one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    shown = "".join(letters).encode("ascii", "replace").decode()
    while cv2.getTextSize(shown, _FONT, _SMALL.scale, _SMALL.thickness)[0][0] > width:
        if shown == "...":
            return ""
        shown = f"...{shown.removeprefix('...')[1:]}"
    return shown


def _pictures(
    sample: SheetSample, *, near_is_dark: bool, depth_is_random: bool
) -> dict[str, NDArray[np.uint8]]:
    picture = _tile(sample.picture)
    found = {"picture": picture}
    if sample.instances is not None:
        found["picture"], found["people"] = _people(picture, sample.instances)
    elif sample.mask is not None:
        mask = _tile(sample.mask)
        _outline(picture, mask, _OUTLINE)
        found["mask"] = cv2.cvtColor(mask, cv2.COLOR_GRAY2RGB)  # type: ignore[assignment]
    if sample.depth is not None:
        depth = _coloured(sample.depth, near_is_dark=near_is_dark)
        if depth_is_random:
            _write(depth, "not depth", (6, 18), _Pen(colour=_RED, scale=0.5, thickness=2))
        found["not depth" if depth_is_random else "depth"] = depth
    return found


def _cell(sample: SheetSample, *, near_is_dark: bool, depth_is_random: bool) -> NDArray[np.uint8]:
    found = _pictures(sample, near_is_dark=near_is_dark, depth_is_random=depth_is_random)
    pictures = list(found.values())
    height = max(one.shape[0] for one in pictures)
    width = max(_TILE_SIDE, sum(one.shape[1] + _GAP for one in pictures) - _GAP)  # a caption needs some
    cell = _paper(_LABEL + height, width)
    x = 0
    for one in pictures:
        cell[_LABEL : _LABEL + one.shape[0], x : x + one.shape[1]] = one
        x += one.shape[1] + _GAP
    _write(cell, _fitting(sample.caption, cell.shape[1]), (0, 15), _SMALL)
    return cell


def _people(picture: NDArray[np.uint8], instances: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The picture with the outline of each person, and the people in these colours."""
    size = picture.shape[1], picture.shape[0]
    areas = np.zeros_like(picture)
    for number in range(1, int(instances.max()) + 1):
        own = resize(np.where(instances == number, np.uint8(255), np.uint8(0)), size)
        colour = _COLOURS[(number - 1) % len(_COLOURS)]
        _outline(picture, own, colour)
        areas[own >= _LEVEL] = colour
    yield picture
    yield areas


def _coloured(levels: NDArray[np.uint8] | NDArray[np.uint16], *, near_is_dark: bool) -> NDArray[np.uint8]:
    depth = _tile(_eight_bits(levels))
    coloured = cv2.applyColorMap(255 - depth if near_is_dark else depth, cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _outline(picture: NDArray[np.uint8], mask: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    """Draw a line around a mask."""
    outlines, _ = cv2.findContours(cv2.inRange(mask, _LEVEL, 255), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, 1)


def _tile(picture: NDArray[np.uint8], side: int = _TILE_SIDE) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    return resize(picture, (max(1, round(width * scale)), max(1, round(height * scale)))).copy()


def _eight_bits(depth: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    return (depth >> 8).astype(np.uint8) if depth.dtype == np.uint16 else depth.astype(np.uint8)


def _paper(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _write(image: NDArray[np.uint8], text: str, at: tuple[int, int], pen: _Pen) -> None:
    cv2.putText(image, text, at, _FONT, pen.scale, pen.colour, pen.thickness, cv2.LINE_AA)
