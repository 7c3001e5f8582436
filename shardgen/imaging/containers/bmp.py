"""BMP: size, and whether all pixel data are there."""

from __future__ import annotations

import struct

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.header import Header, truncated

_OLD_HEADER_BYTES = 12
_UNCOMPRESSED = frozenset({0, 3, 6})  # plain rows, rows with colour masks, the same with an alpha mask


def read_bmp(data: bytes) -> Header:
    """Read the file and bitmap headers; the file size field is often wrong and is not believed."""
    if len(data) < 26:
        raise truncated("BMP", "it ends inside its header")
    pixels_at, header_bytes = struct.unpack_from("<II", data, 10)
    compression, image_bytes = 0, 0
    if header_bytes == _OLD_HEADER_BYTES:
        width, height, _planes, bits = struct.unpack_from("<HHHH", data, 18)
    elif header_bytes >= 40 and len(data) >= 54:
        width, height, _planes, bits, compression, image_bytes = struct.unpack_from("<iiHHII", data, 18)
    else:
        raise SourceUndecodable("unreadable BMP: unknown header")
    header = Header(container="BMP", width=width, height=abs(height))
    if compression in _UNCOMPRESSED:
        image_bytes = -(-width * bits // 32) * 4 * abs(height)
    if pixels_at + image_bytes > len(data):
        raise truncated("BMP", f"{len(data):,} of {pixels_at + image_bytes:,} bytes")
    return header
