"""BMP: Pillow decodes; what headers leave open is refused here."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.base import (
    Outline,
    Stored,
    alpha_apart,
    check_size,
    library,
    truncated,
    unsupported,
)

_FILE_HEADER_BYTES = 14
_CORE_HEADER_BYTES, _INFO_HEADER_BYTES, _V3_HEADER_BYTES, _V5_HEADER_BYTES = 12, 40, 56, 124
_PLAIN, _COLOUR_MASKS = 0, 3
_EMBEDDED_PROFILE = b"DEBM"  # LCS_PROFILE_EMBEDDED, little endian
_AS_PNG = "save it as PNG"


def outline_of(data: bytes) -> Outline:
    """Its size, once its headers passed."""
    picture, _header_bytes = _opened(data)
    return Outline(*picture.size)


def read_bmp(data: bytes) -> Stored:
    """Decode a BMP; the file size field is often wrong and is not believed."""
    picture, header_bytes = _opened(data)
    with library("BMP"):
        pixels = np.asarray(picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB"))
    colours, alpha = alpha_apart(pixels)
    return Stored(
        pixels=colours,
        alpha=alpha,
        profile=_profile(data, header_bytes),
    )


def _opened(data: bytes) -> tuple[BmpImageFile, int]:
    """Check headers and length. Returns what Pillow will decode, and the bytes of the second header."""
    if len(data) < 26:
        raise truncated("BMP", "it ends inside its header")
    pixels_at, header_bytes = struct.unpack_from("<II", data, 10)
    if len(data) < min(_FILE_HEADER_BYTES + header_bytes, 54):
        raise truncated("BMP", "it ends inside its header")
    with library("BMP"):
        picture = BmpImageFile(io.BytesIO(data))
    check_size(*picture.size)
    _check(data, picture.size, header_bytes, pixels_at)
    return picture, header_bytes


def _check(data: bytes, size: tuple[int, int], header_bytes: int, pixels_at: int) -> None:
    """Refuse what headers leave open, and a file that is too short."""
    bits, compression, colours = _facts(data, header_bytes)
    problem = ""
    ends = _FILE_HEADER_BYTES + header_bytes
    if bits <= 8:
        ends += (colours or 1 << bits) * (3 if header_bytes == _CORE_HEADER_BYTES else 4)
    elif compression == _COLOUR_MASKS and header_bytes == _INFO_HEADER_BYTES:
        ends += 12
    if compression not in (_PLAIN, _COLOUR_MASKS):  # Pillow reads runs, and damaged ones as something else
        problem = "run-length coded or otherwise compressed BMP"
    elif compression == _COLOUR_MASKS and not _has_clear_masks(data, header_bytes, bits):
        problem = "BMP with unusual colour masks"
    elif pixels_at < ends:
        problem = "BMP whose pixels begin inside its header or palette"
    if problem:
        raise unsupported(problem, _AS_PNG)
    stop = pixels_at + -(-size[0] * bits // 32) * 4 * size[1]
    if stop > len(data):
        raise truncated("BMP", f"{len(data):,} of {stop:,} bytes")
    if bits == 32 and compression == _PLAIN:
        _refuse_unnamed_alpha(np.frombuffer(data, np.uint8, size[0] * size[1] * 4, pixels_at)[3::4])


def _has_clear_masks(data: bytes, header_bytes: int, bits: int) -> bool:
    """Whether all colours have a mask; Pillow knows alpha masks only among 32 bits."""
    masks = struct.unpack_from("<4I", data[54:70].ljust(16, b"\0"))
    has_alpha = header_bytes >= _V3_HEADER_BYTES and masks[3] != 0
    return 0 not in masks[:3] and (bits == 32 or not has_alpha)


def _facts(data: bytes, header_bytes: int) -> tuple[int, int, int]:
    """Bits a pixel, compression, colours in the palette (0: all that the bits allow)."""
    if header_bytes == _CORE_HEADER_BYTES:
        return struct.unpack_from("<H", data, 24)[0], _PLAIN, 0
    bits, compression = struct.unpack_from("<HI", data, 28)
    return bits, compression, struct.unpack_from("<I", data, 46)[0]


def _refuse_unnamed_alpha(fourth: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    """32 bits without an alpha mask: the fourth byte means nothing, but some programs keep alpha there."""
    if fourth.size and (fourth[0] not in (0, 255) or (fourth != fourth[0]).any()):
        raise SourceUndecodable("32-bit BMP that does not say whether it has an alpha channel", hint=_AS_PNG)


def _profile(data: bytes, header_bytes: int) -> bytes:
    if header_bytes < _V5_HEADER_BYTES or data[70:74] != _EMBEDDED_PROFILE:
        return b""
    offset, size = struct.unpack_from("<II", data, _FILE_HEADER_BYTES + 112)
    return data[_FILE_HEADER_BYTES + offset :][:size]
