"""Every image of other projects through `decode` and through readers of its own: who agrees, who does not.

`python -m tests.imaging.bulk [FOLDER…]` prints the table of the folders' files and of the generated ones.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, ImageOps

from shardgen.errors import SourceUndecodable
from shardgen.imaging.codec import Photograph, decode
from tests.fuzzing.guarded import time_limit
from tests.imaging.generated.bmp import bmp_cases
from tests.imaging.generated.cases import (
    Case,
    Expect,
    Pixels,
    Samples,
    Verdict,
    differs,
    judge,
    levels,
    rgb_of,
    upright,
)
from tests.imaging.generated.colour import colour_cases
from tests.imaging.generated.jpeg import jpeg_cases
from tests.imaging.generated.others import other_cases
from tests.imaging.generated.png import png_cases
from tests.imaging.generated.tiff import tiff_cases
from tests.imaging.generated.webp import webp_cases

ARCHIVE = "pillow==13.0.0"
MUTATED = 5_000
_SECONDS_A_FILE = 20
_ORIENTATION = 0x0112
# Levels by which decoders that are right may differ: CMYK is rounded in two ways, 16 bits are in two.
_TOLERANCE = {"JPEG": 2, "PNG": 1, "WebP": 1, "BMP": 1, "TIFF": 2, "other": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a reader saw, upright and in sRGB."""

    pixels: Pixels
    alpha: Pixels | None = None


class Unread(Exception):
    """A reader that knows that it cannot read a file rightly."""


def container_of(data: bytes) -> str:
    """By its first bytes."""
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP"}
    starts |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((name for start, name in starts.items() if data.startswith(start)), "other")


def by_pillow(data: bytes) -> Reading:
    """Pillow, of an MPO the first picture."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Unread("several pictures")
    profile = image.info.get("icc_profile", b"")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in {"F", "LAB"}:
        raise Unread(image.mode)
    key = image.info.get("transparency")
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unread("more than 16 bits")
        alpha = None if key is None else np.where(wide == key, 0, 255).astype(np.uint8)
        return Reading(managed(rgb_of(levels(wide, 16)), profile), alpha)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or key is not None:
        whole = np.asarray(image.convert("RGBA"))
        return Reading(managed(whole[..., :3], profile), whole[..., 3])
    if image.mode == "CMYK" and profile:
        return Reading(managed(np.asarray(image), profile))
    return Reading(managed(np.asarray(image.convert("RGB")), profile))


def by_opencv(data: bytes) -> Reading:
    """OpenCV; it turns TIFFs by itself, and knows nothing of profiles."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype not in (np.uint8, np.uint16):
        raise Unread("not by OpenCV")
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except Exception:  # noqa: BLE001 - of what Pillow refuses, OpenCV's pixels as they are
        image = Image.new("RGB", (1, 1))
    turned = 1 if container_of(data) == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    turned = turned if turned in range(1, 9) else 1
    shown = levels(found, 16) if found.dtype == np.uint16 else found.astype(np.uint8)
    shown = rgb_of(shown) if shown.ndim == 2 else shown
    alpha = shown[..., 3] if shown.shape[2] == 4 and image.mode != "CMYK" else None
    pixels = upright(shown[..., 2::-1], turned)
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        raise Unread("the inks are gone")
    clear = None if alpha is None else upright(alpha, turned)
    return Reading(managed(pixels, image.info.get("icc_profile", b"")), clear)


