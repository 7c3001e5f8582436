"""What the data set's README says about composites."""

from __future__ import annotations

from shardgen.imaging.options import Blend
from shardgen.recipes.base import Card
from shardgen.recipes.composites.placement import Placement
from shardgen.recipes.composites.plan import FGBG, INSTANCES, MASK, CompositesPlan, Flips
from shardgen.recipes.depth import DEPTH

_FLIPS = {
    Flips.NONE: "none",
    Flips.FOREGROUNDS: "every foreground, also mirrored left to right",
    Flips.BACKGROUNDS: "every background, also mirrored left to right",
}
_BLENDS = {
    Blend.MASK: "the foreground's pixels replace the background's under the binary mask",
    Blend.ALPHA: "the foreground is blended with its raw matte; the mask images hold the binary mask",
}


def composites_card(plan: CompositesPlan) -> Card:
    """It holds nothing historic, so the same plan always gives the same text."""
    whose = "the mask of all foregrounds" if plan.most_people > 1 else "the foreground's mask"
    outputs = {
        FGBG: "the composite, RGB",
        MASK: f"{whose}, grey: 255 is foreground, values in between are its resized edge",
        INSTANCES: (
            "which person each pixel belongs to, grey: 0 is background, else the `person` of labels.csv. "
            "Viewers show levels of 1, 2, 3 as black; where nobody is visible, all pixels are 0"
        ),
    }
    if plan.depth is not None:
        outputs[DEPTH] = plan.depth.in_words()
    return Card(
        title="Composites and masks" if plan.depth is None else "Composites, masks and depth",
        introduction=_introduction(plan),
        made_of=(
            f"{len(plan.sources.backgrounds):,} backgrounds, {len(plan.sources.foregrounds):,} foregrounds"
        ),
        how_made=_how_made(plan),
        outputs=outputs,
        labels=(
            "one row per person of a stored sample, in the order of painting: the sources, the flip, and the "
            "place on a grid. `frame_*` is the whole cut-out's rectangle on the canvas; `x` to `area` are "
            "the box and the number of the person's visible pixels there; `visible` is the visible part of "
            "the mask, per mille; `output_*` are the box and the number of pixels in the stored images. A "
            "box ends before `x + width`. For a hidden person all of these but the frame are 0"
        ),
        tasks=("image-segmentation", *(["depth-estimation"] if plan.depth is not None else [])),
        provenance=() if plan.depth is None else plan.depth.provenance(),
    )


def _introduction(plan: CompositesPlan) -> str:
    of, mask = "a foreground", "the foreground's mask"
    if plan.most_people > 1:
        of, mask = "foregrounds", "the mask of them all"
    kinds = f"Composites of {of} on a background"
    if plan.depth is None:
        return f"{kinds}, and {mask}.\n"
    weights = plan.depth.weights
    if plan.depth.is_noise:
        return (
            f"> **THE DEPTH IMAGES ARE NOISE, NOT DEPTH.** They were made with random weights "
            f"(`{weights.name}`) to try things out.\n> Do not train on them. "
            f"Composites and masks are real.\n\n{kinds}, {mask}, and noise in place of depth.\n"
        )
    return f"{kinds}, {mask}, and the estimated depth of each composite.\n{plan.depth.caution}"


def _how_made(plan: CompositesPlan) -> str:
    width, height = plan.compose.canvas
    sizes = [output.size for output in plan.plan.outputs]
    output_width, output_height = plan.output.size
    stored = f"All images are resized to {output_width} x {output_height} pixels"
    if plan.depth is not None and plan.depth.size is not None and len(set(sizes)) > 1:
        stored += f", depth to {plan.depth.size[0]} x {plan.depth.size[1]}"
    return (
        f"1. The background is resized to a canvas of {width} x {height} pixels.\n"
        f"2. {_laid(plan)}: {_BLENDS[plan.compose.blend]}.\n"
        f"3. Places: {_places(plan)}. Flips: {_FLIPS[plan.compose.flips]}.\n"
        f"4. {stored}.\n\n" + _numbers(plan)
    )


def _laid(plan: CompositesPlan) -> str:
    height = plan.compose.foreground_height
    if height is None:
        size = "halved while it is larger than the canvas"
    elif isinstance(height, tuple):
        size = f"{height[0] / 10:g} to {height[1] / 10:g} % as high as the canvas, drawn at random"
    else:
        size = f"{height} pixels high"
    if height is not None:
        size += " (with its transparent margin; smaller where it would not fit)"
    if plan.most_people == 1:
        return f"The foreground, {size}, is laid on it"
    least, most = plan.compose.foregrounds_per_sample
    people = f"{least} to {most}" if least < most else f"{most}"
    return (
        f"{people} foregrounds (the one in the sample's number, and others drawn at random), each {size}, "
        "are laid on it; those lower in the picture are in front"
    )


def _places(plan: CompositesPlan) -> str:
    compose = plan.compose
    if compose.placement is Placement.GRID:
        columns, rows = compose.steps
        return f"a grid of {columns} columns x {rows} rows that touches the far edges"
    text = (
        f"{compose.places} for each foreground, background and flip, drawn by "
        f"`Philox(counter=[0, 0, sample, 0], key=[{compose.seed}, 0])`"
    )
    if compose.overhang:
        text += (
            f"; a cut-out may reach beyond the canvas by up to {compose.overhang / 10:g} % of its width and "
            "height, so there may be samples in which nobody is visible"
        )
    return text


def _numbers(plan: CompositesPlan) -> str:
    place = "place"
    if plan.compose.placement is Placement.GRID:
        columns, rows = plan.compose.steps
        place = _number("row", (columns, "column")) if rows > 1 else "column"
    behind = (plan.flip_count, "flip"), (plan.place_count, place)
    if len(plan.plan.blocks) == 1:
        pair = (len(plan.sources.foregrounds), "foreground")
        return (
            f"The number of a sample is `{_number('background', pair, *behind)}`, with sources sorted by "
            "name and everything counted from 0.\n"
        )
    lines = [
        f"| {number} | {start.sample:,} | {len(sources.backgrounds):,} | {len(sources.foregrounds):,} |\n"
        for number, (start, sources) in enumerate(zip(plan.plan.layout.starts, plan.blocks, strict=True))
    ]
    return (
        "Photographs were added to the plan, so its samples lie in blocks:\n\n"
        "| block | first sample | new backgrounds | new foregrounds |\n|---|---|---|---|\n"
        + "".join(lines)
        + f"\nThe number of a sample is its block's first one plus `{_number('pair', *behind)}`. With F "
        "foregrounds up to this block and f new ones, the pairs of new backgrounds come first, `pair = "
        "background * F + foreground` with new backgrounds counted from 0; behind them those of the earlier "
        "backgrounds with the new foregrounds, `background * f + foreground` with these counted from 0. "
        "Sources are sorted by name in each block, and everything is counted from 0.\n"
    )


def _number(text: str, *digits: tuple[int, str]) -> str:
    """As in `(text * 2 + flip) * 20 + place`; of a digit that has one value only, nothing is said."""
    for count, name in digits:
        if count > 1:
            text = f"({text})" if " " in text else text
            text = f"{text} * {count} + {name}"
    return text
