"""What a generated file is, what decoding must make of it, and the pictures that they show."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardgen.errors import SourceUndecodable
from shardgen.imaging.codec import Photograph

Pixels = NDArray[np.uint8]
Samples = NDArray[Any]
"""Integers of any width, and in a few files floating point."""


class Expect(StrEnum):
    """What decoding must do with a file."""

    RIGHT = "right"
    REFUSED = "refused"
    EITHER = "right or refused"
    MEASURED = "damage that nothing in the file tells"  # counted, never failed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One file. `name` is "container/kind/detail".

    `pixels` (H, W, 3) and `alpha` (H, W) are the truth, turned upright; `tolerance` in levels, one number or
    one for each pixel (H, W, 1). Colours under an alpha of 0 do not count. `says` is a pattern that the
    reason of a refusal, or one of the notes and warnings of what must be RIGHT, must match; None: there are
    no notes and warnings.
    """

    name: str
    data: bytes
    expect: Expect
    pixels: Pixels | None = None
    alpha: Pixels | None = None
    tolerance: int | NDArray[Any] = 0
    says: str | None = ""

    @property
    def container(self) -> str:
        """The name's first part."""
        return self.name.split("/")[0]


class Verdict(StrEnum):
    """What came of one file."""

    AGREES = "agrees"
    REFUSED = "refused"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reason: of a refusal the error's message, of a difference what differs."""

    verdict: Verdict
    reason: str = ""


def judge(case: Case, decode: Callable[[bytes], Photograph]) -> Outcome:
    """Decode a case and compare it with its truth; an error other than SourceUndecodable is a difference."""
    try:
        photo = decode(case.data)
    except SourceUndecodable as refusal:
        reason = str(refusal)
        if case.expect is Expect.RIGHT:
            return Outcome(Verdict.DIFFERS, f"refused: {reason}")
        if case.says and not re.search(case.says, reason, re.IGNORECASE):
            return Outcome(Verdict.DIFFERS, f"refused for another reason than {case.says!r}: {reason}")
        return Outcome(Verdict.REFUSED, reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug
        return Outcome(Verdict.DIFFERS, f"crashed: {type(error).__name__}: {error}")
    if case.expect is Expect.REFUSED:
        return Outcome(Verdict.DIFFERS, "accepted")
    assert case.pixels is not None, case.name
    difference = differs(photo.pixels, photo.alpha, case.pixels, case.alpha, case.tolerance)
    said = (*photo.notes, *photo.warnings)
    if not difference and case.says is None and said:
        difference = f"it says {said}"
    expected = case.says if case.expect is Expect.RIGHT else None
    if not difference and expected and not any(re.search(expected, line, re.IGNORECASE) for line in said):
        difference = f"it does not say {expected!r} but {said}"
    return Outcome(Verdict.DIFFERS, difference) if difference else Outcome(Verdict.AGREES)


def differs(
    pixels: Pixels,
    alpha: Pixels | None,
    true_pixels: Pixels,
    true_alpha: Pixels | None,
    tolerance: int | NDArray[Any] = 0,
) -> str:
    """What differs, or nothing. No alpha is an alpha of 255; colours under an alpha of 0 do not count."""
    if pixels.shape != true_pixels.shape:
        return f"{pixels.shape[1]}x{pixels.shape[0]}, not {true_pixels.shape[1]}x{true_pixels.shape[0]}"
    opaque = np.full(pixels.shape[:2], 255, np.uint8)
    found, true = opaque if alpha is None else alpha, opaque if true_alpha is None else true_alpha
    transparency = np.abs(found.astype(np.int16) - true)
    if transparency.max() > (1 if np.ndim(tolerance) else min(int(tolerance), 2)):
        return (
            f"alpha by up to {transparency.max()} in {(transparency > 0).sum()} of {transparency.size} pixels"
        )
    colour = np.abs(pixels.astype(np.int16) - true_pixels) * (true > 0)[:, :, np.newaxis]
    wrong = colour > tolerance
    if wrong.any():
        return f"colours by up to {colour[wrong].max()} in {wrong.any(axis=2).sum()} of {true.size} pixels"
    return ""


def photograph(width: int, height: int, *, noise: int = 20, seed: int = 0) -> Pixels:
    """A picture that looks different from every side and in every channel."""
    rows, columns = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    grain = np.random.default_rng(seed).integers(-noise, noise + 1, (height, width, 1))
    bands = np.dstack([columns * 220 + 20, rows * 200 + 30, 215 - columns * 110 - rows * 60])
    corner = (rows < 0.4) & (columns < 0.3)
    return np.clip(np.where(corner[..., np.newaxis], bands[..., ::-1], bands) + grain, 0, 255).astype(
        np.uint8
    )


def soft_disc(width: int, height: int) -> Pixels:
    """An alpha channel off the centre with a soft edge: 0, 255 and much in between."""
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot(columns - width * 0.4, rows - height * 0.55) / (min(width, height) * 0.4)
    alpha: Pixels = np.clip((1.25 - distance) * 400, 0, 255).astype(np.uint8)
    return alpha


def grey_of(pixels: Pixels) -> Pixels:
    """One channel of a picture."""
    return np.ascontiguousarray(pixels[..., 0])


def rgb_of(grey: Samples) -> Pixels:
    """A grey channel as RGB."""
    return np.repeat(grey.astype(np.uint8)[..., np.newaxis], 3, axis=2)


def levels(samples: Samples, bits: int) -> Pixels:
    """Samples of so many bits as 8 bits: 0 to 0, the largest to 255, the rest rounded between."""
    largest = (1 << bits) - 1
    return ((samples.astype(np.int64) * 255 * 2 + largest) // (2 * largest)).astype(np.uint8)


def upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """How a picture is seen that is stored with an EXIF orientation of 1 to 8."""
    if orientation in (2, 4, 5, 7):
        stored = stored[:, ::-1]
    quarter_turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    return np.ascontiguousarray(np.rot90(stored, quarter_turns))


def exif(orientation: int, order: str = "<", *, kind: int = 3) -> bytes:
    """An EXIF block (a TIFF header and one directory) that holds nothing but the orientation."""
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    value = struct.pack(
        f"{order}{'HH' if kind == 3 else 'I'}", *((orientation, 0) if kind == 3 else (orientation,))
    )
    return head + struct.pack(f"{order}HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


def saved(image: Image.Image | Pixels, container: str, **options: Any) -> bytes:
    """Bytes of a file that Pillow writes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, container, **options)
    return buffer.getvalue()


def zeroed(data: bytes, at: int, count: int) -> bytes:
    """The data with a hole of zero bytes, as a bad sector leaves it."""
    return data[:at] + bytes(min(count, len(data) - at)) + data[at + count :]


def shortened(data: bytes, at: int, count: int) -> bytes:
    """The data without some bytes of its middle, as a lost packet leaves it."""
    return data[:at] + data[at + count :]


def named(prefix: str, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, after a check that names are told apart."""
    seen: set[str] = set()
    for case in cases:
        assert case.name.startswith(prefix), case.name
        assert case.name not in seen, case.name
        seen.add(case.name)
        yield case
