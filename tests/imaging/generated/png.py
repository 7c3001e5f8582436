"""PNGs: every colour type, depth and interlace, transparency and orientation, and damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from tests.imaging.generated.cases import (
    Case,
    Expect,
    Pixels,
    Samples,
    exif,
    levels,
    photograph,
    rgb_of,
    saved,
    shortened,
    soft_disc,
    upright,
    zeroed,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGB_ALPHA: (8, 16),
}
NAMES = {GREY: "grey", RGB: "RGB", PALETTE: "palette", GREY_ALPHA: "grey alpha", RGB_ALPHA: "RGB alpha"}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PHOTOGRAPH = photograph(43, 35)
ALPHA = soft_disc(43, 35)


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    samples: Samples,
    colour: int = RGB,
    bits: int = 8,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    split: int = 0,
    header: dict[int, int] | None = None,
) -> bytes:
    """A file of samples (H, W[, S]); `before` and `after` are chunks around its data.

    `split`: the most bytes of a chunk of data. `header`: bytes of the header to write otherwise.
    """
    samples = samples if samples.ndim == 3 else samples[..., np.newaxis]
    height, width = samples.shape[:2]
    ihdr = bytearray(struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced)))
    for place, value in (header or {}).items():
        ihdr[place] = value
    data = zlib.compress(_rows(samples, bits, interlaced=interlaced))
    parts = [data[at : at + split] for at in range(0, len(data), split)] if split else [data]
    body = b"".join(chunk(b"IDAT", part) for part in parts)
    return SIGNATURE + chunk(b"IHDR", bytes(ihdr)) + before + body + after + chunk(b"IEND")


def _rows(samples: Samples, bits: int, *, interlaced: bool) -> bytes:
    """Filtered rows: one of the five filters after the other."""
    raw = b""
    for x, y, step_x, step_y in _PASSES if interlaced else ((0, 0, 1, 1),):
        part = samples[y::step_y, x::step_x]
        if not part.size:
            continue
        stride = max(1, bits * part.shape[2] // 8)
        above = np.zeros(-(-part.shape[1] * part.shape[2] * bits // 8), np.int16)
        for number, row in enumerate(part):
            line = np.frombuffer(_packed(row.ravel(), bits), np.uint8).astype(np.int16)
            raw += bytes([number % 5]) + _filtered(line, above, stride, number % 5)
            above = line
    return raw


def _packed(row: Samples, bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    spread = (row[:, np.newaxis].astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return np.packbits(spread).tobytes()


def _filtered(line: Any, above: Any, stride: int, kind: int) -> bytes:
    left = np.concatenate([np.zeros(stride, np.int16), line])[: line.size]
    corner = np.concatenate([np.zeros(stride, np.int16), above])[: line.size]
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    paeth = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
    predicted = (0, left, above, (left + above) // 2, paeth)[kind]
    return bytes(((line - predicted) % 256).astype(np.uint8))


def _case(name: str, data: bytes, expect: Expect, pixels: Pixels | None = None, **fields: Any) -> Case:
    return Case(name=f"PNG/{name}", data=data, expect=expect, pixels=pixels, **fields)


def _samples(colour: int, bits: int) -> Samples:
    source = {
        GREY: PHOTOGRAPH[..., :1], PALETTE: PHOTOGRAPH[..., :1], RGB: PHOTOGRAPH,
        GREY_ALPHA: np.dstack([PHOTOGRAPH[..., 0], ALPHA]), RGB_ALPHA: np.dstack([PHOTOGRAPH, ALPHA]),
    }[colour].astype(np.uint32)  # fmt: skip
    fine = np.random.default_rng(bits).integers(0, 256, source.shape, np.uint32)
    samples: Samples = ((source << 8 | fine) >> (16 - bits)).astype(np.uint16)
    return samples


_ENTRIES = np.random.default_rng(5).integers(0, 256, (256, 3)).astype(np.uint8)


def _seen(samples: Samples, colour: int, bits: int) -> tuple[Pixels, Pixels | None]:
    if colour == PALETTE:
        return _ENTRIES[samples[..., 0]], None
    shown = levels(samples, bits)
    pixels = shown[..., :3] if shown.shape[2] >= 3 else rgb_of(shown[..., 0])
    return pixels, shown[..., -1] if colour in (GREY_ALPHA, RGB_ALPHA) else None


def _palette(bits: int) -> bytes:
    return chunk(b"PLTE", _ENTRIES[: 1 << bits].tobytes())


def png_cases() -> Iterator[Case]:
    yield from _kinds()
    yield from _transparent()
    yield from _orientations()
    yield from _oddities()
    yield from _refused()
    yield from _damaged()


def _kinds() -> Iterator[Case]:
    for colour, interlaced in product(DEPTHS, (False, True)):
        for bits in DEPTHS[colour]:
            samples = _samples(colour, bits)
            pixels, alpha = _seen(samples, colour, bits)
            before = _palette(bits) if colour == PALETTE else b""
            for split in (0, 7):
                data = png(samples, colour, bits, interlaced=interlaced, before=before, split=split)
                name = f"kind/{NAMES[colour]} {bits} {'interlaced' if interlaced else ''} {split}"
                says = "16 bits" if bits == 16 else None
                yield _case(name, data, Expect.RIGHT, pixels, alpha=alpha, says=says)
    for width, height, interlaced in product((1, 2, 5, 9), (1, 3, 8), (False, True)):
        pixels = photograph(width, height)
        yield _case(
            f"size/{width}x{height} {interlaced}", png(pixels, interlaced=interlaced), Expect.RIGHT, pixels
        )


def _transparent() -> Iterator[Case]:
    for bits, high in product(DEPTHS[GREY], (False, True)):
        samples = _samples(GREY, bits)
        key = int(samples[3, 4, 0])
        if high and bits == 16:
            continue
        written = key | (0xA500 & ~((1 << bits) - 1)) if high else key
        data = png(samples, GREY, bits, before=chunk(b"tRNS", struct.pack(">H", written)))
        alpha = np.where(samples[..., 0] == key, 0, 255).astype(np.uint8)
        name = f"transparent/grey {bits} {'high bits' if high else ''}"
        yield _case(
            name, data, Expect.EITHER if high else Expect.RIGHT, _seen(samples, GREY, bits)[0], alpha=alpha
        )
    for bits, high, interlaced in product(DEPTHS[RGB], (False, True), (False, True)):
        samples = _samples(RGB, bits)
        key = samples[3, 4]
        if high and bits == 16:
            continue
        samples[4:9, 5:20] = key
        near = key.copy()
        near[2] ^= 1
        samples[20:25, 5:20] = near
        written = key | (0x5A00 if high else 0)
        data = png(
            samples, RGB, bits, interlaced=interlaced, before=chunk(b"tRNS", written.astype(">u2").tobytes())
        )
        alpha = np.where((samples == key).all(axis=2), 0, 255).astype(np.uint8)
        name = f"transparent/RGB {bits} {'high bits' if high else ''} {interlaced}"
        yield _case(
            name, data, Expect.EITHER if high else Expect.RIGHT, _seen(samples, RGB, bits)[0], alpha=alpha
        )
    for bits in DEPTHS[PALETTE]:
        samples = _samples(PALETTE, bits)
        for count in sorted({1, (1 << bits) - 1, 1 << bits}):
            shares = np.full(256, 255, np.uint8)
            shares[:count] = np.arange(count) * 37 % 256
            before = _palette(bits) + chunk(b"tRNS", shares[:count].tobytes())
            data = png(samples, PALETTE, bits, before=before)
            pixels, alpha = _ENTRIES[samples[..., 0]], shares[samples[..., 0]]
            yield _case(f"transparent/palette {bits} {count}", data, Expect.RIGHT, pixels, alpha=alpha)
    over = chunk(b"tRNS", bytes(300))
    data = png(_samples(PALETTE, 8), PALETTE, before=_palette(8) + over)
    yield _case(
        "transparent/more entries than colours", data, Expect.EITHER, _ENTRIES[_samples(PALETTE, 8)[..., 0]]
    )
    for colour in (GREY_ALPHA, RGB_ALPHA):
        samples = _samples(colour, 8)
        pixels, share = _seen(samples, colour, 8)
        data = png(samples, colour, before=chunk(b"tRNS", bytes(6)))
        yield _case(f"transparent/tRNS beside {NAMES[colour]}", data, Expect.EITHER, pixels, alpha=share)
    for colour, body in ((GREY, b"\0"), (RGB, bytes(5)), (GREY, b"")):
        samples = _samples(colour, 8)
        data = png(samples, colour, before=chunk(b"tRNS", body))
        yield _case(
            f"transparent/{NAMES[colour]} of {len(body)} bytes",
            data,
            Expect.EITHER,
            _seen(samples, colour, 8)[0],
        )


def raw_profile(block: bytes) -> bytes:
    """EXIF as older ImageMagick writes it: hexadecimal in a compressed text chunk."""
    block = b"Exif\0\0" + block
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def xmp(orientation: int, *, as_element: bool = False) -> bytes:
    value = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if as_element else ""
    attribute = "" if as_element else f'tiff:Orientation="{orientation}"'
    text = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {attribute}>{value}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text.encode())


def _orientations() -> Iterator[Case]:
    samples = np.dstack([PHOTOGRAPH, ALPHA])
    for orientation, order in product(range(1, 9), "<>"):
        block = exif(orientation, order)
        places = {
            "eXIf": {"before": chunk(b"eXIf", block)},
            "eXIf with a prefix": {"before": chunk(b"eXIf", b"Exif\0\0" + block)},
            "eXIf after the data": {"after": chunk(b"eXIf", block)},
            "raw profile": {"before": raw_profile(block)},
            "XMP": {"before": xmp(orientation)},
            "XMP as an element": {"before": xmp(orientation, as_element=True)},
            "eXIf and XMP that disagree": {"before": xmp(3) + chunk(b"eXIf", block)},
        }
        for name, chunks in places.items():
            if orientation == 1 and "disagree" in name:
                continue
            data = png(samples, RGB_ALPHA, **chunks)  # type: ignore[arg-type]
            truth = upright(PHOTOGRAPH, orientation), upright(ALPHA, orientation)
            yield _case(
                f"orientation/{orientation} {order} {name}", data, Expect.RIGHT, truth[0], alpha=truth[1]
            )
    for name, before in {
        "cut eXIf": chunk(b"eXIf", exif(6)[:12]),
        "empty eXIf": chunk(b"eXIf"),
        "9": chunk(b"eXIf", exif(9)),
        "text in a raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"exif")),
    }.items():
        yield _case(f"orientation/{name}", png(PHOTOGRAPH, before=before), Expect.RIGHT, PHOTOGRAPH)


def _oddities() -> Iterator[Case]:
    text = chunk(b"tEXt", b"Comment\0IEND IDAT")
    white = b"".join(
        struct.pack(">I", value) for value in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    )
    sound: dict[str, dict[str, Any]] = {
        "suggested palette": {"before": _palette(8)},
        "gAMA 0.45455": {"before": chunk(b"gAMA", struct.pack(">I", 45455))},
        "sRGB": {"before": chunk(b"sRGB", b"\0")},
        "gAMA, cHRM of sRGB": {"before": chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"cHRM", white)},
        "text, time, background": {
            "before": text + chunk(b"bKGD", bytes(6)) + chunk(b"pHYs", bytes(9)) + chunk(b"tIME", bytes(7))
        },
        "sBIT": {"before": chunk(b"sBIT", b"\5\6\5")},
        "an unknown chunk": {"before": chunk(b"quIz", b"?")},
        "empty data chunks": {"before": chunk(b"IDAT")},
        "text after the data": {"after": text},
    }
    for name, options in sound.items():
        yield _case(f"odd/{name}", png(PHOTOGRAPH, **options), Expect.RIGHT, PHOTOGRAPH, says=None)
    yield _case("odd/bytes after the end", png(PHOTOGRAPH) + b"more" * 99, Expect.RIGHT, PHOTOGRAPH)
    still = chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", 0, 43, 35, 0, 0, 1, 1, 0, 0)
    )
    yield _case("odd/animation of one frame", png(PHOTOGRAPH, before=still), Expect.RIGHT, PHOTOGRAPH)
    unusual: dict[str, bytes] = {
        "a bomb of text": png(
            PHOTOGRAPH, before=chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
        ),
        "more data than pixels": _with_data(
            zlib.compress(_rows(PHOTOGRAPH, 8, interlaced=False) + bytes(500))
        ),
        "bytes after the compressed data": _with_data(
            zlib.compress(_rows(PHOTOGRAPH, 8, interlaced=False)) + b"abc"
        ),
        "a bad checksum of the compressed data": _with_data(
            zlib.compress(_rows(PHOTOGRAPH, 8, interlaced=False))[:-4] + b"abcd"
        ),
        "a bad checksum of a text": png(PHOTOGRAPH, before=text[:-1] + b"?"),
        "a chunk between the data": _interrupted(text),
        "the palette after the data": png(PHOTOGRAPH, after=_palette(8)),
        "gAMA 1.0": png(PHOTOGRAPH, before=chunk(b"gAMA", struct.pack(">I", 100000))),
        "two headers": png(PHOTOGRAPH, before=chunk(b"IHDR", struct.pack(">IIBBBBB", 43, 35, 8, 2, 0, 0, 0))),
    }
    for name, data in unusual.items():
        yield _case(f"odd/{name}", data, Expect.EITHER, PHOTOGRAPH)
    short = png(_samples(PALETTE, 8), PALETTE, before=chunk(b"PLTE", _ENTRIES[:16].tobytes()))
    black = np.where(np.arange(256)[:, np.newaxis] < 16, _ENTRIES, 0).astype(np.uint8)
    yield _case("odd/indices beyond the palette", short, Expect.EITHER, black[_samples(PALETTE, 8)[..., 0]])


def _with_data(data: bytes) -> bytes:
    whole = png(PHOTOGRAPH)
    at = whole.index(b"IDAT") - 4
    return whole[:at] + chunk(b"IDAT", data) + chunk(b"IEND")


def _interrupted(between: bytes) -> bytes:
    whole = png(PHOTOGRAPH, split=2000)
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4) - 4
    return whole[:second] + between + whole[second:]


def _refused() -> Iterator[Case]:
    second = Image.fromarray(PHOTOGRAPH[::-1])
    animated = saved(PHOTOGRAPH, "PNG", save_all=True, append_images=[second], duration=100)
    yield _case("refused/animation", animated, Expect.REFUSED, says="animated")
    for name, place, value in (
        ("colour type 5", 9, 5),
        ("depth 3", 8, 3),
        ("depth 16 of a palette", 8, 16),
        ("compression 1", 10, 1),
        ("filter 1", 11, 1),
        ("interlace 2", 12, 2),
    ):
        colour = PALETTE if "palette" in name else RGB
        samples = _samples(PALETTE, 8) if colour == PALETTE else PHOTOGRAPH
        before = _palette(8) if colour == PALETTE else b""
        yield _case(
            f"refused/{name}", png(samples, colour, before=before, header={place: value}), Expect.REFUSED
        )
    row_filter = _with_data(zlib.compress(b"\7" + _rows(PHOTOGRAPH, 8, interlaced=False)[1:]))
    yield _case("refused/filter of a row", row_filter, Expect.REFUSED)
    yield _case("refused/no palette", png(_samples(PALETTE, 8), PALETTE), Expect.REFUSED)
    yield _case(
        "refused/unknown critical chunk", png(PHOTOGRAPH, before=chunk(b"QUIZ")), Expect.EITHER, PHOTOGRAPH
    )
    apple = png(PHOTOGRAPH, before=b"")
    apple = SIGNATURE + chunk(b"CgBI", b"P\0 \2") + apple[8:]
    yield _case("refused/CgBI of an iPhone's application", apple, Expect.REFUSED)
    yield _case("refused/zero width", png(PHOTOGRAPH, header=dict.fromkeys(range(4), 0)), Expect.REFUSED)
    yield _case("refused/bomb", png(PHOTOGRAPH, header={2: 200, 6: 200}), Expect.REFUSED, says="megapixels")
    yield _case(
        "refused/no data", SIGNATURE + chunk(b"IHDR", png(PHOTOGRAPH)[16:29]) + chunk(b"IEND"), Expect.REFUSED
    )
    yield _case("refused/only a signature", SIGNATURE, Expect.REFUSED)


def _damaged() -> Iterator[Case]:
    pictures = {
        "RGB": png(PHOTOGRAPH, split=500),
        "interlaced": png(PHOTOGRAPH, interlaced=True),
        "grey 16": png(_samples(GREY, 16), GREY, 16),
        "palette": png(_samples(PALETTE, 4), PALETTE, 4, before=_palette(4)),
    }
    for (name, whole), percent in product(pictures.items(), (2, 20, 50, 80, 99)):
        at = 40 + (len(whole) - 60) * percent // 100
        for count in (1, 16, 64, 512):
            if at + count < len(whole) - 12 and zeroed(whole, at, count) != whole:
                yield _case(
                    f"damage/{name} {count} zeros at {percent} %", zeroed(whole, at, count), Expect.REFUSED
                )
        yield _case(f"damage/{name} cut at {percent} %", whole[:at], Expect.REFUSED)
        yield _case(
            f"damage/{name} cut and ended at {percent} %", whole[:at] + chunk(b"IEND"), Expect.REFUSED
        )
        yield _case(f"damage/{name} 100 bytes lost at {percent} %", shortened(whole, at, 100), Expect.REFUSED)
    for name, whole in pictures.items():
        yield _case(f"damage/{name} CRLF", whole.replace(b"\n", b"\r\n"), Expect.REFUSED)
        yield _case(f"damage/{name} LF", whole.replace(b"\r\n", b"\n"), Expect.REFUSED)
        yield _case(f"damage/{name} no end chunk", whole[:-12], Expect.REFUSED)
    rows = _rows(PHOTOGRAPH, 8, interlaced=False)
    yield _case("damage/half of the rows", _with_data(zlib.compress(rows[: len(rows) // 2])), Expect.REFUSED)
    yield _case("damage/half of the compressed data", _with_data(zlib.compress(rows)[:1000]), Expect.REFUSED)
