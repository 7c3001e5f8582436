"""BMP: Pillow decodes; what headers leave open is refused here."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.base import Stored, check_size, library, truncated, unsupported

_FILE_HEADER_BYTES = 14
_CORE_HEADER_BYTES, _INFO_HEADER_BYTES, _V5_HEADER_BYTES = 12, 40, 124
_PLAIN, _COLOUR_MASKS = 0, 3
_EMBEDDED_PROFILE = b"DEBM"  # LCS_PROFILE_EMBEDDED, little endian
_AS_PNG = "save it as PNG"


def read_bmp(data: bytes) -> Stored:
    """Decode a BMP; the file size field is often wrong and is not believed."""
    if len(data) < 26:
        raise truncated("BMP", "it ends inside its header")
    pixels_at, header_bytes = struct.unpack_from("<II", data, 10)
    if len(data) < min(_FILE_HEADER_BYTES + header_bytes, 54):
        raise truncated("BMP", "it ends inside its header")
    with library("BMP"):
        picture = BmpImageFile(io.BytesIO(data))
    check_size(*picture.size)
    bits, compression, colours = _facts(data, header_bytes)
    ends = _FILE_HEADER_BYTES + header_bytes
    if bits <= 8:
        ends += (colours or 1 << bits) * (3 if header_bytes == _CORE_HEADER_BYTES else 4)
    elif compression == _COLOUR_MASKS and header_bytes == _INFO_HEADER_BYTES:
        ends += 12
    if pixels_at < ends:
        raise unsupported("BMP whose pixels begin inside its header or palette", _AS_PNG)
    if compression in (_PLAIN, _COLOUR_MASKS):
        stop = pixels_at + -(-picture.width * bits // 32) * 4 * picture.height
        if stop > len(data):
            raise truncated("BMP", f"{len(data):,} of {stop:,} bytes")
    if bits == 32 and compression == _PLAIN:
        _refuse_unnamed_alpha(
            np.frombuffer(data, np.uint8, picture.width * picture.height * 4, pixels_at)[3::4]
        )
    with library("BMP"):
        pixels = np.asarray(picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB"))
    has_alpha = pixels.ndim == 3 and pixels.shape[2] == 4
    return Stored(
        pixels=pixels[:, :, :3] if has_alpha else pixels,
        alpha=pixels[:, :, 3] if has_alpha else None,
        profile=_profile(data, header_bytes),
    )


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
