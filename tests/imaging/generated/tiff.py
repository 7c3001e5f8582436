"""TIFFs: samples, layouts, compressions and colours as cameras, scanners and programs write them."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from tests.imaging.generated.cases import (
    Case,
    Expect,
    Pixels,
    Samples,
    grey_of,
    levels,
    photograph,
    rgb_of,
    saved,
    shortened,
    soft_disc,
    upright,
    zeroed,
)

Options = dict[str, Any]
WIDTH, HEIGHT = 45, 38
_LAYOUTS: tuple[Options, ...] = ({"rows": 16}, {"rows": 0}, {"tile": (32, 48)})
_DAMAGED_LAYOUTS: tuple[Options, ...] = ({"rows": 40}, {"rows": 8}, {"tile": (64, 64)})
RGB = photograph(WIDTH, HEIGHT)
GREY = grey_of(RGB)
ALPHA = soft_disc(WIDTH, HEIGHT)
WHITE_IS_ZERO, BLACK_IS_ZERO, IS_RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
NONE, G3, G4, LZW, OLD_JPEG, JPEG, DEFLATE, PACKBITS = 1, 3, 4, 5, 6, 7, 8, 32773
OLD_DEFLATE, JPEG2000, LZMA, ZSTD, WEBP, JPEG_XL = 32946, 34712, 34925, 50000, 50001, 50002
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 7: "s", 16: "Q"}

Encoder = Callable[[bytes], bytes]
ENCODERS: dict[int, Encoder] = {
    NONE: lambda raw: raw,
    LZW: lambda raw: bytes(imagecodecs.lzw_encode(raw)),
    DEFLATE: zlib.compress,
    OLD_DEFLATE: zlib.compress,
    PACKBITS: lambda raw: bytes(imagecodecs.packbits_encode(raw)),
    LZMA: lambda raw: lzma.compress(raw, format=lzma.FORMAT_XZ, preset=0),
    ZSTD: lambda raw: bytes(imagecodecs.zstd_encode(raw)),
}
NAMES = {
    NONE: "none", LZW: "LZW", DEFLATE: "deflate", OLD_DEFLATE: "old deflate", PACKBITS: "PackBits",
    LZMA: "LZMA", ZSTD: "zstd", WEBP: "WebP", JPEG2000: "JPEG ?2000", JPEG: "JPEG", G3: "G3", G4: "G4",
    JPEG_XL: "JPEG ?XL",
}  # fmt: skip
Tag = tuple[int, int, Sequence[int] | bytes]
_NUMBERS = {
    256: WIDTH,
    257: HEIGHT,
    259: NONE,
    262: IS_RGB,
    277: 3,
    278: 16,
    284: 1,
    274: 6,
    254: 0,
    317: 1,
    339: 1,
    266: 1,
}


@dataclass(frozen=True, kw_only=True)
class Tiff:
    """How to store samples (H, W, S); what is None or 0 is left to its default."""

    bits: int = 8
    colour: int = IS_RGB
    compression: int = NONE
    planar: bool = False
    rows: int = 0  # of a strip; 0 is all of them
    tile: tuple[int, int] | None = None  # width, height
    orientation: int | None = None
    extra: tuple[int, ...] | None = None
    predictor: int = 1
    fill_order: int = 1
    order: str = "<"
    big: bool = False
    sample_format: int | None = None
    tags: tuple[Tag, ...] = ()
    without: frozenset[int] = frozenset()
    encode: Callable[[Samples], bytes] | None = None  # of one strip's or tile's samples
    spoil: Callable[[bytes], bytes] | None = None  # of one encoded strip, the second if there are more
    next_pages: tuple[tuple[Samples, Tiff], ...] = field(default=())


def packed(samples: Samples, bits: int, order: str) -> bytes:
    """Rows of samples, each row padded to a byte; more than one byte in the file's order."""
    if bits in (8, 16, 32, 64):
        kind = samples.dtype.kind if samples.dtype.kind == "f" else "u"
        return samples.astype(f"{order}{kind}{bits // 8}").tobytes()
    flat = samples.reshape(samples.shape[0], -1).astype(np.uint32)
    spread = (flat[..., np.newaxis] >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(spread.reshape(samples.shape[0], -1).astype(np.uint8), axis=1).tobytes()


def _pieces(samples: Samples, how: Tiff) -> Iterator[Samples]:
    planes = [samples[..., i : i + 1] for i in range(samples.shape[2])] if how.planar else [samples]
    for plane in planes:
        height, width = plane.shape[:2]
        if how.tile:
            across, down = how.tile
            for top, left in product(range(0, height, down), range(0, width, across)):
                piece = plane[top : top + down, left : left + across]
                missing = ((0, down - piece.shape[0]), (0, across - piece.shape[1]), (0, 0))
                yield np.pad(piece, missing, mode="edge")
        else:
            for top in range(0, height, how.rows or height):
                yield plane[top : top + (how.rows or height)]


@lru_cache(maxsize=256)  # damage of many kinds is done to the same strips
def _compressed(compression: int, raw: bytes) -> bytes:
    return ENCODERS[compression](raw)


def _encoded(piece: Samples, how: Tiff) -> bytes:
    if how.encode:
        return how.encode(piece)
    if how.predictor == 2:
        kind = np.uint8 if how.bits == 8 else np.uint16
        piece = np.concatenate([piece[:, :1], np.diff(piece.astype(kind), axis=1)], axis=1)
    raw = packed(piece, how.bits, how.order)
    data = _compressed(how.compression, raw)
    if how.fill_order == 2:
        data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    return data


def tiff(samples: Samples, how: Tiff | None = None, **options: Any) -> bytes:
    """A file of one page, or of more with `next_pages`; (H, W) is one sample a pixel."""
    how = how or Tiff(**options)
    order = how.order
    head = b"II" if order == "<" else b"MM"
    body = bytearray(
        head + struct.pack(f"{order}HHHQ", 43, 8, 0, 0)
        if how.big
        else head + struct.pack(f"{order}HI", 42, 0)
    )
    link, link_format = (8, f"{order}Q") if how.big else (4, f"{order}I")
    for page, settings in ((samples, how), *how.next_pages):
        at, link_next = _page(body, page if page.ndim == 3 else page[..., np.newaxis], settings, big=how.big)
        struct.pack_into(link_format, body, link, at)
        link = link_next
    return bytes(body)


def _page(body: bytearray, samples: Samples, how: Tiff, *, big: bool) -> tuple[int, int]:
    """Append a page; returns where its directory begins and where its link to the next one is."""
    pieces = [_encoded(piece, how) for piece in _pieces(samples, how)]
    if how.spoil:
        spoiled = min(1, len(pieces) - 1)
        pieces[spoiled] = how.spoil(pieces[spoiled])
    offsets = []
    for piece in pieces:
        offsets.append(len(body))
        body += piece + b"\0" * (len(piece) % 2)
    height, width, count = samples.shape
    lengths = [len(piece) for piece in pieces]
    tags: dict[int, tuple[int, Sequence[int] | bytes]] = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [how.bits] * count), 259: (3, [how.compression]),
        262: (3, [how.colour]), 277: (3, [count]), 284: (3, [2 if how.planar else 1]),
    }  # fmt: skip
    if how.tile:
        tags |= {322: (3, [how.tile[0]]), 323: (3, [how.tile[1]]), 324: (4, offsets), 325: (4, lengths)}
    else:
        tags |= {273: (4, offsets), 278: (3, [how.rows or height]), 279: (4, lengths)}
    optional = {
        266: how.fill_order - 1 and how.fill_order,
        274: how.orientation,
        317: how.predictor - 1 and how.predictor,
    }
    tags |= {
        tag: (3, [value]) for tag, value in optional.items() if value is not None and (value or tag == 274)
    }
    if how.extra is not None:
        tags[338] = (3, list(how.extra))
    if how.sample_format is not None:
        tags[339] = (3, [how.sample_format] * count)
    tags |= {tag: (kind, values) for tag, kind, values in how.tags}
    return _directory(
        body, {tag: value for tag, value in tags.items() if tag not in how.without}, how.order, big=big
    )


