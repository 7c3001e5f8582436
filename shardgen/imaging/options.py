"""The choices for pictures, as words and numbers; without pixels and without OpenCV."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class MaskMode(StrEnum):
    """How a foreground's mask is found. In a plan a foreground has any of these but AUTO."""

    AUTO = "auto"
    ALPHA = "alpha"
    FLAT = "flat"
    GRABCUT = "grabcut"
    FILE = "file"


class Blend(StrEnum):
    """How a foreground is laid over the canvas: by its binary mask, or by its raw matte."""

    MASK = "mask"
    ALPHA = "alpha"


class DepthEncoding(StrEnum):
    """8 bit, per image min-max, near is white; or 16 bit relative depth, not inverted."""

    INVERSE_MINMAX = "inverse-minmax"
    RELATIVE = "relative"


class ImageFormat(StrEnum):
    """File format of an output image."""

    JPEG = "jpeg"
    WEBP = "webp"
    PNG = "png"

    @property
    def suffix(self) -> str:
        """File name ending, without the dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value

    @property
    def longest_side(self) -> int | None:
        """The most pixels of a side that can be stored; None: more than a photograph has."""
        return {ImageFormat.JPEG: 65_500, ImageFormat.WEBP: 16_383, ImageFormat.PNG: None}[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """The placed foreground on the canvas, in pixels; (0, 0) is the top left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        """From the top to the bottom."""
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        """From the left to the right."""
        return slice(self.x, self.x + self.width)


def around(rectangles: Iterable[Rectangle]) -> Rectangle:
    """The smallest rectangle around one or more."""
    rows, columns = zip(*((one.rows, one.columns) for one in rectangles), strict=True)
    left, top = min(one.start for one in columns), min(one.start for one in rows)
    right, bottom = max(one.stop for one in columns), max(one.stop for one in rows)
    return Rectangle(x=left, y=top, width=right - left, height=bottom - top)
