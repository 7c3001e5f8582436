"""The plan of composites: its document, and from a sample's number to its photographs and its place."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain, islice
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
        document = plan.recipe
        blocks = tuple(block.sources for block in plan.blocks if isinstance(block.sources, Sources))
        if not isinstance(document, Document) or len(blocks) != len(plan.blocks):
            raise TypeError(f"a plan of {plan.recipe.kind}, not of {KIND}")
        self.plan = plan
        self.document = document
        self.compose, self.depth, self.output = document.compose, document.depth, document.output
        self.sources = Sources(
            backgrounds=tuple(chain.from_iterable(part.backgrounds for part in blocks)),
            foregrounds=tuple(chain.from_iterable(part.foregrounds for part in blocks)),
        )
        """The photographs of all blocks, by their indices; sorted by name in each block only."""
        self.samples = plan.samples
        self.blocks = blocks
        self._pairs = Pairs(blocks)

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
        """Invert `i = (pair * flips + flip) * places + row * columns + column`; raises ValueError."""
        if not 0 <= sample < self.samples:
            raise ValueError(f"sample {sample} is not in [0, {self.samples})")
        rest, place = divmod(sample, self.place_count)
        pair, flip = divmod(rest, self.flip_count)
        background, foreground = self.pair(pair)
        row, column = divmod(place, self.compose.grid[0])
        return Combination(
            sample=sample, background=background, foreground=foreground, flip=flip, column=column, row=row
        )

    def pair(self, number: int) -> tuple[int, int]:
        """Background and foreground of the samples from `number * variants` on."""
        return self._pairs.of(number)

    def sample(self, made_of: Combination) -> SampleIndex:
        """The way back: the sample of this combination, whatever number it says."""
        pair = self._pairs.number(made_of.background, made_of.foreground)
        place = made_of.row * self.compose.grid[0] + made_of.column
        return SampleIndex((pair * self.flip_count + made_of.flip) * self.place_count + place)

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
            pair = self._pairs.number(
                _turn(tile, backgrounds, further=0), _turn(tile, foregrounds, further=1)
            )
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
        yield from self._block_problems()
        if not is_sha256(depth.weights.sha256):
            yield "depth.weights.sha256: not a sha256"
        for foreground in self.sources.foregrounds:
            placed = (foreground.placed_width, foreground.placed_height)
            if any(not 1 <= side <= limit for side, limit in zip(placed, compose.canvas, strict=True)):
                yield f"{foreground.name!r}: does not fit on the canvas"
        yield from inventory_problems(self.sources)

    def _block_problems(self) -> Iterator[str]:
        for number, (block, pairs) in enumerate(zip(self.plan.blocks, self._pairs.counts, strict=True)):
            if not pairs:
                yield (
                    "no background or no foreground"
                    if number == 0
                    else f"block {number}: no photograph is new"
                )
            expected = pairs * self.flip_count * self.place_count
            if block.samples != expected:
                where = "" if len(self.plan.blocks) == 1 else f"block {number}: "
                found, made = shown_number(block.samples), shown_number(expected)
                yield f"{where}samples is {found}, but the recipe makes {made}"
        for same in (self.sources.backgrounds, self.sources.foregrounds):
            name, times = Counter(one.name for one in same).most_common(1)[0] if same else ("", 0)
            if times > 1:
                yield f"{name!r}: is there {times} times"


class Pairs:
    """Numbers the pairs of backgrounds and foregrounds, so that a block of new ones only adds at the end.

    With b and f new ones beside B and F earlier ones, first each new background stands on all F + f
    foregrounds, then each earlier one on the f new foregrounds. Takes memory for each block, not each pair.
    """

    def __init__(self, blocks: Sequence[Sources]) -> None:
        self.counts: list[int] = []
        """Pairs of each block."""
        self._starts: list[int] = []
        self._backgrounds, self._foregrounds = [0], [0]
        start = 0
        for sources in blocks:
            earlier, new = self._backgrounds[-1], len(sources.backgrounds)
            self._backgrounds.append(earlier + new)
            foregrounds = self._foregrounds[-1] + len(sources.foregrounds)
            self._foregrounds.append(foregrounds)
            self._starts.append(start)
            self.counts.append(new * foregrounds + earlier * len(sources.foregrounds))
            start += self.counts[-1]

    def of(self, number: int) -> tuple[int, int]:
        """Background and foreground of a pair."""
        block = bisect_right(self._starts, number) - 1
        rest = number - self._starts[block]
        earlier, backgrounds = self._backgrounds[block : block + 2]
        old, foregrounds = self._foregrounds[block : block + 2]
        on_new = (backgrounds - earlier) * foregrounds
        if rest < on_new:
            background, foreground = divmod(rest, foregrounds)
            return earlier + background, foreground
        background, foreground = divmod(rest - on_new, foregrounds - old)
        return background, old + foreground

    def number(self, background: int, foreground: int) -> int:
        """The way back."""
        # The block of both is that of the later one; of blocks without backgrounds none starts with this one.
        with_background = bisect_right(self._backgrounds, background) - 1
        with_foreground = bisect_right(self._foregrounds, foreground) - 1
        block = max(with_background, with_foreground)
        earlier, backgrounds = self._backgrounds[block : block + 2]
        old, foregrounds = self._foregrounds[block : block + 2]
        if with_background == block:
            return self._starts[block] + (background - earlier) * foregrounds + foreground
        on_new = (backgrounds - earlier) * foregrounds
        return self._starts[block] + on_new + background * (foregrounds - old) + foreground - old


def flip_count(compose: Compose) -> int:
    """1 without flips, else 2."""
    return 1 if compose.flips is Flips.NONE else 2


def place_count(compose: Compose) -> int:
    """Columns times rows."""
    columns, rows = compose.grid
    return columns * rows


def sample_count(compose: Compose, sources: Sources) -> int:
    """How many samples these photographs make."""
    return sample_counts(compose, [sources])[0]


def sample_counts(compose: Compose, blocks: Sequence[Sources]) -> list[int]:
    """How many samples the photographs of each block add to those of the blocks before it."""
    return [pairs * flip_count(compose) * place_count(compose) for pairs in Pairs(blocks).counts]


def _turn(tile: int, count: int, *, further: int) -> int:
    """Which of `count` the tile shows: each once a round; every round begins so much further on."""
    return (tile + further * (tile // count)) % count


def _scattering(places: int) -> int:
    """A step coprime to the places, near the golden section: neighbours on a sheet lie far apart."""
    return next(step for step in range(max(1, round(places * 0.618)), places + 2) if gcd(step, places) == 1)


def _offset(room: int, step: int, steps: int) -> int:
    return room // 2 if steps == 1 else room * step // (steps - 1)