def by_tifffile(data: bytes) -> Reading:
    """tifffile reads the samples; what they mean is worked out here."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if page.imagewidth * page.imagelength * page.samplesperpixel > 1 << 28:
            raise Unread("too large")
        stored = page.asarray()
        bits = 8 if page.compression in (6, 7) else page.bitspersample
        if stored.dtype.kind not in "bu" or bits > 16 or stored.ndim > 3:
            raise Unread(str(stored.dtype))
        samples: Samples = stored.astype(np.uint16)
        if samples.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
            samples = np.moveaxis(samples, 0, -1)
        samples = samples if samples.ndim == 3 else samples[..., np.newaxis]
        colour, extra = int(page.photometric), [int(kind) for kind in page.extrasamples]
        tag = page.tags.get(274)
        turned = int(tag.value) if tag and tag.value in range(1, 9) else 1
        profile = page.iccprofile or b""
        if colour == 3:
            entries = levels(np.asarray(page.colormap).T, 16)
            pixels, shown = entries[samples[..., 0]], levels(samples, bits)
        else:
            shown = levels(samples, bits)
            wanted = 4 if colour == 5 else 3 if colour in (2, 6) else 1
            if colour not in (0, 1, 2, 5, 6) or samples.shape[2] < wanted:
                raise Unread(f"colour model {colour}")
            pixels = _seen(shown[..., :wanted], colour)
    alpha = None
    if extra and extra[0] in (1, 2):
        alpha = shown[..., -len(extra)]
        if extra[0] == 1 and colour == 2:
            share = samples[..., :3] / np.maximum(samples[..., 3:4], 1).astype(np.float64)
            pixels = np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)
    return Reading(
        upright(managed(pixels, profile), turned), None if alpha is None else upright(alpha, turned)
    )


def _seen(shown: Pixels, colour: int) -> Pixels:
    if colour == 5:
        return np.rint((255.0 - shown[..., :3]) * (255.0 - shown[..., 3:]) / 255).astype(np.uint8)
    if colour in (2, 6):
        return shown
    grey = shown[..., 0]
    return rgb_of(255 - grey if colour == 0 else grey)


def managed(pixels: Pixels, profile: bytes) -> Pixels:
    """To sRGB by a profile of the picture's own colour space, if it changes anything to speak of."""
    mode = "CMYK" if pixels.shape[2] == 4 else "RGB"
    grey = mode == "RGB" and bool((pixels == pixels[..., :1]).all())
    if not profile:
        return pixels
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if grey and space == "GRAY":
            mode = "L"
        elif space != mode:
            return pixels if mode == "RGB" else np.asarray(Image.fromarray(pixels, "CMYK").convert("RGB"))
        change = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except (ImageCms.PyCMSError, OSError):
        return pixels
    if mode == "RGB":
        axis = np.rint(np.linspace(0, 255, 17)).astype(np.uint8)
        cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(17, -1, 3)
        if np.abs(_changed(cube, mode, change).astype(int) - cube).max() <= 1:
            return pixels
    return _changed(pixels[..., 0] if mode == "L" else pixels, mode, change)


def _changed(pixels: Pixels, mode: str, change: Any) -> Pixels:
    return np.asarray(ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels), mode), change))


