"""Which container a file is, by its first bytes and never by its name."""

from __future__ import annotations

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers import png
from shardgen.imaging.containers.bmp import read_bmp
from shardgen.imaging.containers.header import Header
from shardgen.imaging.containers.jpeg import read_jpeg
from shardgen.imaging.containers.tiff import read_tiff
from shardgen.imaging.containers.webp import read_webp

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LISTED = "JPEG, PNG, WebP, BMP or TIFF"


def read_header(data: bytes) -> Header:
    """Check what can be checked without decoding; raises SourceUndecodable with the reason."""
    if not data:
        raise SourceUndecodable("empty file (0 bytes)", hint="copy or export the file again")
    if data.startswith(b"\xff\xd8\xff"):
        return read_jpeg(data)
    if data.startswith(png.SIGNATURE):
        return png.read_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return read_webp(data)
    if data.startswith(b"BM"):
        return read_bmp(data)
    if data.startswith(_TIFF_STARTS):
        return read_tiff(data)
    if data.startswith(b"GIF8"):
        raise SourceUndecodable(f"GIF is not supported (expected {_LISTED})", hint="save it as PNG")
    raise SourceUndecodable(f"unreadable: not a {_LISTED} file", hint="remove it or save it as one of these")
