"""WebP: libwebp decodes; the chunks around the picture are read here."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import imagecodecs

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.base import (
    Outline,
    Stored,
    alpha_apart,
    animated,
    check_size,
    exif_orientation,
    library,
    truncated,
)

_ANIMATION_FLAG = 0x02


def is_webp(data: bytes) -> bool:
    """Whether it begins as a WebP file does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height that the headers claim."""
    for name, body in _chunks(data):
        if name == b"VP8X" and len(body) >= 10:
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        if name in (b"VP8 ", b"VP8L"):
            return _frame_size(name, body)
    raise SourceUndecodable("unreadable WebP: it holds no image")


def outline_of(data: bytes) -> Outline:
    """Size and orientation, once its chunks passed; nothing is decoded."""
    orientation, _profile = _walk(data)
    return Outline(*size_of(data), orientation)


def read_webp(data: bytes) -> Stored:
    """Decode a WebP; the file must be as long as it says."""
    orientation, profile = _walk(data)
    with library("WebP", "its image data do not decode"):
        pixels = imagecodecs.webp_decode(data)
    colours, alpha = alpha_apart(pixels)
    return Stored(
        pixels=colours,
        alpha=alpha,
        orientation=orientation,
        profile=profile,
    )


def _walk(data: bytes) -> tuple[int, bytes]:
    """Check size and chunks. Returns orientation and colour profile."""
    check_size(*size_of(data))
    orientation, profile, has_image = 1, b"", False
    for name, body in _chunks(data):
        if name in (b"ANIM", b"ANMF") or (name == b"VP8X" and body[:1] and body[0] & _ANIMATION_FLAG):
            raise animated("animated WebP")
        has_image = has_image or name in (b"VP8 ", b"VP8L")
        if name == b"EXIF":
            orientation = exif_orientation(body)
        elif name == b"ICCP":
            profile = body
    if not has_image:
        raise SourceUndecodable("unreadable WebP: it holds no image")
    return orientation, profile


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    stop = 8 + int.from_bytes(data[4:8], "little")
    if stop > len(data):
        raise truncated("WebP", f"{len(data):,} of {stop:,} bytes")
    position = 12
    while position + 8 <= stop:
        name, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > stop:
            raise truncated("WebP", f"its {name.decode('ascii', 'replace').strip()} chunk is cut off")
        yield name, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _frame_size(name: bytes, body: bytes) -> tuple[int, int]:
    if name == b"VP8L" and len(body) >= 5:
        packed = int.from_bytes(body[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if name == b"VP8 " and len(body) >= 10:
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise truncated("WebP", "no frame header")
