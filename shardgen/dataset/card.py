"""`README.md` inside the final zip: what the data set is, for someone who has only the zip."""

from __future__ import annotations

from shardgen.dataset.statistics import Statistics
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind
from shardgen.domain.sample import member_name, output_format
from shardgen.imaging.options import Blend, DepthEncoding
from shardgen.recipes.composites.document import Flips

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


def dataset_card(plan: Plan, statistics: Statistics, *, stored: int, dead_letters: int) -> bytes:
    """Write the card; it holds nothing historic, so the same plan always gives the same bytes."""
    parts = (
        _title(plan, stored),
        _counts(plan, stored, dead_letters),
        _recipe(plan),
        _layout(plan),
        _statistics_table(statistics),
        _reading(plan),
        _provenance(plan),
    )
    return "\n".join(parts).encode()


def _title(plan: Plan, stored: int) -> str:
    kinds = "composites of a foreground on a background, the foreground's mask"
    title = f"# Composites, masks and depth: {stored:,} samples\n"
    if plan.depth.weights.is_random:
        return (
            f"{title}\n> **THE DEPTH IMAGES ARE NOISE, NOT DEPTH.** They were made with random weights "
            f"(`{plan.depth.weights.name}`) to try the machinery.\n> Do not train on them. "
            f"Composites and masks are real.\n\n{kinds.capitalize()}, and noise in the place of depth.\n"
        )
    text = f"{title}\n{kinds.capitalize()}, and the estimated depth of each composite.\n"
    if plan.depth.weights.is_small:
        text += (
            "\n> The depth is that of the small network that ships with shardgen, trained on rendered scenes "
            "only:\n> for trying the machinery. Do not train on it; a data set needs the released weights "
            "(`nyu`).\n"
        )
    return text


def _counts(plan: Plan, stored: int, dead_letters: int) -> str:
    return (
        "## Counts\n\n"
        f"- planned: {plan.samples:,} samples, each one stored or listed in `dead_letters.csv`\n"
        f"- stored: {stored:,} samples, {3 * stored:,} images\n"
        f"- dead letters: {dead_letters:,} samples that could not be made, each with its reason\n"
        f"- sources: {len(plan.sources.backgrounds):,} backgrounds, "
        f"{len(plan.sources.foregrounds):,} foregrounds\n"
    )


def _recipe(plan: Plan) -> str:
    width, height = plan.compose.canvas
    columns, rows = plan.compose.grid
    output_width, output_height = plan.output.size
    foregrounds, flips, places = len(plan.sources.foregrounds), plan.flip_count, plan.place_count
    return (
        "## How a sample is made\n\n"
        f"1. The background is resized to a canvas of {width} x {height} pixels.\n"
        "2. The foreground, halved while it is larger than the canvas, is laid on it: "
        f"{_BLENDS[plan.compose.blend]}.\n"
        f"3. Places: a grid of {columns} columns x {rows} rows that touches the far edges. "
        f"Flips: {_FLIPS[plan.compose.flips]}.\n"
        f"4. All three images are resized to {output_width} x {output_height} pixels.\n\n"
        "The number of a sample is "
        f"`((background * {foregrounds} + foreground) * {flips} + flip) * {places} "
        f"+ row * {columns} + column`, "
        "with sources sorted by name and everything counted from 0.\n"
    )


def _layout(plan: Plan) -> str:
    lines = [f"- `{_example(plan, kind)}`: {_described(plan, kind)}" for kind in ImageKind]
    return (
        "## Layout\n\n" + "\n".join(lines) + "\n"
        "- `labels.csv`: one row per stored sample: its sources, flip, place, and the foreground's rectangle "
        "on the canvas and, as `output_*`, in the images\n"
        "- `stats.json`: the statistics below\n"
        "- `dead_letters.csv`: planned samples that are not here, and why\n"
        "- `plan.json`: the exact plan, with the sha256 of every source photograph\n"
        "- `contact_sheet.png`: some samples to look at\n"
    )


def _example(plan: Plan, kind: ImageKind) -> str:
    suffix = output_format(plan.output, kind).suffix
    return member_name(kind, SampleIndex(0), sample_count=plan.samples, suffix=suffix)


def _described(plan: Plan, kind: ImageKind) -> str:
    match kind:
        case ImageKind.FGBG:
            return "the composite, RGB"
        case ImageKind.MASK:
            return "the foreground's mask, grey: 255 is foreground, values between are its resized edge"
        case ImageKind.DEPTH:
            encoding = _ENCODINGS[plan.depth.encoding]
            return (
                f"NOISE in the form of: {encoding}" if plan.depth.weights.is_random else f"depth, {encoding}"
            )


def _statistics_table(statistics: Statistics) -> str:
    lines = [
        "## Statistics",
        "",
        "Over every pixel of every image as stored, from 0 to 1; population std.",
        "",
    ]
    lines += ["| | mean | std | images |", "|---|---|---|---|"]
    for kind, values in statistics.items():
        mean, std = (", ".join(f"{value:.4f}" for value in part) or "-" for part in (values.mean, values.std))
        lines.append(f"| {kind.value} | {mean} | {std} | {values.images:,} |")
    return "\n".join(lines) + "\n"


def _reading(plan: Plan) -> str:
    suffixes = {kind: output_format(plan.output, kind).suffix for kind in ImageKind}
    folders = {kind.value: suffix for kind, suffix in suffixes.items()}
    digits = len(_example(plan, ImageKind.FGBG).rpartition("/")[2].partition(".")[0])
    return f"""## Reading it in Python

```python
import csv, io, zipfile
from PIL import Image

suffixes = {folders}
with zipfile.ZipFile("dataset.zip") as archive:
    with archive.open("labels.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            sample = int(row["sample"])
            name = f"{{sample // 10000:05d}}/{{sample:0{digits}d}}"
            images = {{
                kind: Image.open(archive.open(f"{{kind}}/{{name}}.{{suffix}}"))
                for kind, suffix in suffixes.items()
            }}
```
"""


def _provenance(plan: Plan) -> str:
    depth = plan.depth
    kind = "random weights: noise, not depth" if depth.weights.is_random else "weights"
    return (
        "## Provenance\n\n"
        f"- plan: sha256 `{plan.fingerprint}` (of `plan.json`)\n"
        f"- depth model: {depth.model}, {kind} `{depth.weights.name}`, {depth.weights.bytes:,} bytes, "
        f"sha256 `{depth.weights.sha256}`\n"
        f"- network input {depth.input[0]} x {depth.input[1]}, upsampling {depth.upsampling.value}, "
        f"precision {depth.precision.value}\n"
    )
