"""JPEG: frame size, EXIF orientation, Adobe colour model, and whether the end marker is there."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.header import Header, exif_orientation, truncated

# Inside entropy-coded data 0xFF is followed by 0x00 or a restart marker (D0-D7): neither ends a scan.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, 0xD8})
_END, _SCAN, _EXIF, _ADOBE = 0xD9, 0xDA, 0xE1, 0xEE


@dataclass(slots=True)
class _Facts:
    """What the segments have told so far."""

    frame: bytes = b""
    has_scan: bool = False
    orientation: int = 1
    adobe_transform: int | None = None

    def note(self, marker: int, segment: bytes) -> None:
        if marker in _FRAMES and not self.frame:
            self.frame = segment
        elif marker == _SCAN:
            self.has_scan = True
        elif marker == _EXIF and segment.startswith(b"Exif\0\0"):
            self.orientation = exif_orientation(segment)
        elif marker == _ADOBE and segment.startswith(b"Adobe") and len(segment) >= 12:
            self.adobe_transform = segment[11]


def read_jpeg(data: bytes) -> Header:
    """Walk the markers up to the end of the image; bytes after it (phones append some) do not count."""
    facts = _Facts()
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = found[1][0], found.end()
        if marker == _END:
            break
        if marker not in _STANDALONE:
            segment, position = _segment(data, position)
            facts.note(marker, segment)
    if found is None:
        raise truncated("JPEG", "no end marker")
    if len(facts.frame) < 6 or not facts.has_scan:
        raise SourceUndecodable("unreadable JPEG: it holds no image")
    bits, height, width, components = struct.unpack_from(">BHHB", facts.frame)
    if bits != 8:
        raise SourceUndecodable(f"{bits}-bit JPEG is not supported", hint="save it as 8-bit JPEG or PNG")
    return Header(
        container="JPEG",
        width=width,
        height=height,
        orientation=facts.orientation,
        cmyk=_colour_model(facts.adobe_transform) if components == 4 else "",
        jpeg_end=found.start(),
    )


def _segment(data: bytes, position: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[position : position + 2])
    stop = position + length
    if stop > len(data):
        raise truncated("JPEG", "it ends inside a header")
    return data[position + 2 : stop], max(stop, position + 2)


def _colour_model(adobe_transform: int | None) -> str:
    if adobe_transform is None:
        # OpenCV takes four channels for Adobe's inverted ones; without the marker that gives a negative.
        raise SourceUndecodable(
            "CMYK JPEG without an Adobe marker: its colours are ambiguous", hint="convert it to RGB"
        )
    return "YCCK" if adobe_transform == 2 else "CMYK"