READERS: dict[str, dict[str, Callable[[bytes], Reading]]] = {
    "JPEG": {"Pillow": by_pillow, "OpenCV": by_opencv},
    "PNG": {"Pillow": by_pillow, "OpenCV": by_opencv},
    "WebP": {"Pillow": by_pillow, "OpenCV": by_opencv},
    "BMP": {"Pillow": by_pillow, "OpenCV": by_opencv},
    "TIFF": {"Pillow": by_pillow, "OpenCV": by_opencv, "tifffile": by_tifffile},
    "other": {"Pillow": by_pillow},
}
# Files on which readers disagree, or that none of them reads and decode does: looked into by hand.
# A pattern of their names, the readers that are wrong, why. What is not listed here is a difference.
JUDGED: tuple[tuple[str, frozenset[str], str], ...] = (
    (
        r"^truncated_jpeg\.jpg$",
        frozenset(),
        "half of its end marker is missing, no pixel: Pillow shows the same if told to",
    ),
    (r"^[1il]_trns\.png$", frozenset({"OpenCV"}), "OpenCV forgets the grey that is transparent"),
    (r"^bmp/g/pal8os2\.bmp$", frozenset({"OpenCV"}), "OpenCV forgets the palette; html/pal8.png shows it"),
    (
        r"^bmp/g/rgb16(-565(pal)?)?\.bmp$",
        frozenset({"OpenCV"}),
        "OpenCV's white is 248; html/rgb16.png shows 255",
    ),
    (r"^bmp/q/rgb32h52\.bmp$", frozenset({"OpenCV"}), "OpenCV takes a byte without a meaning for alpha"),
    (r"^pil136\.tiff$", frozenset({"OpenCV"}), "OpenCV multiplies by an alpha that is not associated"),
    (
        r"^tiff_wrong_bits_per_sample\.tiff$",
        frozenset({"OpenCV"}),
        "OpenCV multiplies by an alpha that is not associated",
    ),
    (
        r"^tiff_(strip|tiled)_planar_16bit_RGB\.tiff$",
        frozenset({"OpenCV"}),
        "OpenCV mixes up separate planes of 16 bits",
    ),
    (
        r"^multipage(-lastframe|_single_frame_loop)\.tiff?$",
        frozenset({"OpenCV"}),
        "OpenCV forgets the palette of 1 bit",
    ),
    (
        r"^tiff_.*16bit_RGBa\.tiff$",
        frozenset({"OpenCV", "Pillow"}),
        "8 bits are too few to divide by a small alpha",
    ),
    (
        r"^avif/hopper\.heif$",
        frozenset(),
        "HEIC has no second reader here; the picture is that of hopper.ppm",
    ),
)


@dataclass(slots=True)
class Row:
    """One container's files."""

    files: int = 0
    agree: Counter[str] = field(default_factory=Counter)  # by the readers that agree
    judged: list[str] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    readable: list[str] = field(default_factory=list)  # refused, and read alike by two readers
    measured: Counter[tuple[str, str]] = field(default_factory=Counter)  # by the damage and what came of it
    differences: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """What is written to the terminal meanwhile, by whatever library: file descriptors 1 and 2."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        position = 0

        def written() -> str:
            nonlocal position
            sys.stdout.flush()
            sys.stderr.flush()
            size = os.fstat(file.fileno()).st_size
            text = os.pread(file.fileno(), size - position, position).decode(errors="replace")
            position = size
            return text.strip()

        try:
            yield written
        finally:
            written()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)


def _shown(lines: str) -> str:
    return ascii(lines.splitlines()[0])


def compare(files: Iterable[tuple[str, bytes]]) -> dict[str, Row]:
    """Each file through decode and through its container's readers."""
    rows = {container: Row() for container in READERS}
    with terminal() as written:
        for name, data in files:
            container = container_of(data)
            row = rows[container]
            row.files += 1
            found, seconds = _decoded(data)
            row.slowest = max(row.slowest, (seconds, name))
            if lines := written():
                row.printed.append(f"{name}: {_shown(lines)}")
            if isinstance(found, SourceUndecodable):
                row.refused[_grouped(str(found))].append(name)
                if _alike(_readings(container, data), _TOLERANCE[container]):
                    row.readable.append(name)
            elif isinstance(found, Exception):
                row.differences.append(f"{name}: {type(found).__name__}: {found}")
            else:
                _settle(row, name, found, _readings(container, data), _TOLERANCE[container])
            written()
    return rows


def _decoded(data: bytes) -> tuple[Photograph | Exception, float]:
    start = time.perf_counter()
    try:
        with time_limit(_SECONDS_A_FILE):
            photo: Photograph | Exception = decode(data)
    except Exception as error:  # noqa: BLE001 - told apart by the caller
        photo = error
    return photo, time.perf_counter() - start


def _readings(container: str, data: bytes) -> dict[str, Reading]:
    found = {}
    for name, read in READERS[container].items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[name] = read(data)
            except Exception:  # noqa: BLE001, S112 - readers fail in all ways on broken files
                continue
    return found


def _alike(readings: dict[str, Reading], tolerance: int) -> bool:
    return any(
        not differs(one.pixels, one.alpha, other.pixels, other.alpha, tolerance)
        for one, other in combinations(readings.values(), 2)
    )


