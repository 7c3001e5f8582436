"""The composites' part of the `shardgen.toml` that `init` writes, and their presets."""

from __future__ import annotations

from collections.abc import Mapping

from shardgen.recipes.base import Preset
from shardgen.recipes.depth import DEPTH_KEYS

TEMPLATE = f"""\
[recipe]
kind = "composites"     # (plan) what a sample is: people on a background, their masks and, if wanted, depth

[sources]
# Folders of photographs (JPEG, PNG, WebP, BMP, TIFF; HEIC with the extra "heic"), subfolders too. A relative
# path is relative to this file. $SHARDGEN_FOREGROUNDS and $SHARDGEN_BACKGROUNDS override them.
foregrounds = ""
backgrounds = ""
# (plan) Where masks come from. "file": NAME.mask.png beside NAME (`shardgen cut-out` makes them); "alpha":
# the alpha channel; "flat": a plain background; "grabcut": a guess, for a subject in the middle; "auto": a
# mask file, else the alpha channel, else a plain background.
mask = "auto"

[compose]
canvas = [600, 600]     # (plan) width, height in pixels of the picture before it is resized to [output] size
placement = "grid"      # (plan) grid | random: where a foreground is placed
grid = [5, 4]           # (plan) columns, rows
places = 20             # (plan) random places for each foreground on each background, and as many mirrored
seed = 0                # (plan) a whole number; a different one gives different places, sizes and people
foregrounds_per_sample = [1, 1]  # (plan) the fewest and the most people in a picture
# (plan) "halved": halved until it fits; or a number of pixels; or, with random places, from and to per mille
# of the canvas's height, as in [300, 600]. This is the height of the whole cut-out, including its transparent
# margin: crop the file for exact sizes.
foreground_height = "halved"
overhang = 0            # (plan) how far a cut-out may reach beyond the edge: per mille of its width, height
flips = "foregrounds"   # (plan) none | foregrounds | backgrounds: what to use mirrored as well
blend = "mask"          # (plan) mask: exact edge, no bleeding | alpha: soft edge

[depth]
model = "densedepth"    # (plan) densedepth | none: only composites and masks
{DEPTH_KEYS}
[output]
size = [200, 200]       # (plan) width, height of the stored images in pixels
image = "jpeg"          # (plan) jpeg | webp | png, here and below
image_quality = 25      # (plan) 1-100; lower makes a smaller zip
mask = "png"            # (plan) png is exact, and smaller than jpeg for small masks
depth = "jpeg"          # (plan)
depth_quality = 60      # (plan) 1-100
depth_size = "size"     # (plan) width, height of the depth images in pixels | "size": same as above
"""

_GRID: Mapping[str, None] = {
    f"compose.{key}": None for key in ("places", "seed", "foregrounds_per_sample", "overhang")
}
_RANDOM = {"compose.placement": '"random"', "compose.grid": None}
_NO_DEPTH: Mapping[str, str | None] = {
    "depth.model": '"none"',
    **{
        f"depth.{key}": None
        for key in ("weights", "input", "upsampling", "precision", "micro_batch", "encoding")
    },
    **{f"output.{key}": None for key in ("depth", "depth_quality", "depth_size")},
}

PRESETS = {
    "grid600": Preset(makes="composites on a grid of 20 places, 200x200, with depth", values=_GRID),
    "random224": Preset(
        makes="composites at random places and heights, 224x224, with depth",
        values={
            **_RANDOM,
            "compose.canvas": "[224, 224]",
            "compose.foreground_height": "[300, 600]",
            "output.size": "[224, 224]",
            "output.depth_size": "[112, 112]",
        },
    ),
    "museum704": Preset(
        makes="composites at random places with soft edges, 224x224, with depth",
        values={
            **_RANDOM,
            "compose.canvas": "[704, 704]",
            "compose.foreground_height": "340",
            "compose.blend": '"alpha"',
            "output.size": "[224, 224]",
        },
    ),
    "masks-only": Preset(
        makes="grid600 without depth, and without TensorFlow", values={**_GRID, **_NO_DEPTH}
    ),
}
