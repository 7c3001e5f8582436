"""What lies in folders of photographs and is none that can be read: named for what it is."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

from tests.imaging.generated.cases import Case, Expect, Pixels, photograph, saved, upright

PHOTOGRAPH = photograph(64, 48, noise=0)
_NEAR = 110  # what a lossy codec may change at an edge


def heic(pixels: Pixels = PHOTOGRAPH, **options: Any) -> bytes:
    image = pillow_heif.from_pillow(Image.fromarray(pixels))
    buffer = io.BytesIO()
    image.save(buffer, quality=95, chroma=444, **options)
    return buffer.getvalue()


def other_cases() -> Iterator[Case]:
    def case(name: str, data: bytes, says: str) -> Case:
        return Case(name=f"other/{name}", data=data, expect=Expect.REFUSED, says=says)

    yield case("empty", b"", "empty")
    yield case("one byte", b"\xff", "")
    yield case("zeros", bytes(5000), "")
    yield case("text", b"Please find the photographs attached.\n" * 9, "not a|text")
    yield case("HTML", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", "HTML|web page")
    yield case("HTML in lower case, indented", b"\n  <html><head></head></html>", "HTML|web page")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 12345\n"
    yield case("a pointer of Git LFS", pointer, "LFS")
    yield case("XML", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "")
    yield case("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG|not a")
    yield case("JSON", b'{"error": "not found"}', "")
    yield case("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF")
    yield case(
        "PSD", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 48, 64, 8, 3) + bytes(99), "PSD|Photoshop"
    )
    yield case("GIF", saved(PHOTOGRAPH, "GIF"), "GIF")
    yield case(
        "animated GIF",
        saved(PHOTOGRAPH, "GIF", save_all=True, append_images=[Image.fromarray(PHOTOGRAPH[::-1])]),
        "GIF",
    )
    yield case("JPEG XL", bytes(imagecodecs.jpegxl_encode(PHOTOGRAPH)), "JPEG XL")
    yield case("JPEG XL in a box", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL")
    yield case("JPEG 2000", saved(PHOTOGRAPH, "JPEG2000"), "JPEG 2000")
    yield case("JPEG 2000 code stream", saved(PHOTOGRAPH, "JPEG2000", no_jp2=True), "JPEG 2000")
    yield case("ICO", saved(PHOTOGRAPH[:32, :32], "ICO"), "")
    yield case("TGA", saved(PHOTOGRAPH, "TGA"), "")
    yield case("PPM", saved(PHOTOGRAPH, "PPM"), "")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("photo.jpg", b"?")
    yield case("ZIP", archive.getvalue(), "")
    yield case("AppleDouble", b"\0\x05\x16\7\0\2\0\0Mac OS X        " + bytes(99), "")
    yield case("MP4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99), "video|not a|MP4")
    yield case("CR3", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(99), "raw|CR3|not a")
    yield case("RAF", b"FUJIFILMCCD-RAW 0201FF383501" + bytes(99), "raw|not a")
    yield case("a Windows thumbnail database", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "")
    yield case("a WAVE file", b"RIFF\x24\0\0\0WAVEfmt " + bytes(99), "")
    yield from _heif()


def _heif() -> Iterator[Case]:
    def case(name: str, data: bytes, pixels: Pixels, says: str, alpha: Pixels | None = None) -> Case:
        return Case(
            name=f"other/{name}",
            data=data,
            expect=Expect.EITHER,
            pixels=pixels,
            alpha=alpha,
            tolerance=_NEAR,
            says=says,
        )

    yield case("HEIC", heic(), PHOTOGRAPH, "HEIC")
    exif = Image.Exif()
    for orientation in (1, 3, 6, 8):
        exif[0x0112] = orientation
        data = heic(exif=exif.tobytes())
        turned = upright(PHOTOGRAPH, orientation)
        yield case(f"HEIC of orientation {orientation}", data, turned, "HEIC")
    yield case(
        "HEIC with alpha",
        heic(np.dstack([PHOTOGRAPH, np.full(PHOTOGRAPH.shape[:2], 255, np.uint8)])),
        PHOTOGRAPH,
        "HEIC",
    )
    yield case("AVIF", saved(PHOTOGRAPH, "AVIF", quality=95, subsampling="4:4:4"), PHOTOGRAPH, "AVIF")
    whole = heic()
    for percent in (5, 40, 90):
        cut = whole[: len(whole) * percent // 100]
        yield Case(name=f"other/HEIC cut at {percent} %", data=cut, expect=Expect.REFUSED, says="HEIC")
