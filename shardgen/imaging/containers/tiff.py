"""TIFF: tifffile reads the structure, imagecodecs the strips; what both let pass is checked here.

tifffile gives samples as they are stored. It fills strips that are missing, and cuts or pads those of another
length; so each compressed strip is decoded a first time to see how long it is.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, TIFF, TiffFile, TiffPage

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.base import (
    MAX_PROFILE_BYTES,
    Levels,
    Outline,
    Stored,
    animated,
    check_size,
    damaged,
    library,
    truncated,
    unsupported,
)
from shardgen.imaging.containers.jpeg import check_jpeg

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SMALLER_OR_MASK = 0b101  # bits of NewSubfileType: a thumbnail, a mask
_NONE, _JPEG = 1, 7
# Those that show damage, by a checksum or by their length. JPEG 2000, WebP, zstd and CCITT do not.
_LZW, _PACKBITS = 5, 32773
_LOSSLESS = frozenset({_LZW, _PACKBITS, 8, 32946, 34925})  # and deflate under two numbers, LZMA
# LZW never writes code 0 three times in a row, nor PackBits zeros one by one: such a run is a disk's.
_ZEROS = bytes(16)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_ANY_DEPTH = frozenset({_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE})
_MODELS = {
    8: "CIE L*a*b* colours",
    9: "ICC L*a*b* colours",
    10: "ITU L*a*b* colours",
    32845: "LogLuv colours",
}
_CAMERA_RAW = frozenset({32803, 34892})  # a filter array, linear raw
_DNG_VERSION, _ORIENTATION, _PROFILE, _JPEG_TABLES, _INK_SET, _SUB_PICTURES = 50706, 274, 34675, 347, 332, 330
_ASSOCIATED, _UNASSOCIATED = 1, 2
# Tags that are read here or by tifffile, which takes bytes for something else than a number.
_NUMBERS = frozenset({254, 256, 257, 259, 262, 266, 274, 277, 278, 284, 317, 322, 323, 332})
_LISTS = frozenset({258, 273, 279, 324, 325, 338, 339})
_INTEGERS = frozenset({3, 4, 13, 16, 18})  # SHORT, LONG, IFD, LONG8, IFD8
_LARGEST_16_BIT = 65535
_MAX_PAGES = 1000  # one is all that is read; the rest is only counted


def outline_of(data: bytes) -> Outline:
    """Size and orientation of what will be decoded; its strips are not looked at."""
    page = _page(data)
    _facts(page)
    return Outline(page.imagewidth, page.imagelength, _orientation(page))


def read_tiff(data: bytes) -> Stored:
    """Decode a TIFF of one picture; thumbnails and masks beside it are no pages."""
    page = _page(data)
    facts = _facts(page)
    _check_segments(page, facts, data)
    with library("TIFF"):
        stored = page.asarray(squeeze=False, maxworkers=1)
    # (planes, depth, height, width, channels): the depth is 1, and so are planes or channels.
    samples = np.moveaxis(stored[:, 0, :, :, 0], 0, -1) if stored.shape[0] > 1 else stored[0, 0]
    return _picture(page, facts, samples)


def _page(data: bytes) -> TiffPage:
    with library("TIFF"):
        pages = _pages(TiffFile(io.BytesIO(data)))
    return _only_page(pages, is_canon=data[8:10] == b"CR")


def _orientation(page: TiffPage) -> int:
    found = page.tags.valueof(_ORIENTATION, 1)
    return int(found) if found in range(1, 9) else 1


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a supported page is: `channels` of colour, and what a further one means (0 for none)."""

    channels: int
    alpha: int
    bits: int


def _pages(file: TiffFile) -> list[TiffPage]:
    """All pages, once: a chain of directories may lead back into itself."""
    pages: dict[int, TiffPage] = {}
    for page in file.pages:
        if page.offset in pages or len(pages) >= _MAX_PAGES:
            break
        pages[page.offset] = whole = page.aspage()
        used = [whole.tags[code] for code in _NUMBERS | _LISTS if code in whole.tags]
        if any(tag.dtype not in _INTEGERS or (tag.count != 1 and tag.code in _NUMBERS) for tag in used):
            raise unsupported("TIFF that keeps its layout in tags of an unusual type")
    return list(pages.values())