def _directory(
    body: bytearray, tags: dict[int, tuple[int, Sequence[int] | bytes]], order: str, *, big: bool
) -> tuple[int, int]:
    room, number = (8, "Q") if big else (4, "I")
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        if isinstance(values, bytes):
            raw, count = values, len(values)
        else:
            raw = struct.pack(f"{order}{len(values)}{_TYPES[kind][:1]}", *values)
            count = len(values) // len(_TYPES[kind])
        if len(raw) > room:
            body += b"\0" * (len(body) % 2)
            raw, value = struct.pack(f"{order}{number}", len(body)), raw
            body += value
        entries += struct.pack(f"{order}HH{number}", tag, kind, count) + raw.ljust(room, b"\0")
    body += b"\0" * (len(body) % 2)
    at = len(body)
    body += struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries
    link = len(body)
    body += bytes(room)
    return at, link


def _case(name: str, data: bytes, expect: Expect, pixels: Pixels | None = None, **fields: Any) -> Case:
    return Case(name=f"TIFF/{name}", data=data, expect=expect, pixels=pixels, **fields)


def tiff_cases() -> Iterator[Case]:
    yield from _orientations()
    yield from _depths()
    yield from _alphas()
    yield from _inks()
    yield from _compressions()
    yield from _jpegs()
    yield from _fax()
    yield from _layouts()
    yield from _pages()
    yield from _refused()
    yield from _raw_photographs()
    yield from _damaged()


def _orientations() -> Iterator[Case]:
    wide = (RGB.astype(np.uint16) << 8) | RGB[::-1, ::-1]
    pictures: dict[str, tuple[Samples, dict[str, Any], Pixels, Pixels | None]] = {
        "grey": (GREY, {"colour": BLACK_IS_ZERO}, rgb_of(GREY), None),
        "RGB": (RGB, {}, RGB, None),
        "RGB 16": (wide, {"bits": 16}, levels(wide, 16), None),
        "RGBA": (np.dstack([RGB, ALPHA]), {"extra": (2,)}, RGB, ALPHA),
        "bilevel": (GREY >> 7, {"bits": 1, "colour": WHITE_IS_ZERO}, rgb_of(255 - (GREY >> 7) * 255), None),
    }
    for (kind, (samples, options, pixels, alpha)), orientation, tile, planar in product(
        pictures.items(), range(1, 9), (None, (16, 32)), (False, True)
    ):
        if planar and samples.ndim == 2:
            continue
        layout = f"{'tiles' if tile else 'strips'} {'planar' if planar else 'contiguous'}"
        data = tiff(
            samples, tile=tile, rows=0 if tile else 7, planar=planar, orientation=orientation, **options
        )
        yield _case(
            f"orientation/{orientation} {kind} {layout}",
            data,
            Expect.RIGHT,
            upright(pixels, orientation),
            alpha=None if alpha is None else upright(alpha, orientation),
        )
    for value in (0, 9, 65535):
        yield _case(f"orientation/invalid {value}", tiff(RGB, orientation=value), Expect.RIGHT, RGB)
    as_long = tiff(RGB, tags=((274, 4, [6]),))
    yield _case("orientation/as a LONG", as_long, Expect.RIGHT, upright(RGB, 6))