def _settle(row: Row, name: str, photo: Photograph, readings: dict[str, Reading], tolerance: int) -> None:
    apart = {}
    for reader, seen in readings.items():
        limit: Any = tolerance
        if seen.alpha is not None and seen.alpha.min() < 255:  # divided by alpha, in whole levels
            limit = tolerance + 255 // np.maximum(seen.alpha, 1).astype(np.int16)[..., np.newaxis]
        if reason := differs(photo.pixels, photo.alpha, seen.pixels, seen.alpha, limit):
            apart[reader] = reason
    agree = sorted(set(readings) - set(apart))
    if agree and not apart:
        row.agree[", ".join(agree)] += 1
        return
    verdict = next((entry for entry in JUDGED if re.search(entry[0], name)), None)
    if verdict and set(apart) <= verdict[1]:
        row.judged.append(f"{name} ({verdict[2]})")
        return
    reasons = "; ".join(f"{reader}: {reason}" for reader, reason in apart.items()) or "no reader reads it"
    row.differences.append(f"{name}: {reasons}" + (f" (as {', '.join(agree)})" if agree else ""))


def _grouped(reason: str) -> str:
    return re.sub(r"\d[\d,.]*", "N", reason)


@cache
def generated() -> list[Case]:
    """All generated files."""
    makers = (jpeg_cases, png_cases, webp_cases, bmp_cases, tiff_cases, colour_cases, other_cases)
    return [case for make in makers for case in make()]


def _damage_of(name: str) -> str:
    """What was done to a file, less where and to which kind of file."""
    return re.sub(
        r" (at \d+ %|baseline|optimised|progressive|restart|predictor|\d+ (?=%)).*",
        "",
        name.partition("/")[2],
    )


def compare_generated(cases: Iterable[Case]) -> dict[str, Row]:
    """Each generated file through decode, against what is known of it."""
    rows: dict[str, Row] = {}
    with terminal() as written:
        for case in cases:
            row = rows.setdefault(f"{case.container}, generated", Row())
            row.files += 1
            start = time.perf_counter()
            with time_limit(_SECONDS_A_FILE):
                outcome = judge(case, decode)
            row.slowest = max(row.slowest, (time.perf_counter() - start, case.name))
            if lines := written():
                row.printed.append(f"{case.name}: {_shown(lines)}")
            if case.expect is Expect.MEASURED:
                row.measured[_damage_of(case.name), str(outcome.verdict)] += 1
            elif outcome.verdict is Verdict.AGREES:
                row.agree["the truth"] += 1
            elif outcome.verdict is Verdict.REFUSED:
                row.refused[_grouped(outcome.reason)].append(case.name)
            else:
                row.differences.append(f"{case.name}: {outcome.reason}")
    return rows


def compare_mutated(cases: Iterable[Case], count: int, seed: int = 0) -> dict[str, Row]:
    """Generated files with a few other bytes: no crash, no hang, no line; pixels are not compared."""
    small: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if 20 < len(case.data) < 20_000 and case.pixels is not None:
            small[case.container].append(case)
    containers = sorted(small)
    random = np.random.default_rng(seed)
    rows: dict[str, Row] = {}
    with terminal() as written:
        for _ in range(count):
            choices = small[containers[random.integers(len(containers))]]
            case = choices[random.integers(len(choices))]
            row = rows.setdefault(f"{case.container}, mutated", Row())
            row.files += 1
            found, seconds = _decoded(_mutated(case.data, random))
            row.slowest = max(row.slowest, (seconds, case.name))
            if lines := written():
                row.printed.append(f"{case.name}: {_shown(lines)}")
            if isinstance(found, SourceUndecodable):
                row.refused[_grouped(str(found))].append(case.name)
            elif isinstance(found, Exception):
                row.differences.append(f"{case.name}, mutated: {type(found).__name__}: {found!a}")
            else:
                row.agree["no truth to compare with"] += 1
    return rows


