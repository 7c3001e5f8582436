"""BMPs: the headers of OS/2 and Windows, all depths, run lengths and colour masks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from tests.imaging.generated.cases import Case, Expect, Pixels, levels, photograph, rgb_of, soft_disc, zeroed

WIDTH, HEIGHT = 37, 26
RGB = photograph(WIDTH, HEIGHT)
ALPHA = soft_disc(WIDTH, HEIGHT)
_ENTRIES = np.random.default_rng(9).integers(0, 256, (256, 3)).astype(np.uint8)
PLAIN, RLE8, RLE4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
_MASKS = {
    "888 in 32": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "888 in 32, reversed": (32, (0xFF, 0xFF00, 0xFF0000, 0)),
    "888 in 32, high": (32, (0xFF000000, 0xFF0000, 0xFF00, 0)),
    "8888": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "8888, alpha low": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "8888, reversed": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "101010 in 32": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
    "101010 with 2 of alpha": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
    "565": (16, (0xF800, 0x7E0, 0x1F, 0)),
    "555": (16, (0x7C00, 0x3E0, 0x1F, 0)),
    "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "444": (16, (0xF00, 0xF0, 0xF, 0)),
}


def bmp(
    rows: bytes,
    bits: int,
    *,
    header: int = 40,
    compression: int = PLAIN,
    height: int = HEIGHT,
    width: int = WIDTH,
    palette: bytes = b"",
    masks: tuple[int, ...] = (),
    used: int = 0,
    offset: int | None = None,
    gap: bytes = b"",
) -> bytes:
    """A file with a bitmap header of so many bytes: 12 and 16 to 64 are OS/2's, 40 to 124 Windows'."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII", header, width, height, 1, bits, compression, len(rows), 2835, 2835, used, 0
        )
        after = struct.pack(f"<{len(masks)}I", *masks)
        info = info[:header] if header < 40 else info
        if header > 40:
            info += after
            info = (
                info.ljust(header, b"\0")
                if header < 108
                else info.ljust(56, b"\0") + b"BGRs".ljust(header - 56, b"\0")
            )
        else:
            info += after
    at = 14 + len(info) + len(palette) + len(gap)
    start = b"BM" + struct.pack("<IHHI", at + len(rows), 0, 0, at if offset is None else offset)
    return start + info + palette + gap + rows


