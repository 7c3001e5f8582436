"""The composites' part of the `shardgen.toml` that `init` writes, and their presets."""

from __future__ import annotations

from shardgen.recipes.base import Preset

TEMPLATE = """\
[recipe]
kind = "composites"     # (plan) what a sample is: people on a background, their mask, and the depth of both

[sources]
# Folders of photographs (JPEG, PNG, WebP, BMP, TIFF), searched with their subfolders. A relative path is
# relative to this file. $SHARDGEN_FOREGROUNDS and $SHARDGEN_BACKGROUNDS override them.
foregrounds = ""
backgrounds = ""
# (plan) How a foreground's mask is found: "alpha" its alpha channel, "flat" a plain background, "grabcut" a
# subject in the middle, "file" NAME.mask.png beside NAME (`shardgen cut-out` makes them); "auto" a mask file,
# alpha or a flat background.
mask = "auto"

[compose]
canvas = [600, 600]     # (plan) width, height in pixels; larger, and the foreground is lost in it
grid = [5, 4]           # (plan) columns, rows: where a foreground is placed
flips = "foregrounds"   # (plan) none | foregrounds | backgrounds: which are also used mirrored
blend = "mask"          # (plan) mask: exact edge, no bleeding | alpha: soft edge

[depth]
model = "densedepth"
weights = "nyu"         # (plan) nyu | kitti | small (for trials) | random:64 (noise, not depth) | a file
input = [640, 480]      # (plan) width, height of the network's input in pixels, multiples of 32
upsampling = "aligned"  # (plan) aligned: as the released weights were trained | half-pixel
precision = "float32"   # (plan) float32 | fast: about twice the speed, a mean error of at most 1 grey level
micro_batch = "auto"    # images the network takes at once on this device: "auto" or a number
encoding = "inverse-minmax"  # (plan) 8 bit, near is white | relative: 16 bit, needs [output] depth = "png"

[output]
size = [200, 200]       # (plan) width, height of the stored images in pixels
image = "jpeg"          # (plan) jpeg | webp | png, here and below
image_quality = 25      # (plan) 1-100; 25 keeps 400,000 samples at about 2 GB
mask = "png"            # (plan) exact, and at this size smaller than JPEG
depth = "jpeg"          # (plan)
depth_quality = 60      # (plan) 1-100
"""

PRESETS = {"grid600": Preset(makes="each cut-out on a grid of 20 places, with mask and depth, 200x200")}