def _mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to four bytes changed, most often where containers keep their tables: near either end."""
    mutated = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        near = int(random.integers(min(len(data), 250)))
        place = (near, len(data) - 1 - near, int(random.integers(len(data))))[random.integers(3)]
        flipped = mutated[place] ^ 1 << int(random.integers(8))
        mutated[place] = (0, 1, 2, 127, 255, flipped, int(random.integers(256)))[random.integers(7)]
    return bytes(mutated)


def table(rows: dict[str, Row]) -> str:
    """Counts of each container, then its refusals by reason, what was judged by hand, and what is wrong."""
    head = f"{'':20}{'files':>6}{'agree':>7}{'judged':>8}{'refused':>9}{'untold':>8}{'differ':>8}{'print':>7}"
    lines = [head]
    for name, row in rows.items():
        counts = (sum(row.agree.values()), len(row.judged), sum(map(len, row.refused.values())))
        untold = sum(row.measured.values())
        lines.append(
            f"{name:20}{row.files:6}{counts[0]:7}{counts[1]:8}{counts[2]:9}{untold:8}"
            f"{len(row.differences):8}{len(row.printed):7}"
        )
    for name, row in rows.items():
        lines += ["", f"{name}: slowest {row.slowest[0]:.2f} s ({row.slowest[1]})"]
        lines += [f"  agrees with {readers}: {count}" for readers, count in row.agree.most_common()]
        lines += [
            f"  damage that nothing tells: {damage}, {verdict}: {count}"
            for (damage, verdict), count in sorted(row.measured.items())
        ]
        reasons = sorted(row.refused.items(), key=lambda item: -len(item[1]))
        lines += [f"  refused {len(names):4}  {reason}  e.g. {names[0]}" for reason, names in reasons]
        lines += [f"  refused, and read alike by two others: {', '.join(row.readable)}"] * bool(row.readable)
        lines += [f"  judged  {line}" for line in row.judged]
        lines += [f"  PRINTS  {line}" for line in row.printed]
        lines += [f"  DIFFERS {line}" for line in row.differences]
    return "\n".join(lines)


def files_of(folders: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file, in order of names; sources of programs are left out."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in {
                ".py",
                ".pyc",
                ".pyi",
                ".rst",
                ".md",
                ".txt",
                ".c",
                ".h",
                ".so",
            }:
                yield path.relative_to(folder).as_posix(), path.read_bytes()


def packaged_folders() -> list[Path]:
    """Where scikit-image and scikit-learn keep their pictures."""
    folders = []
    for package, inside in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)  # without an import, which takes seconds
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} is not installed")
        folders.append(Path(spec.origin).parent / inside)
        if not any(folders[-1].glob("*.[jp][pn]g")):
            raise FileNotFoundError(f"{folders[-1]} holds no pictures")
    return folders


def fetch_archive(folder: Path) -> Path:
    """Download Pillow's source archive from the package index into a folder; returns its folder of pictures.

    pip unpacks an archive to ask it for its metadata, for which it may lack what Pillow is built with: it is
    told to leave behind what it unpacked, and whether it fails then does not matter.
    """
    options = ("--no-deps", "--no-binary=pillow", "--no-build-isolation", "--no-clean", f"--dest={folder}")
    command = (sys.executable, "-m", "pip", "download", *options, ARCHIVE)
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False
    )
    found = next(folder.glob("pip-*/pillow_*/Tests/images"), None)
    if found is None:
        raise FileNotFoundError(f"pip did not unpack {ARCHIVE}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return found


def main() -> None:
    """Print the table of the folders' files, or of all there are."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    folders: list[Path] = parser.parse_args().folders
    with tempfile.TemporaryDirectory() as temporary:
        folders = folders or [fetch_archive(Path(temporary)), *packaged_folders()]
        cases = generated()
        rows = compare(files_of(folders)) | compare_generated(cases) | compare_mutated(cases, MUTATED)
    print(table(rows))  # noqa: T201 - its purpose


if __name__ == "__main__":
    main()
