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

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.limits import MAX_SIDE, outside, shown_number
from shardgen.domain.plan import NOTHING, RANGE, SETTING, Output, Plan
from shardgen.imaging.options import Blend, ImageFormat, MaskMode, Rectangle
from shardgen.recipes.composites.placement import (
    MAX_PEOPLE,
    MAX_SEED,
    Height,
    Person,
    Placement,
    Words,
    drawn,
    grid_offset,
    heights,
    random_offset,
    size_at,
    untaken,
    words_of,
)
from shardgen.recipes.depth import Depth
from shardgen.sources.inventory import Foreground, Sources, inventory_problems

KIND: Literal["composites"] = "composites"
FGBG, MASK, INSTANCES = "fgbg", "mask", "instances"
"""The names of the outputs, in the order in which they are stored; depth comes behind the mask."""
MAX_PLACES = 10_000  # of a pair; the rows of labels.csv are made for all places of a foreground at once
_TRIES = 8  # combinations looked at for each sample of a sheet, before the rest is taken in order


class Flips(StrEnum):
    """Which photographs are also used mirrored left to right."""

    NONE = "none"
    FOREGROUNDS = "foregrounds"
    BACKGROUNDS = "backgrounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """`canvas` is (width, height) in pixels, `mask` how masks are found.

    `grid` (columns, rows) belongs to one placement, `places` (of each pair and flip) and `seed` to the other,
    and are None with its opposite; so do a range of heights, `overhang` (per mille of a figure's side) and
    more than one of `foregrounds_per_sample` (least, most).
    """

    canvas: tuple[int, int]
    placement: Placement
    grid: tuple[int, int] | None
    places: int | None
    seed: int | None
    foreground_height: Height = field(metadata={RANGE: True, NOTHING: "halved"})
    overhang: int
    foregrounds_per_sample: tuple[int, int] = field(metadata={RANGE: True})
    flips: Flips
    blend: Blend
    mask: MaskMode = field(metadata={SETTING: "sources.mask"})

    @property
    def steps(self) -> tuple[int, int]:
        """Columns and rows; places at random are all in one row."""
        return self.grid or (self.places or 1, 1)

    def problems(self) -> Iterator[str]:
        """What no plan of ours holds, a line each."""
        for side in self.canvas:
            yield from filter(None, [outside("canvas", side, MAX_SIDE)])
        if self.placement is Placement.GRID:
            yield from self._grid_problems()
        else:
            yield from self._random_problems()
        if not isinstance(self.foreground_height, tuple):
            height = 1 if self.foreground_height is None else self.foreground_height
            yield from filter(None, [outside("foreground_height", height, MAX_SIDE)])

    def _grid_problems(self) -> Iterator[str]:
        if self.grid is None:
            yield "grid: is missing"
            return
        wrong = [outside("grid", count, MAX_PLACES) for count in self.grid]
        yield from filter(None, wrong)
        if not any(wrong) and (count := place_count(self)) > MAX_PLACES:
            yield f"grid: {shown_number(count)} places (at most {MAX_PLACES:,})"
        others = (self.places, self.seed, self.overhang, self.foregrounds_per_sample)
        if others != (None, None, 0, (1, 1)) or isinstance(self.foreground_height, tuple):
            yield "a grid with what belongs to places at random"

    def _random_problems(self) -> Iterator[str]:
        if self.grid is not None or self.places is None or self.seed is None:
            yield "places at random with a grid, or without a number or a seed"
            return
        yield from filter(None, [outside("places", self.places, MAX_PLACES)])
        if not 0 <= self.seed <= MAX_SEED:
            yield f"seed is {shown_number(self.seed)} (0 to {MAX_SEED:,})"
        if not 0 <= self.overhang <= 1000:
            yield f"overhang is {shown_number(self.overhang)} (0 to 1,000)"
        least, most = self.foregrounds_per_sample
        if not 1 <= least <= most <= MAX_PEOPLE:
            yield f"foregrounds_per_sample: not two numbers from 1 to {MAX_PEOPLE}, the smaller one first"
        if isinstance(self.foreground_height, tuple):
            lowest, highest = self.foreground_height
            if not 1 <= lowest <= highest <= 1000:
                yield "foreground_height: not two numbers from 1 to 1,000, the smaller one first"
            elif (found := heights((lowest, highest), self.canvas))[0] > found[1]:
                yield "foreground_height: no height in whole pixels lies between the two"


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Formats of composite and mask, quality (1-100) of the former; `size` is (width, height) in pixels."""

    size: tuple[int, int]
    image: ImageFormat
    image_quality: int
    mask: ImageFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`recipe` in a plan of composites."""

    compose: Compose
    depth: Depth | None
    output: Formats
    kind: Literal["composites"] = KIND

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Composite and mask, depth if it is made, and instances where several people may be in a picture."""
        depth = [] if self.depth is None else [self.depth.output]
        instances = []
        if self.compose.foregrounds_per_sample[1] > 1:
            instances = [self._output(INSTANCES, ImageFormat.PNG, channels=1, full_scale=None)]
        return (
            self._output(FGBG, self.output.image, channels=3, full_scale=255),
            self._output(MASK, self.output.mask, channels=1, full_scale=255),
            *depth,
            *instances,
        )

    def _output(self, name: str, stored_as: ImageFormat, *, channels: int, full_scale: int | None) -> Output:
        return Output(
            name=name,
            suffix=stored_as.suffix,
            channels=channels,
            size=self.output.size,
            full_scale=full_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Which photographs, which flip (0 or 1) and which place a sample is made of.

    Of several people `foreground` is the first. Places at random are counted by `column`, in row 0.
    """

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
        self._words = Words(self.compose.seed or 0, self.compose.foregrounds_per_sample[1])

    @property
    def most_people(self) -> int:
        """That a sample may have."""
        return self.compose.foregrounds_per_sample[1]

    @property
    def flip_count(self) -> int:
        """1 without flips, else 2."""
        return flip_count(self.compose)

    @property
    def place_count(self) -> int:
        """Places of each pair and flip."""
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
        row, column = divmod(place, self.compose.steps[0])
        return Combination(
            sample=sample, background=background, foreground=foreground, flip=flip, column=column, row=row
        )

    def pair(self, number: int) -> tuple[int, int]:
        """Background and foreground of the samples from `number * variants` on."""
        return self._pairs.of(number)

    def sample(self, made_of: Combination) -> SampleIndex:
        """The way back: the sample of this combination, whatever number it says."""
        pair = self._pairs.number(made_of.background, made_of.foreground)
        place = made_of.row * self.compose.steps[0] + made_of.column
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

    def people(self, sample: SampleIndex) -> tuple[Person, ...]:
        """Who is in a sample, in the order of painting: by the lower edge, ties by the draw."""
        made_of = self.combination(sample)
        if self.compose.placement is Placement.GRID:
            frame = self.place(made_of.foreground, column=made_of.column, row=made_of.row)
            return (
                Person(
                    foreground=made_of.foreground, is_mirrored=self._is_mirrored(made_of.flip), frame=frame
                ),
            )
        people = self._drawn(made_of)
        return tuple(sorted(people, key=lambda person: person.frame.y + person.frame.height))

    def _is_mirrored(self, flip: int) -> bool:
        return self.compose.flips is Flips.FOREGROUNDS and flip == 1

    def _drawn(self, made_of: Combination) -> list[Person]:
        """Who is in a sample, in the order of the draw; the first is the pair's foreground."""
        compose = self.compose
        words = self._words.of(made_of.sample)
        people: list[Person] = []
        for number, index in enumerate(self._drawn_foregrounds(made_of, words)):
            _which, mirror, height, x, y = words_of(words, number)
            is_mirrored = self._is_mirrored(drawn(mirror, 0, 1) if number else made_of.flip)
            across, down = self._size(self.sources.foregrounds[index], height)
            frame = Rectangle(
                x=random_offset(x, across, compose.canvas[0], compose.overhang),
                y=random_offset(y, down, compose.canvas[1], compose.overhang),
                width=across,
                height=down,
            )
            people.append(Person(foreground=index, is_mirrored=is_mirrored, frame=frame))
        return people

    def foregrounds_of(self, sample: SampleIndex) -> list[int]:
        """Whose pictures are in a sample, in the order of the draw; nothing else is worked out."""
        made_of = self.combination(sample)
        if self.most_people == 1:
            return [made_of.foreground]
        return self._drawn_foregrounds(made_of, self._words.of(sample))

    def _drawn_foregrounds(self, made_of: Combination, words: Sequence[int]) -> list[int]:
        known = self._pairs.foregrounds_until(made_of.sample // self.variants)
        count = min(drawn(words[0], *self.compose.foregrounds_per_sample), known)
        found = [made_of.foreground]
        for number in range(1, count):
            found.append(untaken(drawn(words_of(words, number)[0], 0, known - number - 1), found))
        return found

    def _size(self, foreground: Foreground, word: int) -> tuple[int, int]:
        compose = self.compose
        if not isinstance(compose.foreground_height, tuple):
            return foreground.placed_width, foreground.placed_height
        height = drawn(word, *heights(compose.foreground_height, compose.canvas))
        return size_at((foreground.width, foreground.height), height, compose.canvas)

    def place(self, foreground: int, *, column: int, row: int) -> Rectangle:
        """Where a foreground lies on the grid."""
        one = self.sources.foregrounds[foreground]
        columns, rows = self.compose.steps
        return Rectangle(
            x=grid_offset(self.compose.canvas[0] - one.placed_width, column, columns),
            y=grid_offset(self.compose.canvas[1] - one.placed_height, row, rows),
            width=one.placed_width,
            height=one.placed_height,
        )

    def problem(self) -> str | None:
        """The first thing that no plan of ours holds, as one line; None when there is none."""
        return next(self._problems(), None)

    def _problems(self) -> Iterator[str]:
        compose, depth, output = self.compose, self.depth, self.output
        wrong = list(compose.problems())
        yield from wrong
        sides = [outside("output.size", side, MAX_SIDE) for side in output.size]
        yield from filter(None, [*sides, outside("output.image_quality", output.image_quality, 100)])
        if depth is not None:
            yield from depth.problems()
            if depth.size is None:
                yield "output.depth_size: is missing"
        yield from self._block_problems()
        yield from inventory_problems(self.sources)
        for foreground in () if wrong else self.sources.foregrounds:
            placed = (foreground.placed_width, foreground.placed_height)
            if any(not 1 <= side <= limit for side, limit in zip(placed, compose.canvas, strict=True)):
                yield f"{foreground.name!r}: does not fit on the canvas"
            elif placed != largest_size(compose, (foreground.width, foreground.height), halved=placed):
                yield f"{foreground.name!r}: is not placed as large as foreground_height says"

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

    def foregrounds_until(self, number: int) -> int:
        """How many foregrounds there are up to the block of a pair."""
        return self._foregrounds[bisect_right(self._starts, number)]

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
    """Places of each pair and flip: columns times rows, or so many at random."""
    columns, rows = compose.steps
    return columns * rows


def largest_size(compose: Compose, whole: tuple[int, int], *, halved: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a cut-out, `whole`, as large as it is placed; `halved` is what fits by halving."""
    wanted = compose.foreground_height
    if wanted is None:
        return halved
    height = heights(wanted, compose.canvas)[1] if isinstance(wanted, tuple) else wanted
    return size_at(whole, height, compose.canvas)


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
