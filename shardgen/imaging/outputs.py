"""From a canvas and its depth to the three stored images, and exact sums over what was stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.domain.plan import DepthEncoding, Output
from shardgen.domain.receipt import ImageKind, KindSums, Sums
from shardgen.domain.sample import output_format
from shardgen.errors import EncodeFailed
from shardgen.imaging.codec import decode_encoded, encode
from shardgen.imaging.compose import Canvas
from shardgen.imaging.opencv import resize

_MID_GREY = 128
_LARGEST_16_BIT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """The three files of a sample, and their sums over the pixels that a reader will see."""

    images: Mapping[ImageKind, bytes]
    sums: Sums


def output_images(canvas: Canvas, output: Output) -> dict[ImageKind, NDArray[np.uint8]]:
    """Resize composite, uint8 (h, w, 3) RGB, and mask, uint8 (h, w), to the output size; edges turn grey."""
    return {
        ImageKind.FGBG: resize(canvas.fgbg, output.size),
        ImageKind.MASK: resize(canvas.mask, output.size),
    }


def depth_image(
    relative_depth: NDArray[np.float32], size: tuple[int, int], encoding: DepthEncoding
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Make the depth image, (h, w), of relative depth float32 (H, W): 0.01 is near, 1.0 far.

    INVERSE_MINMAX gives uint8, stretched over the image, near is white, a constant map 128; RELATIVE gives
    uint16, depth times 65535.
    """
    # In float64 255 * (d - min) is exact, so the farthest pixel is exactly 0.
    depth = resize(relative_depth, size).astype(np.float64)
    if encoding is DepthEncoding.RELATIVE:
        return np.rint(np.clip(depth, 0.0, 1.0) * _LARGEST_16_BIT).astype(np.uint16)
    nearest, farthest = depth.min(), depth.max()
    if not np.isfinite(farthest - nearest):
        raise EncodeFailed("the depth holds NaN or infinity")
    # A constant map is told before it is resized: averaging in float32 leaves noise that would be stretched.
    if nearest == farthest or relative_depth.min() == relative_depth.max():
        return np.full(depth.shape, _MID_GREY, np.uint8)
    depth -= nearest
    depth *= 255.0
    depth /= farthest - nearest
    return 255 - depth.astype(np.uint8)


def encode_sample(
    canvas: Canvas, relative_depth: NDArray[np.float32], output: Output, encoding: DepthEncoding
) -> EncodedSample:
    """Encode the three images of a sample and sum up the pixels of what was encoded; raises EncodeFailed."""
    pixels: dict[ImageKind, NDArray[np.uint8] | NDArray[np.uint16]] = {
        **output_images(canvas, output),
        ImageKind.DEPTH: depth_image(relative_depth, output.size, encoding),
    }
    images = {}
    for kind in ImageKind:
        quality = output.depth_quality if kind is ImageKind.DEPTH else output.image_quality
        images[kind] = encode(pixels[kind], output_format(output, kind), quality)
    sums = {kind: sums_of(kind, decode_encoded(images[kind], channels=kind.channels)) for kind in ImageKind}
    return EncodedSample(images=images, sums=sums)


def sums_of(kind: ImageKind, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> KindSums:
    """Sum an image exactly: (H, W, 3) RGB or (H, W), 8 or 16 bits, of up to 2**31 pixels."""
    # float64 is exact up to 2**53, which 8-bit squares stay below; 16-bit ones need the integers
    exact = np.float64 if pixels.dtype == np.uint8 else np.uint64
    planes = [plane.astype(exact).ravel() for plane in cv2.split(pixels)]
    if len(planes) != kind.channels:
        raise EncodeFailed(f"{kind.value} decodes to {len(planes)} channels (expected {kind.channels})")
    return KindSums(
        images=1,
        pixels=planes[0].size,
        sum=tuple(int(plane.sum()) for plane in planes),
        squares=tuple(int(np.einsum("p,p->", plane, plane)) for plane in planes),
    )