def packed(samples: Any, bits: int, *, top_down: bool = False) -> bytes:
    """Rows of (H, W) samples or (H, W, 3) RGB, upwards, each of a multiple of four bytes."""
    lines = []
    for row in samples if top_down else samples[::-1]:
        if row.ndim == 2:
            line = row[:, ::-1].astype(np.uint8).tobytes()
        elif bits >= 8:
            line = row.astype(f"<u{bits // 8}").tobytes()
        else:
            spread = (row[:, np.newaxis].astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
            line = np.packbits(spread).tobytes()
        lines.append(line + bytes(-len(line) % 4))
    return b"".join(lines)


def _palette(count: int, *, old: bool = False) -> bytes:
    return b"".join(entry[::-1].tobytes() + (b"" if old else b"\0") for entry in _ENTRIES[:count])


def _case(name: str, data: bytes, expect: Expect, pixels: Pixels | None = None, **fields: Any) -> Case:
    return Case(name=f"BMP/{name}", data=data, expect=expect, pixels=pixels, **fields)


def bmp_cases() -> Iterator[Case]:
    yield from _palettes()
    yield from _colours()
    yield from _masked()
    yield from _run_lengths()
    yield from _odd_and_damaged()


def _palettes() -> Iterator[Case]:
    for bits, header in product((1, 2, 4, 8), (12, 16, 40, 52, 56, 64, 108, 124)):
        indices = RGB[..., 0] >> (8 - bits)
        palette = _palette(1 << bits, old=header == 12)
        usual = Expect.RIGHT if bits != 2 and header in (12, 40, 64, 108, 124) else Expect.EITHER
        data = bmp(packed(indices, bits), bits, header=header, palette=palette)
        yield _case(f"palette/{bits} header {header}", data, usual, _ENTRIES[indices])
        if header >= 40:
            data = bmp(
                packed(indices, bits, top_down=True), bits, header=header, palette=palette, height=-HEIGHT
            )
            yield _case(f"palette/{bits} header {header} downwards", data, usual, _ENTRIES[indices])
    few = RGB[..., 0] % 20
    data = bmp(packed(few, 8), 8, palette=_palette(20), used=20)
    yield _case("palette/20 of 256", data, Expect.RIGHT, _ENTRIES[few])
    short_os2 = bmp(packed(few, 8), 8, header=12, palette=_palette(20, old=True))
    yield _case("palette/20 of 256 of OS/2", short_os2, Expect.EITHER, _ENTRIES[few])
    grey = b"".join(bytes([level] * 3) + b"\0" for level in range(256))
    yield _case(
        "palette/grey", bmp(packed(RGB[..., 0], 8), 8, palette=grey), Expect.RIGHT, rgb_of(RGB[..., 0])
    )
    white_first = bmp(packed(RGB[..., 0] >> 7, 1), 1, palette=b"\xff\xff\xff\0\0\0\0\0")
    yield _case("palette/white first", white_first, Expect.RIGHT, rgb_of(255 - (RGB[..., 0] >> 7) * 255))
    beyond = bmp(packed(RGB[..., 0], 8), 8, palette=_palette(20), used=20)
    black = np.where(np.arange(256)[:, np.newaxis] < 20, _ENTRIES, 0).astype(np.uint8)
    yield _case("palette/indices beyond it", beyond, Expect.EITHER, black[RGB[..., 0]])


def _colours() -> Iterator[Case]:
    for header in (12, 16, 40, 52, 56, 64, 108, 124):
        usual = Expect.RIGHT if header in (12, 40, 64, 108, 124) else Expect.EITHER
        yield _case(f"colour/24 header {header}", bmp(packed(RGB, 24), 24, header=header), usual, RGB)
        if header >= 40:
            data = bmp(packed(RGB, 24, top_down=True), 24, header=header, height=-HEIGHT)
            yield _case(f"colour/24 header {header} downwards", data, usual, RGB)
    padded = np.dstack([RGB, np.zeros_like(ALPHA)]).astype(np.uint32)
    words = padded[..., 0] << 16 | padded[..., 1] << 8 | padded[..., 2]
    yield _case("colour/32", bmp(packed(words, 32), 32), Expect.RIGHT, RGB)
    used = words | ALPHA.astype(np.uint32) << 24
    yield _case("colour/32, a fourth byte that means nothing", bmp(packed(used, 32), 32), Expect.EITHER, RGB)
    fives = RGB.astype(np.uint16) >> 3
    words = fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2]
    yield _case("colour/16", bmp(packed(words, 16), 16), Expect.EITHER, levels(fives, 5), tolerance=1)
    hinted = bmp(packed(RGB, 24), 24, palette=_palette(16), used=16)
    yield _case("colour/24 with a palette to hint", hinted, Expect.RIGHT, RGB)


