"""`stats.json`: mean and population standard deviation from exact integer sums, each rounded once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind, KindSums, Sums
from shardgen.imaging.options import DepthEncoding

# A root that is not exact differs from any midpoint of two doubles by far more than 2**-512 of itself.
_ROOT_BITS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class KindStatistics:
    """Of one kind of image, per channel, pixels from 0 to 1; no numbers when there is no pixel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    pixels: int


Statistics = dict[ImageKind, KindStatistics]


def statistics(plan: Plan, sums: Sums) -> Statistics:
    """Compute the statistics of all images together."""
    return {kind: _of_kind(sums[kind], largest_value(plan, kind)) for kind in ImageKind}


def largest_value(plan: Plan, kind: ImageKind) -> int:
    """Tell the pixel value that counts as 1: 65535 for 16 bit depth, else 255."""
    is_wide = kind is ImageKind.DEPTH and plan.depth.encoding is DepthEncoding.RELATIVE
    return 65_535 if is_wide else 255


def stats_json(values: Statistics) -> bytes:
    """Write the bytes of `stats.json`."""
    content = {
        kind.value: {
            "mean": list(values[kind].mean),
            "std": list(values[kind].std),
            "images": values[kind].images,
            "pixels": values[kind].pixels,
        }
        for kind in ImageKind
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _of_kind(sums: KindSums, largest: int) -> KindStatistics:
    if sums.pixels == 0:
        return KindStatistics(mean=(), std=(), images=sums.images, pixels=0)
    scale = sums.pixels * largest
    deviations = (
        _root(squares * sums.pixels - total * total, scale)
        for total, squares in zip(sums.sum, sums.squares, strict=True)
    )
    return KindStatistics(
        mean=tuple(float(Fraction(total, scale)) for total in sums.sum),
        std=tuple(deviations),
        images=sums.images,
        pixels=sums.pixels,
    )


def _root(radicand: int, scale: int) -> float:
    """`sqrt(radicand) / scale`, correctly rounded: Python divides integers exactly, then rounds once."""
    shifted = radicand << 2 * _ROOT_BITS
    root = isqrt(shifted)
    is_exact = root * root == shifted
    return float(Fraction(2 * root + (not is_exact), scale << _ROOT_BITS + 1))
