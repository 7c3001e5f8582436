"""JPEGs: whole ones of every kind, odd ones that are whole all the same, and damage of every kind."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from tests.imaging.generated.cases import (
    Case,
    Expect,
    Pixels,
    exif,
    photograph,
    rgb_of,
    saved,
    shortened,
    upright,
    zeroed,
)

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<r:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></r:RDF></x:xmpmeta>'
)
START, END, SCAN, EXIF, ADOBE = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xE1, 0xEE
# All decoders that are worth it agree to the last bit but for CMYK, where they round differently.
SAME, ROUNDING = 1, 3
PHOTOGRAPH = photograph(160, 120)
WHOLE: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart": {"restart_marker_rows": 1},
    "optimised": {"optimize": True},
    "progressive restart": {"progressive": True, "restart_marker_blocks": 7},
}


def jpeg(pixels: Pixels = PHOTOGRAPH, **options: Any) -> bytes:
    return saved(pixels, "JPEG", **{"quality": 85, "subsampling": 0, **options})


def seen(data: bytes) -> Pixels:
    """Pixels of a whole JPEG without an orientation or a profile, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def markers(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of every segment; a scan's end is that of its entropy-coded data."""
    found = []
    at = 2
    while data[at + 1] != 0xD9:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        end = at + 2 + length
        if marker == SCAN:
            while not (data[end] == 0xFF and data[end + 1] and not 0xD0 <= data[end + 1] <= 0xD7):
                end += 1
        found.append((marker, at, end))
        at = end
    return found


def place_of(data: bytes, marker: int) -> int:
    return next(start for found, start, _ in markers(data) if found == marker)


def after_start(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def app1(block: bytes) -> bytes:
    return segment(EXIF, b"Exif\0\0" + block)


def jpeg_cases() -> Iterator[Case]:
    yield from _whole()
    yield from _flat()
    yield from _hand_made()
    yield from _orientations()
    yield from _oddities()
    yield from _refused()
    yield from _channels()
    yield from _damaged()


def _right(name: str, data: bytes, pixels: Pixels, **fields: Any) -> Case:
    usual = {"expect": Expect.RIGHT, "tolerance": SAME}
    return Case(name=f"JPEG/{name}", data=data, pixels=pixels, **{**usual, **fields})


def _whole() -> Iterator[Case]:
    for (kind, options), quality, subsampling in product(WHOLE.items(), (5, 50, 85, 100), (0, 1, 2)):
        data = jpeg(quality=quality, subsampling=subsampling, **options)
        yield _right(f"whole/{kind} q{quality} s{subsampling}", data, seen(data), says=None)
    for kind, options in WHOLE.items():
        data = jpeg(PHOTOGRAPH[..., 1], **options)
        yield _right(f"whole/grey {kind}", data, seen(data), says=None)
    for width, height in product((1, 2, 7, 8, 9, 17), (1, 3, 16, 17)):
        data = jpeg(photograph(width, height), subsampling=2)
        yield _right(f"size/{width}x{height}", data, seen(data))
    for name, factor in {"411": 0x411111, "420": 0x221111, "422": 0x211111, "440": 0x121111}.items():
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_QUALITY, 90]
        data = cv2.imencode(".jpg", PHOTOGRAPH[:91, :93, ::-1], options)[1].tobytes()
        yield _right(f"subsampling/{name}", data, seen(data))


def _flat() -> Iterator[Case]:
    """Pictures whose scans hold long runs of one byte, which is no damage."""
    grey, half, stripes = (np.full((600, 800, 3), 128, np.uint8) for _ in range(3))
    half[:300] = PHOTOGRAPH[:1, :1]
    half[:120, :160] = PHOTOGRAPH
    stripes[:, ::8] = 0
    sky = np.linspace(0, 255, 600).round().astype(np.uint8)[:, np.newaxis, np.newaxis]
    pictures = {
        "black": np.zeros((600, 800, 3), np.uint8),
        "white": np.full((600, 800, 3), 255, np.uint8),
        "mid grey": grey,
        "colour": np.full((600, 800, 3), (200, 30, 40), np.uint8),
        "half": half,
        "stripes": stripes,
        "sky": np.broadcast_to(sky, (600, 800, 3)),
        "two": np.repeat(np.repeat(PHOTOGRAPH[::60, ::80] // 128 * 255, 300, 0), 400, 1),
    }
    for (kind, options), (name, pixels), subsampling in product(WHOLE.items(), pictures.items(), (0, 2)):
        data = jpeg(pixels, subsampling=subsampling, **options)
        yield _right(f"flat/{name} {kind} s{subsampling}", data, seen(data), says=None)


# The tables of the standard, section K.3: 12 lengths of differences, and "the rest of this block is zero".
_DC_CODES = {0: "00", 1: "010", 2: "011", 3: "100", 4: "101", 5: "110", 6: "1110", 7: "11110", 8: "111110"}
_DC_TABLE = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) + bytes(range(12))
_AC_TABLE = bytes([0, 1]) + bytes(14) + b"\0"  # one code of two bits
_END_OF_BLOCK = "00"


def blocks_jpeg(
    planes: Sequence[Pixels],
    factors: Sequence[tuple[int, int]] | None = None,
    *,
    ids: Sequence[int] = (1, 2, 3, 4),
    interleaved: bool = True,
    header: bytes = b"",
    frame: int = 0xC0,
    lines: int | None = None,
) -> bytes:
    """A JPEG whose 8x8 blocks are flat: (H, W) levels of each component's blocks, exact after decoding.

    `factors` are (horizontal, vertical) sampling factors; a plane has so many times as many blocks.
    """
    factors = factors or [(1, 1)] * len(planes)
    across, down = (max(factor[axis] for factor in factors) for axis in (0, 1))
    mcu_rows, mcu_columns = planes[0].shape[0] // factors[0][1], planes[0].shape[1] // factors[0][0]
    height, width = mcu_rows * down * 8, mcu_columns * across * 8
    parts = [START, header, segment(0xDB, b"\0" + bytes([8]) + bytes([1] * 63))]
    components = [bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(factors)]
    size = struct.pack(">BHHB", 8, height if lines is None else lines, width, len(planes))
    parts.append(segment(frame, size + b"".join(components)))
    parts += [segment(0xC4, b"\x00" + _DC_TABLE), segment(0xC4, b"\x10" + _AC_TABLE)]
    scans = [list(range(len(planes)))] if interleaved else [[index] for index in range(len(planes))]
    for scan in scans:
        bits: list[str] = []
        last = dict.fromkeys(scan, 128)
        for index, row, column in _block_order(planes, factors, scan, (mcu_rows, mcu_columns)):
            level = int(planes[index][row, column])
            bits += [_difference(level - last[index]), _END_OF_BLOCK]
            last[index] = level
        selectors = b"".join(bytes([ids[index], 0]) for index in scan)
        parts.append(segment(SCAN, bytes([len(scan)]) + selectors + b"\x00\x3f\x00"))
        parts.append(_packed("".join(bits)))
        if lines == 0 and scan is scans[0]:
            parts.append(segment(0xDC, struct.pack(">H", height)))
    return b"".join([*parts, END])


def _block_order(
    planes: Sequence[Pixels], factors: Sequence[tuple[int, int]], scan: list[int], mcus: tuple[int, int]
) -> Iterator[tuple[int, int, int]]:
    if len(scan) == 1:
        rows, columns = planes[scan[0]].shape
        yield from ((scan[0], row, column) for row, column in product(range(rows), range(columns)))
        return
    for mcu_row, mcu_column in product(range(mcus[0]), range(mcus[1])):
        for index in scan:
            h, v = factors[index]
            for y, x in product(range(v), range(h)):
                yield index, mcu_row * v + y, mcu_column * h + x


def _difference(value: int) -> str:
    size = abs(value).bit_length()
    if not size:
        return _DC_CODES[0]
    return _DC_CODES[size] + format(value if value > 0 else value + (1 << size) - 1, f"0{size}b")


def _packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


def _grown(plane: Pixels) -> Pixels:
    return plane.repeat(8, 0).repeat(8, 1)


def from_ycc(y: Pixels, cb: Pixels, cr: Pixels) -> Pixels:
    """The formula of JFIF."""
    y, cb, cr = (plane.astype(np.float64) for plane in (y, cb, cr))  # type: ignore[assignment]
    red, blue = y + 1.402 * (cr - 128.0), y + 1.772 * (cb - 128.0)
    green = y - 0.344136 * (cb - 128.0) - 0.714136 * (cr - 128.0)
    pixels: Pixels = np.clip(np.rint(np.dstack([red, green, blue])), 0, 255).astype(np.uint8)
    return pixels


_JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def adobe(transform: int) -> bytes:
    return segment(ADOBE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


def _hand_made() -> Iterator[Case]:
    random = np.random.default_rng(3)
    y, cb, cr, k = (random.integers(60, 190, (6, 8)).astype(np.uint8) for _ in range(4))
    grown = [_grown(plane) for plane in (y, cb, cr, k)]
    ycc, rgb = from_ycc(*grown[:3]), np.dstack(grown[:3])
    for interleaved in (True, False):
        scans = "one scan" if interleaved else "a scan each"
        yield _right(
            f"hand-made/colour {scans}", blocks_jpeg([y, cb, cr], interleaved=interleaved, header=_JFIF), ycc
        )
        for factors in (
            [(2, 2), (1, 1), (1, 1)],
            [(1, 2), (1, 1), (1, 1)],
            [(2, 1), (1, 1), (1, 1)],
            [(4, 1), (1, 1), (1, 1)],
            [(2, 2), (2, 1), (1, 2)],
            [(2, 2), (2, 2), (1, 1)],
        ):
            planes = [random.integers(90, 160, (4 * v, 4 * h)).astype(np.uint8) for h, v in factors]
            data = blocks_jpeg(planes, factors, interleaved=interleaved, header=_JFIF)
            name = "-".join(f"{h}x{v}" for h, v in factors)
            usual = Expect.RIGHT if factors[1] == factors[2] == (1, 1) else Expect.EITHER
            yield _right(f"hand-made/{name} {scans}", data, seen(data), expect=usual)
    yield _right("hand-made/grey", blocks_jpeg([y]), rgb_of(grown[0]))
    yield _right("hand-made/grey 2x2", blocks_jpeg([y], [(2, 2)]), rgb_of(grown[0]))
    yield _right("hand-made/grey of id 0", blocks_jpeg([y], ids=(0,)), rgb_of(grown[0]))
    yield _right("hand-made/ids RGB", blocks_jpeg([y, cb, cr], ids=b"RGB"), rgb)
    for ids in ((0, 1, 2), (1, 2, 3), (34, 35, 36), (1, 34, 35), (2, 3, 1)):
        yield _right(f"hand-made/ids {ids}", blocks_jpeg([y, cb, cr], ids=ids), ycc)
    yield _right("hand-made/Adobe RGB", blocks_jpeg([y, cb, cr], header=adobe(0)), rgb)
    yield _right("hand-made/Adobe YCbCr", blocks_jpeg([y, cb, cr], header=adobe(1), ids=b"RGB"), ycc)
    yield _right("hand-made/JFIF with ids RGB", blocks_jpeg([y, cb, cr], header=_JFIF, ids=b"RGB"), ycc)
    yield _right("hand-made/extended", blocks_jpeg([y, cb, cr], header=_JFIF, frame=0xC1), ycc)
    inverted = np.rint(np.dstack(grown[:3]) / 255.0 * grown[3][..., np.newaxis]).astype(np.uint8)
    planes = [y, cb, cr, k]
    yield _right(
        "hand-made/Adobe CMYK",
        blocks_jpeg(planes, header=adobe(0)),
        inverted,
        tolerance=ROUNDING,
        says="CMYK",
    )
    black = np.rint((255 - ycc) / 255.0 * grown[3][..., np.newaxis]).astype(np.uint8)
    yield _right(
        "hand-made/Adobe YCCK", blocks_jpeg(planes, header=adobe(2)), black, tolerance=ROUNDING, says="CMYK"
    )
    yield _refusal("hand-made/CMYK without Adobe", blocks_jpeg(planes), "CMYK.*ambiguous")
    yield _refusal("hand-made/two components", blocks_jpeg([y, cb]), "")
    dnl = blocks_jpeg([y, cb, cr], header=_JFIF, lines=0)
    yield Case(
        name="JPEG/hand-made/height after the scan",
        data=dnl,
        expect=Expect.EITHER,
        pixels=ycc,
        tolerance=SAME,
    )


def _orientations() -> Iterator[Case]:
    data = jpeg()
    pixels = seen(data)
    for orientation, order in product(range(1, 9), "<>"):
        turned = after_start(data, app1(exif(orientation, order)))
        yield _right(f"orientation/{orientation} {order}", turned, upright(pixels, orientation))
    for first, second in ((6, 1), (1, 6), (3, 8)):
        both = after_start(data, app1(exif(first)), app1(exif(second)))
        yield _right(f"orientation/two EXIF segments {first} {second}", both, upright(pixels, first))
    for wrong in (0, 9, 65535):
        yield _right(f"orientation/invalid {wrong}", after_start(data, app1(exif(wrong))), pixels)
    for name, block in {"cut": exif(6)[:15], "text": b"not a TIFF header", "empty": b""}.items():
        yield _right(f"orientation/{name} EXIF", after_start(data, app1(block)), pixels)
    xmp = segment(EXIF, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    yield _right("orientation/after XMP", after_start(data, xmp, app1(exif(6))), upright(pixels, 6))
    turned = segment(EXIF, b"http://ns.adobe.com/xap/1.0/\0" + XMP % 6)
    # Pillow turns such a picture, browsers do not.
    yield _right(
        "orientation/in XMP alone", after_start(data, turned), upright(pixels, 6), expect=Expect.MEASURED
    )
    late = place_of(data, SCAN)
    yield _right(
        "orientation/right before the scan", data[:late] + app1(exif(8)) + data[late:], upright(pixels, 8)
    )


def _oddities() -> Iterator[Case]:
    for kind, options in WHOLE.items():
        data = jpeg(subsampling=2, **options)
        pixels = seen(data)
        scan, end = place_of(data, SCAN), len(data) - 2
        tables = place_of(data, 0xDB)
        oddities = {
            "fill bytes before every segment": _filled(data),
            "fill bytes before the end": data[:end] + b"\xff" * 5 + END,
            "stray bytes before a table": data[:tables] + b"\0\x12\x34" + data[tables:],
            "stray bytes before the first scan": data[:scan] + b"\0\0\x41" + data[scan:],
            "stray bytes before the end": data[:end] + b"\0\x3f" + END,
            "one stray zero before the end": data[:end] + b"\0" + END,
            "bytes after the end": data + b"SEFHe" + bytes(range(256)),
            "zeros after the end": data + bytes(5000),
            "another picture after the end": data + jpeg(PHOTOGRAPH[::-1]),
            "a thumbnail": after_start(data, app1(exif(1) + jpeg(PHOTOGRAPH[::8, ::8]))),
            "a comment": after_start(data, segment(0xFE, b"made by \xff\xd9 hand")),
            "a long comment": after_start(data, segment(0xFE, b"\xff" * 65533)),
            "many segments": after_start(data, *[segment(0xE0 + i, b"\xff\xda" * 99) for i in range(2, 14)]),
            "restart interval 0": after_start(data, segment(0xDD, b"\0\0"))
            if "restart" not in kind
            else data,
        }
        for name, odd in oddities.items():
            yield _right(f"odd/{name} {kind}", odd, pixels)
        yield _right(f"odd/no end marker {kind}", data[:end], pixels, says="end marker")
        yield _right(f"odd/half an end marker {kind}", data[: end + 1], pixels, says="end marker")
    multi = saved(PHOTOGRAPH, "MPO", save_all=True, append_images=[Image.fromarray(PHOTOGRAPH[::-1])])
    yield _right("odd/MPO", multi, seen(multi))
    yield _right("odd/long tables", jpeg(qtables=[[300] * 64] * 2), seen(jpeg(qtables=[[300] * 64] * 2)))


def _filled(data: bytes) -> bytes:
    parts, at = [data[:2]], 2
    for _marker, start, end in markers(data):
        parts += [b"\xff\xff\xff", data[start:end]]
        at = end
    return b"".join([*parts, b"\xff\xff", data[at:]])


def _refusal(name: str, data: bytes, says: str) -> Case:
    return Case(name=f"JPEG/{name}", data=data, expect=Expect.REFUSED, says=says)


def _refused() -> Iterator[Case]:
    data = jpeg()
    frame = place_of(data, 0xC0)

    def with_frame(marker: int) -> bytes:
        return data[: frame + 1] + bytes([marker]) + data[frame + 2 :]

    yield _refusal("refused/arithmetic", with_frame(0xC9), "arithmetic")
    yield _refusal("refused/arithmetic progressive", with_frame(0xCA), "arithmetic")
    for marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF):
        yield _refusal(f"refused/hierarchical {marker:x}", with_frame(marker), "")
    yield _refusal("refused/JPEG-LS", bytes(imagecodecs.jpegls_encode(PHOTOGRAPH)), "JPEG-LS|lossless")
    wide = PHOTOGRAPH.astype(np.uint16) * 16
    yield _refusal("refused/12 bits", bytes(imagecodecs.jpeg8_encode(wide, bitspersample=12)), "12-bit")
    yield _refusal(
        "refused/16 bits lossless",
        bytes(imagecodecs.jpeg8_encode(wide, bitspersample=16, lossless=True)),
        "lossless|16-bit",
    )
    lossless = bytes(imagecodecs.jpeg8_encode(PHOTOGRAPH, lossless=True))
    yield Case(
        name="JPEG/refused/lossless", data=lossless, expect=Expect.EITHER, pixels=PHOTOGRAPH, says="lossless"
    )
    for height, width in ((0, 160), (120, 0)):
        size = struct.pack(">HH", height, width)
        yield _refusal(f"refused/{width}x{height}", data[: frame + 5] + size + data[frame + 9 :], "")
    bomb = data[: frame + 5] + struct.pack(">HH", 65000, 65000) + data[frame + 9 :]
    yield _refusal("refused/bomb", bomb, "megapixels")
    taller = data[: frame + 5] + struct.pack(">HH", 128, 160) + data[frame + 9 :]
    yield _refusal("refused/taller than its data", taller, "")
    yield _refusal("refused/no scan", data[: place_of(data, SCAN)] + END, "")
    yield _refusal("refused/no tables", START + data[place_of(data, 0xC0) :], "")
    yield _refusal("refused/only a start", START + b"\xff", "")
    yield _refusal("refused/only a thumbnail", START + app1(exif(1) + jpeg(PHOTOGRAPH[::8, ::8])), "")


def _channels() -> Iterator[Case]:
    cmyk = Image.fromarray(PHOTOGRAPH).convert("CMYK")
    for name in ("baseline", "progressive"):
        options = WHOLE[name]
        data = saved(cmyk, "JPEG", quality=95, **options)
        yield _right(f"channels/CMYK {name}", data, seen(data), tolerance=ROUNDING, says="CMYK")
        data = jpeg(keep_rgb=True, quality=95, **options)
        yield _right(f"channels/RGB {name}", data, seen(data))


def _damaged() -> Iterator[Case]:
    """Damage is refused, or nothing is to be seen of it."""
    pictures = {"colour": PHOTOGRAPH, "grey": PHOTOGRAPH[..., 0], "smooth": photograph(160, 120, noise=1)}
    for (kind, options), (picture, pixels), quality, subsampling in product(
        WHOLE.items(), pictures.items(), (60, 92), (0, 2)
    ):
        if picture == "grey" and subsampling:
            continue
        whole = jpeg(pixels, quality=quality, subsampling=subsampling, **options)
        truth = seen(whole)
        label = f"{kind} {picture} q{quality} s{subsampling}"
        for name, (data, expect) in _damage(whole, zeros_tell=kind != "optimised").items():
            yield Case(
                name=f"JPEG/damage {name} {label}".replace("damage ", "damage/", 1),
                data=data,
                expect=expect,
                pixels=truth,
                tolerance=SAME,
                says="JPEG",
            )


def _damage(whole: bytes, *, zeros_tell: bool) -> dict[str, tuple[bytes, Expect]]:
    found: dict[str, tuple[bytes, Expect]] = {}
    first, end = place_of(whole, SCAN), len(whole) - 2
    scans = [(start, stop) for marker, start, stop in markers(whole) if marker == SCAN]
    # The first byte after the components of a scan's header is its first coefficient: 0 in a DC scan.
    alternating = [(start + 20, stop) for start, stop in scans if whole[start + 5 + 2 * whole[start + 4]]]
    for percent in (4, 30, 50, 70, 96):
        at = first + 20 + (end - first - 20) * percent // 100
        found[f"cut at {percent} %"] = whole[:at], Expect.REFUSED
        found[f"cut and ended at {percent} %"] = whole[:at] + END, Expect.REFUSED
        for count in (64, 512, 4096):
            if at + count >= end:
                continue
            inside = any(start <= at and at + count <= stop for start, stop in alternating)
            tells = inside or (len(scans) == 1 and zeros_tell)
            data = zeroed(whole, at, count)
            found[f"{count} zeros at {percent} %"] = (
                data,
                Expect.EITHER if tells or count > 64 else Expect.MEASURED,
            )
        if at + 1460 < end:
            found[f"1460 bytes lost at {percent} %"] = shortened(whole, at, 1460), Expect.EITHER
        flipped = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        found[f"a bit flipped at {percent} %"] = flipped, Expect.MEASURED
    # A decoder falls into step again after one byte too many; not after several.
    told = sum(whole.count(b"\n", start, stop) for start, stop in scans) >= 8
    for number, (marker, start, stop) in enumerate(markers(whole)):
        if marker in {0xDB, 0xC0, 0xC2, 0xC4, SCAN} and start < first:
            for count, share in product((4, 16, 64), (30, 90)):
                at = start + 4 + (stop - start - 4) * share // 100 if marker != SCAN else start + 5
                data = zeroed(whole, at, min(count, stop - at))
                name = f"{count} zeros at {share} % of header {number} of type {marker:x}"
                found[name] = data, Expect.EITHER
    found["text mode: LF becomes CRLF"] = (
        whole.replace(b"\n", b"\r\n"),
        Expect.EITHER if told else Expect.MEASURED,
    )
    found["text mode: CRLF becomes LF"] = whole.replace(b"\r\n", b"\n"), Expect.MEASURED
    found["text mode: CR is dropped"] = whole.replace(b"\r", b""), Expect.MEASURED
    found["7 bits"] = bytes(byte & 0x7F for byte in whole), Expect.REFUSED
    found["UTF-8"] = whole.decode("latin-1").encode(), Expect.REFUSED
    return {name: (data, expect) for name, (data, expect) in found.items() if data != whole}
