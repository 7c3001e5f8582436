"""What a recipe and a run ask of a depth network; imports nothing heavy, so that settings can say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from shardgen.domain.plan import SETTING


class Upsampling(StrEnum):
    """The decoder's bilinear upsampling; the released weights were trained with aligned corners."""

    ALIGNED = "aligned"
    HALF_PIXEL = "half-pixel"


class Precision(StrEnum):
    """`fast` runs the decoder in bfloat16 (CPU) or all but the last layer in float16 (GPU)."""

    FLOAT32 = "float32"
    FAST = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """`name` is nyu, kitti, small, random:WIDTH or `file`; the digest, not the path, says which file.

    `activations` counts LeakyReLUs per up block and `decoder_width` is the channels of `conv2`: both are
    read from the file. For random weights the digest is that of the drawn tensors.
    """

    name: str = field(metadata={SETTING: "depth.weights"})
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
class NetworkPlan:
    """What a plan says of its network; `input` is (width, height) in pixels."""

    model: Literal["densedepth"]
    weights: Weights
    input: tuple[int, int]
    upsampling: Upsampling
    precision: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """`[depth] weights` and `micro_batch` as this machine's settings have them.

    `name` is the plan's name of the weights, `written` what `shardgen.toml` says, `file` the path that it
    means, if it means one. `micro_batch` is how many images the network takes at once.
    """

    name: str
    written: str
    file: Path | None
    micro_batch: int | Literal["auto"]
