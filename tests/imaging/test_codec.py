from __future__ import annotations

import io
import random
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shardgen.errors import EncodeFailed, SourceUndecodable
from shardgen.imaging.codec import Photograph, decode, decode_encoded, encode
from shardgen.imaging.containers.jpeg import Markers
from shardgen.imaging.options import ImageFormat
from tests.photographs import blob, colours

RGB = colours(np.random.default_rng(0), 37, 29)
ALPHA = blob(37, 29)
RGBA = np.dstack([RGB, ALPHA])
WIDE = (np.arange(29 * 37).reshape(29, 37) * 61).astype(np.uint16)
ORIENTATION = 0x0112


def saved(image: Image.Image, container: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def picture(pixels: NDArray[np.generic] = RGB) -> Image.Image:
    return Image.fromarray(pixels)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(size: tuple[int, int], bits: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def rows(pixels: NDArray[np.generic]) -> bytes:
    return chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))


def assert_pixels(photo: Photograph, pixels: NDArray[np.generic], *, tolerance: int = 0) -> None:
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape == pixels.shape
    assert np.abs(photo.pixels.astype(int) - pixels.astype(int)).max() <= tolerance


def alpha_of(photo: Photograph) -> NDArray[np.uint8]:
    assert photo.alpha is not None
    return photo.alpha


