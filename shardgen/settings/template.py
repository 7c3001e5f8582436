"""The commented `shardgen.toml` that `init` writes; `config` reads what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

_TEMPLATE = """\
# What this run makes. Lines marked (plan) are fixed once the first sample is stored; until then run
# `shardgen plan` after a change. The others are read anew at every start and may differ from machine to
# machine.

[recipe]
kind = "composites"     # (plan) what a sample is: a person on a background, the mask, and the depth of both

[sources]
# Folders of photographs (JPEG, PNG, WebP, BMP, TIFF), searched with their subfolders. A relative path is
# relative to this file. $SHARDGEN_FOREGROUNDS and $SHARDGEN_BACKGROUNDS override them.
foregrounds = {foregrounds}
backgrounds = {backgrounds}
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
weights = {weights}         # (plan) nyu | kitti | small (for trials) | random:64 (noise, not depth) | a file
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

[shards]
size = 100_000          # (plan) samples per shard: what a person sees and can assign by hand
slice_batches = 16      # (plan) batches that a worker leases at a time
batch = 32              # (plan) samples per checkpoint: what a crash can cost

[manifest]
# A file relative to this one, on this machine's own disk, never a network's. For several machines a database
# on a PostgreSQL server, with its password from the environment only:  url = "${{SHARDGEN_MANIFEST}}"  and
# export SHARDGEN_MANIFEST=postgresql+psycopg://user:password@host/database
# For machines that share nothing but this folder, on a Google Drive, say:  url = "folder:"
url = "sqlite:///manifest.sqlite"

[artifacts]
url = "artifacts"       # a folder, relative to this file, that every worker and merge can reach

[lease]
seconds = 120           # after this long, others may take over a silent worker's slice
heartbeat_seconds = 30  # how often a worker renews; at most a third of the above
stall_seconds = 600     # a worker without progress for this long gives up its slice
max_attempts = 6        # deaths without progress before a slice is blocked
max_dead_share = 100    # stop when more per cent of the finished samples are dead letters; 100: never

[folder]
# Only for [manifest] url = "folder:", where machines share this directory and nothing else.
segment_seconds = 300   # a worker publishes its batches this often: what a lost machine can cost
segment_batches = 32    # or after this many batches
settle_seconds = 180    # how long a worker checks for others' older claims on the slice it has begun
silent_seconds = 3600   # After this long without a new file, others may take over a worker's slice
scan_seconds = 60       # how often a worker scans the folder
"""


def settings_text(
    *, foregrounds: Path, backgrounds: Path, weights: str = "nyu", changes: Mapping[str, str] | None = None
) -> str:
    """The commented `shardgen.toml` of `init`; every other default reproduces the reference data set.

    `changes` are other values, as TOML, by key (`compose.grid`: `[2, 2]`).
    """
    text = _TEMPLATE.format(
        foregrounds=_toml_string(str(foregrounds)),
        backgrounds=_toml_string(str(backgrounds)),
        weights=_toml_string(weights),
    )
    for name, value in (changes or {}).items():
        text = _changed(text, name, value)
    return text


def _changed(text: str, name: str, value: str) -> str:
    table, _, key = name.partition(".")
    start = text.index(f"[{table}]\n")
    pattern = re.compile(rf"^({key} = )(?:\"[^\"]*\"|\[[^\]]*\]|[^\s#]+)", re.MULTILINE)
    match = pattern.search(text, start)
    if match is None:
        raise ValueError(f"{name}: no such setting in the template")
    return text[: match.start()] + match[1] + value + text[match.end() :]


def _toml_string(text: str) -> str:
    # JSON strings are TOML basic strings, except that DEL must be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
