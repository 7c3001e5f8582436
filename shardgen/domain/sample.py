"""A sample's recipe and names: pure functions of plan and index (FORMATS: "From photographs to a sample")."""

from __future__ import annotations

from dataclasses import dataclass

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Foreground, ImageFormat, Output, Plan
from shardgen.domain.receipt import ImageKind

SAMPLES_PER_FOLDER = 10_000  # large folders choke shared drives and file browsers


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Which photographs, which flip (0 or 1) and which place a sample is made of."""

    sample: SampleIndex
    background: int
    foreground: int
    flip: int
    column: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """The placed foreground on the canvas, in pixels; (0, 0) is the top left corner."""

    x: int
    y: int
    width: int
    height: int


def recipe_of(plan: Plan, sample: SampleIndex) -> Recipe:
    """Invert `i = ((background * F + foreground) * flips + flip) * places + row * columns + column`."""
    if not 0 <= sample < plan.samples:
        raise ValueError(f"sample {sample} is not in [0, {plan.samples})")
    columns = plan.compose.grid[0]
    rest, place = divmod(sample, plan.place_count)
    rest, flip = divmod(rest, plan.flip_count)
    background, foreground = divmod(rest, len(plan.sources.foregrounds))
    row, column = divmod(place, columns)
    return Recipe(
        sample=sample, background=background, foreground=foreground, flip=flip, column=column, row=row
    )


def unlike(plan: Plan, sample: SampleIndex) -> SampleIndex:
    """A sample at the same place with another background and another foreground, where there are others."""
    pairs, inside = divmod(sample, plan.flip_count * plan.place_count)
    foregrounds, backgrounds = len(plan.sources.foregrounds), len(plan.sources.backgrounds)
    background, foreground = divmod(pairs, foregrounds)
    background = (background + max(1, backgrounds // 2)) % backgrounds
    foreground = (foreground + max(1, foregrounds // 2)) % foregrounds
    pair = background * foregrounds + foreground
    return SampleIndex(pair * plan.flip_count * plan.place_count + inside)


def place(plan: Plan, foreground: Foreground, *, column: int, row: int) -> Rectangle:
    """Where a foreground lies; the last column and row touch the far edge, a single one is centred."""
    canvas_width, canvas_height = plan.compose.canvas
    columns, rows = plan.compose.grid
    return Rectangle(
        x=_offset(canvas_width - foreground.placed_width, column, columns),
        y=_offset(canvas_height - foreground.placed_height, row, rows),
        width=foreground.placed_width,
        height=foreground.placed_height,
    )


def _offset(room: int, step: int, steps: int) -> int:
    return room // 2 if steps == 1 else room * step // (steps - 1)


def name_digits(sample_count: int) -> int:
    """Digits of a sample's number in member names: 7, or as many as the last index needs."""
    return max(7, len(str(sample_count - 1)))


def member_name(kind: ImageKind, sample: SampleIndex, *, sample_count: int, suffix: str) -> str:
    """The member of one image, as in `fgbg/00012/0123456.jpg`."""
    digits = name_digits(sample_count)
    return f"{kind.value}/{sample // SAMPLES_PER_FOLDER:05d}/{sample:0{digits}d}.{suffix}"


def output_format(output: Output, kind: ImageKind) -> ImageFormat:
    """The file format of one kind of image."""
    match kind:
        case ImageKind.FGBG:
            return output.image
        case ImageKind.MASK:
            return output.mask
        case ImageKind.DEPTH:
            return output.depth


def spread_samples(sample_count: int, wanted: int) -> list[SampleIndex]:
    """At most `wanted` samples, evenly spread over the plan, ascending."""
    count = min(sample_count, wanted)
    return [SampleIndex((2 * number + 1) * sample_count // (2 * count)) for number in range(count)]