@pytest.mark.parametrize("container", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_colours_come_back_as_rgb(container: str) -> None:
    photo = decode(saved(picture(), container, lossless=True))
    assert_pixels(photo, RGB)
    assert photo.alpha is None
    assert photo.notes == ()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_comes_back_as_pillow_sees_it(*, progressive: bool) -> None:
    data = saved(picture(), "JPEG", quality=95, progressive=progressive)
    assert_pixels(decode(data), np.asarray(Image.open(io.BytesIO(data))), tolerance=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("container", "pixels"), [("PNG", RGBA), ("WEBP", RGBA), ("TIFF", RGB), ("JPEG", RGB)]
)
def test_exif_orientation_turns_colours_and_alpha(
    container: str, pixels: NDArray[np.uint8], orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"tiffinfo": {ORIENTATION: orientation}} if container == "TIFF" else {"exif": exif}
    data = saved(picture(pixels), container, lossless=True, exact=True, quality=100, subsampling=0, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    photo = decode(data)
    assert_pixels(photo, upright[:, :, :3], tolerance=2 if container == "JPEG" else 0)
    if pixels is RGBA:
        np.testing.assert_array_equal(alpha_of(photo), upright[:, :, 3])


def test_a_16_bit_tiff_is_turned_once() -> None:
    data = saved(picture(WIDE), "TIFF", tiffinfo={ORIENTATION: 6})
    assert_pixels(decode(data), np.dstack([np.rint(np.rot90(WIDE, -1) / 257)] * 3))


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_16_bits_are_rounded_to_8_and_noted(container: str) -> None:
    photo = decode(saved(picture(WIDE), container))
    assert_pixels(photo, np.dstack([np.rint(WIDE / 257)] * 3))
    assert photo.notes == ("16 bits per channel converted to 8",)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("container", ["PNG", "BMP", "TIFF"])
def test_grey_palette_and_1_bit_become_rgb(container: str, mode: str) -> None:
    image = picture().convert(mode)
    assert_pixels(decode(saved(image, container)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_grey_with_alpha_keeps_both(container: str) -> None:
    photo = decode(saved(picture(RGBA).convert("LA"), container))
    assert_pixels(photo, np.asarray(picture().convert("L").convert("RGB")))
    np.testing.assert_array_equal(alpha_of(photo), ALPHA)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_alpha(bits: int) -> None:
    levels = np.arange(2).repeat(8).reshape(1, 16) * ((1 << bits) - 1)
    packed = {
        1: np.packbits(levels.astype(np.uint8)),
        2: np.array([0, 0, 255, 255], np.uint8),
        4: np.array([0] * 4 + [255] * 4, np.uint8),
        8: levels.astype(np.uint8)[0],
        16: levels.astype(">u2")[0],
    }[bits]
    key = chunk(b"tRNS", struct.pack(">H", (1 << bits) - 1))
    photo = decode(png((16, 1), bits, 0, key, rows(packed[np.newaxis])))
    np.testing.assert_array_equal(alpha_of(photo), [[255] * 8 + [0] * 8])


def test_transparent_colours_and_palette_entries_become_alpha() -> None:
    coloured = decode(saved(picture(), "PNG", transparency=tuple(int(level) for level in RGB[3, 4])))
    assert alpha_of(coloured)[3, 4] == 0
    palette = picture().convert("P")
    entry = int(np.asarray(palette)[3, 4])
    transparent = np.asarray(palette) == entry
    photo = decode(saved(palette, "PNG", transparency=entry))
    np.testing.assert_array_equal(alpha_of(photo) == 0, transparent)


def test_a_tiff_with_alpha_gets_its_colours_back() -> None:
    photo = decode(saved(picture(RGBA), "TIFF"))
    np.testing.assert_array_equal(alpha_of(photo), ALPHA)
    opaque = ALPHA > 200
    assert np.abs(photo.pixels[opaque].astype(int) - RGB[opaque]).max() <= 1


def test_a_cmyk_tiff_is_converted_and_has_no_alpha() -> None:
    image = picture().convert("CMYK")
    photo = decode(saved(image, "TIFF"))
    assert_pixels(photo, RGB, tolerance=2)
    assert photo.alpha is None
    assert photo.notes == ("CMYK converted to RGB",)


def cmyk_jpeg() -> bytes:
    return saved(picture().convert("CMYK"), "JPEG", quality=100, subsampling=0)


def ycck_jpeg() -> bytes:
    """The Adobe marker's last byte says that the four channels are YCbCr and K."""
    luma = [Image.fromarray(255 - np.asarray(band)) for band in picture().convert("YCbCr").split()]
    black = Image.fromarray(np.full(RGB.shape[:2], 60, np.uint8))
    data = bytearray(saved(Image.merge("CMYK", [*luma, black]), "JPEG", quality=100, subsampling=0))
    data[data.find(b"Adobe") + 11] = 2
    return bytes(data)


@pytest.mark.parametrize("make", [cmyk_jpeg, ycck_jpeg])
def test_a_cmyk_jpeg_is_converted_as_pillow_does(make: Callable[[], bytes]) -> None:
    photo = decode(make())
    assert_pixels(photo, np.asarray(Image.open(io.BytesIO(make())).convert("RGB")), tolerance=3)
    assert photo.notes == ("CMYK converted to RGB",)


def premultiplied_tiff() -> bytes:
    pixels = np.full((2000, 4000, 4), 50, np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", extrasamples=["assocalpha"], compression="zlib")
    return buffer.getvalue()


def large_cmyk_jpeg() -> bytes:
    return saved(Image.new("CMYK", (4000, 2000)), "JPEG")


@pytest.mark.parametrize("make", [premultiplied_tiff, large_cmyk_jpeg])
def test_conversions_take_little_more_memory_than_the_pixels(make: Callable[[], bytes]) -> None:
    data = make()
    tracemalloc.start()
    try:
        decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / 8e6 < 20  # bytes a pixel


def without_adobe_marker() -> bytes:
    data = cmyk_jpeg()
    start = data.find(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def large_claim() -> bytes:
    return png((40_000, 40_000), 8, 2, rows(np.zeros((1, 3), np.uint8)))


def animation(container: str) -> bytes:
    frames = [picture(RGB[::-1])]
    return saved(picture(), container, save_all=True, append_images=frames, duration=100)


def flipped_bit() -> bytes:
    data = bytearray(saved(picture(), "PNG"))
    data[len(data) // 2] ^= 1
    return bytes(data)


def jpeg_cut_before_its_end_marker() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    return half(saved(picture(noise), "JPEG")) + b"\xff\xd9"


def webp_with_mended_lengths() -> bytes:
    data = bytearray(half(saved(picture(), "WEBP", quality=100)))
    data[4:8] = struct.pack("<I", len(data) - 8)
    data[16:20] = struct.pack("<I", len(data) - 20)
    return bytes(data)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"Dear Sir, ", "not a JPEG, PNG, WebP, BMP or TIFF"),
    "web page": (lambda: b"\n<!DOCTYPE html><html>not found</html>", "a web page, not a photograph"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    "gif": (lambda: saved(picture(), "GIF"), "GIF is not supported"),
    "half a JPEG": (lambda: half(saved(picture(), "JPEG")), "truncated JPEG"),
    "padded JPEG": (jpeg_cut_before_its_end_marker, "truncated JPEG: its data end"),
    "half a PNG": (lambda: half(saved(picture(), "PNG")), "truncated PNG"),
    "damaged PNG": (flipped_bit, "checksum"),
    "PNG without its last rows": (
        lambda: png((37, 29), 8, 2, rows(RGB[:20])),
        "damaged PNG: Not enough image data",
    ),
    "half a WebP": (lambda: half(saved(picture(), "WEBP")), "truncated WebP"),
    "mended WebP": (webp_with_mended_lengths, "image data do not decode"),
    "half a BMP": (lambda: half(saved(picture(), "BMP")), "truncated BMP"),
    "half a TIFF": (lambda: half(saved(picture(), "TIFF")), "truncated TIFF"),
    "half a compressed TIFF": (
        lambda: half(saved(picture(), "TIFF", compression="tiff_lzw")),
        "truncated TIFF",
    ),
    "animated PNG": (lambda: animation("PNG"), "animated PNG"),
    "animated WebP": (lambda: animation("WEBP"), "animated WebP"),
    "many pages": (lambda: animation("TIFF"), "TIFF with 2 pages"),
    "zero width": (lambda: png((0, 5), 8, 2), "size is zero"),
    "bomb": (large_claim, "1,600 megapixels (at most 200)"),
    "CMYK without Adobe": (without_adobe_marker, "CMYK JPEG without an Adobe marker"),
    "float TIFF": (lambda: saved(picture(WIDE.astype(np.float32)), "TIFF"), "32-bit floating point samples"),
    "Lab TIFF": (lambda: saved(Image.new("LAB", (4, 4)), "TIFF"), "CIE L*a*b*"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(SourceUndecodable) as refusal:
        decode(make())
    assert reason in str(refusal.value)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_anywhere_is_refused_and_never_crashes(container: str) -> None:
    data = saved(picture(), container)
    for length in range(0, len(data) - 4, max(1, len(data) // 97)):
        with pytest.raises(SourceUndecodable):
            decode(data[:length])


def test_grey_at_the_end_of_a_whole_jpeg_is_no_truncation() -> None:
    pixels = RGB.copy()
    pixels[8:] = 128
    assert decode(saved(picture(pixels), "JPEG", quality=90)).height == 29


def test_bytes_after_the_end_of_a_jpeg_do_not_matter() -> None:
    data = saved(picture(), "JPEG")
    np.testing.assert_array_equal(decode(data + b"a phone's trailer").pixels, decode(data).pixels)


def test_a_thumbnail_beside_the_picture_is_no_second_page() -> None:
    data = bytearray(animation("TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    tags = [second + 2 + 12 * entry for entry in range(count)]
    spare = next(at for at in tags if struct.unpack_from("<H", data, at)[0] == 284)  # planar configuration
    struct.pack_into("<HHII", data, spare, 254, 4, 1, 1)  # "reduced resolution" instead
    assert_pixels(decode(bytes(data)), RGB)


@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.JPEG])
def test_encoding_is_repeatable_and_decodes_to_rgb(image_format: ImageFormat) -> None:
    data = encode(RGB, image_format, 95)
    assert data == encode(RGB.copy(), image_format, 95)
    found = decode_encoded(data, channels=3)
    tolerance = 0 if image_format is ImageFormat.PNG else 60
    assert np.abs(found.astype(int) - RGB).max() <= tolerance
    assert np.abs(found.astype(int) - RGB).mean() < 12


def test_16_bit_grey_survives_png_and_no_other_format() -> None:
    np.testing.assert_array_equal(decode_encoded(encode(WIDE, ImageFormat.PNG, 1), channels=1), WIDE)
    with pytest.raises(EncodeFailed, match="16-bit"):
        encode(WIDE, ImageFormat.JPEG, 90)


@pytest.mark.parametrize("image_format", ImageFormat, ids=str)
def test_a_size_that_no_photograph_has_is_refused_before_it_is_decoded(image_format: ImageFormat) -> None:
    data = bytearray(encode(RGB, image_format, 90))
    huge = (65_000).to_bytes(2)
    match image_format:
        case ImageFormat.JPEG:
            at = data.index(b"\xff\xc0") + 5
            data[at : at + 4] = huge + huge
        case ImageFormat.PNG:
            data[16:24] = (b"\0\0" + huge) * 2
        case ImageFormat.WEBP:  # a lossy frame holds at most 16,383 x 16,383
            at = data.index(b"\x9d\x01\x2a") + 3
            data[at : at + 4] = b"\xff\x3f\xff\x3f"
    tracemalloc.start()
    with pytest.raises(SourceUndecodable, match="megapixels"):
        decode_encoded(bytes(data), channels=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_markers_of_a_jpeg_are_found_as_a_pattern_finds_them() -> None:
    pattern = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
    chance = random.Random(1)  # noqa: S311 - files, not secrets
    for _ in range(2_000):
        data = bytes(chance.choices(b"\xff\xff\xff\x00\xcf\xd0\xd7\xd8\xd9\x01A", k=chance.randrange(14)))
        markers = Markers(data)
        for position in range(len(data) + 2):
            found = pattern.search(data, position)
            expected = None if found is None else (found.start(), found.end() - 1)
            assert markers.after(position) == expected, (data, position)
