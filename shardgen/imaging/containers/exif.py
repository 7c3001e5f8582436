"""The EXIF orientation: the one fact of a camera's notes that changes where pixels lie."""

from __future__ import annotations

import struct

_ORIENTATION_TAG = 0x0112


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