def _masked() -> Iterator[Case]:
    for (name, (bits, masks)), header, top_down in product(
        _MASKS.items(), (40, 52, 56, 108, 124), (False, True)
    ):
        words = np.zeros((HEIGHT, WIDTH), np.uint32)
        truth = []
        channels = np.dstack([RGB, ALPHA]).astype(np.uint32)
        for mask, channel in zip(masks, range(4), strict=True):
            if mask:
                width, shift = mask.bit_count(), (mask & -mask).bit_length() - 1
                value = channels[..., channel] * ((1 << width) - 1) // 255
                words |= (value << shift).astype(np.uint32)
                truth.append(levels(value, width))
        alpha_fits = header >= 56 or not masks[3]
        written = masks if header >= 56 else masks[:3]
        compression = BITFIELDS
        if not alpha_fits:
            if header == 52:
                continue
            written, compression = masks, ALPHA_BITFIELDS
        data = bmp(
            packed(words, bits, top_down=top_down),
            bits,
            header=header,
            masks=written,
            compression=compression,
            height=-HEIGHT if top_down else HEIGHT,
        )
        alpha = truth[3] if masks[3] else None
        common = (
            name in ("888 in 32", "8888", "565") and compression == BITFIELDS and header in (40, 56, 108, 124)
        )
        label = f"masks/{name} header {header} {'downwards' if top_down else ''}"
        yield _case(
            label,
            data,
            Expect.RIGHT if common else Expect.EITHER,
            np.dstack(truth[:3]),
            alpha=alpha,
            tolerance=1 if bits == 16 or "101010" in name else 0,
        )
    overlapping = bmp(
        packed(RGB[..., 0].astype(np.uint32), 32), 32, masks=(0xFF, 0xFF, 0xFF), compression=BITFIELDS
    )
    yield _case("masks/the same for all", overlapping, Expect.EITHER, rgb_of(RGB[..., 0]))
    none = bmp(packed(RGB[..., 0].astype(np.uint32), 32), 32, masks=(0, 0, 0), compression=BITFIELDS)
    yield _case("masks/none", none, Expect.EITHER, np.zeros_like(RGB))
    gaps = bmp(
        packed(RGB[..., 0].astype(np.uint32), 32), 32, masks=(0xF0F, 0xF0, 0xF000), compression=BITFIELDS
    )
    yield _case("masks/with gaps", gaps, Expect.REFUSED)


def _encoded_runs(indices: Any, bits: int) -> bytes:
    data = b""
    for row in indices[::-1]:
        at = 0
        while at < len(row):
            run = 1
            while at + run < len(row) and run < 255 and row[at + run] == row[at]:
                run += 1
            if run == 1 and at + 5 <= len(row):
                run = 5  # as they are, padded to a word
                values = [int(value) for value in row[at : at + 5]]
                if bits == 8:
                    data += bytes([0, 5, *values, 0])
                else:
                    data += bytes(
                        [0, 5, values[0] << 4 | values[1], values[2] << 4 | values[3], values[4] << 4, 0]
                    )
            else:
                value = int(row[at])
                data += bytes([run, value if bits == 8 else value << 4 | value])
            at += run
        data += b"\0\0"
    return data + b"\0\1"


