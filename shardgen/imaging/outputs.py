"""Pictures as they are stored: depth as grey levels, and exact sums over the pixels of a stored image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.domain.receipt import OutputSums
from shardgen.errors import EncodeFailed
from shardgen.imaging.codec import decode_encoded, encode
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import DepthEncoding, ImageFormat

_MID_GREY = 128
_LARGEST_16_BIT = 65535


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


def depth_picture(
    relative_depth: NDArray[np.float32],
    size: tuple[int, int],
    encoding: DepthEncoding,
    stored_as: ImageFormat,
    quality: int,
) -> bytes:
    """Encode the depth image of relative depth float32 (H, W) at `size` (width, height); see `depth_image`.

    Raises EncodeFailed.
    """
    if encoding is DepthEncoding.RELATIVE and stored_as is not ImageFormat.PNG:
        raise EncodeFailed("relative depth has 16 bits and needs PNG", hint='set depth = "png" in [output]')
    return encode(depth_image(relative_depth, size, encoding), stored_as, quality)


def stored_sums(data: bytes, *, channels: int, size: tuple[int, int] | None = None) -> OutputSums:
    """The sums of an encoded image, decoded again; `size` (width, height) is what it must have.

    Raises EncodeFailed, before it takes memory for an image of another size.
    """
    return sums_of(decode_encoded(data, channels=channels, size=size), channels=channels)


def sums_of(pixels: NDArray[np.uint8] | NDArray[np.uint16], *, channels: int) -> OutputSums:
    """Sum an image exactly: (H, W, 3) RGB or (H, W), 8 or 16 bits, of up to 2**31 pixels."""
    # float64 is exact up to 2**53, which 8-bit squares stay below; 16-bit ones need the integers
    exact = np.float64 if pixels.dtype == np.uint8 else np.uint64
    sums, squares = list[int](), list[int]()
    for channel in cv2.split(pixels):  # one after the other: each takes eight times its memory
        plane = channel.astype(exact).ravel()
        sums.append(int(plane.sum()))
        squares.append(int(np.einsum("p,p->", plane, plane)))
    if len(sums) != channels:
        raise EncodeFailed(f"decodes to {len(sums)} channels (expected {channels})")
    return OutputSums(
        images=1, pixels=pixels.shape[0] * pixels.shape[1], sum=tuple(sums), squares=tuple(squares)
    )
