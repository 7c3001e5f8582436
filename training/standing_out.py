"""How often a cut-out stands out in the depth of a composite: nearer than what is beside it.

Measured on the composites of `shardgen demo`, whose photographs are real. Nobody knows their depth, but
somebody who is pasted in front of a scene should not melt into it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.operations.demo import prepare
from shardgen.operations.plan import make_plan
from shardgen.recipes.composites.composer import Composer
from shardgen.recipes.composites.plan import CompositesPlan

CLEARLY = 1.1  # times the nearness (1 / depth) of what is around
_EDGE, _RING = 5, 17  # pixels of 320x240: left out on both sides of the outline; how wide "around" is

Images = NDArray[np.uint8]
Depth = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composites:
    """`images` uint8 (B, 480, 640, 3) RGB; `masks` bool (B, 240, 320), what is pasted."""

    images: Images
    masks: NDArray[np.bool_]


def demo_composites() -> Composites:
    """Every composite of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(Path(folder) / "demo")
        plan, folders = CompositesPlan(make_plan(run, {}).plan), run.folders({})
        composer = Composer(plan, folders["foregrounds"], folders["backgrounds"])
        samples = [SampleIndex(sample) for sample in range(plan.samples)]
        images = [composer.compose(sample).network_input for sample in samples]
        pasted = [composer.canvas(sample).mask for sample in samples]
    masks = [cv2.resize(mask, (320, 240), interpolation=cv2.INTER_AREA) >= 128 for mask in pasted]
    return Composites(images=np.stack(images), masks=np.stack(masks))


def nearness_ratio(depth: Depth, mask: NDArray[np.bool_]) -> float:
    """How much nearer an outline's inside is than what is left and right of it in the same rows.

    The median over rows of the medians of 1 / depth, inside over around; float32 and bool (240, 320). Row by
    row, so that a floor below is no merit: to a ramp from top to bottom this is 1. Also 1.0 where nothing
    compares.
    """
    pasted = mask.astype(np.uint8)
    inside = cv2.erode(pasted, _square(_EDGE)) > 0
    around = (cv2.dilate(pasted, _square(_EDGE + _RING)) > 0) & (cv2.dilate(pasted, _square(_EDGE)) == 0)
    nearness = 1 / depth
    rows = [
        np.median(row[within]) / np.median(row[beside])
        for row, within, beside in zip(nearness, inside, around, strict=True)
        if within.any() and beside.any()
    ]
    return float(np.median(rows)) if rows else 1.0


def ratios(estimate: Callable[[Images], Depth], composites: Composites) -> NDArray[np.float64]:
    """Of each composite: above 1 it stands out, above CLEARLY clearly."""
    found = [
        nearness_ratio(depth, mask)
        for at in range(0, len(composites.images), 8)
        for depth, mask in zip(
            estimate(composites.images[at : at + 8]), composites.masks[at : at + 8], strict=True
        )
    ]
    return np.asarray(found)


def _square(margin: int) -> NDArray[np.uint8]:
    return np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
