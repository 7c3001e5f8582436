"""Profiles of colour: sRGB in many words, wider spaces, those of another kind of picture, and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.imaging.generated import bmp, tiff
from tests.imaging.generated.cases import (
    Case,
    Expect,
    Pixels,
    exif,
    grey_of,
    photograph,
    rgb_of,
    saved,
    soft_disc,
    upright,
)
from tests.imaging.generated.jpeg import after_start, app1, jpeg, seen, segment
from tests.imaging.generated.png import GREY, RGB_ALPHA, chunk, png

Floats = NDArray[np.float64]
PHOTOGRAPH = photograph(60, 44)
ALPHA = soft_disc(60, 44)
# Columns: the primaries' X, Y, Z under D50, as their profiles hold them.
SRGB_PRIMARIES = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
P3_PRIMARIES = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
ADOBE_PRIMARIES = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
_WHITE = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _srgb_curve() -> bytes:
    return b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _sampled_curve(count: int = 1024) -> bytes:
    values = np.rint(_to_linear(np.linspace(0, 1, count)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", count) + bytes(values.tobytes())


def profile(
    primaries: Floats | None, curve: bytes, *, space: bytes = b"RGB ", kind: bytes = b"mntr", pad: int = 0
) -> bytes:
    """A matrix profile, or for no primaries a grey one."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"mine\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_WHITE)}
    if primaries is None:
        tags |= {b"kTRC": curve}
    else:
        tags |= {
            name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries.T, strict=True)
        }
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    if pad:
        tags[b"priv"] = b"data\0\0\0\0\0\0\0\1" + bytes(range(256)) * (pad // 256)
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(body), len(value))
        body += padded
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"mine", 0x02400000, kind, space, b"XYZ ").ljust(36, b"\0")
    head = (head + b"acsp").ljust(68, b"\0") + _fixed(*_WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _to_linear(value: Any) -> Any:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _from_linear(value: Any) -> Any:
    value = np.clip(value, 0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def converted(pixels: Pixels, primaries: Floats, linear: Callable[[Any], Any] = _to_linear) -> Pixels:
    """Relative colorimetric to sRGB, in floating point; what sRGB cannot show is clipped."""
    change = np.linalg.inv(SRGB_PRIMARIES) @ primaries
    light = linear(pixels / 255.0) @ change.T
    shown: Pixels = np.rint(_from_linear(light) * 255).astype(np.uint8)
    return shown


P3 = profile(P3_PRIMARIES, _srgb_curve())
ADOBE = profile(ADOBE_PRIMARIES, _gamma_curve(2.19921875))


def _adobe_linear(value: Any) -> Any:
    return value**2.19921875


def with_profile(icc: bytes, container: str, pixels: Pixels = PHOTOGRAPH) -> bytes:
    """A picture of a container with a profile of its own; all but JPEG keep the pixels exactly."""
    if container == "JPEG":
        return _in_jpeg(icc, jpeg(pixels, quality=95))
    if container == "PNG":
        return png(pixels, GREY if pixels.ndim == 2 else 2, before=_iccp(icc))
    if container == "TIFF":
        colour = tiff.BLACK_IS_ZERO if pixels.ndim == 2 else tiff.IS_RGB
        return tiff.tiff(pixels, colour=colour, tags=((34675, 7, icc),))
    return saved(pixels, "WEBP", lossless=True, icc_profile=icc)


def _in_jpeg(icc: bytes, whole: bytes, size: int = 65519) -> bytes:
    pieces = [icc[at : at + size] for at in range(0, len(icc), size)] or [b""]
    marked = [
        b"ICC_PROFILE\0" + bytes([number, len(pieces)]) + piece for number, piece in enumerate(pieces, 1)
    ]
    return after_start(whole, *[segment(0xE2, body) for body in marked])


def _iccp(icc: bytes) -> bytes:
    return chunk(b"iCCP", b"mine\0\0" + zlib.compress(icc))


def _base(container: str, pixels: Pixels = PHOTOGRAPH) -> Pixels:
    """What is stored in it."""
    if container != "JPEG":
        return rgb_of(pixels) if pixels.ndim == 2 else pixels
    return seen(jpeg(pixels, quality=95))


def colour_cases() -> Iterator[Case]:
    for container in ("JPEG", "PNG", "TIFF", "WebP"):
        yield from _in_each(container)
    yield from _in_one()


def _case(name: str, data: bytes, pixels: Pixels, expect: Expect = Expect.RIGHT, **fields: Any) -> Case:
    return Case(name=f"profile/{name}", data=data, expect=expect, pixels=pixels, **fields)


def _in_each(container: str) -> Iterator[Case]:
    stored = _base(container)
    wide = {
        "Display P3": (P3, converted(stored, P3_PRIMARIES)),
        "Display P3, sampled curve": (
            profile(P3_PRIMARIES, _sampled_curve()),
            converted(stored, P3_PRIMARIES),
        ),
        "Adobe RGB": (ADOBE, converted(stored, ADOBE_PRIMARIES, _adobe_linear)),
        "sRGB's primaries, gamma 1.8": (
            profile(SRGB_PRIMARIES, _gamma_curve(1.8)),
            converted(stored, SRGB_PRIMARIES, lambda value: value**1.8),
        ),
        "a printer's proof of Display P3": (
            profile(P3_PRIMARIES, _srgb_curve(), kind=b"scnr"),
            converted(stored, P3_PRIMARIES),
        ),
        "Display P3 of 200 kB": (
            profile(P3_PRIMARIES, _srgb_curve(), pad=200_000),
            converted(stored, P3_PRIMARIES),
        ),
    }
    for name, (icc, pixels) in wide.items():
        yield _case(
            f"{name} in {container}", with_profile(icc, container), pixels, tolerance=2, says="sRGB|profile"
        )
    for name, icc in {
        "by LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "by hand": profile(SRGB_PRIMARIES, _srgb_curve()),
        "with a sampled curve": profile(SRGB_PRIMARIES, _sampled_curve()),
    }.items():
        yield _case(
            f"sRGB {name} in {container}",
            with_profile(icc, container),
            stored,
            tolerance=int(container == "JPEG"),
            says=None,
        )
    near = int(container == "JPEG")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, icc in {
        "a grey profile": profile(None, _gamma_curve(2.2), space=b"GRAY"),
        "a CMYK profile": profile(None, _gamma_curve(1), space=b"CMYK", kind=b"prtr"),
        "a Lab profile": lab,
        "a cut profile": P3[:200],
        "half a profile": P3[: len(P3) // 2],
        "an empty profile": b"",
        "noise": np.random.default_rng(1).bytes(500),
        "a profile of zeros": bytes(500),
        "a profile without curves": P3.replace(b"rTRC", b"xTRC").replace(b"gTRC", b"yTRC"),
    }.items():
        expect = Expect.RIGHT if "grey" in name or "CMYK" in name else Expect.EITHER
        if name == "an empty profile" and container == "WebP":
            continue
        yield _case(
            f"{name} in {container}",
            with_profile(icc, container),
            stored,
            expect,
            tolerance=near,
            says="profile",
        )
    grey = _base(container, grey_of(PHOTOGRAPH)) if container != "WebP" else None
    if grey is not None:
        darker = profile(None, _gamma_curve(1.8), space=b"GRAY")
        truth = np.rint(_from_linear((grey / 255.0) ** 1.8) * 255).astype(np.uint8)
        data = with_profile(darker, container, grey_of(PHOTOGRAPH))
        yield _case(
            f"a grey profile of gamma 1.8 in a grey {container}", data, truth, Expect.EITHER, tolerance=2
        )
        data = with_profile(P3, container, grey_of(PHOTOGRAPH))
        yield _case(f"Display P3 in a grey {container}", data, grey, tolerance=near)


def _in_one() -> Iterator[Case]:
    moved = converted(PHOTOGRAPH, P3_PRIMARIES)
    rgba = np.dstack([PHOTOGRAPH, ALPHA])
    data = png(rgba, RGB_ALPHA, before=_iccp(P3))
    yield _case("Display P3 with alpha in PNG", data, moved, alpha=ALPHA, tolerance=2)
    data = png(rgba.astype(np.uint16) * 257, RGB_ALPHA, 16, before=_iccp(P3))
    yield _case("Display P3, 16 bits with alpha in PNG", data, moved, alpha=ALPHA, tolerance=2)
    data = png(PHOTOGRAPH, before=chunk(b"eXIf", exif(6)) + _iccp(P3))
    yield _case("Display P3, turned, in PNG", data, upright(moved, 6), tolerance=2)
    data = png(PHOTOGRAPH, before=_iccp(P3) + chunk(b"sRGB", b"\0"))
    yield _case("Display P3 beside an sRGB chunk in PNG", data, moved, Expect.EITHER, tolerance=2)
    indices = (PHOTOGRAPH[..., 0] >> 4).astype(np.uint8)
    entries = PHOTOGRAPH[::11, ::15].reshape(-1, 3)[:16]
    data = png(indices, 3, before=_iccp(P3) + chunk(b"PLTE", entries.tobytes()))
    yield _case(
        "Display P3 of a palette in PNG", data, converted(entries, P3_PRIMARIES)[indices], tolerance=2
    )
    bad = png(PHOTOGRAPH, before=chunk(b"iCCP", b"mine\0\0" + zlib.compress(P3)[:-40]))
    yield _case("a profile that does not inflate in PNG", bad, PHOTOGRAPH, Expect.EITHER, says="profile")
    bomb = png(PHOTOGRAPH, before=chunk(b"iCCP", b"mine\0\0" + zlib.compress(bytes(64_000_000), 1)))
    yield _case("a bomb of a profile in PNG", bomb, PHOTOGRAPH, Expect.EITHER, says="profile|chunk")
    for colour in ("tiles", "16 bits", "associated alpha"):
        options: dict[str, Any] = {"tags": ((34675, 7, P3),)}
        samples: Any = PHOTOGRAPH
        if colour == "tiles":
            options |= {"tile": (16, 16), "orientation": 6, "planar": True}
        elif colour == "16 bits":
            samples, options["bits"] = PHOTOGRAPH.astype(np.uint16) * 257, 16
        else:
            samples, options["extra"] = np.dstack([PHOTOGRAPH, np.full_like(ALPHA, 255)]), (1,)
        truth = upright(moved, 6) if colour == "tiles" else moved
        yield _case(f"Display P3 with {colour} in TIFF", tiff.tiff(samples, **options), truth, tolerance=2)
    yield from _in_jpegs()
    rows = bmp.packed(PHOTOGRAPH, 24)
    bitmap = bytearray(bmp.bmp(rows, 24, header=124, width=60, height=44)) + P3
    bitmap[14 + 56 : 14 + 60] = b"DEBM"  # "an embedded profile", reversed
    struct.pack_into("<II", bitmap, 14 + 112, 124 + len(rows), len(P3))
    yield _case("Display P3 in BMP", bytes(bitmap), moved, Expect.EITHER, tolerance=2)


def _in_jpegs() -> Iterator[Case]:
    whole = jpeg(PHOTOGRAPH, quality=95)
    stored = seen(whole)
    shown = converted(stored, P3_PRIMARIES)
    yield _case(
        "Display P3 in pieces in JPEG", _in_jpeg(P3, whole, 100), shown, tolerance=2, says="sRGB|profile"
    )
    pieces = [b"ICC_PROFILE\0" + bytes([number, 2]) + part for number, part in ((2, P3[300:]), (1, P3[:300]))]
    swapped = after_start(whole, *[segment(0xE2, body) for body in pieces])
    yield _case("Display P3 in pieces out of order in JPEG", swapped, shown, Expect.EITHER, tolerance=2)
    missing = after_start(whole, segment(0xE2, pieces[1]))
    yield _case(
        "a piece of a profile missing in JPEG", missing, stored, Expect.EITHER, tolerance=1, says="profile"
    )
    turned = after_start(_in_jpeg(P3, whole), app1(exif(8)))
    yield _case("Display P3, turned, in JPEG", turned, upright(shown, 8), tolerance=2)
    progressive = jpeg(PHOTOGRAPH, quality=95, progressive=True)
    yield _case(
        "Display P3 in a progressive JPEG",
        _in_jpeg(P3, progressive),
        converted(seen(progressive), P3_PRIMARIES),
        tolerance=2,
    )
    ink = io.BytesIO()
    Image.fromarray(PHOTOGRAPH).convert("CMYK").save(ink, "JPEG", quality=95)
    plain = seen(ink.getvalue())
    yield _case("Display P3 in a CMYK JPEG", _in_jpeg(P3, ink.getvalue()), plain, Expect.EITHER, tolerance=3)
    red_green_blue = jpeg(PHOTOGRAPH, quality=95, keep_rgb=True)
    yield _case(
        "Display P3 in an RGB JPEG",
        _in_jpeg(P3, red_green_blue),
        converted(seen(red_green_blue), P3_PRIMARIES),
        tolerance=2,
    )
