"""What a photograph's container says about it before any pixel is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shardgen.errors import SourceUndecodable

_ORIENTATION_TAG = 0x0112

MAX_PIXELS = 200_000_000  # 800 MB as RGBA; a larger claim is taken for a decompression bomb


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Size in pixels and what OpenCV leaves to be done after decoding.

    `width` and `height` are those of the array that OpenCV returns. `orientation` is the EXIF number (1-8)
    that is still to be applied. `cmyk` names the colour model that was converted. `alpha_is_padding`: the
    fourth channel is OpenCV's invention. `premultiplied`: colours come multiplied by alpha.
    `transparent_grey`: the grey value, in decoded levels, that is transparent. `jpeg_end`: offset of the end
    marker.
    """

    container: str
    width: int
    height: int
    orientation: int = 1
    cmyk: str = ""
    alpha_is_padding: bool = False
    premultiplied: bool = False
    transparent_grey: int | None = None
    jpeg_end: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise SourceUndecodable(f"its size is zero ({self.width}x{self.height} pixels)")
        if self.width * self.height > MAX_PIXELS:
            raise SourceUndecodable(
                f"{self.width}x{self.height} is {self.width * self.height / 1e6:,.0f} megapixels "
                f"(at most {MAX_PIXELS // 1_000_000})",
                hint="make it smaller: a photograph larger than the canvas is scaled down anyway",
            )


def truncated(container: str, detail: str) -> SourceUndecodable:
    """Make the error for a file that ends too early."""
    return SourceUndecodable(f"truncated {container}: {detail}", hint="copy or export the file again")


def animated(container: str) -> SourceUndecodable:
    """Make the error for a file that holds more than one picture."""
    return SourceUndecodable(
        f"{container}: a photograph is one still picture",
        hint="export one frame or page as a file of its own",
    )


def exif_orientation(block: bytes) -> int:
    """Orientation 1-8 of an EXIF block (a TIFF header and its first directory); 1 if absent or malformed."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", block, 4)
        (entry_count,) = struct.unpack_from(f"{order}H", block, directory)
        for entry in range(entry_count):
            tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", block, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
