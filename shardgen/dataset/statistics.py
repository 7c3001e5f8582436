"""`stats.json`: mean and population standard deviation from exact integer sums, each rounded once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isqrt
from typing import Any

from shardgen.domain.plan import Plan
from shardgen.domain.receipt import OutputSums, Sums
from shardgen.storage.bounded import parse_json

# A root that is not exact differs from any midpoint of two doubles by far more than 2**-512 of itself.
_ROOT_BITS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStatistics:
    """Of the images of one output, per channel, pixels from 0 to 1; no numbers when there is no pixel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    pixels: int


Statistics = dict[str, OutputStatistics]
"""By the name of the output, of those that are images."""


def statistics(plan: Plan, sums: Sums) -> Statistics:
    """Compute the statistics of all images together."""
    return {
        output.name: _of_output(sums[output.name], output.full_scale)
        for output in plan.outputs
        if output.full_scale is not None
    }


def stats_json(values: Statistics) -> bytes:
    """Write the bytes of `stats.json`."""
    content = {
        name: {
            "mean": list(values[name].mean),
            "std": list(values[name].std),
            "images": values[name].images,
            "pixels": values[name].pixels,
        }
        for name in values
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def read_statistics(data: bytes, plan: Plan) -> Statistics:
    """Read the bytes of `stats.json`. Raises ValueError for what is not written of this plan."""
    content: Any = parse_json(data)
    channels = {one.name: one.channels for one in plan.outputs if one.full_scale is not None}
    if not isinstance(content, dict) or content.keys() != channels.keys():
        raise ValueError("has other outputs than the plan")
    return {name: _read(content[name], channels[name]) for name in channels}


def _read(found: Any, channels: int) -> OutputStatistics:
    if not isinstance(found, dict) or found.keys() != {"mean", "std", "images", "pixels"}:
        raise ValueError("has other keys of an output")
    mean, std, images, pixels = found["mean"], found["std"], found["images"], found["pixels"]
    if any(type(count) is not int or count < 0 for count in (images, pixels)):
        raise ValueError("has impossible counts")
    for numbers in (mean, std):
        if not isinstance(numbers, list) or len(numbers) != (channels if pixels else 0):
            raise ValueError("has other channels than the plan")
        if not all(type(number) is float and isfinite(number) for number in numbers):
            raise ValueError("has values that are not finite numbers")
    return OutputStatistics(mean=tuple(mean), std=tuple(std), images=images, pixels=pixels)


def _of_output(sums: OutputSums, largest: int) -> OutputStatistics:
    if sums.pixels == 0:
        return OutputStatistics(mean=(), std=(), images=sums.images, pixels=0)
    scale = sums.pixels * largest
    deviations = (
        _root(squares * sums.pixels - total * total, scale)
        for total, squares in zip(sums.sum, sums.squares, strict=True)
    )
    return OutputStatistics(
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
