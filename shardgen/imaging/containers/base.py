"""What every container's reader shares: the value it returns, its limits, its errors, EXIF orientation."""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import ShardgenError, SourceUndecodable

Levels = NDArray[np.unsignedinteger[Any]]
MAX_PIXELS = 200_000_000  # 800 MB as RGBA; a larger claim is taken for a decompression bomb
MAX_PROFILE_BYTES = 16 << 20  # the largest that printers come with have 3 MB
AGAIN = "copy or export the file again"
_ORIENTATION_TAG = 0x0112
_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A picture as its container holds it: not turned yet, its colour profile not applied.

    `pixels` is (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK where 255 is no ink; `alpha` (H, W) or None, 0 is
    transparent. Both are uint8 or both uint16, of full scale; of uint16, `bits` is how many the file has.
    `premultiplied`: the colours were multiplied by alpha. `profile` is an ICC profile or empty. `notes` and
    `warnings` are phrases for the user.
    """

    pixels: Levels
    alpha: Levels | None = None
    bits: int = 16
    premultiplied: bool = False
    orientation: int = 1
    profile: bytes = b""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Outline(NamedTuple):
    """What the headers of a picture say: width and height as it is stored, and how it is turned (1-8)."""

    width: int
    height: int
    orientation: int = 1


def alpha_apart(pixels: Levels) -> tuple[Levels, Levels | None]:
    """The colours, (H, W) or (H, W, 3), of (H, W[, 1 to 4]), and alpha, (H, W), if it has one."""
    match 1 if pixels.ndim == 2 else pixels.shape[2]:
        case 2:
            return pixels[:, :, 0], pixels[:, :, 1]
        case 4:  # numpy takes ten times as long to leave one of four out
            return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB), cv2.extractChannel(pixels, 3)  # type: ignore[return-value]
        case _:
            return pixels, None


def by_strips(
    out: NDArray[np.uint8], convert: Callable[..., NDArray[np.uint8]], *images: Levels
) -> NDArray[np.uint8]:
    """Fill `out` with what `convert` makes of the same rows of `images`, a few at a time: small copies."""
    step = max(1, _STRIP_PIXELS // out.shape[1])
    for top in range(0, out.shape[0], step):
        out[top : top + step] = convert(*(image[top : top + step] for image in images))
    return out


def check_size(width: int, height: int) -> None:
    """Refuse a size that no photograph has, before any memory is taken for its pixels."""
    if width < 1 or height < 1:
        raise SourceUndecodable(f"its size is zero ({width}x{height} pixels)")
    if width * height > MAX_PIXELS:
        raise SourceUndecodable(
            f"{width}x{height} is {width * height / 1e6:,.0f} megapixels (at most {MAX_PIXELS // 1_000_000})",
            hint="make it smaller: a photograph larger than the canvas is scaled down anyway",
        )


def truncated(container: str, detail: str) -> SourceUndecodable:
    """Make the error for a file that ends too early."""
    return SourceUndecodable(f"truncated {container}: {detail}", hint=AGAIN)


def damaged(container: str, detail: str) -> SourceUndecodable:
    """Make the error for a file whose bytes were changed."""
    return SourceUndecodable(f"damaged {container}: {detail}", hint=AGAIN)


def unsupported(what: str, hint: str = "save it as PNG, 8 or 16 bits, RGB or RGBA") -> SourceUndecodable:
    """Make the error for what is rare or ambiguous."""
    return SourceUndecodable(f"{what} is not supported", hint=hint)


def animated(container: str) -> SourceUndecodable:
    """Make the error for a file that holds more than one picture."""
    return SourceUndecodable(
        f"{container}: a photograph is one still picture",
        hint="export one frame or page as a file of its own",
    )


_heard = threading.local()


def _keep_for_us(record: logging.LogRecord) -> bool:
    """Take what a library logs while this thread decodes; what others make it say goes its own way."""
    lines: list[str] | None = getattr(_heard, "lines", None)
    if lines is None:
        return True
    lines.append(record.getMessage())
    return False


for _name in ("imagecodecs", "tifffile"):
    logging.getLogger(_name).addFilter(_keep_for_us)


@contextmanager
def library(container: str, says: str = "") -> Iterator[list[str]]:
    """Call a decoder: whatever it raises says that the file is damaged. Yields the lines that it logs.

    `says` is the reason for the user where the library's words are none. Decoders raise almost anything on
    bytes that were made to harm or that a disk has changed.
    """
    lines: list[str] = []
    before, _heard.lines = getattr(_heard, "lines", None), lines
    try:
        yield lines
    except (MemoryError, ShardgenError):
        raise
    except Exception as error:
        words = _one_line(str(error))
        if words.startswith("Unsupported "):
            raise unsupported(words.removeprefix("Unsupported ")) from error
        is_said = isinstance(error, ValueError | OSError | RuntimeError) and not isinstance(
            error, UnicodeError
        )
        raise damaged(container, says or (is_said and words) or "its parts contradict each other") from error
    finally:
        _heard.lines = before


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


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
