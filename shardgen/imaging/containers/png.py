"""PNG: every chunk's checksum, the length of the pixel data, EXIF orientation and grey transparency."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.header import Header, animated, exif_orientation, truncated

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = 0
_CHANNELS = {_GREY: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATE_STEP_BYTES = 1 << 20


def read_png(data: bytes) -> Header:
    """Check the whole file: OpenCV fills missing rows of a damaged PNG without a word."""
    chunks = _chunks(data)
    name, ihdr = next(chunks)
    if name != b"IHDR" or len(ihdr) != 13:
        raise SourceUndecodable("unreadable PNG: no header")
    width, height, bits, colour, _compression, _filter, interlace = struct.unpack(">IIBBBBB", ihdr)
    orientation = 1
    transparent_grey: int | None = None
    pixel_data: list[bytes] = []
    for name, body in chunks:
        if name == b"IDAT":
            pixel_data.append(body)
        elif name == b"eXIf":
            orientation = exif_orientation(body)
        elif name == b"tRNS" and colour == _GREY and len(body) == 2:
            levels = 1 if bits >= 8 else 255 // ((1 << bits) - 1)
            transparent_grey = int.from_bytes(body) * levels
        elif name == b"acTL" and int.from_bytes(body[:4]) > 1:
            raise animated("animated PNG")
    header = Header(
        container="PNG",
        width=width,
        height=height,
        orientation=orientation,
        transparent_grey=transparent_grey,
    )
    if colour in _CHANNELS:
        expected = _raw_bytes(width, height, bits=bits * _CHANNELS[colour], interlaced=interlace == 1)
        _check_pixel_data(pixel_data, expected)
    return header


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    view = memoryview(data)
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        stop = position + 12 + length
        if stop > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, stop - 4)
        if zlib.crc32(view[position + 4 : stop - 4]) != checksum:
            raise SourceUndecodable(
                f"damaged PNG: the checksum of its {name.decode('ascii', 'replace')} chunk is wrong",
                hint="copy or export the file again",
            )
        yield name, data[position + 8 : stop - 4]
        if name == b"IEND":
            return
        position = stop
    raise truncated("PNG", "no end chunk")


def _raw_bytes(width: int, height: int, *, bits: int, interlaced: bool) -> int:
    """Bytes of the uncompressed rows, each with its filter byte."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _check_pixel_data(parts: list[bytes], expected: int) -> None:
    inflate = zlib.decompressobj()
    found = 0
    try:
        for part in parts:
            rest = part
            while rest and found < expected:
                found += len(inflate.decompress(rest, _INFLATE_STEP_BYTES))
                rest = inflate.unconsumed_tail
        while found < expected and (more := inflate.decompress(inflate.unconsumed_tail, _INFLATE_STEP_BYTES)):
            found += len(more)
    except zlib.error as error:
        raise SourceUndecodable(f"damaged PNG: its pixel data do not inflate ({error})") from error
    if found < expected:
        raise truncated("PNG", f"{found:,} of {expected:,} bytes of pixel data")