def _run_lengths() -> Iterator[Case]:
    for bits, compression in ((8, RLE8), (4, RLE4)):
        indices = (RGB[..., 0] >> (8 - bits) >> 1 << 1).astype(np.uint8)
        indices[5:12, 3:30] = 3
        palette = _palette(1 << bits)
        runs = _encoded_runs(indices, bits)
        for header in (40, 108, 124):
            data = bmp(runs, bits, header=header, compression=compression, palette=palette)
            yield _case(f"runs/{bits} header {header}", data, Expect.EITHER, _ENTRIES[indices])
        solid = indices.copy()
        solid[:] = 7
        data = bmp(_encoded_runs(solid, bits), bits, compression=compression, palette=palette)
        yield _case(f"runs/{bits} one colour", data, Expect.EITHER, _ENTRIES[solid])
        skipping = bytes([0, 2, 5, 2, 4, 0x11 if bits == 4 else 1, 0, 1])
        skipped = np.zeros((HEIGHT, WIDTH), np.uint8)
        skipped[HEIGHT - 3, 5:9] = 1
        data = bmp(skipping, bits, compression=compression, palette=palette)
        yield _case(f"runs/{bits} with a jump", data, Expect.EITHER, _ENTRIES[skipped])
        clipped = indices.copy()
        clipped[-1] = 1
        yield _case(
            f"runs/{bits} cut",
            bmp(runs[: len(runs) // 2], bits, compression=compression, palette=palette),
            Expect.REFUSED,
        )
        yield _case(
            f"runs/{bits} without an end",
            bmp(runs[:-2], bits, compression=compression, palette=palette),
            Expect.EITHER,
            _ENTRIES[indices],
        )
        yield _case(
            f"runs/{bits} beyond a row",
            bmp(
                bytes([200, 0x11 if bits == 4 else 1]) * 8 + runs,
                bits,
                compression=compression,
                palette=palette,
            ),
            Expect.EITHER,
            _ENTRIES[clipped],
        )
        zeros = bmp(zeroed(runs, len(runs) // 2, 64), bits, compression=compression, palette=palette)
        yield _case(f"runs/{bits} damaged", zeros, Expect.MEASURED, _ENTRIES[indices])


def _odd_and_damaged() -> Iterator[Case]:
    whole = bmp(packed(RGB, 24), 24)
    indices = RGB[..., 0]
    paletted = bmp(packed(indices, 8), 8, palette=_palette(256))
    yield _case("odd/a gap before the pixels", bmp(packed(RGB, 24), 24, gap=bytes(99)), Expect.RIGHT, RGB)
    yield _case("odd/bytes after the end", whole + bytes(99), Expect.RIGHT, RGB)
    yield _case("odd/a wrong file size", whole[:2] + bytes(4) + whole[6:], Expect.RIGHT, RGB)
    for offset in (0, 14, 30, 54, 60, 500):
        data = bmp(packed(indices, 8), 8, palette=_palette(256), offset=offset)
        yield _case(
            f"odd/pixels at {offset}, inside the header or palette",
            data,
            Expect.EITHER,
            _ENTRIES[indices],
            says="offset|palette|header",
        )
        data = bmp(packed(RGB, 24), 24, offset=offset) if offset < 54 else b""
        if data:
            yield _case(f"odd/pixels of 24 bits at {offset}, inside the header", data, Expect.EITHER, RGB)
    masked = bmp(
        packed(RGB[..., 0].astype(np.uint32), 32),
        32,
        masks=(0xFF, 0xFF, 0xFF),
        compression=BITFIELDS,
        offset=54,
    )
    yield _case("odd/pixels inside the masks", masked, Expect.EITHER, rgb_of(RGB[..., 0]))
    yield _case("odd/pixels beyond the end", bmp(packed(RGB, 24), 24, offset=1 << 20), Expect.REFUSED)
    for name, data in {"24": whole, "palette": paletted}.items():
        for cut in (3, 20, 40, 60, len(data) // 2, len(data) - 40):
            yield _case(f"damage/{name} cut at {cut}", data[:cut], Expect.REFUSED)
    odd: dict[str, dict[str, Any]] = {
        "no planes of bits": {"bits": 0}, "bits of 7": {"bits": 7}, "bits of 64": {"bits": 64},
        "header of 41": {"bits": 24, "header": 41}, "compression 9": {"bits": 24, "compression": 9},
        "JPEG inside": {"bits": 0, "compression": 4}, "PNG inside": {"bits": 0, "compression": 5},
        "runs of 24 bits": {"bits": 24, "compression": RLE8}, "zero width": {"bits": 24, "width": 0},
        "zero height": {"bits": 24, "height": 0}, "negative width": {"bits": 24, "width": -37},
    }  # fmt: skip
    for name, options in odd.items():
        expect = Expect.EITHER if "41" in name else Expect.REFUSED
        yield _case(f"refused/{name}", bmp(packed(RGB, 24), **options), expect, RGB)
    bomb = bmp(packed(RGB, 24), 24, width=100_000, height=100_000)
    yield _case("refused/bomb", bomb, Expect.REFUSED)
    yield _case(
        "refused/text that begins with BM",
        b"BMW drivers are\nno worse than others, says a study of 2019.\n" * 3,
        Expect.REFUSED,
    )
