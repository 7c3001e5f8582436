"""The plan of composites: its document, and from a sample's number to its photographs and its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import islice
from math import gcd
from typing import Literal

from shardgen.depth.base import NetworkPlan
from shardgen.depth.families import find_family, unknown_family
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.limits import MAX_SIDE, is_sha256, outside, shown_number
from shardgen.domain.plan import SETTING, Output, Plan
from shardgen.imaging.options import Blend, DepthEncoding, ImageFormat, MaskMode, Rectangle
from shardgen.sources.inventory import MAX_SOURCE_BYTES, Foreground, Sources, inventory_problems

KIND: Literal["composites"] = "composites"
FGBG, MASK, DEPTH = "fgbg", "mask", "depth"
"""The names of the outputs, in the order in which they are stored."""
MAX_PLACES = 10_000  # of a grid; the rows of labels.csv are made for all places of a foreground at once
_TRIES = 8  # combinations looked at for each sample of a sheet, before the rest is taken in order
MAX_STRUCTURE = 200  # characters that describe a network


class Flips(StrEnum):
    """Which photographs are also used mirrored left to right."""

    NONE = "none"
    FOREGROUNDS = "foregrounds"
    BACKGROUNDS = "backgrounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """`canvas` is (width, height) in pixels, `grid` is (columns, rows), `mask` how masks are found."""

    canvas: tuple[int, int]
    grid: tuple[int, int]
    flips: Flips
    blend: Blend
    mask: MaskMode = field(metadata={SETTING: "sources.mask"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth(NetworkPlan):
    """The depth network, and how its output becomes a picture."""

    encoding: DepthEncoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Formats and qualities (1-100) of the three images; `size` is (width, height) in pixels."""

    size: tuple[int, int]
    image: ImageFormat
    image_quality: int
    mask: ImageFormat
    depth: ImageFormat
    depth_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`recipe` in a plan of composites."""

    compose: Compose
    depth: Depth
    output: Formats
    kind: Literal["composites"] = KIND

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Composite, mask and depth."""
        is_wide = self.depth.encoding is DepthEncoding.RELATIVE
        images = (
            (FGBG, self.output.image, 3, 255),
            (MASK, self.output.mask, 1, 255),
            (DEPTH, self.output.depth, 1, 65_535 if is_wide else 255),
        )
        return tuple(
            Output(
                name=name,
                suffix=image_format.suffix,
                channels=channels,
                size=self.output.size,
                full_scale=full_scale,
            )
            for name, image_format, channels, full_scale in images
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Which photographs, which flip (0 or 1) and which place a sample is made of."""

    sample: SampleIndex
    background: int
    foreground: int
    flip: int
    column: int
    row: int


class CompositesPlan:
    """A plan of composites with its parts by name, and what their numbers mean.

    Raises TypeError for a plan of another kind.
    """

    def __init__(self, plan: Plan) -> None:
        document, sources = plan.recipe, plan.blocks[0].sources
        if not isinstance(document, Document) or not isinstance(sources, Sources):
            raise TypeError(f"a plan of {plan.recipe.kind}, not of {KIND}")
        self.plan = plan
        self.document = document
        self.compose, self.depth, self.output = document.compose, document.depth, document.output
        self.sources = sources
        self.samples = plan.samples

    @property
    def flip_count(self) -> int:
        """1 without flips, else 2."""
        return flip_count(self.compose)

    @property
    def place_count(self) -> int:
        """Columns times rows."""
        return place_count(self.compose)

    @cached_property
    def variants(self) -> int:
        """Samples of one background and one foreground."""
        return self.flip_count * self.place_count

    def combination(self, sample: SampleIndex) -> Combination:
        """Invert `i = ((background * F + foreground) * flips + flip) * places + row * columns + column`."""
        if not 0 <= sample < self.samples:
            raise ValueError(f"sample {sample} is not in [0, {self.samples})")
        rest, place = divmod(sample, self.place_count)
        rest, flip = divmod(rest, self.flip_count)
        background, foreground = divmod(rest, len(self.sources.foregrounds))
        row, column = divmod(place, self.compose.grid[0])
        return Combination(
            sample=sample, background=background, foreground=foreground, flip=flip, column=column, row=row
        )

    def covering(self, wanted: int) -> list[SampleIndex]:
        """At most `wanted` samples: each has another background, foreground, flip and place than the last.

        None of a kind comes twice before all came once; then they begin again, in another pairing. Samples at
        equal steps would meet one photograph and place over and over, since the grid has steps of its own.
        """
        backgrounds, foregrounds = len(self.sources.backgrounds), len(self.sources.foregrounds)
        stride = _scattering(self.place_count)
        count = min(wanted, self.samples)
        chosen: dict[SampleIndex, None] = {}
        for tile in range(_TRIES * count):
            if len(chosen) == count:
                break
            # Kinds of one count would be locked to each other if their rounds began alike.
            place = _turn(tile, self.place_count, further=2) * stride % self.place_count
            pair = _turn(tile, backgrounds, further=0) * foregrounds + _turn(tile, foregrounds, further=1)
            variant = tile.bit_count() % self.flip_count * self.place_count + place
            chosen.setdefault(SampleIndex(pair * self.variants + variant))
        rest = (one for one in map(SampleIndex, range(self.samples)) if one not in chosen)
        return [*chosen, *islice(rest, count - len(chosen))]

    def place(self, foreground: Foreground, *, column: int, row: int) -> Rectangle:
        """Where a foreground lies; the last column and row touch the far edge, a single one is centred."""
        canvas_width, canvas_height = self.compose.canvas
        columns, rows = self.compose.grid
        return Rectangle(
            x=_offset(canvas_width - foreground.placed_width, column, columns),
            y=_offset(canvas_height - foreground.placed_height, row, rows),
            width=foreground.placed_width,
            height=foreground.placed_height,
        )

    def problem(self) -> str | None:
        """The first thing that no plan of ours holds, as one line; None when there is none."""
        return next(self._problems(), None)

    def _problems(self) -> Iterator[str]:
        compose, depth, output = self.compose, self.depth, self.output
        sides = {"canvas": compose.canvas, "output.size": output.size, "depth.input": depth.input}
        ranges = [(name, side, MAX_SIDE) for name, pair in sides.items() for side in pair]
        ranges += [("grid", count, MAX_PLACES) for count in compose.grid]
        ranges += [
            ("output.image_quality", output.image_quality, 100),
            ("output.depth_quality", output.depth_quality, 100),
            ("depth.weights.bytes", depth.weights.bytes, MAX_SOURCE_BYTES),
        ]
        yield from filter(None, (outside(*one) for one in ranges))
        if len(depth.weights.structure) > MAX_STRUCTURE:
            yield f"depth.weights.structure: more than {MAX_STRUCTURE} characters"
        if problem := unknown_family(depth.model):
            yield f"depth.model {problem}"
        elif not (allowed := find_family(depth.model).sides).allow(depth.input):
            yield f"depth.input: not {allowed}"
        if self.place_count > MAX_PLACES:
            yield f"grid: {shown_number(self.place_count)} places (at most {MAX_PLACES:,})"
        expected = sample_count(compose, self.sources)
        if self.samples != expected or len(self.plan.blocks) != 1:
            yield f"samples is {shown_number(self.samples)}, but the recipe makes {shown_number(expected)}"
        if not is_sha256(depth.weights.sha256):
            yield "depth.weights.sha256: not a sha256"
        for foreground in self.sources.foregrounds:
            placed = (foreground.placed_width, foreground.placed_height)
            if any(not 1 <= side <= limit for side, limit in zip(placed, compose.canvas, strict=True)):
                yield f"{foreground.name!r}: does not fit on the canvas"
        yield from inventory_problems(self.sources)


def flip_count(compose: Compose) -> int:
    """1 without flips, else 2."""
    return 1 if compose.flips is Flips.NONE else 2


def place_count(compose: Compose) -> int:
    """Columns times rows."""
    columns, rows = compose.grid
    return columns * rows


def sample_count(compose: Compose, sources: Sources) -> int:
    """How many samples these photographs make."""
    pairs = len(sources.backgrounds) * len(sources.foregrounds)
    return pairs * flip_count(compose) * place_count(compose)


def _turn(tile: int, count: int, *, further: int) -> int:
    """Which of `count` the tile shows: each once a round; every round begins so much further on."""
    return (tile + further * (tile // count)) % count


def _scattering(places: int) -> int:
    """A step coprime to the places, near the golden section: neighbours on a sheet lie far apart."""
    return next(step for step in range(max(1, round(places * 0.618)), places + 2) if gcd(step, places) == 1)


def _offset(room: int, step: int, steps: int) -> int:
    return room // 2 if steps == 1 else room * step // (steps - 1)
