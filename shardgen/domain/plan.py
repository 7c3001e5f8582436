"""The plan: the immutable description of what will be made, its canonical JSON and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from shardgen.domain.layout import Layout

PLAN_FORMAT = 1


class MaskMode(StrEnum):
    """How a foreground's mask is found. In a plan a foreground has any of these but AUTO."""

    AUTO = "auto"
    ALPHA = "alpha"
    FLAT = "flat"
    GRABCUT = "grabcut"
    FILE = "file"


class Flips(StrEnum):
    """Which photographs are also used mirrored left to right."""

    NONE = "none"
    FOREGROUNDS = "foregrounds"
    BACKGROUNDS = "backgrounds"


class Blend(StrEnum):
    """How a foreground is laid over the canvas: by its binary mask, or by its raw matte."""

    MASK = "mask"
    ALPHA = "alpha"


class Upsampling(StrEnum):
    """The decoder's bilinear upsampling; the released weights were trained with aligned corners."""

    ALIGNED = "aligned"
    HALF_PIXEL = "half-pixel"


class Precision(StrEnum):
    """`fast` runs the decoder in bfloat16 (CPU) or all but the last layer in float16 (GPU)."""

    FLOAT32 = "float32"
    FAST = "fast"


class DepthEncoding(StrEnum):
    """8 bit, per image min-max, near is white; or 16 bit relative depth, not inverted."""

    INVERSE_MINMAX = "inverse-minmax"
    RELATIVE = "relative"


class ImageFormat(StrEnum):
    """File format of an output image."""

    JPEG = "jpeg"
    WEBP = "webp"
    PNG = "png"

    @property
    def suffix(self) -> str:
        """File name ending, without the dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """The mask image beside a foreground; the name is relative to the source folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A background photograph; width and height in pixels after EXIF orientation."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreground:
    """A foreground photograph; `placed_*` is its size on the canvas, after halving."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int
    placed_width: int
    placed_height: int
    mask: MaskMode
    mask_file: MaskFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The checked inventory, each list sorted by name (as UTF-8 bytes)."""

    mask: MaskMode
    backgrounds: tuple[Background, ...]
    foregrounds: tuple[Foreground, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """`canvas` is (width, height) in pixels, `grid` is (columns, rows)."""

    canvas: tuple[int, int]
    grid: tuple[int, int]
    flips: Flips
    blend: Blend


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """`name` is nyu, kitti, small, random:WIDTH or `file`; the digest, not the path, says which file.

    `activations` counts LeakyReLUs per up block and `decoder_width` is the channels of `conv2`: both are
    read from the file. For random weights the digest is that of the drawn tensors.
    """

    name: str
    bytes: int
    sha256: str
    activations: int
    decoder_width: int

    @property
    def is_random(self) -> bool:
        """Whether the network makes noise, not depth."""
        return self.name.startswith("random:")

    @property
    def is_small(self) -> bool:
        """Whether it is the small network inside the package: depth to try the pipeline with."""
        return self.name == "small"


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The depth model; `input` is (width, height) in pixels."""

    model: Literal["densedepth"]
    weights: Weights
    input: tuple[int, int]
    upsampling: Upsampling
    precision: Precision
    encoding: DepthEncoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Formats and qualities (1-100) of the three images; `size` is (width, height) in pixels."""

    size: tuple[int, int]
    image: ImageFormat
    image_quality: int
    mask: ImageFormat
    depth: ImageFormat
    depth_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """`size` in samples, `slice_batches` in batches, `batch` in samples."""

    size: int
    slice_batches: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be made. It holds nothing of the machine: no path, device, micro-batch or storage setting."""

    sources: Sources
    compose: Compose
    depth: Depth
    output: Output
    shards: Shards
    samples: int = -1
    format: int = PLAN_FORMAT

    def __post_init__(self) -> None:
        expected = self.flip_count * self.place_count
        expected *= len(self.sources.backgrounds) * len(self.sources.foregrounds)
        if self.samples == -1:
            object.__setattr__(self, "samples", expected)
        if self.samples != expected:
            raise ValueError(f"samples is {self.samples}, but the recipe makes {expected}")

    @property
    def flip_count(self) -> int:
        """1 without flips, else 2."""
        return 1 if self.compose.flips is Flips.NONE else 2

    @property
    def place_count(self) -> int:
        """Columns times rows."""
        columns, rows = self.compose.grid
        return columns * rows

    @cached_property
    def layout(self) -> Layout:
        """How samples fall into shards, slices and batches."""
        return Layout(
            sample_count=self.samples,
            shard_size=self.shards.size,
            batch_size=self.shards.batch,
            slice_batches=self.shards.slice_batches,
        )

    @cached_property
    def canonical_json(self) -> bytes:
        """UTF-8, sorted keys, no white space, every field written."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json).hexdigest()


def differences(old: object, new: object, *, prefix: str = "") -> list[str]:
    """What changed between two values of the plan's types, a readable line each (`shards.size: 9 -> 8`)."""
    lines: list[str] = []
    if is_dataclass(old) and type(old) is type(new):
        for field in fields(old):
            if field.name == "samples":
                continue
            before, after = getattr(old, field.name), getattr(new, field.name)
            name = f"{prefix}.{field.name}" if prefix else field.name
            lines += differences(before, after, prefix=name)
        return lines
    if isinstance(old, tuple) and isinstance(new, tuple) and any(is_dataclass(entry) for entry in old + new):
        return _inventory_differences(old, new, prefix)
    if old != new:
        lines.append(f"{prefix}: {_shown(old)} -> {_shown(new)}")
    return lines


def _inventory_differences(old: tuple[Any, ...], new: tuple[Any, ...], prefix: str) -> list[str]:
    before = {entry.name: entry for entry in old}
    after = {entry.name: entry for entry in new}
    lines = [f"{prefix}: {name!r} is gone" for name in before if name not in after]
    lines += [f"{prefix}: {name!r} is new" for name in after if name not in before]
    lines += [
        f"{prefix}: {name!r} has changed ({', '.join(differences(before[name], after[name]))})"
        for name in before
        if name in after and before[name] != after[name]
    ]
    return lines


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(str(part) for part in value)
    if isinstance(value, str) and len(value) == 64:
        return value[:12] + "…"
    return str(value)
