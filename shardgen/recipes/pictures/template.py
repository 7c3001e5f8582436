"""The part of the `shardgen.toml` that `init` writes for the depth of pictures, and its preset."""

from __future__ import annotations

from shardgen.recipes.base import Preset
from shardgen.recipes.depth import DEPTH_KEYS

TEMPLATE = f"""\
[recipe]
kind = "depth"          # (plan) what a sample is: a picture that you have, and its depth

[sources]
# A folder of pictures of any sizes (JPEG, PNG, WebP, BMP, TIFF; HEIC with the extra "heic"), subfolders too.
# A relative path is relative to this file. $SHARDGEN_PICTURES overrides it.
pictures = ""

[depth]
model = "densedepth"    # (plan) the kind of network; densedepth is the only one
{DEPTH_KEYS}
[output]
size = "source"         # (plan) width, height of the stored images in pixels | "source": as each picture is
image = "jpeg"          # (plan) jpeg | webp | png, here and below
image_quality = 90      # (plan) 1-100
depth = "jpeg"          # (plan)
depth_quality = 90      # (plan) 1-100
depth_size = "size"     # (plan) width, height of the depth images in pixels | "size": as above
"""

PRESETS = {"depth-of-folder": Preset(makes="the depth of every picture in a folder")}
