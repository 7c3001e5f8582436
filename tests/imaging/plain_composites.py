"""Composites the plain way: whole canvases are resized, and every file is decoded again for its sums.

What shardgen makes has the same pixels and sums. Tests and benchmarks compare.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import OutputSums
from shardgen.imaging.codec import decode_encoded, encode
from shardgen.imaging.compose import Canvas, Measured, instances, network_input
from shardgen.imaging.masks import Box, box_of
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import DepthEncoding, ImageFormat
from shardgen.recipes.base import Encoded
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.plan import FGBG, INSTANCES, MASK, CompositesPlan
from shardgen.recipes.depth import DEPTH


class PlainComposer(Composer):
    """Paints and resizes whole canvases; a sample's picture has the canvas's size."""

    def _compose(self, sample: SampleIndex) -> ComposedSample:
        plan, canvas = self._plan, self.canvas(sample)
        return ComposedSample(
            sample=sample,
            picture=canvas.fgbg,
            measured=plain_measured(canvas, plan.output.size, with_instances=plan.most_people > 1),
            network_input=(
                np.empty((0, 0, 3), np.uint8)
                if plan.depth is None
                else network_input(canvas.fgbg, plan.depth.input)
            ),
        )


def plain_measured(canvas: Canvas, size: tuple[int, int], *, with_instances: bool) -> Measured:
    """The masks of a whole canvas, resized to `size` (width, height)."""
    mask = resize(canvas.mask, size)
    figures = [mask]
    if len(canvas.figures) > 1:
        figures = [resize(figure.mask, size) for figure in canvas.figures]
    return Measured(
        mask=mask,
        instances=instances(mask, figures) if with_instances else None,
        boxes=tuple(
            (visible.box, visible.per_mille, box_of(figure))
            for visible, figure in zip(canvas.figures, figures, strict=True)
        ),
    )


def plain_encoded(sample: ComposedSample, depth: NDArray[np.float32], plan: CompositesPlan) -> Encoded:
    """The files of a plain sample; every one is decoded again."""
    formats = plan.output
    stored = resize(sample.picture, formats.size)
    files = {
        FGBG: encode(stored, formats.image, formats.image_quality),
        MASK: encode(sample.measured.mask, formats.mask, formats.image_quality),
    }
    if plan.depth is not None:
        grey = plain_depth_image(depth, plan.depth.size or formats.size, plan.depth.encoding)
        files[DEPTH] = encode(grey, plan.depth.format, plan.depth.quality)
    if sample.measured.instances is not None:
        files[INSTANCES] = encode(sample.measured.instances, ImageFormat.PNG, 100)
    facts: list[int] = []
    for on_canvas, per_mille, in_mask in sample.measured.boxes:
        facts += [*_numbers(on_canvas), per_mille, *_numbers(in_mask)]
    return Encoded(
        files=files,
        sums={
            name: plain_sums(decode_encoded(data, channels=3 if name == FGBG else 1))
            for name, data in files.items()
        },
        facts=tuple(facts),
    )


def plain_depth_image(
    depth: NDArray[np.float32], size: tuple[int, int], encoding: DepthEncoding
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The depth image, (h, w), of relative depth float32 (H, W)."""
    wide: NDArray[np.float64] = resize(depth, size).astype(np.float64)
    if encoding is DepthEncoding.RELATIVE:
        return np.rint(np.clip(wide, 0.0, 1.0) * 65535).astype(np.uint16)
    nearest, farthest = wide.min(), wide.max()
    if nearest == farthest or depth.min() == depth.max():
        return np.full(wide.shape, 128, np.uint8)
    stretched: NDArray[np.uint8] = ((wide - nearest) * 255.0 / (farthest - nearest)).astype(np.uint8)
    return 255 - stretched


def plain_depth_of(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Relative depth of raw outputs, float32 (h, w)."""
    with np.errstate(over="ignore"):
        inverse = np.float32(1000) / np.where(raw <= 0, np.float32(1), raw)
    return np.asarray(np.clip(inverse, 10.0, 1000.0) / np.float32(1000), np.float32)


def plain_sums(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> OutputSums:
    """Sums of an image (H, W[, 3]), by channel."""
    exact = np.float64 if pixels.dtype == np.uint8 else np.uint64
    planes = [channel.astype(exact).ravel() for channel in cv2.split(pixels)]
    return OutputSums(
        images=1,
        pixels=planes[0].size,
        sum=tuple(int(plane.sum()) for plane in planes),
        squares=tuple(int(np.einsum("p,p->", plane, plane)) for plane in planes),
    )


def _numbers(box: Box) -> tuple[int, ...]:
    return box.x, box.y, box.width, box.height, box.area