def _samples(bits: int, channels: int) -> Samples:
    source = np.dstack([RGB, ALPHA])[..., :channels].astype(np.uint32)
    fine = np.random.default_rng(bits).integers(0, 256, source.shape, np.uint32)
    samples: Samples = ((source << 8 | fine) >> (16 - bits)).astype(np.uint16)
    return samples


def _colour_map(bits: int) -> tuple[list[int], Pixels]:
    entries = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3)).astype(np.uint8)
    return (entries.T.ravel().astype(int) * 257).tolist(), entries


def _depths() -> Iterator[Case]:
    for bits, order, rows in product((1, 2, 4, 8, 10, 12, 14, 16), "<>", (0, 5)):
        grey = _samples(bits, 1)
        label = f"{bits} bits {'II' if order == '<' else 'MM'} strips of {rows or 'all'}"
        usual = Expect.RIGHT if bits in (1, 8, 16) else Expect.EITHER
        truth = rgb_of(levels(grey[..., 0], bits))
        options: Options = {"bits": bits, "order": order, "rows": rows}
        yield _case(f"depth/grey {label}", tiff(grey, colour=BLACK_IS_ZERO, **options), usual, truth)
        yield _case(
            f"depth/white is zero {label}", tiff(grey, colour=WHITE_IS_ZERO, **options),
            usual if bits < 16 else Expect.EITHER, 255 - truth, tolerance=int(bits not in (1, 2, 4, 8, 16)),
        )  # fmt: skip
        rgb = _samples(bits, 3)
        for planar in (False, True):
            yield _case(
                f"depth/RGB {label} {'planar' if planar else ''}", tiff(rgb, planar=planar, **options),
                Expect.RIGHT if bits in (8, 16) else Expect.EITHER, levels(rgb, bits),
            )  # fmt: skip
        if bits <= 8:
            colour_map, entries = _colour_map(bits)
            for tile in (None, (16, 16)):
                data = tiff(grey, colour=PALETTE, tags=((320, 3, colour_map),), tile=tile, **options)
                usual = Expect.RIGHT if bits == 8 else Expect.EITHER
                yield _case(f"depth/palette {label} {tile}", data, usual, entries[grey[..., 0]])
    colour_map, entries = _colour_map(8)
    dim = tiff(GREY, colour=PALETTE, tags=((320, 3, [value >> 8 for value in colour_map]),))
    yield _case("depth/palette of 8-bit values", dim, Expect.EITHER, entries[GREY])


