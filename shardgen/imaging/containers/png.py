"""PNG: libpng decodes, strictly; chunks that are not pixels are read here, and masks written."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from shardgen.imaging.containers.base import (
    MAX_PROFILE_BYTES,
    Outline,
    Stored,
    alpha_apart,
    animated,
    check_size,
    damaged,
    exif_orientation,
    library,
    truncated,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_MAX_TEXT_BYTES = 1 << 20
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# What imagecodecs makes libpng say of every interlaced file; bytes behind pixel data that are whole.
_HARMLESS = ("Interlace handling", "Extra compressed data")
_SRGB_BY_NUMBER = (1, 13, 0, 1)  # primaries and transfer as in cICP, no matrix, full range


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height that the header claims."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise truncated("PNG", "it ends inside its header")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def run_lengths_of(mask: NDArray[np.uint8]) -> bytes:
    """A grey PNG of uint8 (H, W), without filters, compressed by run lengths."""
    height, width = mask.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = mask
    run_lengths = zlib.compressobj(strategy=zlib.Z_RLE)
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey, not interlaced
    pixels = run_lengths.compress(rows.data) + run_lengths.flush()
    return b"".join((SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")))


def _chunk(name: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(name + body))))


@dataclass(slots=True)
class _Facts:
    """What the chunks beside the pixels have told so far."""

    exif: bytes = b""
    raw_exif: bytes = b""
    xmp: bytes = b""
    profile: bytes = b""
    warnings: tuple[str, ...] = ()

    def note(self, name: bytes, body: bytes) -> None:
        if name == b"eXIf":
            self.exif = body
        elif name == b"iCCP":
            self.profile = _inflated(body.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
            if not self.profile:
                self.warnings = ("its colour profile is damaged and was ignored",)
        elif name == b"cICP" and tuple(body) != _SRGB_BY_NUMBER:
            self.warnings = ("its colour space is given by numbers (cICP), which were ignored",)
        elif name == b"acTL" and int.from_bytes(body[:4]) > 1:
            raise animated("animated PNG")
        elif name in _TEXT_CHUNKS:
            keyword, text = _text(name, body)
            if keyword in {b"Raw profile type exif", b"Raw profile type APP1"}:
                self.raw_exif = _raw_profile(text)
            elif keyword == b"XML:com.adobe.xmp":
                self.xmp = text

    @property
    def orientation(self) -> int:
        """EXIF counts, and XMP where there is none."""
        exif = self.exif or self.raw_exif
        if exif:
            return exif_orientation(exif)
        found = _XMP_ORIENTATION.search(self.xmp)
        return int(found[1]) if found else 1


def outline_of(data: bytes) -> Outline:
    """Size and orientation, once every chunk passed; nothing is decoded."""
    facts, _pixel_chunks = _walk(data)
    return Outline(*size_of(data), facts.orientation)


def read_png(data: bytes) -> Stored:
    """Decode a PNG. Every chunk's checksum must be right, its end must be there."""
    facts, pixel_chunks = _walk(data)
    with library("PNG") as lines:
        # The other chunks stay out: what libpng says of them says nothing of the pixels.
        pixels = imagecodecs.png_decode(b"".join(pixel_chunks))
    lines = [line for line in lines if not any(harmless in line for harmless in _HARMLESS)]
    if lines:
        raise damaged("PNG", lines[0].removeprefix("PNG warning: ").removeprefix("IDAT: "))
    colours, alpha = alpha_apart(pixels)
    return Stored(
        pixels=colours,
        alpha=alpha,
        orientation=facts.orientation,
        profile=facts.profile,
        warnings=facts.warnings,
    )


def _walk(data: bytes) -> tuple[_Facts, list[bytes]]:
    """Check size and chunks. Returns facts, and what libpng needs of the file."""
    check_size(*size_of(data))
    facts = _Facts()
    pixel_chunks = [SIGNATURE]
    for name, body, chunk in _chunks(data):
        if name == b"tRNS":
            pixel_chunks.append(_transparency(body, bits=data[24], colour=data[25]))
        elif name in _PIXEL_CHUNKS:
            pixel_chunks.append(chunk)
        else:
            facts.note(name, body)
    return facts, pixel_chunks


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Each chunk's name, its body and the whole of it, up to IEND."""
    view = memoryview(data)
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        stop = position + 12 + length
        if stop > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, stop - 4)
        if zlib.crc32(view[position + 4 : stop - 4]) != checksum:
            raise damaged("PNG", f"the checksum of its {name.decode('ascii', 'replace')} chunk is wrong")
        yield name, data[position + 8 : stop - 4], data[position:stop]
        if name == b"IEND":
            return
        position = stop
    raise truncated("PNG", "no end chunk")


def _transparency(body: bytes, *, bits: int, colour: int) -> bytes:
    """The tRNS chunk; of a colour in it only the bits that a pixel has count, and some programs set all."""
    if colour in (0, 2) and len(body) == (2 if colour == 0 else 6):
        levels = struct.unpack(f">{len(body) // 2}H", body)
        body = struct.pack(f">{len(levels)}H", *(level & ((1 << bits) - 1) for level in levels))
    chunk = b"tRNS" + body
    return struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _inflated(data: bytes, limit: int) -> bytes:
    """What zlib makes of it; empty if that is damaged or longer than `limit`."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, limit)
    except zlib.error:
        return b""
    return text if inflate.eof else b""


def _text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    keyword, _, rest = body.partition(b"\0")
    if name == b"zTXt":
        return keyword, _inflated(rest[1:], _MAX_TEXT_BYTES)
    if name == b"iTXt":
        text = rest[2:].split(b"\0", 2)[-1]
        return keyword, _inflated(text, _MAX_TEXT_BYTES) if rest[:1] == b"\1" else text
    return keyword, rest


def _raw_profile(text: bytes) -> bytes:
    """EXIF as older ImageMagick stores it: a line with its name, one with its length, hexadecimal lines."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
