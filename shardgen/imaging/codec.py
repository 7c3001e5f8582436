"""Bytes to pixels and back: the only place that knows OpenCV's BGR order and its habits on bad files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import EncodeFailed, SourceUndecodable
from shardgen.imaging.containers import png
from shardgen.imaging.containers.detect import read_header
from shardgen.imaging.containers.header import Header
from shardgen.imaging.opencv import opencv_errors
from shardgen.imaging.options import ImageFormat

Decoded = NDArray[np.integer[Any] | np.floating[Any]]
"""Whatever OpenCV found: any depth, grey, BGR or BGRA."""
# libjpeg fills what is missing of a JPEG with exactly this grey.
_JPEG_FILL = 128
_JPEG_FILL_TOLERANCE = 2
# Bytes that no decoder takes for the end of the data: they hold no 0xFF.
_JPEG_PROBE = bytes(range(1, 252, 5)) * 8
_LARGEST_16_BIT = 65535
# Of five strategies at six levels, run-length coding made the smallest 200x200 masks (326 bytes) and grey
# depth (24 kB, 0.7 ms); the level changes nothing then. Only 16-bit depth would be 8 % smaller otherwise.
_PNG_LEVEL, _PNG_STRATEGY = 4, cv2.IMWRITE_PNG_STRATEGY_RLE
OPENCV_VERSION: str = cv2.__version__
"""The version that decides the bytes, for a receipt's provenance."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Photograph:
    """Decoded pixels: uint8 (H, W, 3) RGB; `alpha` uint8 (H, W) or None, 255 is opaque.

    EXIF `orientation` (1-8) is applied to both. `notes` says what was converted on the way, `warnings` what
    asks for a look, one phrase each.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    orientation: int = 1

    @property
    def width(self) -> int:
        """Pixels across, after EXIF orientation."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels down, after EXIF orientation."""
        return int(self.pixels.shape[0])


def decode(data: bytes) -> Photograph:
    """Decode a JPEG, PNG, WebP, BMP or TIFF photograph; raises SourceUndecodable with the reason."""
    header = read_header(data)
    decoded = _opencv_pixels(data, header)
    _refuse_padding(data, header, decoded)
    notes: list[str] = []
    if header.cmyk:
        notes.append(f"{header.cmyk} converted to RGB")
    transparency = None
    if header.transparent_grey is not None and decoded.ndim == 2:
        transparency = np.where(decoded == header.transparent_grey, 0, 255).astype(np.uint8)
    if decoded.dtype == np.uint16:
        decoded = _eight_bit_table()[decoded]
        notes.append("16 bits per channel converted to 8")
    if decoded.dtype != np.uint8:
        raise SourceUndecodable(f"{decoded.dtype} pixels are not supported", hint="save it with 8 or 16 bits")
    pixels, alpha = _split(decoded)
    alpha = transparency if alpha is None else alpha
    if header.alpha_is_padding:
        alpha = None
    if header.premultiplied and alpha is not None:
        pixels = _divide_by_alpha(pixels, alpha)
    return Photograph(
        pixels=_oriented(pixels, header.orientation),
        alpha=None if alpha is None else _oriented(alpha, header.orientation),
        notes=tuple(notes),
        orientation=header.orientation,
    )


