"""TIFF: size, pages, colour model and whether all strips are there; OpenCV applies its orientation."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.header import Header, animated, truncated

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COLOUR = 254, 256, 257, 258, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _STRIP_BYTES = 273, 274, 277, 279
_TILE_OFFSETS, _TILE_BYTES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 338, 339
_INTEGERS = {1: "B", 3: "H", 4: "I"}
_WHITE_IS_ZERO, _CMYK = 0, 5
_CIE_LAB = frozenset({8, 9, 10})
_UNSIGNED = frozenset({1, 4})
_ASSOCIATED_ALPHA = 1
_MAX_DIRECTORIES = 1000  # a chain longer than this is a loop


@dataclass(frozen=True, slots=True)
class _Directory:
    """One page's integer tags."""

    tags: dict[int, tuple[int, ...]]

    def first(self, tag: int, default: int) -> int:
        values = self.tags.get(tag)
        return values[0] if values else default


def read_tiff(data: bytes) -> Header:
    """Read the directories; thumbnails and masks beside the one picture are no pages."""
    pages = [page for page in _directories(data) if not page.first(_SUBFILE, 0) & 0b101]
    if not pages:
        raise SourceUndecodable("unreadable TIFF: it holds no image")
    if len(pages) > 1:
        raise animated(f"TIFF with {len(pages)} pages")
    page = pages[0]
    width, height = page.first(_WIDTH, 0), page.first(_HEIGHT, 0)
    if page.first(_ORIENTATION, 1) >= 5:
        width, height = height, width
    samples, bits = page.first(_SAMPLES, 1), page.first(_BITS, 1)
    cmyk = page.first(_COLOUR, 1) == _CMYK
    header = Header(
        container="TIFF",
        width=width,
        height=height,
        cmyk="CMYK" if cmyk else "",
        alpha_is_padding=cmyk,
        premultiplied=samples == 4
        and not cmyk
        and (bits == 8 or page.first(_EXTRA_SAMPLES, 0) == _ASSOCIATED_ALPHA),
    )
    _refuse_what_opencv_gets_wrong(page)
    _check_strips(page, len(data))
    return header


def _refuse_what_opencv_gets_wrong(page: _Directory) -> None:
    colour, bits, samples = page.first(_COLOUR, 1), page.first(_BITS, 1), page.first(_SAMPLES, 1)
    problem = ""
    if page.first(_SAMPLE_FORMAT, 1) not in _UNSIGNED or bits > 16:
        problem = f"TIFF with {bits}-bit signed or floating point samples"
    elif colour in _CIE_LAB:
        problem = "TIFF in CIE L*a*b* colours"
    elif samples == 2:
        problem = "grey TIFF with an alpha channel (the alpha would be lost)"
    elif bits == 16 and colour in (_WHITE_IS_ZERO, _CMYK):
        problem = "16-bit TIFF in CMYK or with inverted grey"
    elif samples > 4 or (colour == _CMYK and samples != 4):
        problem = f"TIFF with {samples} channels"
    if problem:
        raise SourceUndecodable(
            f"{problem} is not supported", hint="save it as PNG, 8 or 16 bits, RGB or RGBA"
        )


def _check_strips(page: _Directory, size_bytes: int) -> None:
    for offsets_tag, bytes_tag in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
        offsets, lengths = page.tags.get(offsets_tag, ()), page.tags.get(bytes_tag, ())
        stops = [offset + length for offset, length in zip(offsets, lengths, strict=False)]
        if stops and max(stops) > size_bytes:
            raise truncated("TIFF", f"{size_bytes:,} of at least {max(stops):,} bytes")


def _directories(data: bytes) -> list[_Directory]:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise SourceUndecodable("BigTIFF is not supported", hint="save it as an ordinary TIFF or PNG")
    directories: list[_Directory] = []
    try:
        (position,) = struct.unpack_from(f"{order}I", data, 4)
        while position and len(directories) < _MAX_DIRECTORIES:
            (entry_count,) = struct.unpack_from(f"{order}H", data, position)
            entries = range(position + 2, position + 2 + 12 * entry_count, 12)
            directories.append(_Directory(dict(_entry(data, order, entry) for entry in entries)))
            (position,) = struct.unpack_from(f"{order}I", data, position + 2 + 12 * entry_count)
    except struct.error as error:
        raise truncated("TIFF", "a directory lies beyond the end") from error
    return directories


def _entry(data: bytes, order: str, position: int) -> tuple[int, tuple[int, ...]]:
    tag, kind, count = struct.unpack_from(f"{order}HHI", data, position)
    code = _INTEGERS.get(kind)
    if code is None:
        return tag, ()
    layout = f"{order}{min(count, len(data))}{code}"
    at = position + 8
    if struct.calcsize(layout) > 4:
        (at,) = struct.unpack_from(f"{order}I", data, at)
    return tag, struct.unpack_from(layout, data, at)
