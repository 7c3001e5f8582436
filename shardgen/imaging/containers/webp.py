"""WebP: size, EXIF orientation, animation, and whether the file is as long as it says."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.header import Header, animated, exif_orientation, truncated

_ANIMATION_FLAG = 0x02


def read_webp(data: bytes) -> Header:
    """Walk the RIFF chunks."""
    stop = 8 + int.from_bytes(data[4:8], "little")
    if stop > len(data):
        raise truncated("WebP", f"{len(data):,} of {stop:,} bytes")
    size: tuple[int, int] | None = None
    has_image = False
    orientation = 1
    for name, body in _chunks(data, stop):
        if name == b"ANIM" or (name == b"VP8X" and body[:1] and body[0] & _ANIMATION_FLAG):
            raise animated("animated WebP")
        if name == b"VP8X" and len(body) >= 10:
            size = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        elif name in (b"VP8 ", b"VP8L"):
            has_image = True
            size = size or _frame_size(name, body)
        elif name == b"EXIF":
            orientation = exif_orientation(body)
    if size is None or not has_image:
        raise SourceUndecodable("unreadable WebP: it holds no image")
    return Header(container="WebP", width=size[0], height=size[1], orientation=orientation)


def _chunks(data: bytes, stop: int) -> Iterator[tuple[bytes, bytes]]:
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
