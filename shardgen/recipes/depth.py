"""Depth in a plan and in `shardgen.toml`: what every recipe with a depth network has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator

from shardgen.depth.base import FILE, NetworkChoice, NetworkPlan, Precision, Quality, Upsampling, Weights
from shardgen.depth.families import DEFAULT, family_names, find_family, unknown_family
from shardgen.domain.limits import MAX_SIDE, is_sha256, outside
from shardgen.domain.plan import NOTHING, SETTING, Output
from shardgen.domain.wording import nearest
from shardgen.imaging.options import DepthEncoding, ImageFormat
from shardgen.recipes.base import Table, WrongSetting
from shardgen.sources.inventory import MAX_SOURCE_BYTES

DEPTH = "depth"
"""The name of the output."""
NO_DEPTH = "none"
"""`[depth] model` of a recipe that makes no depth."""
DEPTH_KEYS = """\
weights = "nyu"         # (plan) nyu | kitti | small (for trials) | random:64 (noise, not depth) | a file
input = [640, 480]      # (plan) width, height of the network's input in pixels, multiples of 32
upsampling = "aligned"  # (plan) aligned: what the released weights were trained with | half-pixel
precision = "float32"   # (plan) float32 | fast: two to three times as fast; mean error below 1 grey level
micro_batch = "auto"    # images the network takes at once on this device: "auto" or a number
encoding = "inverse-minmax"  # (plan) 8 bit, near is white | relative: 16 bit, needs [output] depth = "png"
"""
"""The keys of `[depth]` beside `model`, as `init` writes them."""
AS_SIZE: Literal["size"] = "size"
"""`[output] depth_size`: as large as the other images."""
MAX_STRUCTURE = 200  # characters that describe a network
_ENCODINGS = {
    DepthEncoding.INVERSE_MINMAX: (
        "8 bit grey, per image scaled to its own minimum and maximum and inverted: near is white. "
        "Grey levels of two images are not comparable, and none is a distance in metres."
    ),
    DepthEncoding.RELATIVE: (
        "16 bit grey, `65535 * d` of the relative depth `d` from 0.01 (near) to 1 (the far limit); "
        "not inverted, not metres."
    ),
}

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Percent = Annotated[int, Field(ge=1, le=100)]
DepthSize = Annotated[
    Literal["size"] | tuple[Side, Side],
    Field(description='"size", for that of the other images, or a list of two numbers, as in [112, 112]'),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth(NetworkPlan):
    """The depth network, and how its output becomes a picture.

    `quality` is 1-100; `size` (width, height) in pixels, None for that of the picture itself.
    """

    encoding: DepthEncoding
    format: ImageFormat = field(metadata={SETTING: "output.depth"})
    quality: int = field(metadata={SETTING: "output.depth_quality"})
    size: tuple[int, int] | None = field(metadata={SETTING: "output.depth_size", NOTHING: "source"})

    @property
    def output(self) -> Output:
        """The depth picture of a sample."""
        return Output(
            name=DEPTH,
            suffix=self.format.suffix,
            channels=1,
            size=self.size,
            full_scale=65_535 if self.encoding is DepthEncoding.RELATIVE else 255,
        )

    @property
    def is_noise(self) -> bool:
        """Whether the weights know nothing."""
        return self.weights.quality is Quality.NOISE

    @property
    def remark(self) -> str:
        """Why nobody should train on the depth, in one line; "" when nothing speaks against it."""
        if not self.is_noise:
            return ""
        return f"NOT DEPTH: the weights are {self.weights.name}, so depth images are noise"

    @property
    def caution(self) -> str:
        """A paragraph of the data set's README when the network is for trials, else ""."""
        if self.weights.quality is not Quality.TRIAL:
            return ""
        return (
            f"\n> The depth was made by a network for trials (`{self.weights.name}`).\n"
            "> Do not train on it; a data set needs other weights.\n"
        )

    def problems(self) -> Iterator[str]:
        """What no plan of ours holds, a line each."""
        sides = [("depth.input", side) for side in self.input]
        sides += [("output.depth_size", side) for side in self.size or ()]
        yield from filter(None, (outside(name, side, MAX_SIDE) for name, side in sides))
        yield from filter(None, [outside("output.depth_quality", self.quality, 100)])
        yield from filter(None, [outside("depth.weights.bytes", self.weights.bytes, MAX_SOURCE_BYTES)])
        if len(self.weights.structure) > MAX_STRUCTURE:
            yield f"depth.weights.structure: more than {MAX_STRUCTURE} characters"
        if problem := unknown_family(self.model):
            yield f"depth.model {problem}"
        elif not (allowed := find_family(self.model).sides).allow(self.input):
            yield f"depth.input: not {allowed}"
        if not is_sha256(self.weights.sha256):
            yield "depth.weights.sha256: not a sha256"

    def facts(self, *, is_known: bool = True) -> tuple[tuple[str, str], ...]:
        """Lines of what `plan` prints; without `is_known` the weights are a stand-in."""
        weights = self.weights
        known = [f"sha256 {weights.sha256[:12]}…"] if is_known else []
        parts = [f"{self.model} {weights.name}", weights.structure, f"{self.upsampling.value} upsampling"]
        line = ("network", ", ".join([*filter(None, parts), self.precision.value, *known]))
        if not self.is_noise:
            return (line,)
        return line, ("NOT DEPTH", f"the weights are {weights.name}: depth images will be noise")

    def in_words(self) -> str:
        """What the picture is, for the data set's README."""
        encoding = _ENCODINGS[self.encoding]
        return f"NOISE in the form of: {encoding}" if self.is_noise else f"depth, {encoding}"

    def provenance(self) -> tuple[str, ...]:
        """Lines of the data set's README."""
        weights = self.weights
        kind = "weights that make noise, not depth:" if self.is_noise else "weights"
        return (
            (
                f"depth model: {self.model}, {kind} `{weights.name}`, {weights.bytes:,} bytes, "
                f"sha256 `{weights.sha256}`"
            ),
            (
                f"network input {self.input[0]} x {self.input[1]}, upsampling {self.upsampling.value}, "
                f"precision {self.precision.value}"
            ),
        )