def _premultiplied(bits: int) -> tuple[Samples, Pixels, int | np.ndarray[Any, Any]]:
    """Samples, the truth, and how exact it can be: a colour is known to half a level of its product."""
    largest = (1 << bits) - 1
    alpha = ALPHA.astype(np.int64) * (largest // 255)
    colour = RGB.astype(np.int64) * (largest // 255)
    product_ = (colour * alpha[..., np.newaxis] * 2 + largest) // (2 * largest)
    tolerance = np.ceil(128 / np.maximum(ALPHA, 1))[..., np.newaxis] + 1 if bits == 8 else 2
    return np.dstack([product_, alpha]).astype(np.uint16), RGB, tolerance


def _alphas() -> Iterator[Case]:
    for bits, planar, tile in product((8, 16), (False, True), (None, (16, 16))):
        scale = 1 if bits == 8 else 257
        straight = np.dstack([RGB, ALPHA]).astype(np.uint16) * scale
        layout = f"{bits} {'planar' if planar else 'contiguous'} {'tiles' if tile else 'strips'}"
        options: Options = {"bits": bits, "planar": planar, "tile": tile}
        yield _case(
            f"alpha/unassociated {layout}",
            tiff(straight, extra=(2,), **options),
            Expect.RIGHT,
            RGB,
            alpha=ALPHA,
        )
        samples, truth, tolerance = _premultiplied(bits)
        data = tiff(samples, extra=(1,), **options)
        yield _case(f"alpha/associated {layout}", data, Expect.RIGHT, truth, alpha=ALPHA, tolerance=tolerance)
        bright = samples.copy()
        row, column = np.argwhere((ALPHA > 100) & (ALPHA < 200))[0]
        bright[row, column, 0] = bright[row, column, 3] + scale
        clipped = truth.copy()
        clipped[row, column, 0] = 255
        data = tiff(bright, extra=(1,), **options)
        name = f"alpha/associated, one pixel brighter {layout}"
        yield _case(name, data, Expect.RIGHT, clipped, alpha=ALPHA, tolerance=tolerance)
        opaque = np.dstack([RGB, np.full_like(ALPHA, 255)]).astype(np.uint16) * scale
        for extra in ((0,), (1,), (2,)):
            expect = Expect.RIGHT if extra != (0,) else Expect.EITHER
            yield _case(f"alpha/opaque {extra} {layout}", tiff(opaque, extra=extra, **options), expect, RGB)
        for unspecified in ((0,), None):
            name = f"alpha/unspecified {unspecified} {layout}"
            yield _case(name, tiff(straight, extra=unspecified, **options), Expect.EITHER, RGB, alpha=ALPHA)
        grey = straight[..., (0, 3)]
        for of_grey in ((2,), (0,), None):
            data = tiff(grey, colour=BLACK_IS_ZERO, extra=of_grey, **options)
            yield _case(f"alpha/grey {of_grey} {layout}", data, Expect.EITHER, rgb_of(GREY), alpha=ALPHA)
        data = tiff(samples[..., (0, 3)], colour=BLACK_IS_ZERO, extra=(1,), **options)
        yield _case(
            f"alpha/grey associated {layout}",
            data,
            Expect.EITHER,
            rgb_of(GREY),
            alpha=ALPHA,
            tolerance=tolerance,
        )
        inverted = np.dstack([255 - GREY, ALPHA]).astype(np.uint16) * scale
        data = tiff(inverted, colour=WHITE_IS_ZERO, extra=(2,), **options)
        yield _case(f"alpha/white is zero {layout}", data, Expect.EITHER, rgb_of(GREY), alpha=ALPHA)
        five = np.dstack([straight, straight[..., 0]])
        for pair in ((2, 0), (0, 2)):
            order = five if pair == (2, 0) else five[..., (0, 1, 2, 4, 3)]
            yield _case(
                f"alpha/and another {pair} {layout}",
                tiff(order, extra=pair, **options),
                Expect.EITHER,
                RGB,
                alpha=ALPHA,
            )
    colour_map, entries = _colour_map(8)
    data = tiff(np.dstack([GREY, ALPHA]), colour=PALETTE, extra=(2,), tags=((320, 3, colour_map),))
    yield _case("alpha/palette", data, Expect.EITHER, entries[GREY], alpha=ALPHA)


def _inks() -> Iterator[Case]:
    inks = np.dstack([255 - RGB, ALPHA // 3])
    truth = np.rint(RGB.astype(float) * (255 - ALPHA // 3)[..., np.newaxis] / 255).astype(np.uint8)
    for bits, planar, tile, orientation in product((8, 16), (False, True), (None, (16, 16)), (1, 6)):
        data = tiff(
            inks.astype(np.uint16) * (1 if bits == 8 else 257),
            bits=bits, colour=CMYK, planar=planar, tile=tile, orientation=orientation,
        )  # fmt: skip
        usual = Expect.RIGHT if bits == 8 and not planar and not tile else Expect.EITHER
        name = f"CMYK/{bits} {'planar' if planar else ''} {'tiles' if tile else ''} {orientation}"
        yield _case(name, data, usual, upright(truth, orientation), tolerance=2, says="CMYK")
    five = np.dstack([inks, ALPHA])
    yield _case(
        "CMYK/with alpha", tiff(five, colour=CMYK, extra=(2,)), Expect.EITHER, truth, alpha=ALPHA, tolerance=2
    )
    yield _case("CMYK/three inks", tiff(255 - RGB, colour=CMYK, tags=((332, 3, [2]),)), Expect.REFUSED)
    named = tiff(inks, colour=CMYK, tags=((332, 3, [2]),))
    yield _case("CMYK/inks that are no CMYK", named, Expect.REFUSED)


def _compressions() -> Iterator[Case]:
    for (compression, bits), predictor, order, planar in product(
        product(ENCODERS, (8, 16)), (1, 2), "<>", (False, True)
    ):
        if compression in (NONE, PACKBITS) and predictor == 2:
            continue
        samples = _samples(bits, 3)
        for layout in ({"rows": 9}, {"tile": (16, 16)}):
            data = tiff(
                samples,
                bits=bits,
                compression=compression,
                predictor=predictor,
                order=order,
                planar=planar,
                **layout,
            )
            label = f"{NAMES[compression]} {bits} predictor {predictor} {order} {planar} {layout}"
            known = compression not in (LZMA, ZSTD)
            yield _case(
                f"compression/{label}",
                data,
                Expect.RIGHT if known else Expect.EITHER,
                levels(samples, bits),
                says="" if known else NAMES[compression],
            )
    for order in "<>":
        yield _case(
            f"BigTIFF/{order}", tiff(RGB, big=True, order=order, rows=7), Expect.EITHER, RGB, says="BigTIFF"
        )
        alpha = tiff(np.dstack([RGB, ALPHA]), big=True, order=order, tile=(16, 16), extra=(2,), orientation=8)
        yield _case(f"BigTIFF/alpha {order}", alpha, Expect.EITHER, upright(RGB, 8), alpha=upright(ALPHA, 8))
    whole: dict[int, Callable[[Samples], bytes]] = {
        WEBP: lambda piece: bytes(imagecodecs.webp_encode(piece.astype(np.uint8), lossless=True)),
        JPEG2000: lambda piece: bytes(
            imagecodecs.jpeg2k_encode(piece.astype(np.uint8), codecformat="j2k", reversible=True)
        ),
        JPEG_XL: lambda piece: bytes(imagecodecs.jpegxl_encode(piece.astype(np.uint8), lossless=True)),
    }
    for compression, encode in whole.items():
        data = tiff(RGB, compression=compression, encode=encode, rows=20)
        yield _case(f"compression/{NAMES[compression]}", data, Expect.EITHER, RGB, says=NAMES[compression])
    for compression, says in (
        (2, ""),
        (OLD_JPEG, "JPEG"),
        (9999, "9999"),
        (32809, ""),
        (34676, ""),
        (34887, ""),
    ):
        for rows in (0, 9):
            data = tiff(RGB, compression=compression, encode=lambda piece: packed(piece, 8, "<"), rows=rows)
            yield _case(
                f"compression/unreadable {compression} {rows}",
                data,
                Expect.REFUSED,
                says=f"(?i)compress.*{says}|{says}.*compress",
            )


def _jpegs() -> Iterator[Case]:
    """JPEG strips and tiles; the truth is the picture, so far as JPEG keeps it."""
    rows, columns = np.mgrid[0:77, 0:93]
    picture = np.dstack([columns * 2 + 30, rows * 2 + 40, 200 - columns - rows // 2]).astype(np.uint8)
    near = 14

    def strip(subsampling: str, colorspace: str) -> Callable[[Samples], bytes]:
        def encode(piece: Samples) -> bytes:
            pixels = piece.astype(np.uint8)
            pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
            return bytes(
                imagecodecs.jpeg8_encode(
                    np.ascontiguousarray(pixels), 97, subsampling=subsampling, outcolorspace=colorspace
                )
            )

        return encode

    for subsampling, layout, orientation in product(((1, 1), (2, 1), (2, 2)), _LAYOUTS, (1, 6)):
        how = {(1, 1): "444", (2, 1): "422", (2, 2): "420"}[subsampling]
        data = tiff(
            picture, compression=JPEG, colour=YCBCR, encode=strip(how, "YCBCR"), orientation=orientation,
            tags=((530, 3, subsampling),), **layout,
        )  # fmt: skip
        yield _case(
            f"JPEG/YCbCr {how} {layout} {orientation}",
            data,
            Expect.RIGHT,
            upright(picture, orientation),
            tolerance=near,
        )
    for layout in ({"rows": 16}, {"tile": (32, 48)}):
        data = tiff(picture, compression=JPEG, encode=strip("444", "RGB"), **layout)
        yield _case(f"JPEG/RGB {layout}", data, Expect.RIGHT, picture, tolerance=near)
        data = tiff(
            picture[..., 0],
            compression=JPEG,
            colour=BLACK_IS_ZERO,
            encode=strip("444", "GRAYSCALE"),
            **layout,
        )
        yield _case(f"JPEG/grey {layout}", data, Expect.RIGHT, rgb_of(picture[..., 0]), tolerance=near)
        data = tiff(
            255 - picture[..., 0],
            compression=JPEG,
            colour=WHITE_IS_ZERO,
            encode=strip("444", "GRAYSCALE"),
            **layout,
        )
        yield _case(
            f"JPEG/white is zero {layout}", data, Expect.EITHER, rgb_of(picture[..., 0]), tolerance=near
        )
        data = tiff(picture, compression=JPEG, planar=True, encode=strip("444", "GRAYSCALE"), **layout)
        yield _case(f"JPEG/planar {layout}", data, Expect.EITHER, picture, tolerance=near)
    shared = saved(picture, "TIFF", compression="jpeg", quality=95)  # with its tables in a tag of their own
    yield _case("JPEG/shared tables", shared, Expect.RIGHT, picture, tolerance=near)
    plain = tiff(picture, colour=YCBCR, tags=((530, 3, (1, 1)),))
    yield _case("JPEG/YCbCr without JPEG", plain, Expect.REFUSED)


def _fax() -> Iterator[Case]:
    drawn = np.zeros((96, 128), np.uint8)
    drawn[20:70, 30:50] = 1
    drawn[::7, 60:] = 1
    drawn[np.arange(96), np.arange(96)] = 1
    for compression, encode, orientation in product((G3, G4), ("fax",), (1, 6)):
        encoder = imagecodecs.ccittfax4_encode if compression == G4 else imagecodecs.ccittfax3_encode

        def bilevel(piece: Samples, encoder: Callable[..., Any] = encoder) -> bytes:
            return bytes(encoder(np.ascontiguousarray(piece[..., 0].astype(bool))))

        for rows, colour in product((0, 32), (WHITE_IS_ZERO, BLACK_IS_ZERO)):
            try:
                data = tiff(
                    drawn,
                    bits=1,
                    compression=compression,
                    encode=bilevel,
                    rows=rows,
                    colour=colour,
                    orientation=orientation,
                )
            except (ValueError, RuntimeError, NotImplementedError):
                continue
            truth = rgb_of((1 - drawn if colour == WHITE_IS_ZERO else drawn) * 255)
            name = f"fax/{NAMES[compression]} {rows} {colour} {orientation} {encode}"
            yield _case(name, data, Expect.EITHER, upright(truth, orientation))
    image = Image.fromarray(drawn * 255).convert("1")
    for written in (
        "group3",
        "group4",
        "tiff_ccitt",
        "packbits",
        "tiff_lzw",
        "tiff_raw_16",
    ):
        try:
            data = saved(image, "TIFF", compression=written)
        except (OSError, KeyError):
            continue
        yield _case(f"fax/by libtiff {written}", data, Expect.EITHER, rgb_of(drawn * 255))
    for compression, bits in product((NONE, LZW, PACKBITS), (1, 8)):
        samples = drawn if bits == 1 else drawn * 200
        data = tiff(samples, bits=bits, colour=BLACK_IS_ZERO, compression=compression, fill_order=2)
        truth = rgb_of(drawn * (255 if bits == 1 else 200))
        yield _case(f"fax/fill order {NAMES[compression]} {bits}", data, Expect.EITHER, truth)


def _layouts() -> Iterator[Case]:
    for rows in (1, 2, 37, 38, 100):
        yield _case(f"layout/strips of {rows}", tiff(RGB, rows=rows), Expect.RIGHT, RGB)
    for tile in ((16, 16), (64, 64), (32, 16), (48, 48)):
        yield _case(f"layout/tiles of {tile}", tiff(RGB, tile=tile, compression=LZW), Expect.RIGHT, RGB)
    usual = [256, 257, 258, 259, 262, 273, 277, 278, 279, 284]
    for tag in (258, 259, 262, 277, 278, 279, 284):
        data = tiff(RGB, without=frozenset({tag}))
        known = tag in (259, 278, 284)
        yield _case(
            f"layout/without tag {usual[usual.index(tag)]}",
            data,
            Expect.RIGHT if known else Expect.EITHER,
            RGB,
        )
    for tag in (256, 257, 273):
        yield _case(f"layout/without tag {tag}", tiff(RGB, without=frozenset({tag})), Expect.REFUSED)
    one = tiff(RGB, tags=((258, 3, [8]),))
    yield _case("layout/one number of bits for three samples", one, Expect.EITHER, RGB)
    mixed = tiff(RGB, tags=((258, 3, [8, 8, 16]),))
    yield _case("layout/samples of different bits", mixed, Expect.REFUSED)
    yield from _odd_tags()
    quarter = tiff(RGB, planar=True, rows=16, tags=((273, 4, [8, 728, 1448]), (279, 4, [720, 720, 270])))
    yield _case("layout/strips of one plane of three", quarter, Expect.REFUSED)
    for kind in (3, 4):
        data = tiff(RGB, tags=((256, kind, [WIDTH]), (257, kind, [HEIGHT])))
        yield _case(f"layout/size of type {kind}", data, Expect.RIGHT, RGB)
    zero = tiff(RGB, rows=10, tags=((279, 4, [0, 0, 0, 0]),))
    yield _case("layout/strips of 0 bytes", zero, Expect.EITHER, RGB)
    sparse = tiff(RGB, tile=(16, 16), tags=((324, 4, [0] * 9), (325, 4, [0] * 9)))
    yield _case("layout/no tile is there", sparse, Expect.REFUSED)
    few = tiff(RGB, rows=10, tags=((273, 4, [8]), (279, 4, [1350])))
    yield _case("layout/one strip of four", few, Expect.EITHER, RGB)
    beyond = tiff(RGB, rows=10, tags=((273, 4, [8, 1358, 2708, 1 << 20]),))
    yield _case("layout/a strip beyond the end", beyond, Expect.REFUSED)
    short = tiff(RGB, tags=((279, 4, [WIDTH * HEIGHT * 3 - 200]),))
    yield _case("layout/a strip too short", short, Expect.EITHER, RGB)
    whole = tiff(RGB, rows=10)
    for at in (4, 9, len(whole) // 2, len(whole) - 30):
        yield _case(f"layout/cut at {at}", whole[:at], Expect.REFUSED)
    loop = bytearray(tiff(RGB))
    directory = struct.unpack_from("<I", loop, 4)[0]
    count = struct.unpack_from("<H", loop, directory)[0]
    struct.pack_into("<I", loop, directory + 2 + 12 * count, directory)
    yield _case("layout/a loop of directories", bytes(loop), Expect.EITHER, RGB)
    astray = bytearray(tiff(RGB))
    struct.pack_into("<I", astray, directory + 2 + 12 * count, 1 << 30)
    yield _case("layout/next directory beyond the end", bytes(astray), Expect.EITHER, RGB)
    yield _case("layout/zero width", tiff(RGB, tags=((256, 3, [0]),)), Expect.REFUSED)
    yield _case(
        "layout/bomb",
        tiff(RGB, tags=((256, 4, [60000]), (257, 4, [60000]))),
        Expect.REFUSED,
        says="megapixels",
    )
    many = tiff(RGB, tags=((277, 3, [65535]),))
    yield _case("layout/65535 samples", many, Expect.REFUSED)
    bytes_after = tiff(RGB) + bytes(range(256)) * 4
    yield _case("layout/bytes after the end", bytes_after, Expect.RIGHT, RGB)
    described = tiff(
        RGB, tags=((270, 2, b"a photograph\0"), (305, 2, b"by hand\0"), (34665, 4, [8]), (700, 1, b"<x/>"))
    )
    yield _case("layout/description, EXIF, XMP", described, Expect.RIGHT, RGB)


def _odd_tags() -> Iterator[Case]:
    """Tags of another type, or with another count of values, than the standard gives them."""
    for (tag, value), kind, count in product(_NUMBERS.items(), (1, 2, 3, 4, 5, 7), (1, 2)):
        raw = bytes([value] * count)
        values = raw if kind in (1, 2, 7) else [value, 1] * count if kind == 5 else [value] * count
        is_number = kind in (1, 3, 4) and count == 1
        if tag == 274 and not is_number:
            continue  # ignored or refused: the standard does not say
        truth = upright(RGB, value) if tag == 274 else RGB
        expect = Expect.RIGHT if kind == 3 and is_number else Expect.EITHER
        data = tiff(RGB, rows=16, tags=((tag, kind, values),))
        yield _case(f"tags/{tag} of type {kind}, {count} of them", data, expect, truth)


def _pages() -> Iterator[Case]:
    small = RGB[::4, ::4]
    thumbnail, mask = Tiff(tags=((254, 4, [1]),)), Tiff(bits=1, colour=4, tags=((254, 4, [4]),))
    plain = Tiff()
    yield _case(
        "pages/picture, thumbnail", tiff(RGB, Tiff(next_pages=((small, thumbnail),))), Expect.RIGHT, RGB
    )
    first = Tiff(tags=((254, 4, [1]),), next_pages=((RGB, plain),))
    yield _case("pages/thumbnail, picture", tiff(small, first), Expect.RIGHT, RGB)
    masked = tiff(RGB, Tiff(next_pages=((GREY >> 7, mask),)))
    yield _case("pages/picture, transparency mask", masked, Expect.EITHER, RGB)
    turned = Tiff(orientation=6, next_pages=((small, thumbnail),))
    yield _case("pages/turned picture, thumbnail", tiff(RGB, turned), Expect.RIGHT, upright(RGB, 6))
    old = tiff(RGB, Tiff(next_pages=((small, Tiff(tags=((255, 3, [2]),))),)))
    yield _case("pages/picture, thumbnail in old words", old, Expect.EITHER, RGB)
    yield _case(
        "pages/two", tiff(RGB, Tiff(next_pages=((RGB[::-1], plain),))), Expect.REFUSED, says="2 pages"
    )
    pages = tiff(RGB, Tiff(next_pages=((GREY, Tiff(colour=BLACK_IS_ZERO)), (small, plain))))
    yield _case("pages/three of several sizes", pages, Expect.REFUSED, says="3 pages")
    numbered = Tiff(tags=((254, 4, [2]), (297, 3, [0, 1])))
    yield _case("pages/one that says it is page 1 of 1", tiff(RGB, numbered), Expect.RIGHT, RGB)
    only = tiff(RGB, Tiff(tags=((254, 4, [1]),)))
    yield _case("pages/only a thumbnail", only, Expect.EITHER, RGB)


def _refused() -> Iterator[Case]:
    unit = RGB / 255.0
    for bits in (16, 32, 64):
        floats = unit.astype(f"f{bits // 8}")
        yield _case(
            f"refused/float {bits}", tiff(floats, bits=bits, sample_format=3), Expect.REFUSED, says="float"
        )
    for bits, colours in product((8, 16, 32), ((GREY, BLACK_IS_ZERO), (RGB, IS_RGB))):
        samples, colour = colours
        data = tiff(samples.astype(np.uint32), bits=bits, sample_format=2, colour=colour)
        yield _case(f"refused/signed {bits} {colour}", data, Expect.REFUSED, says="signed|integer")
    wide = RGB.astype(np.uint32) << 24
    yield _case("refused/32 bits", tiff(wide, bits=32), Expect.REFUSED, says="32")
    complex_ = tiff(RGB.astype(np.uint32), bits=32, sample_format=6)
    yield _case("refused/complex", complex_, Expect.REFUSED)
    for colour, bits in product((8, 9, 10), (8, 16)):
        wide_samples = RGB.astype(np.uint16) * (1 if bits == 8 else 257)
        yield _case(
            f"refused/Lab {colour} {bits}",
            tiff(wide_samples, colour=colour, bits=bits),
            Expect.REFUSED,
            says=r"L\*a\*b|Lab",
        )
    for colour in (4, 32844, 32845, 51177, 7777):
        plain: Samples = RGB if colour != 4 else GREY >> 7
        data = tiff(plain, colour=colour, bits=1 if colour == 4 else 8)
        yield _case(f"refused/colour model {colour}", data, Expect.REFUSED)
    yield _case("refused/two channels of colour", tiff(RGB[..., :2], colour=IS_RGB), Expect.REFUSED)
    seven = np.dstack([RGB, RGB, GREY])
    yield _case("refused/seven bands", tiff(seven, colour=BLACK_IS_ZERO, extra=(0,) * 6), Expect.REFUSED)
    yield _case("refused/palette without a palette", tiff(GREY, colour=PALETTE), Expect.REFUSED)
    yield _case(
        "refused/float predictor", tiff(RGB, compression=DEFLATE, tags=((317, 3, [3]),)), Expect.REFUSED
    )
    volume = tiff(RGB, tags=((32997, 4, [2]),))
    yield _case("refused/a volume", volume, Expect.EITHER, RGB)


def _raw_photographs() -> Iterator[Case]:
    """A camera's raw data, of which the picture in plain sight is but a thumbnail."""
    sensor = _samples(12, 1)
    small = RGB[::4, ::4]
    cfa = (33421, 3, [2, 2]), (33422, 1, b"\0\1\1\2")
    dng: tuple[Tag, ...] = ((50706, 1, b"\1\4\0\0"), (50708, 2, b"Maker Model\0"))
    data = tiff(sensor, bits=12, colour=32803, tags=(*cfa, *dng))
    yield _case("raw/DNG", data, Expect.REFUSED, says="raw")
    linear = tiff(_samples(16, 3), bits=16, colour=34892, tags=dng)
    yield _case("raw/linear DNG", linear, Expect.REFUSED, says="raw")
    inside = tiff(
        small,
        Tiff(
            tags=((254, 4, [1]), (271, 2, b"NIKON\0"), *dng),
            next_pages=((sensor, Tiff(bits=12, colour=32803, tags=cfa)),),
        ),
    )
    yield _case("raw/DNG with a thumbnail", inside, Expect.REFUSED, says="raw")
    for name, tags in {"DNG": dng, "NEF": ((271, 2, b"NIKON CORPORATION\0"),)}.items():
        sub_directory = bytearray(tiff(small, tags=((254, 4, [1]), (330, 4, [0]), *tags)))
        at, _link = _page(sub_directory, sensor, Tiff(bits=12, colour=32803, tags=cfa), big=False)
        place = _value_of(sub_directory, 330)
        struct.pack_into("<I", sub_directory, place, at)
        yield _case(
            f"raw/{name} with sub-directories", bytes(sub_directory), Expect.REFUSED, says="raw|thumbnail"
        )
    canon = bytearray(tiff(small, tags=((271, 2, b"Canon\0"),)))
    spread = bytes(canon[:8]) + b"CR\2\0" + bytes(4) + bytes(canon[8:])
    shifted = _shifted(spread, 8)
    yield _case("raw/CR2", shifted, Expect.REFUSED, says="raw")
    for name, start in {
        "ORF": b"IIRO\x08\0\0\0",
        "RW2": b"IIU\0\x18\0\0\0",
        "ORF of old": b"IIRS\x08\0\0\0",
    }.items():
        yield _case(f"raw/{name}", start + tiff(RGB)[8:], Expect.REFUSED, says="raw|not a")


def _value_of(data: bytes | bytearray, tag: int) -> int:
    """Where a tag's value is in the first directory."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = range(directory + 2, directory + 2 + 12 * count, 12)
    return next(entry + 8 for entry in entries if struct.unpack_from("<H", data, entry)[0] == tag)


def _shifted(data: bytes, by: int) -> bytes:
    """A file into which bytes were put after its header: all that points behind them points further."""
    moved = bytearray(data)
    (directory,) = struct.unpack_from("<I", moved, 4)
    directory += by
    struct.pack_into("<I", moved, 4, directory)
    (count,) = struct.unpack_from("<H", moved, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from("<HHI", moved, entry)
        size = {1: 1, 2: 1, 3: 2, 4: 4}[kind] * number
        if size > 4 or tag == 273:
            struct.pack_into("<I", moved, entry + 8, struct.unpack_from("<I", moved, entry + 8)[0] + by)
    return bytes(moved)


def _remembered(encode: Callable[[Pixels], bytes | bytearray]) -> Callable[[Samples], bytes]:
    known: dict[tuple[int, bytes], bytes] = {}

    def encoded(piece: Samples) -> bytes:
        key = piece.shape[1], piece.tobytes()
        if key not in known:
            known[key] = bytes(encode(piece.astype(np.uint8)))
        return known[key]

    return encoded


def _damaged() -> Iterator[Case]:
    """One strip of a compressed file is damaged."""
    picture = photograph(128, 96)
    encoders: dict[int, Callable[[Samples], bytes] | None] = dict.fromkeys(
        (LZW, DEFLATE, PACKBITS, LZMA, ZSTD)
    )
    encoders[JPEG] = _remembered(lambda piece: imagecodecs.jpeg8_encode(piece, 90))
    encoders[WEBP] = _remembered(lambda piece: imagecodecs.webp_encode(piece, 90))
    encoders[JPEG2000] = _remembered(lambda piece: imagecodecs.jpeg2k_encode(piece, 80, codecformat="j2k"))
    spoilers: dict[str, Callable[[bytes], bytes]] = {
        "64 zeros": lambda piece: zeroed(piece, len(piece) // 2, 64),
        "512 zeros": lambda piece: zeroed(piece, len(piece) // 3, 512),
        "64 zeros early": lambda piece: zeroed(piece, len(piece) // 10 + 30, 64),
        "cut": lambda piece: piece[: len(piece) * 2 // 3],
        "100 bytes lost": lambda piece: shortened(piece, len(piece) // 2, 100) + bytes(100),
        "CRLF": lambda piece: piece.replace(b"\n", b"\r\n")[: len(piece)],
        "nothing left": lambda piece: bytes(len(piece)),
        "empty": lambda _: b"",
    }
    exact = (LZW, DEFLATE, PACKBITS, LZMA)
    for (compression, encode), predictor, layout, (name, spoil) in product(
        encoders.items(), (1, 2), _DAMAGED_LAYOUTS, spoilers.items()
    ):
        if predictor == 2 and compression in (PACKBITS, JPEG, WEBP, JPEG2000):
            continue
        options: Options = {
            "compression": compression,
            "encode": encode,
            "predictor": predictor,
            **layout,
        }
        if compression == JPEG:
            options |= {"colour": YCBCR, "tags": ((530, 3, (2, 2)),)}
        data = tiff(picture, spoil=spoil, **options)
        if data == tiff(picture, **options):
            continue
        label = f"{NAMES[compression]} {name} predictor {predictor} {layout}"
        sure = compression in exact or name in ("cut", "nothing left", "empty")
        expect = Expect.EITHER if sure else Expect.MEASURED
        if compression == JPEG and name != "100 bytes lost":
            expect = Expect.REFUSED
        yield _case(f"damage/{label}", data, expect, picture)
