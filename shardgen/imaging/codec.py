"""Bytes to pixels and back: photographs by the library that suits their container, outputs by OpenCV."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import imagecodecs
import numpy as np
import PIL
import simplejpeg
import tifffile
from numpy.typing import NDArray

from shardgen.errors import EncodeFailed, MachineUnfit, SourceUndecodable
from shardgen.imaging.colour import to_srgb
from shardgen.imaging.containers import bmp, heif, jpeg, png, tiff, webp
from shardgen.imaging.containers.base import AGAIN, Levels, Outline, Stored, by_strips, check_size, library
from shardgen.imaging.opencv import opencv_errors
from shardgen.imaging.options import ImageFormat

_LARGEST_16_BIT = 65535
# Of five strategies at six levels, run-length coding made the smallest 200x200 masks (326 bytes) and grey
# depth (24 kB, 0.7 ms); the level changes nothing then. Only 16-bit depth would be 8 % smaller otherwise.
_PNG_LEVEL, _PNG_STRATEGY = 4, cv2.IMWRITE_PNG_STRATEGY_RLE
VERSIONS = {
    "imagecodecs": imagecodecs.__version__,
    "opencv": cv2.__version__,
    "pillow": PIL.__version__,
    "simplejpeg": simplejpeg.__version__,
    "tifffile": tifffile.__version__,
    "zlib": zlib.ZLIB_RUNTIME_VERSION,
}
"""The libraries' versions that can change pixels or files, for a receipt's provenance."""
_LISTED = "JPEG, PNG, WebP, BMP or TIFF"
# What is found under the name of a photograph: its first bytes, its name, what to do with it.
_OTHERS = (
    (b"GIF8", "GIF", "save it as PNG"),
    (b"%PDF", "PDF", "export its picture as PNG"),
    (b"8BPS", "Photoshop's PSD", "export it as PNG"),
    (b"\xff\x0a", "JPEG XL", "save it as PNG"),
    (b"\0\0\0\x0cJXL ", "JPEG XL", "save it as PNG"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", "save it as PNG"),
    (b"\xff\x4f\xff\x51", "JPEG 2000", "save it as PNG"),
)
_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head")


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
    """Decode a JPEG, PNG, WebP, BMP, TIFF or HEIC photograph; raises SourceUndecodable with the reason.

    16 bits are rounded to 8, an alpha that colours were multiplied by is divided out again, a colour profile
    is applied, the orientation too: in this order. Raises MachineUnfit for HEIC without pillow-heif.
    """
    with library("photograph"):  # what no reader expects of a file is damage too
        stored = _reader(data).stored(data)
    notes = list(stored.notes)
    pixels, alpha = stored.pixels, stored.alpha
    if pixels.dtype == np.uint16:
        notes.append(f"{stored.bits} bits per channel converted to 8")
    if stored.premultiplied and alpha is not None:
        pixels = _divided_by_alpha(pixels, alpha)
    converted = to_srgb(_eight_bits(pixels), stored.profile)
    if converted.note:
        notes.append(converted.note)
    pixels = converted.pixels
    rgb = np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels
    return Photograph(
        pixels=_oriented(rgb, stored.orientation),
        alpha=None if alpha is None else _oriented(_eight_bits(alpha), stored.orientation),
        notes=tuple(notes),
        warnings=(*stored.warnings, converted.warning) if converted.warning else stored.warnings,
        orientation=stored.orientation,
    )


def probe(data: bytes) -> tuple[int, int]:
    """Width and height that `decode` will give, after EXIF orientation; no pixel is decoded.

    Errors as `decode`, of what headers tell: a file that passes may still not decode.
    """
    with library("photograph"):
        outline = _reader(data).outline(data)
        check_size(outline.width, outline.height)
    if outline.orientation >= 5:
        return outline.height, outline.width
    return outline.width, outline.height


def claimed_pixels(data: bytes) -> int:
    """How many pixels its headers claim, at little cost; 0 where they do not read."""
    try:
        if data.startswith(jpeg.START):
            width, height = jpeg.size_of(data)
        elif data.startswith(png.SIGNATURE):
            width, height = png.size_of(data)
        else:
            width, height = probe(data)
    except (SourceUndecodable, MachineUnfit):
        return 0
    return width * height


@dataclass(frozen=True, slots=True)
class _Reader:
    """What reads one container: a picture, and what its headers say."""

    stored: Callable[[bytes], Stored]
    outline: Callable[[bytes], Outline]


def _reader(data: bytes) -> _Reader:
    """Who reads it, by its first bytes, never by its name."""
    if not data:
        raise SourceUndecodable("empty file (0 bytes)", hint=AGAIN)
    if data.startswith(jpeg.START):
        return _Reader(jpeg.read_jpeg, jpeg.outline_of)
    if data.startswith(png.SIGNATURE):
        return _Reader(png.read_png, png.outline_of)
    if webp.is_webp(data):
        return _Reader(webp.read_webp, webp.outline_of)
    if data.startswith(b"BM"):
        return _Reader(bmp.read_bmp, bmp.outline_of)
    if data.startswith(tiff.STARTS):
        return _Reader(tiff.read_tiff, tiff.outline_of)
    brands = heif.brands_of(data)
    if brands & heif.AVIF_BRANDS:
        raise SourceUndecodable(f"AVIF is not supported (expected {_LISTED})", hint="save it as PNG")
    if brands & heif.HEIC_BRANDS:
        return _Reader(heif.read_heic, heif.outline_of)
    raise _foreign(data)


def _foreign(data: bytes) -> SourceUndecodable:
    """Name what lies there under the name of a photograph."""
    for start, name, hint in _OTHERS:
        if data.startswith(start):
            return SourceUndecodable(f"{name} is not supported (expected {_LISTED})", hint=hint)
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_POINTER):
        return SourceUndecodable("a Git LFS pointer, not the photograph", hint="run `git lfs pull`")
    if start.startswith(_WEB_PAGE):
        return SourceUndecodable("a web page, not a photograph", hint="download the photograph again")
    return SourceUndecodable(f"unreadable: not a {_LISTED} file", hint="remove it or save it as one of these")


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

    def failed(reason: str) -> EncodeFailed:
        return EncodeFailed(f"{image_format.value} of {pixels.shape} {pixels.dtype}: {reason}")

    with opencv_errors(failed):
        source = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
        succeeded, buffer = cv2.imencode(f".{image_format.suffix}", source, parameters)
    if not succeeded:
        raise failed("OpenCV refused")
    return buffer.tobytes()


def encode_mask(mask: NDArray[np.uint8], image_format: ImageFormat, quality: int) -> bytes:
    """Encode what has few levels in large areas, uint8 (H, W); the same pixels give the same bytes.

    As `encode`, but PNG has no filters: of equal pixels they make none that compress better.
    """
    if image_format is not ImageFormat.PNG:
        return encode(mask, image_format, quality)
    return png.run_lengths_of(mask)


def decode_encoded(
    data: bytes, *, channels: int, size: tuple[int, int] | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode one of our own outputs: (H, W, 3) RGB for 3 channels, (H, W) grey for 1; 16 bits stay 16.

    `size` is the (width, height) that it must have, looked at before any pixel is decoded: what lies in a
    zip or an artifact may come from anywhere. Without it any size is right that a photograph can have. Raises
    EncodeFailed, or SourceUndecodable for a broken header.
    """
    found = _claimed_size(data)
    if size is not None and found != size:
        raise EncodeFailed(
            f"an encoded image has {found[0]}x{found[1]} pixels (expected {size[0]}x{size[1]})"
        )
    check_size(*found)
    flags = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    with opencv_errors(lambda reason: EncodeFailed(f"an encoded image does not decode: {reason}")):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_ANYDEPTH)
    if decoded is None:
        raise EncodeFailed("an encoded image does not decode")
    if channels == 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return decoded  # type: ignore[return-value]  # OpenCV's stubs do not know the depth


