"""Draw what a data set's labels say on its pictures.

python examples/show_labels.py people.zip labels.png 0 17 230

Each row is a sample: the composite with each cut-out's frame (thin) and the box of its visible part (thick),
the mask or the people, and depth if there is any. Needs nothing but shardgen.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import shardgen

COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0"]
SIDES = ("x", "y", "width", "height")
SCALE = 2


def people_of(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The labels of each person; if there may be several, a sample has lists."""
    labels = {name: value for name, value in sample.items() if not isinstance(value, np.ndarray)}
    if not isinstance(labels["person"], list):
        return [labels]
    count = len(labels["person"])
    return [
        {name: value[at] if isinstance(value, list) else value for name, value in labels.items()}
        for at in range(count)
    ]


def outline(draw: ImageDraw.ImageDraw, box: list[float], colour: str, width: int) -> None:
    """A box of x, y, width, height in pixels of the picture."""
    x, y, across, down = (SCALE * side for side in box)
    if across and down:
        draw.rectangle([x, y, x + across - 1, y + down - 1], outline=colour, width=width)


def row_of(sample: dict[str, Any], canvas: tuple[int, int]) -> Image.Image:
    """The pictures of a sample side by side."""
    composite = Image.fromarray(sample["fgbg"])
    width, height = composite.size
    composite = composite.resize((SCALE * width, SCALE * height))
    draw = ImageDraw.Draw(composite)
    for person, colour in zip(people_of(sample), COLOURS, strict=False):
        scales = (width / canvas[0], height / canvas[1]) * 2
        frame = [person[f"frame_{side}"] * scale for side, scale in zip(SIDES, scales, strict=True)]
        outline(draw, frame, colour, 1)
        outline(draw, [person[f"output_{side}"] for side in SIDES], colour, 3)
    pictures = [composite]
    if "instances" in sample:
        people = Image.fromarray(sample["instances"]).convert("P")
        people.putpalette([0, 0, 0, *(part for one in COLOURS for part in bytes.fromhex(one[1:]))])
        pictures.append(people.convert("RGB"))
    else:
        pictures.append(Image.fromarray(sample["mask"]))
    if "depth" in sample:
        depth = sample["depth"]
        pictures.append(Image.fromarray((depth >> 8).astype(np.uint8) if depth.dtype == np.uint16 else depth))
    row = Image.new("RGB", (len(pictures) * composite.width, composite.height))
    for at, picture in enumerate(pictures):
        row.paste(picture.resize(composite.size, Image.Resampling.NEAREST), (at * composite.width, 0))
    return row


def main() -> None:
    """Draw the samples that are named, by their places in the data set."""
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/show_labels.py ZIP PICTURE SAMPLE [SAMPLE ...]")
    path, output, *places = sys.argv[1:]
    data = shardgen.DataSet(path)
    recipe: Any = data.plan.recipe
    if recipe.kind != "composites":
        sys.exit(f"{path}: its samples have no boxes")
    canvas = recipe.compose.canvas
    rows = [row_of(data[int(place)], canvas) for place in places]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(output)


if __name__ == "__main__":
    main()