def _only_page(pages: list[TiffPage], *, is_canon: bool) -> TiffPage:
    whole = [page for page in pages if not int(page.subfiletype) & _SMALLER_OR_MASK]
    is_raw = is_canon or any(
        _DNG_VERSION in page.tags
        or int(page.photometric) in _CAMERA_RAW
        or (not whole and _SUB_PICTURES in page.tags)
        for page in pages
    )
    if is_raw:
        raise unsupported("a camera's raw file", "develop it: export it as JPEG or TIFF")
    if not pages:
        raise truncated("TIFF", "its directory lies beyond the end")
    if not whole:
        raise SourceUndecodable("unreadable TIFF: it holds no image")
    if len(whole) > 1:
        raise animated(f"TIFF with {len(whole)} pages")
    return whole[0]


def _facts(page: TiffPage) -> _Facts:
    """Refuse by name what is rare or ambiguous."""
    check_size(page.imagewidth, page.imagelength)
    model, samples, bits = int(page.photometric), page.samplesperpixel, page.bitspersample
    channels = _CHANNELS.get(model)
    if channels is None:
        raise unsupported(f"TIFF in {_MODELS.get(model, f'colour model {model}')}")
    if page.sampleformat not in (1, 4) or not isinstance(bits, int) or bits > 16:  # type: ignore[redundant-expr]
        raise unsupported(f"TIFF of {_bits_in_words(page)}")
    alpha = _alpha_kind(page, model, channels)
    problem = ""
    if model not in _ANY_DEPTH and bits not in (8, 16):
        problem = f"colour TIFF with {bits} bits per channel"
    elif page.imagedepth > 1:
        problem = "TIFF of a volume"
    elif page.compression not in {_NONE, _JPEG} | _LOSSLESS:
        problem = f"TIFF compressed by {_compression(page)}"
    elif model == _YCBCR and page.compression != _JPEG:
        problem = "TIFF in YCbCr without JPEG compression"
    elif page.compression == _JPEG and (bits != 8 or model == _CMYK or samples not in (1, 3)):
        problem = "TIFF of JPEG-compressed CMYK, alpha or 12 bits"
    if problem:
        raise unsupported(problem)
    return _Facts(channels, alpha, bits)


def _alpha_kind(page: TiffPage, model: int, channels: int) -> int:
    """What the channel beyond the colours is: associated, unassociated, or 0 where there is none."""
    samples, extra = page.samplesperpixel, [int(kind) for kind in page.extrasamples]
    if model == _CMYK and (samples != channels or page.tags.valueof(_INK_SET, 1) != 1):
        raise unsupported("TIFF in CMYK with further channels")
    if samples not in (channels, channels + 1):
        raise unsupported(f"TIFF with {samples} channels")
    if samples == channels:
        return 0
    if not extra or extra[0] not in (_ASSOCIATED, _UNASSOCIATED):
        raise unsupported("TIFF whose further channel is not declared as alpha")
    if model == _PALETTE or (model == _WHITE_IS_ZERO and extra[0] == _ASSOCIATED):
        raise unsupported("TIFF of a palette, or of inverted grey, with alpha")
    return extra[0]


def _bits_in_words(page: TiffPage) -> str:
    if not isinstance(page.bitspersample, int):
        return "channels of different depths"
    kind = {2: "signed", 3: "floating point"}.get(int(page.sampleformat), "integer")
    return f"{page.bitspersample}-bit {kind} samples"


def _compression(page: TiffPage) -> str:
    try:
        return COMPRESSION(page.compression).name
    except ValueError:
        return f"method {page.compression}"