def _claimed_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header of one of our outputs says."""
    if data.startswith(png.SIGNATURE):
        return png.size_of(data)
    if webp.is_webp(data):
        return webp.size_of(data)
    return jpeg.size_of(data)


@cache
def _eight_bit_table() -> NDArray[np.uint8]:
    """Every 16-bit value as round(value / 257)."""
    return ((np.arange(_LARGEST_16_BIT + 1) + 128) // 257).astype(np.uint8)


def _eight_bits(levels: Levels) -> NDArray[np.uint8]:
    return _eight_bit_table()[levels] if levels.dtype == np.uint16 else levels


def _divided_by_alpha(pixels: Levels, alpha: Levels) -> NDArray[np.uint8]:
    """Undo a multiplication by alpha: uint8 of uint8 or uint16. A colour above its alpha is clipped."""

    def divided(pixels: Levels, alpha: Levels) -> NDArray[np.uint8]:
        scale = 255.0 / np.maximum(alpha, 1).astype(np.float64)
        if pixels.ndim == 3:
            scale = scale[:, :, np.newaxis]
        return np.rint(np.minimum(pixels * scale, 255.0)).astype(np.uint8)

    return by_strips(np.empty(pixels.shape, np.uint8), divided, pixels, alpha)


def _oriented(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an image (H, W[, 3]) from how it is stored to how it is seen."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
