"""What the data set's README says of composites."""

from __future__ import annotations

from shardgen.depth.base import Quality
from shardgen.imaging.options import Blend, DepthEncoding
from shardgen.recipes.base import Card
from shardgen.recipes.composites.plan import DEPTH, FGBG, MASK, CompositesPlan, Flips

_FLIPS = {
    Flips.NONE: "none",
    Flips.FOREGROUNDS: "every foreground, also mirrored left to right",
    Flips.BACKGROUNDS: "every background, also mirrored left to right",
}
_BLENDS = {
    Blend.MASK: "the foreground's pixels replace the background's under the binary mask",
    Blend.ALPHA: "the foreground is blended with its raw matte; the mask images hold the binary mask",
}
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


def composites_card(plan: CompositesPlan) -> Card:
    """It holds nothing historic, so the same plan always gives the same text."""
    depth = plan.depth
    encoding = _ENCODINGS[depth.encoding]
    is_noise = depth.weights.quality is Quality.NOISE
    kind = "weights that make noise, not depth:" if is_noise else "weights"
    return Card(
        title="Composites, masks and depth",
        introduction=_introduction(plan),
        made_of=(
            f"{len(plan.sources.backgrounds):,} backgrounds, {len(plan.sources.foregrounds):,} foregrounds"
        ),
        how_made=_how_made(plan),
        outputs={
            FGBG: "the composite, RGB",
            MASK: "the foreground's mask, grey: 255 is foreground, values between are its resized edge",
            DEPTH: f"NOISE in the form of: {encoding}" if is_noise else f"depth, {encoding}",
        },
        labels=(
            "one row per stored sample: its sources, flip, place, and the foreground's rectangle "
            "on the canvas and, as `output_*`, in the images"
        ),
        provenance=(
            (
                f"depth model: {depth.model}, {kind} `{depth.weights.name}`, {depth.weights.bytes:,} bytes, "
                f"sha256 `{depth.weights.sha256}`"
            ),
            (
                f"network input {depth.input[0]} x {depth.input[1]}, upsampling {depth.upsampling.value}, "
                f"precision {depth.precision.value}"
            ),
        ),
    )


def _introduction(plan: CompositesPlan) -> str:
    kinds = "composites of a foreground on a background, the foreground's mask"
    weights = plan.depth.weights
    if weights.quality is Quality.NOISE:
        return (
            f"> **THE DEPTH IMAGES ARE NOISE, NOT DEPTH.** They were made with weights that know nothing "
            f"(`{weights.name}`) to try the machinery.\n> Do not train on them. "
            f"Composites and masks are real.\n\n{kinds.capitalize()}, and noise in the place of depth.\n"
        )
    text = f"{kinds.capitalize()}, and the estimated depth of each composite.\n"
    if weights.quality is Quality.TRIAL:
        text += (
            f"\n> The depth is that of a network for trials (`{weights.name}`): it is there to try the "
            "machinery.\n> Do not train on it; a data set needs other weights.\n"
        )
    return text


def _how_made(plan: CompositesPlan) -> str:
    width, height = plan.compose.canvas
    columns, rows = plan.compose.grid
    output_width, output_height = plan.output.size
    return (
        f"1. The background is resized to a canvas of {width} x {height} pixels.\n"
        "2. The foreground, halved while it is larger than the canvas, is laid on it: "
        f"{_BLENDS[plan.compose.blend]}.\n"
        f"3. Places: a grid of {columns} columns x {rows} rows that touches the far edges. "
        f"Flips: {_FLIPS[plan.compose.flips]}.\n"
        f"4. All three images are resized to {output_width} x {output_height} pixels.\n\n" + _numbers(plan)
    )


def _numbers(plan: CompositesPlan) -> str:
    foregrounds, columns = len(plan.sources.foregrounds), plan.compose.grid[0]
    behind = f"* {plan.flip_count} + flip) * {plan.place_count} + row * {columns} + column`"
    if len(plan.plan.blocks) == 1:
        return (
            f"The number of a sample is `((background * {foregrounds} + foreground) {behind}, "
            "with sources sorted by name and everything counted from 0.\n"
        )
    lines = [
        f"| {number} | {start.sample:,} | {len(sources.backgrounds):,} | {len(sources.foregrounds):,} |\n"
        for number, (start, sources) in enumerate(zip(plan.plan.layout.starts, plan.blocks, strict=True))
    ]
    return (
        "Photographs were added to the plan, so its samples lie in blocks:\n\n"
        "| block | first sample | new backgrounds | new foregrounds |\n|---|---|---|---|\n"
        + "".join(lines)
        + f"\nThe number of a sample is its block's first one plus `(pair {behind}. With F foregrounds up to "
        "this block and f new ones, the pairs of new backgrounds come first, `pair = background * F + "
        "foreground` with new backgrounds counted from 0; behind them those of the earlier backgrounds with "
        "the new foregrounds, `background * f + foreground` with these counted from 0. Sources are sorted by "
        "name in each block, and everything is counted from 0.\n"
    )