def encode(pixels: NDArray[np.uint8] | NDArray[np.uint16], image_format: ImageFormat, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB or (H, W) grey (uint16 grey for PNG); the same pixels give the same bytes.

    `quality` is 1-100, for JPEG and WebP; PNG is lossless and ignores it.
    """
    if image_format is ImageFormat.JPEG:
        parameters = [cv2.IMWRITE_JPEG_QUALITY, quality]
    elif image_format is ImageFormat.WEBP:
        parameters = [cv2.IMWRITE_WEBP_QUALITY, quality]
    else:
        parameters = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL, cv2.IMWRITE_PNG_STRATEGY, _PNG_STRATEGY]
    if pixels.dtype == np.uint16 and image_format is not ImageFormat.PNG:
        raise EncodeFailed(
            f"16-bit pixels cannot be stored as {image_format.value}", hint='set depth = "png" in [output]'
        )
    subject = f"{image_format.value} of {pixels.shape} {pixels.dtype}"
    with opencv_errors(lambda reason: EncodeFailed(f"{subject}: {reason}")):
        source = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
        succeeded, buffer = cv2.imencode(f".{image_format.suffix}", source, parameters)
    if not succeeded:
        raise EncodeFailed(f"{subject}: OpenCV refused")
    return buffer.tobytes()


def decode_encoded(
    data: bytes, *, channels: int, size: tuple[int, int] | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode one of our own outputs: (H, W, 3) RGB for 3 channels, (H, W) grey for 1; 16 bits stay 16.

    `size` is the (width, height) that it must have, looked at before any pixel is decoded: what lies in a
    zip or an artifact may come from anywhere. Raises EncodeFailed, or SourceUndecodable for a broken header.
    """
    if size is not None:
        found = _claimed_size(data)
        if found != size:
            raise EncodeFailed(
                f"an encoded image has {found[0]}x{found[1]} pixels (expected {size[0]}x{size[1]})"
            )
    flags = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    with opencv_errors(lambda reason: EncodeFailed(f"an encoded image does not decode: {reason}")):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_ANYDEPTH)
    if decoded is None:
        raise EncodeFailed("an encoded image does not decode")
    if channels == 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return decoded  # type: ignore[return-value]  # OpenCV's stubs do not know the depth


def _claimed_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header says; of a PNG without inflating all of it, as `read_header` does."""
    if data.startswith(png.SIGNATURE) and len(data) >= 24:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    header = read_header(data)
    return header.width, header.height


def _opencv_pixels(data: bytes, header: Header) -> Decoded:
    """OpenCV's array as it is: BGR(A) or grey. UNCHANGED keeps alpha, and ignores EXIF except in TIFF."""
    with opencv_errors(lambda reason: SourceUndecodable(f"unreadable {header.container}: {reason}")):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.shape[:2] != (header.height, header.width):
        raise SourceUndecodable(f"unreadable {header.container}: its image data are damaged")
    return decoded


def _refuse_padding(data: bytes, header: Header, decoded: Decoded) -> None:
    """Refuse a JPEG whose data run out before its end marker, which libjpeg pads with grey.

    Bytes put before the end marker change nothing in a whole image, and the picture of a cut one.
    """
    last = decoded[-1, -1].astype(np.int64)
    if header.jpeg_end is None or np.abs(last - _JPEG_FILL).max() > _JPEG_FILL_TOLERANCE:
        return
    probed = data[: header.jpeg_end] + _JPEG_PROBE + data[header.jpeg_end :]
    if not np.array_equal(_opencv_pixels(probed, header), decoded):
        raise SourceUndecodable(
            "truncated JPEG: its data end before the last row", hint="copy or export the file again"
        )


@cache
def _eight_bit_table() -> NDArray[np.uint8]:
    """Every 16-bit value as round(value / 257)."""
    return ((np.arange(_LARGEST_16_BIT + 1) + 128) // 257).astype(np.uint8)


def _split(decoded: Decoded) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    channels = 1 if decoded.ndim == 2 else decoded.shape[2]
    if channels == 1:
        return cv2.cvtColor(decoded, cv2.COLOR_GRAY2RGB), None  # type: ignore[return-value]
    if channels == 4:
        alpha = np.ascontiguousarray(decoded[:, :, 3])
        return cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB), alpha  # type: ignore[return-value]
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), None  # type: ignore[return-value]


def _divide_by_alpha(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo a multiplication by alpha; a colour above its alpha proves that there was none."""
    if (pixels > alpha[:, :, np.newaxis]).any():
        return pixels
    scale = 255.0 / np.maximum(alpha, 1).astype(np.float32)
    return np.rint(pixels * scale[:, :, np.newaxis]).astype(np.uint8)


def _oriented(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an image (H, W[, 3]) from how it is stored to how it is seen."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