def _check_segments(page: TiffPage, facts: _Facts, data: bytes) -> None:
    """Every strip or tile must be there and decode to just as much as it should."""
    is_tiled = page.is_tiled
    columns, rows = (page.tilewidth, page.tilelength) if is_tiled else (page.imagewidth, page.rowsperstrip)
    check_size(columns, rows)
    down = math.ceil(page.imagelength / rows)
    planes, channels = (page.samplesperpixel, 1) if page.planarconfig == 2 else (1, page.samplesperpixel)
    offsets, lengths = page.dataoffsets, page.databytecounts
    if not lengths or not offsets or min(lengths) == 0 or min(offsets) == 0:
        raise damaged("TIFF", "a strip is missing")
    if page.is_contiguous:  # read from the first offset on, whatever the others say
        offsets, lengths = offsets[:1], (page.nbytes,)
    elif not len(offsets) == len(lengths) == math.ceil(page.imagewidth / columns) * down * planes:
        raise damaged("TIFF", f"{len(offsets):,} strips are not what its size needs")
    stop = max(offset + length for offset, length in zip(offsets, lengths, strict=True))
    if stop > len(data):
        raise truncated("TIFF", f"{len(data):,} of at least {stop:,} bytes")
    row_bytes = -(-columns * channels * facts.bits // 8)
    for index, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        # The last strip of a plane has fewer rows, or as many with nothing in them.
        here = rows if is_tiled else min(rows, page.imagelength - index % down * rows)
        _check_segment(page, index, data[offset : offset + length], (row_bytes * here, row_bytes * rows))


def _check_segment(page: TiffPage, index: int, segment: bytes, sizes: tuple[int, int]) -> None:
    """Decode one strip or tile, to as many bytes as `sizes` says: these, or at most those."""
    if page.compression == _JPEG:
        tables = bytes(page.tags.valueof(_JPEG_TABLES) or b"")
        check_jpeg(tables[:-2] + segment[2:] if tables else segment)
    elif page.compression in _LOSSLESS:
        if page.compression in {_LZW, _PACKBITS} and _ZEROS in segment:
            raise damaged("TIFF", f"a block of zeros inside strip {index}")
        with library("TIFF", f"strip {index} does not decode"):
            if page.fillorder == 2:
                segment = bytes(imagecodecs.bitorder_decode(segment))
            found = len(TIFF.DECOMPRESSORS[page.compression](segment, out=sizes[1] + 1))
        if found not in sizes:
            raise damaged("TIFF", f"strip {index} decodes to {found:,} of {sizes[0]:,} bytes")


def _picture(page: TiffPage, facts: _Facts, samples: Levels) -> Stored:
    model = int(page.photometric)
    alpha = _full_scale(samples[:, :, facts.channels], facts.bits) if facts.alpha else None
    if model == _PALETTE:
        pixels = _through_palette(page, samples[:, :, 0])
    else:
        pixels = _full_scale(samples[:, :, : facts.channels], facts.bits)
    if model in (_WHITE_IS_ZERO, _CMYK):
        pixels = np.iinfo(pixels.dtype).max - pixels
    profile = bytes(page.tags.valueof(_PROFILE) or b"")
    return Stored(
        pixels=pixels[:, :, 0] if pixels.shape[2] == 1 else pixels,
        alpha=alpha,
        bits=facts.bits,
        premultiplied=facts.alpha == _ASSOCIATED,
        orientation=_orientation(page),
        profile=profile if len(profile) <= MAX_PROFILE_BYTES else b"",
    )


def _full_scale(samples: Levels, bits: int) -> Levels:
    """Levels of any depth as uint8 (0-255) or, of more than 8 bits, uint16 (0-65535)."""
    if bits in (8, 16):
        return samples
    largest, full = (1 << bits) - 1, 255 if bits < 8 else _LARGEST_16_BIT
    levels = (np.arange(largest + 1, dtype=np.uint64) * 2 * full + largest) // (2 * largest)
    # Samples of 1 bit come as booleans, which would select.
    table: Levels = levels.astype(np.uint8 if bits < 8 else np.uint16)
    return table[samples.astype(np.uint16, copy=False)]


def _through_palette(page: TiffPage, indices: Levels) -> NDArray[np.uint8]:
    """Colours of a palette; its 16-bit levels hold 8 bits in the upper byte, or in the lower one."""
    palette = page.colormap
    if palette is None or palette.shape[1] < (1 << int(page.bitspersample)):
        raise damaged("TIFF", "its palette is missing or short")
    levels = palette if palette.max() < 256 else palette >> 8
    colours: NDArray[np.uint8] = levels.astype(np.uint8).T[indices.astype(np.uint16, copy=False)]
    return colours
