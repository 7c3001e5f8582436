"""Pictures as they are stored: depth as grey levels, and exact sums over the pixels of a stored image."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.domain.receipt import OutputSums
from shardgen.errors import EncodeFailed
from shardgen.imaging.codec import decode_encoded, encode, encode_mask
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
    resized = resize(relative_depth, size)
    # In float64 255 * (d - min) is exact, so the farthest pixel is exactly 0.
    depth = resized.astype(np.float64)
    if encoding is DepthEncoding.RELATIVE:
        return np.rint(np.clip(depth, 0.0, 1.0) * _LARGEST_16_BIT).astype(np.uint16)
    nearest, farthest = float(resized.min()), float(resized.max())
    if not math.isfinite(farthest - nearest):
        raise EncodeFailed("the depth holds NaN or infinity")
    # A constant map is told before it is resized: averaging in float32 leaves noise that would be stretched.
    if nearest == farthest or _is_constant(relative_depth):
        return np.full(depth.shape, _MID_GREY, np.uint8)
    depth -= nearest
    depth *= 255.0
    depth /= farthest - nearest
    return 255 - depth.astype(np.uint8)


def _is_constant(depth: NDArray[np.float32]) -> bool:
    first = depth.flat[0]
    return bool(depth.flat[-1] == first and (depth == first).all())


def depth_picture(
    relative_depth: NDArray[np.float32],
    size: tuple[int, int],
    encoding: DepthEncoding,
    stored_as: ImageFormat,
    quality: int,
) -> tuple[bytes, OutputSums]:
    """Encode the depth image of relative depth float32 (H, W) at `size` (width, height); see `depth_image`.

    Returns the file and its sums. Raises EncodeFailed.
    """
    if encoding is DepthEncoding.RELATIVE and stored_as is not ImageFormat.PNG:
        raise EncodeFailed("relative depth has 16 bits and needs PNG", hint='set depth = "png" in [output]')
    return picture(depth_image(relative_depth, size, encoding), stored_as, quality)


def picture(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], stored_as: ImageFormat, quality: int
) -> tuple[bytes, OutputSums]:
    """Encode an image as `encode` does; its file and its sums. Raises EncodeFailed."""
    return _with_sums(encode(pixels, stored_as, quality), pixels, stored_as)


def mask_picture(mask: NDArray[np.uint8], stored_as: ImageFormat, quality: int) -> tuple[bytes, OutputSums]:
    """Encode a mask, uint8 (H, W), as `encode_mask` does; its file and its sums. Raises EncodeFailed."""
    return _with_sums(encode_mask(mask, stored_as, quality), mask, stored_as)


def _with_sums(
    data: bytes, pixels: NDArray[np.uint8] | NDArray[np.uint16], stored_as: ImageFormat
) -> tuple[bytes, OutputSums]:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if stored_as is ImageFormat.PNG:  # which gives back the very pixels
        return data, sums_of(pixels, channels=channels)
    return data, stored_sums(data, channels=channels)


def stored_sums(data: bytes, *, channels: int, size: tuple[int, int] | None = None) -> OutputSums:
    """The sums of an encoded image, decoded again; `size` (width, height) is what it must have.

    Raises EncodeFailed, before it takes memory for an image of another size.
    """
    return sums_of(decode_encoded(data, channels=channels, size=size), channels=channels)


def sums_of(pixels: NDArray[np.uint8] | NDArray[np.uint16], *, channels: int) -> OutputSums:
    """Sum an image exactly: (H, W, 3) RGB or (H, W), 8 or 16 bits, of up to 2**31 pixels."""
    planes = cv2.split(pixels)
    if len(planes) != channels:
        raise EncodeFailed(f"decodes to {len(planes)} channels (expected {channels})")
    # OpenCV adds up 8 bits as integers, and tells them as doubles, which are exact up to 2**53.
    of_plane = _sums_of_8_bits if pixels.dtype == np.uint8 else _sums_of_16_bits
    sums, squares = zip(*map(of_plane, planes), strict=True)
    return OutputSums(images=1, pixels=pixels.shape[0] * pixels.shape[1], sum=sums, squares=squares)


def _sums_of_8_bits(plane: NDArray[Any]) -> tuple[int, int]:
    # Rounded, since Intel's library gives the root of the squares, which is squared again.
    return int(cv2.sumElems(plane)[0]), round(cv2.norm(plane, cv2.NORM_L2SQR))


def _sums_of_16_bits(plane: NDArray[Any]) -> tuple[int, int]:
    wide = plane.ravel().astype(np.uint64)
    return int(wide.sum()), int(np.einsum("p,p->", wide, wide))