class DepthPicture(Protocol):
    """The keys of a recipe's `[output]` that say how depth is stored."""

    @property
    def depth(self) -> ImageFormat:
        """Its format."""
        ...

    @property
    def depth_quality(self) -> int:
        """1-100."""
        ...

    @property
    def depth_size(self) -> Literal["size"] | tuple[int, int]:
        """Width and height in pixels."""
        ...


class DepthTable(Table):
    """`[depth]`: the network; `input` is (width, height) in pixels.

    `model` may be `none`, and then the other keys mean nothing; a recipe that needs depth refuses it.
    """

    model: str = DEFAULT.name
    weights: Annotated[str, Field(min_length=1)] = DEFAULT.default_weights
    input: tuple[Side, Side] = (640, 480)
    upsampling: Upsampling = Upsampling.ALIGNED
    precision: Precision = Precision.FLOAT32
    micro_batch: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024)],
        Field(description='"auto" or a number from 1 to 1024'),
    ] = "auto"
    encoding: DepthEncoding = DepthEncoding.INVERSE_MINMAX

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_wanted:
            return self
        if problem := unknown_family(self.model):
            meant = nearest(self.model, [*family_names(), NO_DEPTH])
            raise WrongSetting(
                f"model: {problem}, or {NO_DEPTH!r} for composites without depth (found {self.model!r})",
                hint=f'did you mean "{meant}"?'
                if meant
                else f'under [depth] write: model = "{DEFAULT.name}"',
            )
        sides = find_family(self.model).sides
        if not sides.allow(self.input):
            raise ValueError(f"input must be {sides} (found {list(self.input)})")
        try:
            self.planned_weights()
        except ValueError as error:
            raise ValueError(f"weights: {error}") from error
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether depth is made."""
        return self.model != NO_DEPTH

    def planned_weights(self) -> str:
        """The plan's name of `weights`."""
        return find_family(self.model).plan_name(self.weights)

    def refuse_narrow(self, output: DepthPicture) -> None:
        """Raise ValueError unless the picture's format holds what `encoding` needs."""
        if self.is_wanted and self.encoding is DepthEncoding.RELATIVE and output.depth is not ImageFormat.PNG:
            raise ValueError(
                'depth.encoding: "relative" is 16 bit and needs [output] depth = "png" '
                f'(found "{output.depth}")'
            )

    def plan(self, output: DepthPicture, size: tuple[int, int] | None, planned: Depth | None) -> Depth:
        """The plan's part; `size` is that of the other images.

        Digest and structure of the weights are those of `planned`, or empty.
        """
        name = self.planned_weights()
        weights = Weights(name=name, bytes=0, sha256="", structure="", quality=Quality.DEPTH)
        if planned is not None:
            weights = replace(planned.weights, name=name)
        return Depth(
            model=self.model,
            weights=weights,
            input=self.input,
            upsampling=self.upsampling,
            precision=self.precision,
            encoding=self.encoding,
            format=output.depth,
            quality=output.depth_quality,
            size=size if output.depth_size == AS_SIZE else output.depth_size,
        )

    def local(self, resolve: Callable[[str, str], Path]) -> NetworkChoice:
        """Which weights file this machine has, and its micro-batch."""
        name, written = self.planned_weights(), self.weights
        return NetworkChoice(
            name=name,
            written=written,
            file=resolve(written, "depth.weights") if name == FILE else None,
            micro_batch=self.micro_batch,
        )
