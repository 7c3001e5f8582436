"""WebPs: lossy, lossless, with alpha, turned, animated and damaged."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from tests.imaging.generated.cases import (
    Case,
    Expect,
    Pixels,
    exif,
    photograph,
    saved,
    shortened,
    soft_disc,
    upright,
    zeroed,
)
from tests.imaging.generated.jpeg import XMP

RGB = photograph(70, 52)
ALPHA = soft_disc(70, 52)


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunks(data: bytes) -> dict[bytes, bytes]:
    found, at = {}, 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        found[name] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return found


def extended(flags: int, *more: bytes, size: tuple[int, int] = (70, 52)) -> bytes:
    header = (
        bytes([flags, 0, 0, 0]) + (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little")
    )
    return riff(chunk(b"VP8X", header), *more)


def _case(name: str, data: bytes, expect: Expect, pixels: Pixels | None = None, **fields: Any) -> Case:
    return Case(name=f"WebP/{name}", data=data, expect=expect, pixels=pixels, **fields)


def _seen(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def webp_cases() -> Iterator[Case]:
    lossless = saved(RGB, "WEBP", lossless=True)
    clear = saved(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True)
    lossy = saved(RGB, "WEBP", quality=90)
    lossy_clear = saved(np.dstack([RGB, ALPHA]), "WEBP", quality=90)
    yield _case("kind/lossless", lossless, Expect.RIGHT, RGB, says=None)
    yield _case("kind/lossless with alpha", clear, Expect.RIGHT, RGB, alpha=ALPHA, says=None)
    yield _case("kind/lossy", lossy, Expect.RIGHT, _seen(lossy), says=None)
    yield _case("kind/lossy with alpha", lossy_clear, Expect.RIGHT, _seen(lossy_clear), alpha=ALPHA)
    for width, height, exact in product((1, 2, 17), (1, 3, 16), (True, False)):
        data = saved(photograph(width, height), "WEBP", lossless=exact)
        yield _case(f"size/{width}x{height} {exact}", data, Expect.RIGHT, _seen(data))
    image = chunks(lossless)[b"VP8L"]
    for orientation, order, prefix in product(range(1, 9), "<>", (b"", b"Exif\0\0")):
        data = extended(0x08, chunk(b"VP8L", image), chunk(b"EXIF", prefix + exif(orientation, order)))
        name = f"orientation/{orientation} {order} {len(prefix)}"
        yield _case(name, data, Expect.RIGHT, upright(RGB, orientation))
    data = extended(0x04, chunk(b"VP8L", image), chunk(b"XMP ", XMP % 6))
    # Pillow turns such a picture, browsers do not.
    yield _case("orientation/in XMP alone", data, Expect.MEASURED, upright(RGB, 6))
    unflagged = extended(0, chunk(b"VP8L", image), chunk(b"EXIF", exif(6)))
    yield _case("orientation/in a block that no flag tells of", unflagged, Expect.EITHER, upright(RGB, 6))
    for name, block in {"cut": exif(6)[:12], "text": b"no", "9": exif(9)}.items():
        data = extended(0x08, chunk(b"VP8L", image), chunk(b"EXIF", block))
        yield _case(f"orientation/{name}", data, Expect.RIGHT, RGB)
    yield from _odd(lossless, clear, lossy, lossy_clear)
    for name, whole in {"lossless": lossless, "lossy": lossy, "lossy with alpha": lossy_clear}.items():
        yield from _damaged(name, whole)


def _odd(lossless: bytes, clear: bytes, lossy: bytes, lossy_clear: bytes) -> Iterator[Case]:
    second = Image.fromarray(RGB[::-1])
    animated = saved(RGB, "WEBP", save_all=True, append_images=[second], duration=100)
    yield _case("odd/animation", animated, Expect.REFUSED, says="animated")
    one = saved(RGB, "WEBP", save_all=True, append_images=[], lossless=True)
    yield _case("odd/animation of one frame", one, Expect.EITHER, RGB)
    yield _case("odd/bytes after the end", lossless + b"more" * 9, Expect.RIGHT, RGB)
    yield _case(
        "odd/unknown chunk",
        extended(0, chunk(b"VP8L", chunks(lossless)[b"VP8L"]), chunk(b"QUIZ", b"??")),
        Expect.RIGHT,
        RGB,
    )
    smaller = extended(0, chunk(b"VP8L", chunks(lossless)[b"VP8L"]), size=(60, 40))
    yield _case("odd/a canvas of another size", smaller, Expect.REFUSED)
    parts = chunks(lossy_clear)
    without = extended(0x10, chunk(b"VP8 ", parts[b"VP8 "]))
    yield _case("odd/alpha that is not there", without, Expect.EITHER, _seen(lossy_clear))
    unflagged = extended(0, chunk(b"ALPH", parts[b"ALPH"]), chunk(b"VP8 ", parts[b"VP8 "]))
    yield _case("odd/alpha that no flag tells of", unflagged, Expect.EITHER, _seen(lossy_clear))
    too_long = lossless[:4] + struct.pack("<I", len(lossless) + 20) + lossless[8:]
    yield _case("odd/longer than it is", too_long, Expect.REFUSED)
    bomb = bytearray(extended(0, chunk(b"VP8L", chunks(lossless)[b"VP8L"]), size=(16000, 16000)))
    yield _case("odd/bomb", bytes(bomb), Expect.REFUSED)
    yield _case("odd/no picture", extended(0), Expect.REFUSED)
    yield _case("odd/only a start", b"RIFF\x04\0\0\0WEBP", Expect.REFUSED)


def _damaged(name: str, whole: bytes) -> Iterator[Case]:
    """Nothing in a WebP tells of most damage inside its data; a cut does."""
    truth = _seen(whole)
    for percent in (10, 50, 90):
        at = 30 + (len(whole) - 40) * percent // 100
        yield _case(f"damage/{name} cut at {percent} %", whole[:at], Expect.REFUSED)
        body = chunks(whole)
        last = list(body)[-1]
        cut = riff(*[chunk(k, v[: len(v) * percent // 100] if k == last else v) for k, v in body.items()])
        expect = Expect.REFUSED if percent < 90 else Expect.EITHER
        yield _case(f"damage/{name} cut with its lengths mended at {percent} %", cut, expect, truth)
        for count in (64, 512):
            if at + count < len(whole):
                yield _case(
                    f"damage/{name} {count} zeros at {percent} %",
                    zeroed(whole, at, count),
                    Expect.MEASURED,
                    truth,
                )
        yield _case(f"damage/{name} 100 bytes lost at {percent} %", shortened(whole, at, 100), Expect.REFUSED)
    yield _case(f"damage/{name} CRLF", whole.replace(b"\n", b"\r\n"), Expect.MEASURED, truth)
